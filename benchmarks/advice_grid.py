"""When every plan of a race first reaches its targets: the grid that `advice.py` is judged against.

The results of a race keep the errors with which its entries ended, not when they first were that low.
Here every plan runs once more, with the rate, the schedule and the budget that its tuning found best
for each target, on the tuning seed and on validation data. Sizes that were added to a race after it
was run are tried with all rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from common import curve, parser, read_results, write_results
from darcy_small import COURSE as DARCY_SMALL
from operator_time_to_accuracy import COURSES as OPERATORS
from pinn_time_to_accuracy import COURSES as PINNS
from race import CONSOLE, TUNING_SEED, Course, Entry, Plan, entries, first, label, reached

RACES: dict[str, Course] = {
    course.name: course for course in (*PINNS.values(), DARCY_SMALL, *OPERATORS.values())
}

NAME = "advice_grid"

Row = dict[str, Any]


def tuned_seconds(row: Row, target: float) -> float | None:
    """What a tuned entry took in all, if it came under a target."""
    reached_it = row["lowest_error"] <= target
    return row["seconds_with_compilation_and_transfers"] if reached_it else None


def tuned_levels(course: Course, results: dict[str, Any], row: Row) -> tuple[int, ...]:
    """The sizes of a tuned entry, by what they are called: some may have been added since."""
    return tuple(course.sizes.index(results["sizes"][level]) for level in row["plan"]["levels"])


def tuned_entries(course: Course, results: dict[str, Any]) -> Iterator[Entry]:
    """The entries to run: of each plan those that its tuning found best for the targets."""
    plans: dict[Plan, list[Row]] = {}
    for row in results["tuning"]:
        given = row["plan"]
        levels = tuned_levels(course, results, row)
        plan = Plan(levels, tuple(given["shares"]), tuple(given["factors"]))
        plans.setdefault(plan, []).append(row)
    for plan, rows in plans.items():
        chosen = [
            first(
                rows,
                partial(tuned_seconds, target=target["target"]),
                lambda row: row["lowest_error"],
            )
            for target in results["targets"]
        ]
        yield from dict.fromkeys(
            Entry(plan, row["rate"], row["schedule"], row["budget"]) for row in chosen
        )
    added = [level for level, size in enumerate(course.sizes) if size not in results["sizes"]]
    new = [Plan((level,)) for level in added]
    yield from (entry for entry in entries(course, new) if entry.budget == course.budget)


def seconds_per_epoch(course: Course, results: dict[str, Any]) -> list[float]:
    """Of every size, those of the race where it has them."""
    known = dict(zip(results["sizes"], results["seconds_per_epoch"], strict=True))
    return [
        known.get(size) or course.seconds_per_epoch(level)
        for level, size in enumerate(course.sizes)
    ]


def measured(course: Course, results: dict[str, Any]) -> list[Row]:
    """When each entry first reached the targets, with compilation and transfers, and its curve."""
    cost, metric, rows = seconds_per_epoch(course, results), course.metric("validation"), []
    for entry in tuned_entries(course, results):
        epochs = [
            max(1, round(share * entry.budget / cost[level]))
            for level, share in zip(entry.plan.levels, entry.plan.shares, strict=True)
        ]
        history = course.run(entry, TUNING_SEED, metric, epochs)
        times = [reached(history, target["target"]) for target in results["targets"]]
        rows.append(
            {
                "levels": list(entry.plan.levels),
                "shares": list(entry.plan.shares),
                "entry": label(course, entry),
                "seconds": [found and found[1] for found in times],
                "training_seconds": [found and found[0] for found in times],
                "all_seconds": history.elapsed_seconds,
                "curve": curve(history, most=30),
            }
        )
        shown = [f"{found[1]:.1f} s" if found else "not reached" for found in times]
        CONSOLE.print(f"{course.name}: {rows[-1]['entry']}: {', '.join(shown)}")
    return rows


def main() -> None:
    """Run the grids of some races, or of all."""
    options = parser(__doc__)
    options.add_argument("--races", nargs="+", choices=sorted(RACES), default=list(RACES))
    given = options.parse_args()
    races = (read_results(NAME) or {}).get("races", {})
    for name in given.races:
        results = read_results(name)
        if results is None:
            raise SystemExit(f"the race {name} has no results yet")
        races[name] = measured(RACES[name], results)
        write_results(NAME, races=races)


if __name__ == "__main__":
    main()
