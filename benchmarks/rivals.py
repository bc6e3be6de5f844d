"""Other methods on the problems of `second_order.py`: error over time on its finest networks.

Methods, all in float64:

- ``lm-alone``: our Levenberg-Marquardt on the finest network, as `second_order.py` runs it;
- ``random-features``: an untrained hidden layer and one linear least-squares solve; Gauss-Newton steps
  on the outgoing weights where the equation is nonlinear (`random_features.py`);
- ``ssbroyden``: the self-scaled Broyden family with its Zoom line search, of PyPI's
  ``ssbroyden-optimistix``;
- ``soap``: SOAP (`soap.py`), ``adam``: Adam, both with rates that fall like a cosine of the spent part
  of the budget, or constant ones where tuning found that better;
- ``l-bfgs``: Optax's, with its line search.

Networks, parameters at the start, trial functions, terms and points are those of ``lm-alone``, and
where that one draws new points, Adam and SOAP do so 60 times in a run; the quasi-Newton methods keep
their points, or draw anew where tuning found that better. Random features have their conditions by
construction everywhere, and as many points as tuning chose, drawn in the same way. Every run is a fresh
process on one core with one thread, and gets the processor seconds, compilation included, that
``lm-alone`` takes in the results of `second_order.py` (the median over its seeds); random features
end sooner. Errors are measured on the same grid.

Every method is tuned by ``--tune`` on seed 100, which is not reported, by the loss on points that no
training sees; the solution chooses nothing. What the trials range over was set by hand, after runs on
that seed and, for random features, on seed 0, whose errors were seen. Trials of the longer problems get
part of the budget. All trials are kept in the results. Finished runs are kept too: a command that was
interrupted goes on where it was.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from common import command, median, parser, read_results, write_results
from peers.environment import environment, first_core, on_cores, run_peer, with_ours
from second_order import CASES, Run

CONSOLE = Console(width=140)
SSBROYDEN = "0.1.1"
REQUIREMENTS = with_ours(f"ssbroyden-optimistix=={SSBROYDEN}")
TUNING_SEED = 100
# Part of the budget that a trial gets.
TRIAL = {"poisson": 1.0, "helmholtz": 0.5, "burgers": 0.35, "allen-cahn": 0.25}
METHODS = ("lm-alone", "random-features", "ssbroyden", "soap", "adam", "l-bfgs")
# What runs unless methods are named, chosen so that five seeds take less than half an hour on one core:
# the first-order methods only where a run is short, and L-BFGS, half of whose seconds go into
# compiling its line search, not at all.
DEFAULT = {
    "poisson": ("random-features", "ssbroyden", "soap", "adam"),
    "helmholtz": ("random-features", "ssbroyden", "soap", "adam"),
    "burgers": ("random-features", "ssbroyden"),
    "allen-cahn": ("random-features", "ssbroyden"),
}

Settings = dict[str, Any]


def first_order_trials(**own: int) -> list[Settings]:
    """Rates from 1e-3 to 3e-2 with the cosine, two without it."""
    chosen = [(rate, "cosine") for rate in (1e-3, 3e-3, 1e-2, 3e-2)]
    chosen += [(rate, "constant") for rate in (3e-3, 1e-2)]
    return [{"rate": rate, "schedule": schedule, **own} for rate, schedule in chosen]


def self_scaled_trials(draws: bool) -> list[Settings]:
    """Members of the family, line searches, the scale of the first step, new points."""
    usual = {"solver": "SSBroyden", "guess": "keep", "factor": 1.0, "draws": 0}
    paper = usual | {"own": {"alpha": "search", "initial_scaling": False}}
    found = [
        usual,
        usual | {"guess": "increase"},
        usual | {"solver": "SSBFGS"},
        paper,
        paper | {"factor": 1e2},
    ]
    more = [usual | {"draws": 2}, usual | {"draws": 8}] if draws else [usual | {"solver": "BFGS"}]
    return found + more


def feature_trials(problem: str) -> list[Settings]:
    """Slopes, with a moderate number of features."""
    if problem == "burgers":
        usual = {"features": 600, "points": 3.0, "soften": True, "steep": 0.6}
        slopes = [(6, 4, 150), (10, 4, 150), (10, 4, 300), (15, 4, 300), (10, 2, 300), (15, 2, 300)]
        return [
            usual | {"slope": slope, "slope_second": second, "steepest": steepest}
            for slope, second, steepest in slopes
        ]
    if problem == "allen-cahn":
        pairs = [(slope, second) for slope in (15, 25, 40) for second in (1, 2)]
        return [
            {"features": 600, "points": 3.0, "slope": slope, "slope_second": second}
            for slope, second in pairs
        ]
    count, both = (200, (1, 2, 3)) if problem == "poisson" else (800, (4, 6, 8))
    return [
        {"features": count, "points": 3.0, "slope": slope, "slope_second": slope} for slope in both
    ]


# With the slopes that were best: numbers of features, as far as the budget reaches.
NUMBERS = {
    "poisson": (400, 800),
    "helmholtz": (1200, 1600),
    "burgers": (1200,),
    "allen-cahn": (1200, 1600),
}


def trials(problem: str, method: str, best: Settings | None) -> list[Settings]:
    """What tuning chooses from: the first round, or a second one from the best of the first."""
    if best is not None:
        if method != "random-features":
            return []
        return [best | {"features": number} for number in NUMBERS[problem]]
    if method == "random-features":
        return feature_trials(problem)
    if method == "ssbroyden":
        return self_scaled_trials(CASES[problem].candidates is not None)
    if method == "soap":
        return [*first_order_trials(frequency=10), first_order_trials(frequency=2)[1]]
    if method == "adam":
        return first_order_trials()
    if method == "l-bfgs":
        return [{"memory": memory} for memory in (10, 50, 200)]
    return []


def budget_of(problem: str) -> float:
    """Processor seconds of ``lm-alone``, the median over the recorded seeds, to half a second.

    Raises:
        SystemExit: if there are no results of it.
    """
    rows = (read_results("second_order") or {"rows": []})["rows"]
    mine = [r for r in rows if (r["problem"], r["method"]) == (problem, "lm-alone")]
    found = median([r["processor_seconds_with_compilation"] for r in mine]) if mine else None
    if found is None:
        raise SystemExit(f"run lm-alone of second_order.py on {problem} first: it sets the budget")
    return round(2 * found) / 2


class Recorded:
    """The results so far; they are written after every run."""

    def __init__(self, dry: bool) -> None:
        found = read_results("rivals") or {}
        self.rows: list[dict[str, Any]] = found.get("rows", [])
        self.tuning: list[dict[str, Any]] = found.get("tuning", [])
        self.dry, self.lock = dry, Lock()

    @staticmethod
    def find(entries: list[dict[str, Any]], wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The entry with these values."""
        return next((e for e in entries if wanted.items() <= e.items()), None)

    def add(
        self, entries: list[dict[str, Any]], wanted: dict[str, Any], entry: dict[str, Any]
    ) -> None:
        """Put an entry in the place of those with these values, and write the results.

        Args:
            entries: `rows` or `tuning`.
            wanted: the values.
            entry: what to put there.
        """
        with self.lock:
            self._add(entries, wanted, entry)

    def _add(
        self, entries: list[dict[str, Any]], wanted: dict[str, Any], entry: dict[str, Any]
    ) -> None:
        entries[:] = [e for e in entries if not wanted.items() <= e.items()]
        entries.append(entry)
        problems = list(CASES)
        entries.sort(
            key=lambda e: (problems.index(e["problem"]), METHODS.index(e["method"]), e["seed"])
        )
        if self.dry:
            return
        write_results(
            "rivals",
            packages={"ssbroyden-optimistix": SSBROYDEN},
            chosen={p: {m: self.chosen(p, m) for m in METHODS} for p in CASES},
            tuning=self.tuning,
            rows=self.rows,
        )

    def chosen(
        self, problem: str, method: str, among: list[Settings] | None = None
    ) -> Settings | None:
        """The settings with the lowest loss on validation points; ``None`` before any trial.

        Args:
            problem: one of the problems.
            method: one of the methods.
            among: only these settings; all that were tried by default.
        """
        if method == "lm-alone":
            return {}
        mine = [t for t in self.tuning if (t["problem"], t["method"]) == (problem, method)]
        mine = [t for t in mine if math.isfinite(t["validation_loss"])]
        mine = [t for t in mine if among is None or t["settings"] in among]
        if not mine:
            return None
        return dict(min(mine, key=lambda t: t["validation_loss"])["settings"])


@dataclass(frozen=True)
class Runner:
    """Starts processes, each on one of some cores."""

    cores: list[int]
    folder: Path
    peers: str | None

    def python(self, method: str) -> Path:
        """The interpreter of the environment that a method needs."""
        if method == "ssbroyden":
            return environment("ssbroyden", REQUIREMENTS, self.peers)
        return Path(sys.executable)

    def run(
        self, core: int, problem: str, method: str, seed: int, settings: Settings, budget: float
    ) -> dict[str, Any]:
        """One run."""
        return run_peer(
            self.python(method),
            "rival.py",
            *("--problem", problem, "--method", method, "--seed", str(seed)),
            *("--settings", json.dumps(settings), "--budget", str(budget)),
            *("--reference", str(self.folder / f"{problem}.npz")),
            core=core,
        )


def write_reference(problem: str, folder: Path) -> Path:
    """Write the points of evaluation and the solution there."""
    path, own = folder / f"{problem}.npz", CASES[problem].problem
    with jax.enable_x64(True):
        grid = own.evaluation_points()
        np.savez(path, points=np.asarray(grid), exact=np.asarray(own.exact(grid)))
    return path


def tune(runner: Runner, recorded: Recorded, pairs: list[tuple[str, str]]) -> None:
    """Run the trials that are missing, in two rounds."""

    def work(job: tuple[dict[str, Any], float], core: int) -> None:
        key, budget = job
        found = runner.run(core, seed=TUNING_SEED, budget=budget, **key)
        last, loss = found["curve"][-1], found["validation_loss"]
        entry = {
            **key,
            "seed": TUNING_SEED,
            "budget": budget,
            "validation_loss": loss if math.isfinite(loss) else float("inf"),
            "loss": last["loss"],
            "steps": found["steps"],
            "processor_seconds_with_compilation": last["processor_seconds"],
        }
        recorded.add(recorded.tuning, key, entry)
        CONSOLE.print({**entry, "error, not used": last["error"]})

    for second in (False, True):
        jobs = []
        for problem, method in pairs:
            # The budget is what the whole method takes, where that may be less than all of it.
            part = 1.0 if method == "random-features" else TRIAL[problem]
            first = trials(problem, method, None)
            best = recorded.chosen(problem, method, first) if second else None
            for settings in trials(problem, method, best) if second else first:
                key = {"problem": problem, "method": method, "settings": settings}
                if recorded.find(recorded.tuning, key) is None:
                    jobs.append((key, part * budget_of(problem)))
        on_cores(runner.cores, jobs, work)


def measure(
    runner: Runner, recorded: Recorded, pairs: list[tuple[str, str]], seeds: list[int]
) -> None:
    """Make the runs that are missing."""
    jobs = []
    for problem, method in pairs:
        settings = recorded.chosen(problem, method)
        if settings is None:
            raise SystemExit(f"run --tune for {method} on {problem} first")
        for seed in seeds:
            key = {"problem": problem, "method": method, "seed": seed}
            if recorded.find(recorded.rows, key | {"settings": settings}) is None:
                jobs.append((key, settings, budget_of(problem)))

    def work(job: tuple[dict[str, Any], Settings, float], core: int) -> None:
        key, settings, budget = job
        found = runner.run(core, settings=settings, budget=budget, **key)
        target = CASES[key["problem"]].target
        row = Run(found["curve"], found["compile_seconds"]).row(target)
        kept = ("compile_seconds", "steps", "parameters", "validation_loss", "versions")
        row |= {"settings": settings, "budget": budget, "command": command()}
        row |= {name: found[name] for name in kept}
        recorded.add(recorded.rows, key, {**key, "target": target, **row})
        CONSOLE.print({**key, **{n: v for n, v in row.items() if n != "curve"}})

    on_cores(runner.cores, jobs, work)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the medians over the seeds."""
    table = Table(title="medians over the seeds")
    names = ["error", "seconds", "elapsed_seconds", "processor_seconds_with_compilation"]
    names += ["processor_seconds_to_target"]
    for title in ("problem", "method", "seeds", "errors", *names):
        table.add_column(title.replace("_", " "))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["problem"], row["method"]), []).append(row)
    for (problem, method), mine in groups.items():
        middles = [median([row[name] for row in mine]) for name in names]
        table.add_row(
            problem,
            method,
            str(len(mine)),
            ", ".join(f"{row['error']:.1e}" for row in mine),
            *("-" if m is None else f"{m:.3g}" for m in middles),
        )
    CONSOLE.print(table)


def main() -> None:
    """Tune, or run the chosen problems, methods and seeds that are not recorded yet."""
    options = parser(__doc__)
    options.add_argument("--problem", nargs="+", choices=list(CASES), default=list(CASES))
    options.add_argument("--method", nargs="+", choices=METHODS, help="a set by default")
    options.add_argument("--peers", help="folder for the peers' environments")
    options.add_argument("--tune", action="store_true", help="run missing trials, and nothing else")
    options.add_argument("--dry-run", action="store_true", help="do not write the results")
    options.add_argument(
        "--cores",
        type=int,
        nargs="+",
        default=[first_core()],
        help="one run at a time on each of these",
    )
    given = options.parse_args()
    recorded = Recorded(given.dry_run)
    pairs = [(p, m) for p in given.problem for m in given.method or DEFAULT[p]]
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(given.cores, Path(folder), given.peers)
        for problem in given.problem:
            write_reference(problem, runner.folder)
        if any(method == "ssbroyden" for _, method in pairs):
            runner.python("ssbroyden")
        if given.tune:
            tune(runner, recorded, pairs)
        else:
            measure(runner, recorded, pairs, given.seeds)
    show(recorded.rows)


if __name__ == "__main__":
    main()
