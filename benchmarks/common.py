"""What all benchmarks share: where results go, what they were measured on, how they are shown."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from opifex.training.multilevel import History

# Programs of an earlier process would make a cold start a warm one.
os.environ.setdefault("OPIFEX_PROGRAM_CACHE", "off")

RESULTS = Path(__file__).parent / "results"


def on_accelerator() -> bool:
    """Whether JAX computes elsewhere than on the processor."""
    return jax.default_backend() != "cpu"


def clock() -> float:
    """Seconds of this process on the processor; on an accelerator, those on the wall."""
    return time.perf_counter() if on_accelerator() else time.process_time()


def versions() -> dict[str, str]:
    """What the numbers depend on besides the code."""
    packages = ["jax", "jaxlib", "flax", "optax", "numpy"]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = f"one {jax.devices()[0].device_kind}" if on_accelerator() else "no accelerator"
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": f"{platform.machine()}, {usable} core(s) used, {accelerator}",
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
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
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
