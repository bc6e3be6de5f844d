"""Large networks: dense Levenberg-Marquardt steps against steps in random subspaces, equal seconds.

Helmholtz's equation with the problem's trial function, one set of points, float64; networks of three
equal layers with the start that is recommended for second order. Rows: the small network of dense
steps, which is the rival; dense steps of a larger network; the same and a still larger one in
subspaces. All get the same processor seconds, compilation included. Errors are relative L2 errors.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from common import parser, start_cold, write_results
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt, RandomSubspace
from opifex.problems import Helmholtz
from opifex.training.multilevel import CascadeTrainer, Monitor
from opifex.viz import comparison_table

CONSOLE = Console(width=140)
ENTRIES: tuple[tuple[int, int | None], ...] = (
    (16, None),
    (24, None),
    (40, None),
    (40, 500),
    (40, 1000),
    (80, 500),
    (80, 1000),
)
"""Width of the layers, and parameters that a step moves (all by default)."""


def run(problem: Helmholtz, width: int, moved: int | None, seed: int, budget: float) -> dict:
    """One run."""
    start_cold()
    began = time.process_time()
    spent: list[float] = []

    def over(_: Any) -> bool:
        spent.append(time.process_time() - began)
        return spent[-1] > budget

    network = MLP(
        2,
        1,
        (width,) * 3,
        input_scale=2.0,
        bias_scale=1.0,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(seed),
    )
    dense = LevenbergMarquardt()
    solver = dense if moved is None else RandomSubspace(dense, moved, seed=seed)
    trainer = CascadeTrainer([problem.trial_function(network)], solver)
    points = problem.sample_points(jax.random.key(seed), 2500, 4, method="sobol")[:1]
    monitor = Monitor(every=1, callbacks=[over])
    history = trainer.fit(problem.terms[:1], points, epochs=[10**6], monitor=monitor)
    parameters = jax.tree.leaves(nnx.state(trainer.model, nnx.Param))
    return {
        "error": float(problem.relative_l2_error(trainer.model)),
        "loss": float(history.losses[-1]),
        "steps": history.num_steps,
        "processor seconds": spent[-1],
        "parameters": sum(int(np.size(leaf)) for leaf in parameters),
    }


def main() -> None:
    """All widths and seeds."""
    options = parser(__doc__)
    options.set_defaults(seeds=[0, 1, 2])
    options.add_argument("--seconds", type=float, default=60)
    given = options.parse_args()
    rows = []
    with jax.enable_x64(True):
        problem = Helmholtz()
        for width, moved in ENTRIES:
            for seed in given.seeds:
                key = {"width": width, "moved": moved or "all", "seed": seed}
                rows.append(key | run(problem, width, moved, seed, given.seconds))
                CONSOLE.print(rows[-1])
    CONSOLE.print(comparison_table([{k: str(v) for k, v in row.items()} for row in rows]))
    write_results("subspace", rows=rows)


if __name__ == "__main__":
    main()
