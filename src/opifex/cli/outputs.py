"""Results of a run: tables in its folder, accounts of its seconds, and what status and summary say."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from opifex.cli.run_folder import RunFolder
from opifex.cli.tasks import ERROR
from opifex.loggers import RunInfo, TableLogger
from opifex.loggers.table_files import read_rows, write_rows
from opifex.training.multilevel import CascadeTrainer, History

__all__ = ["accounts", "last_words", "price_rows", "status_facts", "write_summary", "write_tables"]


def write_tables(folder: RunFolder, history: History) -> None:
    """Write ``steps.csv``, ``steps.parquet`` and ``accounts.json``.

    Args:
        folder: the run folder.
        history: the record of the run.
    """
    table = {name: np.asarray(values) for name, values in history.table().items()}
    columns = {name: values.tolist() for name, values in table.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder.path / "steps.parquet")
    with (folder.path / "steps.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    folder.write_json("accounts.json", accounts(history))


def price_rows(folder: RunFolder, history: History) -> None:
    """Put the work in ``metrics.csv`` and ``metrics.parquet`` right.

    Rows of coarse levels were written when a step of the finest level had not been priced yet. Not for
    a run that goes on: rows that it adds meanwhile would be lost.

    Args:
        folder: the run folder.
        history: the record of the run.
    """
    path = folder.path / "metrics.csv"
    if not path.exists():
        return
    work = np.concatenate([[0.0], history.table()["work"]])
    rows = read_rows(path)
    steps = [min(int(row["step"]), len(work) - 1) for row in rows]
    priced = [{**row, "work": float(work[n])} for row, n in zip(rows, steps, strict=True)]
    write_rows(path, priced)
    metrics = TableLogger(folder.path, keep_until=int(max((r["step"] for r in rows), default=0)))
    metrics.open(RunInfo(folder.path.name))
    metrics.close("finished")


def accounts(history: History) -> dict[str, float]:
    """Every second of a run in exactly one account; they add up to ``total``."""
    names = ("", "compile_", "transfer_", "resample_", "balance_", "evaluation_", "other_")
    found = {
        (name.rstrip("_") or "training"): float(getattr(history, f"{name}seconds"))
        for name in names
    }
    return {**found, "total": float(history.wall_seconds)}


def status_facts(trainer: CascadeTrainer) -> dict[str, Any]:
    """What the status of a run says of its results: nothing where there is no step yet."""
    history = trainer.history
    if not history.num_steps:
        return {}
    facts: dict[str, Any] = {
        "level": trainer.current_level,
        "steps": history.num_steps,
        "work": history.work,
        "seconds": history.wall_seconds,
        "training_seconds": history.seconds,
        "compile_seconds": history.compile_seconds,
        "loss": float(history.losses[-1]),
    }
    if history.evaluations and ERROR in history.evaluations[-1].metrics:
        facts[ERROR] = history.evaluations[-1].metrics[ERROR]
    return facts


def last_words(history: History) -> str:
    """The results of a finished run in one line."""
    words = [f"{history.num_steps} steps", f"loss {history.losses[-1]:.3e}"]
    if history.evaluations:
        words += [f"{n} {v:.3e}" for n, v in history.evaluations[-1].metrics.items()]
    words += [f"{history.work:.4g} work units", f"{history.wall_seconds:.1f} s"]
    return "finished: " + "  ".join(words)


def write_summary(folder: RunFolder, seeds: Sequence[int]) -> None:
    """Write one row per seed, and medians over them.

    Args:
        folder: the run folder of all seeds.
        seeds: the seeds, all of them finished.
    """
    columns = ("steps", "work", "seconds", "training_seconds", "compile_seconds", "loss", ERROR)
    rows = []
    for seed in seeds:
        facts = folder.seed(seed).read_json("status.json")
        rows.append({"seed": seed, **{n: facts[n] for n in columns if n in facts}})
    write_rows(folder.path / "summary.csv", rows)
    medians = {n: float(np.median([row[n] for row in rows])) for n in rows[0] if n != "seed"}
    folder.write_json("summary.json", {"seeds": rows, "median": medians})
