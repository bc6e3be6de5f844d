"""Second-order smoothers in a cascade: error over time against the finest network alone and Adam.

Methods, all in float64, on one problem and one seed:

- ``lm-cascade``: Levenberg-Marquardt on every level, model and damping carried on;
- ``lm-alone``: the same solver on the finest network from its own start, on its final data;
- ``lm-continuation`` (Burgers, Allen-Cahn): the same data per level as the cascade, but every level
  has the finest network, which separates what the coefficient does from what the networks do;
- ``lm-block-cycles`` (where a case does not resample): V-cycles with Galerkin coarse objectives, ten
  steps on the block of the finest network that the coarse one describes, five before and five after
  it on the whole finest network;
- ``natural-gradient-alone``, ``matrix-free-alone``: the other second-order smoothers on the finest
  network;
- ``adam-cascade``, ``adam-alone``: Adam with the same networks and data.

The networks of all methods are inside the problem's trial function, so that conditions hold by
construction, except where a case says so. The small coefficient of the second derivative (viscosity,
diffusivity) is a column of the data, so that coarse levels can solve a smoother problem; the finest
level and every reported error belong to the true one. Where a case resamples, new points are drawn
between the stretches of a level, with density as large as the residual (RAD) or, for the front of
Burgers' equation, concentrated at x = 0. Every other method gets the processor seconds of
``lm-cascade`` of the same seed, compilation included. Elapsed seconds are all but those of
evaluations: with compilation and transfers. Errors are measured on a tensor grid that training never
sees. Settings were chosen on seed 100, which is not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from common import command, parser, read_results, start_cold, write_results
from opifex.core.residuals import ResidualTerm
from opifex.models import MLP
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
)
from opifex.problems import AllenCahn, Burgers, Helmholtz, Poisson, Problem
from opifex.problems.evolution import space_time_derivatives
from opifex.training.adaptive_sampling import ResidualResampler
from opifex.training.multilevel import (
    CascadeTrainer,
    Cycle,
    Monitor,
    MultilevelConfig,
    Resampled,
    VCycle,
)

CONSOLE = Console(width=140)
UNLIMITED = 10**6
CYCLES = 10**4  # more than any budget allows


@dataclass(frozen=True)
class Level:
    """One level: network, points, steps of Levenberg-Marquardt, and the coefficient."""

    hidden: tuple[int, ...]
    interior: int
    steps: int
    coefficient: float | None = None


Candidates = Callable[[jax.Array, jax.Array], jax.Array]


def uniform_candidates(points: jax.Array, key: jax.Array) -> jax.Array:
    """Twenty times as many uniform points, with the coefficient of the present ones."""
    count = 20 * points.shape[0]
    x = jax.random.uniform(key, (count, 2), points.dtype) * jnp.array([2.0, 1.0]) - jnp.array(
        [1, 0]
    )
    return jnp.concatenate([x, jnp.full((count, 1), points[0, 2])], axis=1)


def front_points(points: jax.Array, key: jax.Array) -> jax.Array:
    """As many points as before, half of them near x = 0 with a density like 1/(|x| + 0.02)."""
    new = uniform_candidates(points, key)[: points.shape[0]]
    half, width = len(new) // 2, 0.02
    x = new[:half, 0]
    near = jnp.sign(x) * width * jnp.expm1(jnp.abs(x) * jnp.log1p(1.0 / width))
    return new.at[:half, 0].set(near)


@dataclass(frozen=True)
class Case:
    """One problem with its levels, coarsest first, and what counts as solved."""

    problem: Problem
    levels: tuple[Level, ...]
    target: float
    conditions: int | None = None  # points for the conditions; None: a trial function meets them
    candidates: Candidates | None = None  # points to choose from anew between stretches


CASES = {
    # The page's loss, with its boundary term.
    "poisson": Case(
        Poisson(), (Level((8, 8), 300, 60), Level((16, 16), 600, 300)), 1e-6, conditions=120
    ),
    "helmholtz": Case(Helmholtz(), (Level((16, 16), 800, 80), Level((24, 24), 1200, 120)), 1e-5),
    "burgers": Case(
        Burgers(),
        (
            Level((10, 10, 10), 800, 40, 0.05),
            Level((12, 12, 12), 1200, 40, 0.01),
            Level((16, 16, 16), 2000, 120, 0.01 / float(np.pi)),
        ),
        1e-4,
        candidates=front_points,
    ),
    "allen-cahn": Case(
        AllenCahn(),
        (
            Level((12, 12, 12), 1000, 40, 1e-3),
            Level((16, 16, 16), 1500, 60, 1e-4),
            Level((20, 20, 20), 2000, 180, 1e-4),
        ),
        1e-4,
        candidates=uniform_candidates,
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
    """The terms to minimise, with the coefficient taken from the data where it varies."""
    first, *conditions = case.problem.terms
    if isinstance(case.problem, Burgers):
        first = ResidualTerm("interior", burgers_equation, first.weight)
    elif isinstance(case.problem, AllenCahn):
        first = ResidualTerm("interior", allen_cahn_equation, first.weight)
    return (first,) if case.conditions is None else (first, *conditions)


def data_of(case: Case, level: Level, seed: int) -> tuple[jax.Array, ...]:
    """Collocation points of a level; with the coefficient as a last column where it varies."""
    key = jax.random.key(seed)
    interior, *conditions = case.problem.sample_points(
        key, level.interior, case.conditions or 2, method="sobol"
    )
    if level.coefficient is not None:
        column = jnp.full((len(interior), 1), level.coefficient)
        interior = jnp.concatenate([interior, column], axis=1)
    if case.candidates is front_points:
        interior = front_points(interior, key)
    return (interior,) if case.conditions is None else (interior, *conditions)


def resampler(case: Case) -> ResidualResampler | None:
    """What draws new points, if the case wants that."""
    if case.candidates is None:
        return None
    return ResidualResampler(terms_of(case)[0], case.candidates)


def network(case: Case, level: Level, seed: int) -> nnx.Module:
    """The network of a level, in a trial function where conditions are not trained."""
    model = MLP(2, 1, level.hidden, param_dtype=jnp.float64, rngs=nnx.Rngs(seed))
    return model if case.conditions is not None else case.problem.trial_function(model)


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
            "elapsed_seconds": last["elapsed_seconds"],
            "processor_seconds_with_compilation": last["processor_seconds"],
            "seconds_to_target": reached and reached["seconds"],
            "elapsed_seconds_to_target": reached and reached["elapsed_seconds"],
            "processor_seconds_to_target": reached and reached["processor_seconds"],
            "curve": [*self.curve[::stride], last],
        }


def train(
    case: Case,
    levels: Sequence[Level],
    method: Any,
    steps: Sequence[int] | None,
    seed: int,
    *,
    every: int,
    budget: float | None = None,
    cycle: str | Cycle = "cascade",
) -> Run:
    """One run of a hierarchy; a budget counts processor seconds from the start, compilation too."""
    start_cold()
    grid = case.problem.evaluation_points()
    exact = case.problem.exact(grid)
    # The finest network has the same start in every method.
    models = [
        network(case, level, 1000 * (len(levels) - 1 - i) + seed) for i, level in enumerate(levels)
    ]
    trainer = CascadeTrainer(
        models,
        [method] * len(levels),
        config=MultilevelConfig(num_levels=len(levels), compile_ahead=False),
    )
    curve: list[dict[str, float]] = []
    processor_start = time.process_time()

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
                "elapsed_seconds": trainer.history.elapsed_seconds,
                "processor_seconds": processor,
            }
        )
        return budget is not None and processor > budget

    data, resample = [data_of(case, level, seed) for level in levels], resampler(case)
    trainer.fit(
        terms_of(case),
        data if resample is None else Resampled(data, resample),
        epochs=steps,
        evaluate=evaluate,
        monitor=Monitor(every=every, callbacks=[record]),
        cycle=cycle,
        key=jax.random.key(seed),
    )
    return Run(curve, trainer.history.compile_seconds)


def methods(case: Case) -> dict[str, Callable[[int, float | None], Run]]:
    """All methods as functions of the seed and the budget."""
    levels, finest = case.levels, case.levels[-1]
    same = [replace(level, hidden=finest.hidden) for level in levels]
    solver = LevenbergMarquardt()
    adam = optax.adam(3e-3)
    coarse_steps = [lv.steps for lv in levels[:-1]]

    def lm_cascade(seed: int, budget: float | None) -> Run:
        steps = [lv.steps for lv in levels]
        return train(case, levels, solver, steps, seed, every=20, budget=budget)

    def lm_block_cycles(seed: int, budget: float | None) -> Run:
        cycle = VCycle(cycles=CYCLES, coarse="galerkin", pre=5, post=5, coarsest=10)
        return train(case, levels, solver, None, seed, every=20, budget=budget, cycle=cycle)

    def alone(method: Any, seed: int, budget: float | None) -> Run:
        return train(case, [finest], method, [UNLIMITED], seed, every=20, budget=budget)

    def lm_continuation(seed: int, budget: float | None) -> Run:
        steps = [*coarse_steps, UNLIMITED]
        return train(case, same, solver, steps, seed, every=20, budget=budget)

    def adam_cascade(seed: int, budget: float | None) -> Run:
        steps = [20 * n for n in coarse_steps] + [UNLIMITED]
        return train(case, levels, adam, steps, seed, every=100, budget=budget)

    def adam_alone(seed: int, budget: float | None) -> Run:
        return train(case, [finest], adam, [UNLIMITED], seed, every=100, budget=budget)

    found: dict[str, Callable[[int, float | None], Run]]
    found = {"lm-cascade": lm_cascade, "lm-alone": partial(alone, solver)}
    if finest.coefficient is not None:
        found["lm-continuation"] = lm_continuation
    if case.candidates is None:
        found["lm-block-cycles"] = lm_block_cycles
    found["natural-gradient-alone"] = partial(alone, EnergyNaturalGradient())
    found["matrix-free-alone"] = partial(alone, MatrixFreeGaussNewton())
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
        "elapsed_seconds",
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


def recorded_rows() -> list[dict[str, Any]]:
    """The rows of earlier runs."""
    rows: list[dict[str, Any]] = (read_results("second_order") or {"rows": []})["rows"]
    return rows


def recorded_budget(problem: str, seed: int) -> float:
    """Processor seconds of the recorded run of ``lm-cascade``.

    Raises:
        SystemExit: if there is none, since nothing else ends the other methods.
    """
    for row in recorded_rows():
        if (row["problem"], row["method"], row["seed"]) == (problem, "lm-cascade", seed):
            return float(row["processor_seconds_with_compilation"])
    raise SystemExit(f"run lm-cascade on {problem} with seed {seed} first: it sets the budget")


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
                chosen = given.method or list(methods(case))
                budget = None if "lm-cascade" in chosen else recorded_budget(problem, seed)
                for method, run in methods(case).items():
                    if method not in chosen:
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
        kept = [r for r in recorded_rows() if (r["problem"], r["method"], r["seed"]) not in new]
        rows = sorted(kept + rows, key=lambda r: list(CASES).index(r["problem"]))
    write_results("second_order", rows=rows)


if __name__ == "__main__":
    main()
