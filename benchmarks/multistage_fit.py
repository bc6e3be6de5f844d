"""Fit of a smooth function by two small networks in float64: the second learns the scaled remainder.

The target is sin(2x + 1) + exp(1.3x) / 5 on [-1, 1], fitted at 600 Chebyshev points and judged at
1777 even ones that the fit never sees. Both networks are of sines and trained by Levenberg-Marquardt.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

from common import parser, start_cold, write_results
from opifex.models import MLP
from opifex.training.multilevel import fit_in_stages, sine_network
from opifex.viz import comparison_table

STAGES, STEPS, WIDTHS = 2, 150, (16, 16)


def target(x: jax.Array) -> jax.Array:
    """A smooth function."""
    return jnp.sin(2 * x + 1) + 0.2 * jnp.exp(1.3 * x)


def main() -> None:
    """All seeds."""
    seeds = parser(__doc__).parse_args().seeds
    jax.config.update("jax_enable_x64", True)
    points = -jnp.cos(jnp.pi * (jnp.arange(600) + 0.5) / 600)[:, None]
    held_out = jnp.linspace(-1, 1, 1777)[:, None]
    rows = []
    for seed in seeds:

        def network(stage: int, seed: int = seed) -> MLP:
            return sine_network(WIDTHS, param_dtype=jnp.float64, rngs=nnx.Rngs(10 * seed + stage))

        start_cold()
        start = time.perf_counter()
        model, stages = fit_in_stages(target, points, network, num_stages=STAGES, steps=STEPS)
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
