"""The namesake's training loop on the page's problem, as documented and compiled; see `namesake.py`."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from opifex.core.training.strategies import multilevel
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


def digest(folder):
    """SHA-256 over the names and texts of the modules of a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


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

    def documented_step():
        model = trainer.get_current_model()
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        trainer.optimizer.update(model, grads)
        return loss

    @nnx.jit
    def compiled(model, state):
        """The same with the optimizer's state as an argument, since compiled code keeps none."""
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        trainer.optimizer.opt_state = state
        trainer.optimizer.update(model, grads)
        return loss, trainer.optimizer.opt_state

    def compiled_step():
        loss, state = compiled(trainer.get_current_model(), trainer.optimizer.opt_state)
        trainer.optimizer.opt_state = state
        return loss

    def timed(step):
        times = []
        for _ in range(given.steps + 2):
            start = time.perf_counter()
            float(step())
            times.append(time.perf_counter() - start)
        # The first two steps compile: the whole, or single operations.
        return float(np.median(times[2:])), sum(times[:2])

    rows = []
    while True:
        eager, _ = timed(documented_step)
        fast, first = timed(compiled_step)
        rows.append(
            {
                "level": trainer.current_level,
                "seconds_per_step": eager,
                "compiled_per_step": fast,
                "compile_seconds": first,
            }
        )
        if not trainer.advance_level():
            break
    print(
        json.dumps(
            {
                "rows": rows,
                "opifex": version("opifex"),
                "jax": version("jax"),
                "python": platform.python_version(),
                "multilevel": digest(Path(multilevel.__file__).parent),
            }
        )
    )


if __name__ == "__main__":
    main()
