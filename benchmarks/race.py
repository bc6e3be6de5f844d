"""A race to an error: our cascade against the best single network of any size.

Both sides are tuned in the same way on the same budget: every entry of either side (sizes, learning
rate, schedule, share of the budget) trains once on a seed of its own and is judged on validation
data. Two targets follow from the single networks alone: the *low* one is `MARGIN` times the lowest
error with which any of them ends, the *high* one three times that. For each target and side the entry
that reached it in the least time is run on all seeds and judged on test data, beside the best entry of
the finest network alone. All clocks stop when the target is first reached.

Times are processor seconds of one process on one thread: other work on the machine disturbs them
little. They include compilation and transfers and leave out evaluations; training alone is shown too.
A course may keep programs between runs: entries are then chosen by seconds of training alone, and the
clocks of the seeds include transfers, but no compilation. An accelerator is timed on the wall.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console

from common import clock, curve, final, lowest, start_cold, write_results
from opifex.training.multilevel import CascadeTrainer, History, Monitor
from opifex.training.stopwatch import Stopwatch
from opifex.viz import comparison_table

TUNING_SEED = 100
MARGIN = 1.2
HIGH = 3.0
CONSOLE = Console(width=160)

Metric = Callable[[Any], Any]


@dataclass(frozen=True)
class Plan:
    """Which sizes are trained one after the other, and how.

    Attributes:
        levels: indices of sizes, coarsest first.
        shares: of the budget, one per level.
        factors: of the learning rate, one per level.
    """

    levels: tuple[int, ...]
    shares: tuple[float, ...] = (1.0,)
    factors: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Entry:
    """A plan with everything that is tuned.

    Attributes:
        plan: sizes, shares and factors.
        rate: the learning rate.
        schedule: ``"constant"`` or ``"cosine"``.
        budget: processor seconds of training.
    """

    plan: Plan
    rate: float
    schedule: str
    budget: float


@cache
def evaluation(metric: Metric) -> Callable[[Any], dict[str, Any]]:
    """What `fit` calls; the same function again for the same metric, whose program can be used again."""
    return lambda model: {"error": metric(model)}


class Course(abc.ABC):
    """A problem with sizes of networks (and grids or point sets) for it.

    Attributes:
        name: of the results.
        sizes: what the sizes are, smallest first; the last one is the finest network.
        cascades: the plans of our side.
        budget: processor seconds of training of the longest entries.
        rates: learning rates to choose from.
        schedules: schedules to choose from.
        probe: epochs that are timed to find how many fit the budget.
        keeps_programs: whether a run may use the programs of the runs before it.
        evaluations: of the error during a run, about.
    """

    name: str
    sizes: Sequence[str]
    cascades: Sequence[Plan]
    budget: float
    rates: Sequence[float]
    schedules: Sequence[str]
    probe: int
    keeps_programs: bool = False
    evaluations: int = 60

    @abc.abstractmethod
    def trainer(
        self, levels: Sequence[int], epochs: Sequence[int], entry: Entry, seed: int
    ) -> tuple[CascadeTrainer, dict[str, Any]]:
        """A trainer and the arguments of its ``fit``, without ``evaluate`` and ``monitor``."""

    @abc.abstractmethod
    def metric(self, which: str) -> Metric:
        """The error on ``"validation"`` or ``"test"`` data."""

    def run(
        self,
        entry: Entry,
        seed: int,
        metric: Metric | None,
        epochs: Sequence[int] | None = None,
    ) -> History:
        """One entry with the epochs that fit its budget, or with the given ones."""
        if not self.keeps_programs:
            start_cold()
        if epochs is None:
            epochs = [
                max(1, round(share * entry.budget / self.seconds_per_epoch(level)))
                for level, share in zip(entry.plan.levels, entry.plan.shares, strict=True)
            ]
        trainer, arguments = self.trainer(entry.plan.levels, epochs, entry, seed)
        trainer.history.stopwatch = Stopwatch(clock)
        return trainer.fit(
            **arguments,
            evaluate=None if metric is None else evaluation(metric),
            monitor=Monitor(every=max(1, sum(epochs) // self.evaluations)),
        )

    @cache  # noqa: B019 (one course lives as long as the program)
    def seconds_per_epoch(self, level: int) -> float:
        """Processor seconds of an epoch of one size, the median of three stretches."""
        entry = Entry(Plan((level,)), self.rates[0], "constant", 1.0)
        found = []
        for _ in range(3):
            history = self.run(entry, TUNING_SEED, None, [self.probe])
            found.append(history.seconds / self.probe)
        return float(np.median(found))


def entries(course: Course, plans: Sequence[Plan]) -> list[Entry]:
    """All plans with all rates and schedules; a schedule that decays also on a third of the budget."""
    found = []
    for plan, rate, schedule in product(plans, course.rates, course.schedules):
        found.append(Entry(plan, rate, schedule, course.budget))
        if schedule != "constant":
            found.append(Entry(plan, rate, schedule, course.budget / 3))
    return found


def label(course: Course, entry: Entry) -> str:
    """What an entry is, in words."""
    names = " to ".join(course.sizes[level] for level in entry.plan.levels)
    return f"{names}, rate {entry.rate:g} {entry.schedule}, {entry.budget:.0f} s"


def reached(history: History, target: float) -> tuple[float, float] | None:
    """Seconds of training, and with compilation and transfers, when a target is first reached."""
    found = history.first_below("error", target)
    return None if found is None else (found.seconds, found.elapsed_seconds)


@dataclass(frozen=True)
class Trial:
    """An entry and what came of it on the tuning seed."""

    entry: Entry
    history: History

    def row(self, course: Course, side: str) -> dict[str, Any]:
        """As a row of the results."""
        return {
            "side": side,
            "entry": label(course, self.entry),
            **asdict(self.entry),
            "error": final(self.history),
            "lowest_error": lowest(self.history),
            "seconds": self.history.seconds,
            "seconds_with_compilation_and_transfers": self.history.elapsed_seconds,
        }


def tune(course: Course, side: str, plans: Sequence[Plan]) -> list[Trial]:
    """Run all entries of a side once on the tuning seed."""
    metric, trials = course.metric("validation"), []
    for entry in entries(course, plans):
        trials.append(Trial(entry, course.run(entry, TUNING_SEED, metric)))
        CONSOLE.print(f"{side}: {label(course, entry)}: {final(trials[-1].history):.3e}")
    return trials


def first(
    tried: Sequence[Any], seconds: Callable[[Any], float | None], error: Callable[[Any], float]
) -> Any:
    """What was there first, by its seconds; where nothing was, what came lowest."""
    return min(tried, key=lambda one: (seconds(one) or float("inf"), error(one)))


def fastest(trials: Sequence[Trial], target: float, *, with_compilation: bool) -> Entry:
    """The entry that reached a target first; if none did, the one that ended lowest."""

    def seconds(trial: Trial) -> float | None:
        found = reached(trial.history, target)
        return found and found[int(with_compilation)]

    return first(trials, seconds, lambda trial: final(trial.history)).entry


def outcome(history: History, target: float) -> dict[str, Any]:
    """When a run reached a target, and where it ended."""
    found = reached(history, target)
    return {
        "training_seconds": None if found is None else found[0],
        "seconds": None if found is None else found[1],
        "all_training_seconds": history.seconds,
        "all_seconds": history.elapsed_seconds,
        "all_seconds_with_evaluation": history.wall_seconds,
        "final_error": final(history),
        "lowest_error": lowest(history),
        "curve": curve(history, most=20),
    }


def advantage(rival: dict[str, Any], ours: dict[str, Any], name: str) -> float | None:
    """How many times sooner ours reached the target, judged against us where a time is missing.

    A rival that never did counts as if it had at its end; if ours never did, the ratio is zero.
    ``None`` if neither did, or ours had nothing to do for it.
    """
    if ours[name] is None:
        return None if rival[name] is None else 0.0
    if ours[name] == 0.0:
        return None
    return float((rival[name] or rival[f"all_{name}"]) / ours[name])


def quartiles(values: Sequence[float | None]) -> dict[str, Any]:
    """Median and lower quartile of the ratios; how many of the runs had none."""
    found = [value for value in values if value is not None]
    return {
        "median": float(np.median(found)) if found else None,
        "lower_quartile": float(np.quantile(found, 0.25)) if found else None,
        "neither": len(values) - len(found),
    }


def race(course: Course, seeds: Sequence[int]) -> dict[str, Any]:
    """Tune both sides, set the targets, run all seeds."""
    single = tune(course, "single", [Plan((level,)) for level in range(len(course.sizes))])
    ours = tune(course, "cascade", course.cascades)
    finest = [t for t in single if t.entry.plan.levels == (len(course.sizes) - 1,)]
    low = MARGIN * min(final(trial.history) for trial in single)
    metric, done = course.metric("test"), {}

    def run(entry: Entry, seed: int) -> History:
        if (entry, seed) not in done:
            done[entry, seed] = course.run(entry, seed, metric)
        return done[entry, seed]

    results = []
    for name, target in (("low", low), ("high", HIGH * low)):
        chosen = {
            side: fastest(trials, target, with_compilation=not course.keeps_programs)
            for side, trials in (("single", single), ("finest", finest), ("cascade", ours))
        }
        runs = []
        for seed in seeds:
            row = {side: outcome(run(entry, seed), target) for side, entry in chosen.items()}
            ratios = {
                f"{rival}_over_cascade{suffix}": advantage(row[rival], row["cascade"], clock)
                for rival in ("single", "finest")
                for suffix, clock in (("", "seconds"), ("_training", "training_seconds"))
            }
            runs.append({"seed": seed, **row, **ratios})
            shown = {s: row[s]["seconds"] and round(row[s]["seconds"], 2) for s in chosen}
            CONSOLE.print({"seed": seed, "target": f"{target:.3g}", **shown, **ratios})
        names = [key for key in runs[0] if "_over_" in key]
        results.append(
            {
                "name": name,
                "target": target,
                "entries": {side: label(course, entry) for side, entry in chosen.items()},
                "runs": runs,
                "ratios": {key: quartiles([run[key] for run in runs]) for key in names},
            }
        )
    return {
        "sizes": list(course.sizes),
        "budget": course.budget,
        "seconds_per_epoch": [course.seconds_per_epoch(i) for i in range(len(course.sizes))],
        "tuning": [
            *(t.row(course, "single") for t in single),
            *(t.row(course, "cascade") for t in ours),
        ],
        "targets": results,
    }


def measure(course: Course, seeds: Sequence[int], *, write: bool = True) -> None:
    """Race, print, and write ``results/<name>.json``."""
    result = race(course, seeds)
    for target in result["targets"]:
        rows = [
            {"ratio": name, **{k: str(v) for k, v in found.items()}}
            for name, found in target["ratios"].items()
        ]
        title = f"{course.name}, target {target['target']:.3g}"
        CONSOLE.print(comparison_table(rows, title=title))
    if write:
        write_results(course.name, **result)
