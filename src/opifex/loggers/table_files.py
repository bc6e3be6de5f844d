"""Rows as CSV, written as they come, and as Parquet, written at the end."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opifex.core.optional import optional_module
from opifex.loggers.protocol import Outcome, Row, RunInfo
from opifex.storage.files import replace_file

__all__ = ["TableLogger", "read_rows", "write_rows"]


class TableLogger:
    """Writes ``<stem>.csv`` row by row, and ``<stem>.parquet`` with the same columns at the end.

    The CSV file is flushed after every row, so that a run that is killed leaves all rows behind. A
    column that appears later is empty in earlier rows. Parquet needs the extra ``cli`` (PyArrow).

    Args:
        folder: where; it is made if it is missing.
        stem: name of the files without ending.
        keep_until: go on with the rows that are there up to this step, instead of replacing all.
        parquet: write the Parquet file.

    Raises:
        ImportError: at once, if ``parquet`` is asked for and PyArrow is missing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from opifex.loggers import RunInfo, TableLogger
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = TableLogger(folder, parquet=False)
        ...     logger.open(RunInfo("example"))
        ...     logger.log(10, {"step": 10, "loss": 0.5})
        ...     logger.close("finished")
        ...     print(Path(folder, "metrics.csv").read_text(encoding="utf-8").split())
        ['step,loss', '10,0.5']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        stem: str = "metrics",
        keep_until: int | None = None,
        parquet: bool = True,
    ) -> None:
        self._csv = Path(folder) / f"{stem}.csv"
        self._parquet = Path(folder) / f"{stem}.parquet" if parquet else None
        if parquet:
            optional_module("pyarrow", "cli", "writing Parquet")
        self._keep_until = keep_until
        self._rows: list[dict[str, float]] = []
        self._columns: list[str] = []

    def open(self, info: RunInfo) -> None:
        """Make the folder, and take up what is there or begin afresh."""
        del info
        self._rows = []
        if self._keep_until is not None and self._csv.exists():
            kept = read_rows(self._csv)
            self._rows = [row for row in kept if row.get("step", 0) <= self._keep_until]
        self._columns = write_rows(self._csv, self._rows)

    def log(self, step: int, row: Row) -> None:
        """Append a row."""
        del step
        self._rows.append(dict(row))
        if any(name not in self._columns for name in row):
            self._columns = write_rows(self._csv, self._rows)
            return
        with self._csv.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(self._rows[-1])

    def close(self, outcome: Outcome) -> None:
        """Write the Parquet file."""
        del outcome
        if self._parquet is None:
            return
        import pyarrow
        import pyarrow.parquet

        columns = {name: [row.get(name) for row in self._rows] for name in self._columns}
        pyarrow.parquet.write_table(pyarrow.table(columns), self._parquet)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write a CSV file in one piece, so that a program that is killed leaves the old or the new one.

    Args:
        path: the file; its folder is made if it is missing.
        rows: one dictionary per row; what a row lacks is empty.

    Returns:
        The columns, in the order in which they appear.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    if columns:
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.getvalue().encode())
    return columns


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers; empty fields are left out.

    Args:
        path: the file, with a header.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [
            {name: _number(text) for name, text in row.items() if text}
            for row in csv.DictReader(file)
        ]


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)
