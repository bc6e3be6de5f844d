"""Second-order smoothers in a cascade: error over time against the finest network alone and Adam.

Methods, all in float64, on one problem and one seed:

- ``lm-cascade``: Levenberg-Marquardt on every level, model and damping carried on;
- ``lm-alone``: the same solver on the finest network from its own start, on its final data;
- ``lm-continuation`` (Burgers, Allen-Cahn): the same data per level as the cascade, but every level
  has the finest network, which separates what the coefficient does from what the networks do;
- ``adam-cascade``, ``adam-alone``: Adam with the same networks and data.

The small coefficient of the second derivative (viscosity, diffusivity) is a column of the data, so
that coarse levels can solve a smoother problem; the finest level and every reported error belong to
the true one. Every other method gets the processor seconds of ``lm-cascade`` of the same seed,
compilation included. Errors are measured on a tensor grid that training never sees. Settings were
chosen on seed 100, which is not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from common import command, parser, read_results, write_results
from opifex.core.residuals import ResidualTerm
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import AllenCahn, Burgers, Helmholtz, Poisson, Problem
from opifex.problems.evolution import space_time_derivatives
from opifex.training.multilevel import CascadeTrainer, MultilevelConfig

CONSOLE = Console(width=140)
UNLIMITED = 10**6


@dataclass(frozen=True)
class Level:
    """One level: network, points, steps of Levenberg-Marquardt, and the coefficient."""

    hidden: tuple[int, ...]
    interior: int
    conditions: int
    steps: int
    coefficient: float | None = None


@dataclass(frozen=True)
class Case:
    """One problem with its levels, coarsest first, and what counts as solved."""

    problem: Problem
    levels: tuple[Level, ...]
    target: float
    front_width: float | None = None


CASES = {
    "poisson": Case(
        Poisson(),
        (Level((8, 8), 300, 80, 60), Level((16, 16), 600, 120, 200)),
        1e-6,
    ),
    "helmholtz": Case(
        Helmholtz(boundary_weight=1e4),
        (Level((16, 16), 800, 160, 120), Level((24, 24), 1200, 200, 120)),
        1e-5,
    ),
    "burgers": Case(
        Burgers(),
        (
            Level((10, 10, 10), 800, 160, 60, 0.05),
            Level((12, 12, 12), 1200, 200, 60, 0.01),
            Level((16, 16, 16), 2000, 200, 200, 0.01 / float(np.pi)),
        ),
        1e-4,
        front_width=0.02,
    ),
    "allen-cahn": Case(
        AllenCahn(),
        (
            Level((12, 12, 12), 1000, 200, 150, 1e-3),
            Level((16, 16, 16), 1600, 200, 250, 1e-4),
        ),
        1e-4,
    ),
}


def burgers_equation(u: Any, row: jax.Array) -> jax.Array:
    """The residual at a row (x, t, viscosity)."""
    v, v_t, v_x, v_xx = space_time_derivatives(u, row[:2])
    return v_t + v * v_x - row[2] * v_xx


def allen_cahn_equation(u: Any, row: jax.Array) -> jax.Array:
    """The residual at a row (x, t, diffusivity), with the usual reaction coefficient."""
    v, v_t, _, v_xx = space_time_derivatives(u, row[:2])
    return v_t - row[2] * v_xx - 5.0 * (v - v**3)


def terms_of(case: Case) -> tuple[ResidualTerm, ...]:
    """The terms of the problem, with the coefficient taken from the data where it varies."""
    first, *conditions = case.problem.terms
    if isinstance(case.problem, Burgers):
        first = ResidualTerm("interior", burgers_equation, first.weight)
    elif isinstance(case.problem, AllenCahn):
        first = ResidualTerm("interior", allen_cahn_equation, first.weight)
    return (first, *conditions)


def concentrate(points: jax.Array, width: float) -> jax.Array:
    """Move half of the points towards x = 0, with a density that falls like 1/(|x| + width).

    It is the first half: every second point of a Sobol sequence lies on one side of the axis.
    """
    half = len(points) // 2
    x = points[:half, 0]
    moved = jnp.sign(x) * width * jnp.expm1(jnp.abs(x) * jnp.log1p(1.0 / width))
    return points.at[:half, 0].set(moved)


def data_of(case: Case, level: Level, seed: int) -> tuple[jax.Array, ...]:
    """Collocation points of a level; with the coefficient as a last column where it varies."""
    interior, *conditions = case.problem.sample_points(
        jax.random.key(seed), level.interior, level.conditions, method="sobol"
    )
    if case.front_width is not None:
        interior = concentrate(interior, case.front_width)
    if level.coefficient is not None:
        column = jnp.full((len(interior), 1), level.coefficient)
        interior = jnp.concatenate([interior, column], axis=1)
    return (interior, *conditions)


@dataclass
class Run:
    """What one method did: error over time and where it ended."""

    curve: list[dict[str, float]]
    compile_seconds: float

    @property
    def error(self) -> float:
        """The error at the end."""
        return self.curve[-1]["error"]

    def row(self, target: float) -> dict[str, Any]:
        """As a row of the results."""
        last = self.curve[-1]
        reached = next((c for c in self.curve if c["error"] <= target), None)
        stride = max(1, len(self.curve) // 60)
        return {
            "error": last["error"],
            "lowest_error": min(c["error"] for c in self.curve),
            "seconds": last["seconds"],
            "seconds_with_compilation": last["total_seconds"],
            "processor_seconds_with_compilation": last["processor_seconds"],
            "seconds_to_target": reached and reached["seconds"],
            "seconds_to_target_with_compilation": reached and reached["total_seconds"],
            "processor_seconds_to_target": reached and reached["processor_seconds"],
            "curve": [*self.curve[::stride], last],
        }


def train(
    case: Case,
    levels: Sequence[Level],
    smoothers: Sequence[Any],
    steps: Sequence[int],
    seed: int,
    *,
    report_every: int,
    budget: float | None = None,
) -> Run:
    """One run of a hierarchy; a budget counts processor seconds from the start, compilation too."""
    grid = case.problem.evaluation_points()
    exact = case.problem.exact(grid)
    # The finest network has the same start in every method.
    models = [
        MLP(
            2,
            1,
            level.hidden,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(1000 * (len(levels) - 1 - i) + seed),
        )
        for i, level in enumerate(levels)
    ]
    trainer = CascadeTrainer(models, config=MultilevelConfig(num_levels=len(levels)))
    curve: list[dict[str, float]] = []
    start, processor_start = time.perf_counter(), time.process_time()

    def evaluate(model: Any) -> dict[str, jax.Array]:
        difference = jax.vmap(model)(grid) - exact
        return {"error": jnp.linalg.norm(difference) / jnp.linalg.norm(exact)}

    def record(progress: Any) -> bool:
        processor = time.process_time() - processor_start
        curve.append(
            {
                "error": progress.metrics["error"],
                "level": progress.level,
                "loss": float(progress.losses[-1]),
                "seconds": trainer.history.seconds,
                "total_seconds": time.perf_counter() - start,
                "processor_seconds": processor,
            }
        )
        return budget is not None and processor > budget

    trainer.fit(
        terms=terms_of(case),
        data=[data_of(case, level, seed) for level in levels],
        smoothers=smoothers,
        epochs=list(steps),
        evaluate=evaluate,
        report_every=report_every,
        callbacks=[record],
        compile_ahead=False,
    )
    return Run(curve, trainer.history.compile_seconds)


def methods(case: Case) -> dict[str, Callable[[int, float | None], Run]]:
    """All methods as functions of the seed and the budget."""
    levels, finest = case.levels, case.levels[-1]
    same = [
        Level(finest.hidden, *(lv.interior, lv.conditions, lv.steps, lv.coefficient))
        for lv in levels
    ]
    solver = LevenbergMarquardt()
    adam = optax.adam(3e-3)
    coarse_steps = [lv.steps for lv in levels[:-1]]

    def lm_cascade(seed: int, budget: float | None) -> Run:
        steps = [lv.steps for lv in levels]
        return train(
            case, levels, [solver] * len(levels), steps, seed, report_every=10, budget=budget
        )

    def lm_alone(seed: int, budget: float | None) -> Run:
        return train(case, [finest], [solver], [UNLIMITED], seed, report_every=10, budget=budget)

    def lm_continuation(seed: int, budget: float | None) -> Run:
        steps = [*coarse_steps, UNLIMITED]
        return train(case, same, [solver] * len(same), steps, seed, report_every=10, budget=budget)

    def adam_cascade(seed: int, budget: float | None) -> Run:
        steps = [20 * n for n in coarse_steps] + [UNLIMITED]
        return train(
            case, levels, [adam] * len(levels), steps, seed, report_every=100, budget=budget
        )

    def adam_alone(seed: int, budget: float | None) -> Run:
        return train(case, [finest], [adam], [UNLIMITED], seed, report_every=100, budget=budget)

    found: dict[str, Callable[[int, float | None], Run]]
    found = {"lm-cascade": lm_cascade, "lm-alone": lm_alone}
    if finest.coefficient is not None:
        found["lm-continuation"] = lm_continuation
    return found | {"adam-cascade": adam_cascade, "adam-alone": adam_alone}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of all rows."""
    table = Table(title="second-order smoothers")
    columns = [
        "problem",
        "method",
        "seed",
        "target",
        "error",
        "seconds",
        "seconds_with_compilation",
    ]
    columns += [
        "processor_seconds_with_compilation",
        "seconds_to_target",
        "processor_seconds_to_target",
    ]
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        cells = [row[c] for c in columns]
        table.add_row(
            *("-" if c is None else c if isinstance(c, str) else f"{c:.3g}" for c in cells)
        )
    CONSOLE.print(table)


def main() -> None:
    """Run the chosen problems, methods and seeds; other rows of earlier runs are kept."""
    options = parser(__doc__)
    options.add_argument("--problem", nargs="+", choices=list(CASES), default=list(CASES))
    options.add_argument("--method", nargs="+", default=None, help="methods; all by default")
    options.add_argument("--keep", action="store_true", help="keep rows of other runs in the file")
    options.add_argument("--dry-run", action="store_true", help="do not write the results")
    given = options.parse_args()
    rows: list[dict[str, Any]] = []
    with jax.enable_x64(True):
        for problem in given.problem:
            case = CASES[problem]
            for seed in given.seeds:
                budget = None
                for method, run in methods(case).items():
                    if given.method is not None and method not in given.method:
                        continue
                    result = run(seed, budget)
                    row = {
                        "problem": problem,
                        "method": method,
                        "seed": seed,
                        "target": case.target,
                    }
                    rows.append(row | {"command": command()} | result.row(case.target))
                    CONSOLE.print(
                        f"{problem} {method} seed {seed}: error {result.error:.2e}, processor seconds "
                        f"{rows[-1]['processor_seconds_with_compilation']:.1f} (with compilation)"
                    )
                    if method == "lm-cascade":
                        budget = rows[-1]["processor_seconds_with_compilation"]
    show(rows)
    if given.dry_run:
        return
    if given.keep:
        new = {(r["problem"], r["method"], r["seed"]) for r in rows}
        old = (read_results("second_order") or {"rows": []})["rows"]
        rows = [r for r in old if (r["problem"], r["method"], r["seed"]) not in new] + rows
    write_results("second_order", rows=rows)


if __name__ == "__main__":
    main()
