"""Is the advice of `recommend_schedule` right, and what does it cost?

On the problem of every race the advice chooses from the race's sizes, as a user would ask for it: the
error that is wanted is a target of the race, the time its budget. The proposal is looked up in the
grid of `advice_grid.py`: the time that the entry with the same sizes took to the target, on validation
data, over that of the best entry of the grid. Three seeds: of the models, and of the points or the
order of the samples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from advice_grid import NAME as GRID
from advice_grid import RACES, tuned_levels, tuned_seconds
from common import median, parser, read_results, write_results
from operator_time_to_accuracy import OperatorCourse
from opifex.training.multilevel import ScheduleAdvice, recommend_schedule
from pinn_time_to_accuracy import PinnCourse
from race import CONSOLE, Course, first

Row = dict[str, Any]


def source_and_models(course: Course, seed: int) -> tuple[Any, list[nnx.Module], dict[str, Any]]:
    """What a user has at hand before asking: data or a problem, and models of all sizes."""
    if isinstance(course, PinnCourse):
        models = [
            course.build(size, nnx.Rngs(1000 * i + seed)) for i, size in enumerate(course.networks)
        ]
        return course.problem, models, {"num_points": [size.interior for size in course.networks]}
    assert isinstance(course, OperatorCourse)
    data = course.part(0, course.train)
    order = np.random.default_rng(seed).permutation(course.train)
    networks: list[nnx.Module] = [
        course.network(level, 1000 * level + seed) for level in range(len(course.sizes))
    ]
    options = {"shapes": course.shapes, "batch_size": course.batch_size}
    return (data.inputs[order], data.outputs[order]), networks, options


def steps_of_the_budget(course: Course, results: dict[str, Any]) -> int:
    """How many steps of the finest network fit the budget of a race."""
    epochs = course.budget / results["seconds_per_epoch"][-1]
    per_epoch = course.train // course.batch_size if isinstance(course, OperatorCourse) else 1
    return max(1, round(epochs * per_epoch))


def advise(
    course: Course, results: dict[str, Any], target: float, seed: int
) -> tuple[list[int], ScheduleAdvice, float]:
    """The proposed sizes by their index, the advice, and processor seconds of asking for it."""
    source, models, options = source_and_models(course, seed)
    jax.clear_caches()
    clock = time.process_time()
    advice = recommend_schedule(
        source,
        models,
        steps_of_the_budget(course, results),
        target_error=target,
        seconds=course.budget,
        verbose=False,
        **options,
    )
    spent = time.process_time() - clock
    # Given models come back: which ones they are says which sizes are meant.
    proposed = advice.build(nnx.Rngs(0))
    levels = [next(i for i, own in enumerate(models) if own is model) for model in proposed]
    return levels, advice, spent


def lowest_error(row: Row) -> float:
    """The lowest error on the curve of an entry."""
    return min(point[3] for point in row["curve"])


def time_over_best(rows: Sequence[Row], levels: Sequence[int], which: int) -> Row:
    """The proposed sizes against the whole grid: seconds to a target.

    Args:
        rows: the grid.
        levels: the proposed sizes.
        which: the index of the target.

    Returns:
        Times and their quotient; where nobody reached the target, the quotient of the lowest errors.
    """

    def best(of: Sequence[Row]) -> float | None:
        return min((row["seconds"][which] for row in of if row["seconds"][which]), default=None)

    same = [row for row in rows if row["levels"] == list(levels)]
    of_all, own = best(rows), best(same)
    found: Row = {"proposed, s": own, "best, s": of_all, "in the grid": bool(same)}
    if of_all is not None:
        return {**found, "ratio": own and own / of_all, "by": "time"}
    if not same:
        return {**found, "ratio": None, "by": "not in the grid"}
    lowest = [min(map(lowest_error, part)) for part in (same, rows)]
    return {**found, "ratio": lowest[0] / lowest[1], "by": "error"}


def judged(name: str, grid: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
    """One row per target and seed of a race."""
    course, results = RACES[name], read_results(name)
    assert results is not None
    rows = []
    for which, target in enumerate(results["targets"]):
        best = best_entry(grid, course, which)
        for seed in seeds:
            levels, advice, spent = advise(course, results, target["target"], seed)
            row = {
                "race": name,
                "target": target["target"],
                "seed": seed,
                "levels": levels,
                "proposed": " to ".join(course.sizes[level] for level in levels),
                "best": best,
                **time_over_best(grid, levels, which),
                "measuring, s": advice.cost_seconds,
                "asking, s": spent,
                "asking / training": spent / course.budget,
                "reasons": list(advice.reasons),
            }
            rows.append(row)
            CONSOLE.print({k: v for k, v in row.items() if k != "reasons"})
        for reason in rows[-1]["reasons"]:
            CONSOLE.print(f"- {reason}")
    return rows


def best_entry(grid: Sequence[Row], course: Course, which: int) -> str:
    """The sizes of the fastest entry, or of the lowest one where none reached the target."""
    best = first(grid, lambda row: row["seconds"][which], lowest_error)
    return " to ".join(course.sizes[level] for level in best["levels"])


def summary(rows: Sequence[Row]) -> list[Row]:
    """One row per race and target: medians over the seeds."""
    found = []
    for race, target in dict.fromkeys((row["race"], row["target"]) for row in rows):
        own = [row for row in rows if (row["race"], row["target"]) == (race, target)]
        found.append(
            {
                "race": race,
                "target error": target,
                "advice": "; ".join(dict.fromkeys(row["proposed"] for row in own)),
                "best of the grid": own[0]["best"],
                "best, s": own[0]["best, s"],
                "advice / best": median([row["ratio"] for row in own]),
                "by": own[0]["by"],
                "advice, s": median([row["asking, s"] for row in own]),
                "of the training": f"{median([row['asking / training'] for row in own]):.1%}",
            }
        )
    return found


def tuned_rows(course: Course, results: dict[str, Any]) -> list[Row]:
    """A grid from the tuning of a race, for races that `advice_grid.py` has not run.

    It is known there with which error an entry ended, so that its time is that of its end.
    """
    clock = "seconds_with_compilation_and_transfers"
    return [
        {
            "levels": list(tuned_levels(course, results, row)),
            "seconds": [tuned_seconds(row, target["target"]) for target in results["targets"]],
            "curve": [[row["seconds"], row[clock], 0.0, row["lowest_error"]]],
        }
        for row in results["tuning"]
    ]


def main() -> None:
    """Ask on the chosen races, print, and write the rows of all."""
    options = parser(__doc__)
    options.set_defaults(seeds=[0, 1, 2])
    options.add_argument("--races", nargs="+", choices=sorted(RACES), default=list(RACES))
    given = options.parse_args()
    grids = (read_results(GRID) or {"races": {}})["races"]
    old = (read_results("advice") or {"rows": []})["rows"]
    rows = [row for row in old if row["race"] not in given.races]
    for name in given.races:
        grid = grids.get(name) or tuned_rows(RACES[name], read_results(name) or {})
        rows += judged(name, grid, given.seeds)
    rows.sort(key=lambda row: list(RACES).index(row["race"]))
    result = summary(rows)
    for row in result:
        CONSOLE.print(row)
    write_results("advice", rows=rows, summary=result)


if __name__ == "__main__":
    main()
