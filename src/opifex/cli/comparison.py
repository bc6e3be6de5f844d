"""Several configurations or strategies side by side: what each reached, and how soon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from opifex.cli.errors import CommandError
from opifex.cli.parts import load_history
from opifex.cli.report import seed_folders
from opifex.cli.run_folder import RunFolder
from opifex.cli.settings import RunSettings
from opifex.cli.tasks import ERROR
from opifex.cli.training import start_run
from opifex.cli.yaml_document import YamlDocument, read_yaml
from opifex.training.multilevel import Evaluation, History

__all__ = [
    "Contestant",
    "compare_histories",
    "comparison_rows",
    "run_contestant",
    "variants",
]


@dataclass(frozen=True)
class Contestant:
    """One of several configurations.

    Attributes:
        name: what tables and figures call it.
        settings: the configuration.
        document: the same as it was given.
    """

    name: str
    settings: RunSettings
    document: YamlDocument


def variants(contestant: Contestant, strategies: Sequence[str], output: Path) -> list[Contestant]:
    """The same configuration with other strategies, each in a folder of its own.

    Args:
        contestant: the configuration.
        strategies: names of strategies.
        output: the folder of all of them.
    """

    def settings(strategy: str) -> RunSettings:
        changed = contestant.settings.updated("strategy", name=strategy)
        return changed.model_copy(update={"output": str(output / strategy)})

    return [Contestant(name, settings(name), contestant.document) for name in strategies]


def run_contestant(contestant: Contestant, console: Console) -> dict[int, History]:
    """Run a configuration, or take its results if it has been run already.

    Args:
        contestant: the configuration.
        console: where to show progress.

    Returns:
        Histories by seed.

    Raises:
        CommandError: if its folder holds another run, or the run fails.
        Interrupted: by Ctrl-C.
    """
    folder = RunFolder(Path(contestant.settings.output))
    if folder.status == "finished":
        # Everything that was given must be there; what depends on the data was decided since.
        known = read_yaml(folder.configuration).values
        wanted = contestant.settings.model_dump(exclude_none=True)
        different = _difference(wanted, known)
        if different:
            raise CommandError(
                f"{folder.path} holds a finished run with another {different}: remove it, or choose "
                "another output"
            )
        console.print(f"{contestant.name}: taken from {folder.path}", markup=False)
    else:
        console.print(f"{contestant.name}: to {folder.path}", markup=False)
        # Else the second of two runs would find the programs of the first compiled.
        start_run(contestant.settings, contestant.document, console, fresh=True)
    return {
        seed: load_history(where)
        for seed, (_, where) in zip(
            contestant.settings.seeds, seed_folders(folder, contestant.settings), strict=True
        )
    }


def _difference(wanted: Any, known: Any, where: str = "") -> str:
    """The first key that was given and differs."""
    if isinstance(wanted, dict) and isinstance(known, dict):
        for name, value in wanted.items():
            if where == "" and name == "output":
                continue
            found = _difference(value, known.get(name), f"{where}.{name}" if where else name)
            if found:
                return found
        return ""
    return "" if wanted == known else where


def compare_histories(
    runs: dict[str, dict[int, History]], target: float | None = None
) -> tuple[float, list[dict[str, Any]]]:
    """What every configuration reached, and its time to an equal error.

    Args:
        runs: histories by configuration and seed, the one to compare with first.
        target: the equal error; by default the largest that every run has reached, that is the
            worst of the best errors.

    Returns:
        The target, and one row per configuration: medians over the seeds. ``ratio`` is the time of
        the first configuration over that of the row, above one if the row was sooner; compilation
        and transfers count, evaluations do not. It is NaN where one of the two did not reach the
        target in most of its seeds.

    Raises:
        CommandError: if a run has no error, since nothing was held out.
    """
    for name, histories in runs.items():
        if not all(_errors(history) for history in histories.values()):
            raise CommandError(f"{name} has no error to compare: hold out samples (data.held_out)")
    if target is None:
        target = max(
            min(e.metrics[ERROR] for e in _errors(history))
            for histories in runs.values()
            for history in histories.values()
        )
    return target, comparison_rows(runs, target)


def _errors(history: History) -> list[Evaluation]:
    return [e for e in history.evaluations if ERROR in e.metrics and e.step > 0]


def comparison_rows(runs: dict[str, dict[int, History]], target: float) -> list[dict[str, Any]]:
    """One row per configuration, see `compare_histories`.

    Args:
        runs: histories by name of the configuration, then by seed.
        target: the error whose first evaluation at or below it counts as reached.
    """
    rows: list[dict[str, Any]] = []
    for name, histories in runs.items():
        first = [
            next((e for e in _errors(history) if e.metrics[ERROR] <= target), None)
            for history in histories.values()
        ]
        rows.append(
            {
                "configuration": name,
                "seeds": len(histories),
                "last error": _median([_errors(h)[-1].metrics[ERROR] for h in histories.values()]),
                "work": _median([h.work for h in histories.values()]),
                "seconds": _median([h.elapsed_seconds for h in histories.values()]),
                "reached by": sum(e is not None for e in first),
                "seconds to target": _median([e.elapsed_seconds if e else np.inf for e in first]),
                "training seconds to target": _median([e.seconds if e else np.inf for e in first]),
                "work to target": _median([e.work if e else np.inf for e in first]),
            }
        )
    for row in rows:
        base, own = rows[0]["seconds to target"], row["seconds to target"]
        finite = np.isfinite(base) and np.isfinite(own) and own > 0
        row["ratio"] = base / own if finite else float("nan")
    return rows


def _median(values: Sequence[float]) -> float:
    # Half of the runs without a time means none: the lower of two middle ones would hide it.
    return float(np.quantile(values, 0.5, method="higher"))
