"""What all benchmarks share: where results go, what they were measured on, how they are shown."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from opifex.training.multilevel import Evaluation, History

RESULTS = Path(__file__).parent / "results"


def versions() -> dict[str, str]:
    """What the numbers depend on besides the code."""
    packages = ["jax", "jaxlib", "flax", "optax", "numpy"]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": f"{platform.machine()}, {usable} core(s) used, no accelerator",
    }


def command() -> str:
    """The command line that was given, relative to the root of the project, without folders."""
    given = list(sys.argv[1:])
    if "--peers" in given:
        where = given.index("--peers")
        del given[where : where + 2]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])


def write_results(name: str, **content: Any) -> Path:
    """Write ``benchmarks/results/<name>.json`` with the command and the versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"command": command(), "versions": versions(), **content}
    path.write_text(json.dumps(document, indent=1, default=float) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")
    return path


def read_results(name: str) -> dict[str, Any] | None:
    """The last results of a benchmark, if there are any."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that most benchmarks have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return made


def median(values: Sequence[float | None]) -> float | None:
    """The median, where a missing value (not reached) counts as infinite."""
    filled = [float("inf") if value is None else float(value) for value in values]
    middle = statistics.median(filled)
    return None if middle == float("inf") else middle


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """A quotient, or ``None`` where one side is missing."""
    return None if numerator is None or not denominator else numerator / denominator


def start_cold() -> None:
    """Forget all compiled programs.

    They are kept between runs of the same structure, so that only the first of several seeds would
    show what compilation costs.
    """
    jax.clear_caches()


def seconds_to(history: History, target: float, metric: str = "error") -> float | None:
    """Training seconds until a metric is first at most a target."""
    found = history.first_below(metric, target)
    return None if found is None else found.seconds


def elapsed(found: Evaluation | None) -> float | None:
    """All seconds until an evaluation but those of evaluations: compilation and transfers too."""
    return None if found is None else found.elapsed_seconds


def final(history: History, metric: str = "error") -> float:
    """What a run ends with: the geometric mean of a metric over the last tenth of the evaluations.

    With a constant learning rate a single evaluation may be a spike or a lucky dip.
    """
    values = [e.metrics[metric] for e in history.evaluations]
    last = values[-max(1, len(values) // 10) :]
    # The mean of one value would differ from it by rounding, and never be reached.
    return last[0] if len(last) == 1 else float(statistics.geometric_mean(last))


def lowest(history: History, metric: str = "error") -> float:
    """The lowest value of a metric during a run."""
    return min(e.metrics[metric] for e in history.evaluations)


def compare_runs(alone: History, cascade: History) -> dict[str, Any]:
    """Errors and times of two runs, and how many times faster the second is.

    ``ratio``: all training seconds of the first run over those until the second first reaches what
    the first ends with. ``ratio_with_compilation_and_transfers``: the same of all seconds but those
    of evaluations. ``ratio_first_to_first``: the same target, but the first run's clock stops when
    it first reaches it too. ``ratio_to_lowest``: both clocks until the lowest error that the first
    run ever has.
    """
    target, least = final(alone), lowest(alone)
    reached = seconds_to(cascade, target)
    elapsed_reached = elapsed(cascade.first_below("error", target))
    return {
        "target_error": target,
        "alone_seconds": alone.seconds,
        "alone_lowest_error": least,
        "alone_compile_seconds": alone.compile_seconds,
        "alone_elapsed_seconds": alone.elapsed_seconds,
        "cascade_seconds_to_target": reached,
        "cascade_elapsed_seconds_to_target": elapsed_reached,
        "cascade_seconds": cascade.seconds,
        "cascade_compile_seconds": cascade.compile_seconds,
        "cascade_transfer_seconds": cascade.transfer_seconds,
        "cascade_elapsed_seconds": cascade.elapsed_seconds,
        "cascade_final_error": final(cascade),
        "cascade_lowest_error": lowest(cascade),
        "ratio": ratio(alone.seconds, reached),
        "ratio_with_compilation_and_transfers": ratio(alone.elapsed_seconds, elapsed_reached),
        "ratio_first_to_first": ratio(seconds_to(alone, target), reached),
        "ratio_to_lowest": ratio(seconds_to(alone, least), seconds_to(cascade, least)),
        "curve_alone": curve(alone),
        "curve_cascade": curve(cascade),
    }


def median_ratios(runs: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The medians over the seeds of every ratio."""
    return {
        name: median([run[name] for run in runs]) for name in runs[0] if name.startswith("ratio")
    }


def curve(history: History, metric: str = "error", most: int = 60) -> list[list[float]]:
    """Training seconds, elapsed seconds, work units and metric, thinned out for a figure."""
    rows = [[e.seconds, e.elapsed_seconds, e.work, e.metrics[metric]] for e in history.evaluations]
    stride = max(1, len(rows) // most)
    return [[float(f"{x:.4g}") for x in row] for row in [*rows[::stride], rows[-1]]]
