"""Write docs/measurements.md, and the measured blocks of README and docs, from the last results.

A block begins with ``<!-- measured: NAME -->`` and ends with ``<!-- /measured -->``; what is between is
written here. ``--check`` writes nothing and fails where a page is not what the results say.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import choices
import gains
from common import RESULTS, read_results
from sections import SECTIONS, STALE
from tables import (
    ONE_RATE,
    Results,
    architecture_rows,
    architecture_times,
    middle,
    origin,
    pinnacle_rows,
    plain,
    race_rows,
    table,
)

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measurements.md"
# Figures that are drawn from the results.
DRAWN = "decision", "trials", "grid_growth", "sample_cost"
FIGURES = ROOT / "scripts" / "docs_figures.py"

RULES = """# All measurements

Every section is one command under `benchmarks/`, run from the root of the project; `taskset -c 0` in
front of it keeps it on one core, as all of these were. `benchmarks/results/` holds the last results,
from which `python benchmarks/report.py` writes this page.

In a **race** the rival of our cascade is the best *single* network of any size and grid, tuned over as
many entries on the same budget (`benchmarks/race.py`). The low target is 1.2 times the lowest
validation error with which any single network ended in the tuning, the high one three times that; for
each target both sides send the entry that reached it first in the tuning, on another seed and on
validation data. All clocks stop when the target is first reached on test data. They count processor
seconds of one thread, with compilation and transfers and without evaluations; *training alone* leaves
compilation and transfers out. Ratios are medians over the seeds with the lower quartile in brackets;
above one the cascade was sooner. A rival that never reached the target counts as if it had at the end of
its budget; a cascade that never did counts as zero.
"""


def page() -> str:
    """The page of all results."""
    parts = [RULES]
    for name, title, explanation, show in SECTIONS:
        results = read_results(name)
        if results is None:
            print(f"no results of {name} in {RESULTS.name}", file=sys.stderr)
            continue
        parts.append(
            f"## {title}\n\n{explanation}\n\n{show(results)}\n\n"
            + (f"{STALE[name]}\n\n" if name in STALE else "")
            + f"{origin(results)}\n"
        )
    return "\n".join(parts)


def headline() -> str:
    """All races, then a step of the loop against others."""
    rows = []
    for name, title, *_ in SECTIONS:
        results = read_results(name)
        if results is not None and "targets" in results:
            rows += [{"work": title, **row} for row in race_rows(results)]
    if not rows:
        return "No race has been run."
    steps = []
    for name, ours, theirs, against in (
        ("overhead", "trainer_ms_per_step", "bare_ms_per_step", "a bare `jit(scan)` loop"),
        (
            "overhead_gpu",
            "trainer_ms_per_step",
            "bare_ms_per_step",
            "a bare `jit(scan)` loop on a GPU",
        ),
        (
            "namesake",
            "ms per step",
            "namesake ms per step",
            "the namesake's documented loop, uncompiled",
        ),
    ):
        for row in (read_results(name) or {"rows": []})["rows"]:
            steps.append(
                {
                    "one step of level": row["level"],
                    "against": against,
                    "ours, ms": row[ours],
                    "theirs, ms": row[theirs],
                    "theirs / ours": row[theirs] / row[ours],
                }
            )
    return table(rows) + (f"\n\n{table(steps)}" if steps else "")


def of_method(name: str, problem: str, method: str, field: str) -> Any:
    """The median of a field over the seeds, or a dash."""
    rows = (read_results(name) or {"rows": []})["rows"]
    return middle([r for r in rows if (r["problem"], r["method"]) == (problem, method)], field)


ACCURACY: Mapping[str, tuple[str, str]] = {
    "Levenberg-Marquardt cascade": ("second_order", "lm-cascade"),
    "Levenberg-Marquardt, finest network alone": ("second_order", "lm-alone"),
    "natural gradient": ("second_order", "natural-gradient-alone"),
    "matrix-free Gauss-Newton": ("second_order", "matrix-free-alone"),
    "random features": ("rivals", "random-features"),
    "self-scaled Broyden (peer)": ("rivals", "ssbroyden"),
    "SOAP": ("rivals", "soap"),
    "Adam": ("rivals", "adam"),
}


def accuracy() -> str:
    """Errors of second-order methods and their rivals in equal time, medians over the seeds."""
    ours = read_results("second_order")
    if ours is None:
        return "Nothing has been measured."
    problems = dict.fromkeys(row["problem"] for row in ours["rows"])
    rows = [
        {
            "PINN": problem,
            "processor seconds": of_method(
                "second_order", problem, "lm-cascade", "processor_seconds_with_compilation"
            ),
            **{
                title: of_method(name, problem, method, "error")
                for title, (name, method) in ACCURACY.items()
            },
        }
        for problem in problems
    ]
    return table(rows)


def chosen(
    name: str, keys: Sequence[str], rows: Callable[[Results], Any] = lambda results: results["rows"]
) -> Callable[[], str]:
    """Some columns of the rows of a result, or of rows that are made from it."""

    def show() -> str:
        results: Results | None = read_results(name)
        if results is None:
            return "Nothing has been measured."
        return plain(*keys)({"rows": rows(results)})

    return show


BLOCKS: dict[str, Callable[[], str]] = {
    "races": headline,
    "accuracy": accuracy,
    "cycles": chosen("cycles", ("strategy", "work", "final errors", "seconds")),
    "memory": chosen(
        "solver_memory", ("parameters", "points", "solver", "estimate, MiB", "XLA, MiB")
    ),
    "pinnacle": chosen(
        "pinnacle",
        ("case", "median error", "published", "published / ours", "processor seconds"),
        pinnacle_rows,
    ),
    "architectures": chosen(
        "architectures",
        (
            "model",
            "problem",
            "seconds",
            "finest alone, error",
            "cascade, error",
            "alone / cascade",
            "the cascade ended",
        ),
        architecture_rows,
    ),
    "architecture-times": chosen(
        "architectures",
        (
            "model",
            "problem",
            "last error, all seconds",
            "last error, training alone",
            "1.2 times it, all seconds",
            "1.2 times it, training alone",
        ),
        architecture_times,
    ),
    "choices": lambda: table(choices.rows()),
    "gains": lambda: table(gains.rows()),
    "one-rate": chosen("one_rate", ONE_RATE),
    "rate-curves": lambda: table((read_results("one_rate") or {"curves": [{}]})["curves"]),
    "starts": chosen("plasticity", ("method", "start", "median loss", "median error")),
    "transitions": chosen(
        "transfer_choices",
        ("choice", "largest peak", "median final loss", "median final error"),
    ),
}


def with_blocks(text: str) -> str:
    """A page whose measured blocks are written anew.

    Raises:
        KeyError: if a block has an unknown name.
        ValueError: if a block does not end, or has no line between its first and its last.
    """
    made, count = re.subn(
        r"(<!-- measured: ([\w-]+) -->\n).*?(\n<!-- /measured -->)",
        lambda found: found[1] + BLOCKS[found[2]]() + found[3],
        text,
        flags=re.DOTALL,
    )
    if count != text.count("<!-- measured:"):
        raise ValueError("a measured block must hold a line and end with <!-- /measured -->")
    return made


def pages() -> dict[Path, str]:
    """All pages with numbers in them, as the results say that they should be."""
    found = {PAGE: page()}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if path != PAGE:
            found[path] = with_blocks(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Write all pages and the figure that shows results, or compare the pages."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="compare only")
    check = options.parse_args().check
    stale = []
    for path, text in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if not check:
        subprocess.run([sys.executable, FIGURES, *DRAWN], check=True)
    if check and stale:
        raise SystemExit(f"not what the results say: {', '.join(stale)}; run benchmarks/report.py")


if __name__ == "__main__":
    main()
