"""One of two processes that train together: ``python two_processes.py NUMBER PORT``; writes JSON."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    MultilevelConfig,
    create_network_hierarchy,
)
from opifex.training.placement import Placement

INPUTS = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
TARGETS = np.sin(INPUTS).sum(axis=1, keepdims=True)
PARTS = 8


def loss(model, inputs, targets):
    return jnp.mean((model(inputs) - targets) ** 2)


def losses(mesh, **settings):
    """Those of a cascade whose coarse level uses fewer devices than there are."""
    placement = Placement(mesh, parts=PARTS, **settings)
    models = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
    config = MultilevelConfig(num_levels=2, placement=placement)
    trainer = CascadeTrainer(models, MultilevelAdam(1e-2), config=config)
    history = trainer.fit(
        loss,
        (INPUTS, TARGETS),
        epochs=[2, 2],
        batch_size=16,
        evaluate=lambda model: loss(model, INPUTS, TARGETS),
    )
    return [*history.losses.tolist(), history.evaluations[-1].metrics["metric"]]


if __name__ == "__main__":
    number, port = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    json.dump(losses(mesh, model_axis="model", devices=[2, 4]), sys.stdout)
