"""Random features on nonlinear equations: coarse features first, against one set of features.

Newton's method needs as many steps on few features as on many, and each step costs their cube. A
cascade takes the first steps with few; features of finer levels are appended to those of coarser ones,
with outgoing weights of zero, so that nothing is lost, and unlike the hidden units of a network they
can be moved at once, since the model is linear in these weights. One or two steps are left on the
finest level (nested iteration: Hackbusch, Multi-Grid Methods and Applications, chapter 5).

The rival is one set of features of any number, with full Gauss-Newton steps. Both sides are regularised
as weakly as each step needs, see `GaussNewton`, and tuned on seed 100 by the time to the target; with
the weak regularisation alone one set of features stays at errors of 1e-5. Seconds are those of the
processor, compilation, points and the evaluation after each step included. Float64; errors are relative
L2 errors on a grid; the solutions are manufactured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from rich.console import Console

from common import median, parser, ratio, read_results, start_cold, write_results
from opifex.core import ResidualTerm
from opifex.core.physics import gradient, laplacian
from opifex.models import RandomFeatures, TrialFunction
from opifex.optimization.second_order import GaussNewton
from opifex.problems import Box, grid_points, interior_points
from opifex.training.multilevel import CascadeTrainer, Monitor
from opifex.viz import comparison_table

CONSOLE = Console(width=140)
TARGET, TUNING_SEED = 1e-8, 100
REGULARIZATION = 1e-8, 1e-15
Model = Callable[[Array], Array]


@dataclass(frozen=True)
class Problem:
    """An equation on the unit cube, zero on its boundary.

    Attributes:
        dims: number of coordinates.
        operator: the left-hand side, of a model at a point.
        solution: with one component.
        scale: of the residual.
        slope: largest slope of the features.
        sizes: numbers of features of single models to try.
    """

    dims: int
    operator: Callable[[Model, Array], Array]
    solution: Model
    scale: float
    slope: float
    sizes: tuple[int, ...]


def waves(*terms: tuple[float, tuple[int, ...]]) -> Model:
    """A sum of products of sines with amplitudes and half waves along every axis."""

    def value(x: Array) -> Array:
        products = [a * jnp.prod(jnp.sin(jnp.pi * jnp.asarray(k) * x), axis=-1) for a, k in terms]
        return jnp.sum(jnp.stack(products), axis=0)[..., None]

    return value


PROBLEMS = {
    "cubic, 2d": Problem(
        2,
        lambda u, x: -laplacian(u)(x) + 100 * u(x)[0] ** 3,
        waves((1.0, (6, 4)), (0.5, (11, 9))),
        300.0,
        21.0,
        (1800, 2400),
    ),
    "cubic, 3d": Problem(
        3,
        lambda u, x: -laplacian(u)(x) + 30 * u(x)[0] ** 3,
        waves((1.0, (3, 1, 2)), (0.3, (1, 4, 2))),
        100.0,
        7.0,
        (1500, 2200),
    ),
    "convection, 2d": Problem(
        2,
        lambda u, x: u(x)[0] * jnp.sum(gradient(u)(x)) - 0.05 * laplacian(u)(x),
        waves((1.0, (5, 3)), (0.5, (9, 7))),
        30.0,
        18.0,
        (1500, 2200),
    ),
}


@dataclass(frozen=True)
class Entry:
    """Numbers of features and most steps of every level."""

    features: tuple[int, ...]
    steps: tuple[int, ...]


def singles(problem: Problem) -> list[Entry]:
    """One set of features."""
    return [Entry((size,), (10,)) for size in problem.sizes]


def cascades(problem: Problem) -> list[Entry]:
    """Coarse features first; the last level as large as the single ones."""
    return [
        entry
        for size in problem.sizes
        for entry in (
            Entry((size // 4, size), (6, 6)),
            Entry((size // 6, size // 2, size), (6, 2, 6)),
        )
    ]


def model(problem: Problem, count: int, seed: int) -> nnx.Module:
    """Features with the boundary values built in."""
    features = RandomFeatures(
        problem.dims,
        1,
        count,
        slope=problem.slope,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(seed),
    )
    return TrialFunction(
        features,
        offset=lambda x: jnp.zeros_like(x[..., :1]),
        factor=lambda x: jnp.prod(4 * x * (1 - x), axis=-1, keepdims=True),
        embed=lambda x: 2 * x - 1,
    )


def run(problem: Problem, entry: Entry, seed: int) -> dict[str, Any]:
    """Errors and seconds after every step, until the target."""
    start_cold()
    began = time.process_time()
    box = Box((0.0,) * problem.dims, (1.0,) * problem.dims)
    grid = grid_points([61 if problem.dims == 2 else 17] * problem.dims, box)
    exact = problem.solution(grid)

    def source(x: Array) -> Array:
        return problem.operator(problem.solution, x)

    equation = ResidualTerm(
        "equation", lambda u, x: (problem.operator(u, x) - source(x)) / problem.scale
    )
    seen: list[tuple[float, float]] = []

    def reached(progress: Any) -> bool:
        seen.append((time.process_time() - began, progress.metrics["error"]))
        return seen[-1][1] <= TARGET

    def error(u: Any) -> dict[str, Array]:
        return {"error": jnp.linalg.norm(jax.vmap(u)(grid) - exact) / jnp.linalg.norm(exact)}

    key = jax.random.key(seed)
    CascadeTrainer(
        [model(problem, count, seed) for count in entry.features],
        GaussNewton(regularization=REGULARIZATION),
    ).fit(
        [equation],
        [(interior_points(3 * n, box, key=key, method="sobol"),) for n in entry.features],
        epochs=list(entry.steps),
        evaluate=error,
        monitor=Monitor(every=1, callbacks=[reached]),
    )
    seconds, last = seen[-1]
    return {
        "seconds": seconds if last <= TARGET else None,
        "error": last,
        "processor seconds": seconds,
        "steps": len(seen),
    }


def race(name: str, seeds: list[int]) -> dict[str, Any]:
    """Tune both sides, and let the best of each run on all seeds."""
    problem = PROBLEMS[name]
    best, tuning = {}, []
    for side, entries in (("single", singles(problem)), ("cascade", cascades(problem))):
        times = {}
        for entry in entries:
            row = run(problem, entry, TUNING_SEED)
            tuning.append({"side": side, "entry": str(entry)} | row)
            CONSOLE.print(name, tuning[-1])
            times[entry] = row["seconds"] or np.inf
        best[side] = min(times, key=lambda entry: times[entry])
    runs = []
    for seed in seeds:
        found = {side: run(problem, entry, seed) for side, entry in best.items()}
        quotient = ratio(found["single"]["seconds"], found["cascade"]["seconds"])
        runs.append({"seed": seed, "single / cascade": quotient} | found)
        CONSOLE.print(name, runs[-1])
    return {
        "problem": name,
        "target": TARGET,
        "single": str(best["single"]),
        "cascade": str(best["cascade"]),
        "single / cascade": median([r["single / cascade"] for r in runs]),
        "runs": runs,
        "tuning": tuning,
    }


def main() -> None:
    """All chosen problems."""
    options = parser(__doc__)
    options.add_argument("--problem", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    options.add_argument("--keep", action="store_true", help="keep rows of other problems")
    given = options.parse_args()
    old = (read_results("nested_iteration") or {"rows": []})["rows"] if given.keep else []
    rows = [row for row in old if row["problem"] not in given.problem]
    with jax.enable_x64(True):
        for name in given.problem:
            rows.append(race(name, given.seeds))
            rows.sort(key=lambda row: list(PROBLEMS).index(row["problem"]))
            write_results("nested_iteration", rows=rows)
    shown = [{k: str(v) for k, v in r.items() if k not in ("runs", "tuning")} for r in rows]
    CONSOLE.print(comparison_table(shown))


if __name__ == "__main__":
    main()
