"""Fit of a smooth function by two small networks in float64: the second learns the scaled remainder.

The target is sin(2x + 1) + exp(1.3x) / 5 on [-1, 1], fitted at 400 Chebyshev points and judged at
1777 even ones that the fit never sees. Levenberg-Marquardt with geodesic acceleration.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

from common import parser, write_results
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.multilevel import fit_in_stages
from opifex.viz import comparison_table

STAGES, STEPS, WIDTHS = 2, 400, (16, 16)


def target(x: jax.Array) -> jax.Array:
    """A smooth function."""
    return jnp.sin(2 * x + 1) + 0.2 * jnp.exp(1.3 * x)


def main() -> None:
    """All seeds."""
    seeds = parser(__doc__).parse_args().seeds
    jax.config.update("jax_enable_x64", True)
    points = -jnp.cos(jnp.pi * (jnp.arange(400) + 0.5) / 400)[:, None]
    held_out = jnp.linspace(-1, 1, 1777)[:, None]
    rows = []
    for seed in seeds:

        def network(stage: int, seed: int = seed) -> MLP:
            return MLP(
                1,
                1,
                WIDTHS,
                activation=jnp.sin if stage else jnp.tanh,
                param_dtype=jnp.float64,
                rngs=nnx.Rngs(10 * seed + stage),
            )

        start = time.perf_counter()
        model, stages = fit_in_stages(
            target,
            points,
            network,
            num_stages=STAGES,
            steps=STEPS,
            solver=LevenbergMarquardt(geodesic_acceleration=True),
        )
        seconds = time.perf_counter() - start
        error = jnp.linalg.norm(model(held_out) - target(held_out))
        rows.append(
            {
                "seed": seed,
                "error after each stage": [stage.relative_error for stage in stages],
                "held-out error": float(error / jnp.linalg.norm(target(held_out))),
                "seconds with compilation": seconds,
            }
        )
        print(rows[-1], flush=True)
    Console().print(comparison_table([{**r, "error after each stage": "see above"} for r in rows]))
    write_results("multistage_fit", rows=rows, stages=STAGES, steps=STEPS, widths=WIDTHS)


if __name__ == "__main__":
    main()
