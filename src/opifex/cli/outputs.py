"""Tables of a run in its folder: one row per step, and the accounts of its seconds."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow
import pyarrow.parquet

from opifex.cli.run_folder import RunFolder
from opifex.training.multilevel import History

__all__ = ["accounts", "write_tables"]


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


def accounts(history: History) -> dict[str, float]:
    """Every second of a run in exactly one account; they add up to ``total``."""
    names = ("", "compile_", "transfer_", "resample_", "balance_", "evaluation_", "other_")
    found = {
        (name.rstrip("_") or "training"): float(getattr(history, f"{name}seconds"))
        for name in names
    }
    return {**found, "total": float(history.wall_seconds)}
