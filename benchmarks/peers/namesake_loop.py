"""The namesake's documented training loop on the page's problem; run by `namesake.py`."""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from opifex.core.training.strategies.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    create_network_hierarchy,
    prolongate,
)


def residual(model, x):
    """The page's residual."""

    def u(point):
        return model(point.reshape(1, -1)).squeeze()

    laplacian = jax.vmap(lambda point: jnp.trace(jax.hessian(u)(point)))(x)
    return laplacian + jnp.sin(jnp.pi * x[:, 0]) * jnp.sin(jnp.pi * x[:, 1])


def main() -> None:
    """Time some steps on every level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", required=True)
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    arrays = np.load(given.points)
    interior, boundary = jnp.asarray(arrays["interior"]), jnp.asarray(arrays["boundary"])

    def loss_fn(model):
        return jnp.mean(residual(model, interior) ** 2) + 10.0 * jnp.mean(model(boundary) ** 2)

    hierarchy = create_network_hierarchy(
        input_dim=2,
        output_dim=1,
        base_hidden_dims=[128, 128, 128],
        num_levels=3,
        coarsening_factor=0.5,
        rngs=nnx.Rngs(0),
    )
    trainer = CascadeTrainer(hierarchy, MultilevelAdam(learning_rate=1e-3), prolongate)
    rows = []
    while True:
        times = []
        for _ in range(given.steps + 2):
            start = time.perf_counter()
            model = trainer.get_current_model()
            loss, grads = nnx.value_and_grad(loss_fn)(model)
            trainer.optimizer.update(model, grads)
            float(loss)
            times.append(time.perf_counter() - start)
        # The first two steps compile single operations.
        rows.append(
            {"level": trainer.current_level, "seconds_per_step": float(np.median(times[2:]))}
        )
        if not trainer.advance_level():
            break
    print(json.dumps({"rows": rows, "opifex": version("opifex"), "jax": version("jax")}))


if __name__ == "__main__":
    main()
