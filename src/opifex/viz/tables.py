"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from rich.table import Table

from opifex.core.checks import check_sequence
from opifex.training.multilevel.history import History
from opifex.viz.visits import level_visits

__all__ = ["comparison_table", "history_table"]


_ACCOUNTS = {
    "compiling": "compile_seconds",
    "transfers": "transfer_seconds",
    "new points": "resample_seconds",
    "reading": "read_seconds",
    "weights": "balance_seconds",
    "evaluating": "evaluation_seconds",
    "other": "other_seconds",
    "together": "wall_seconds",
}


def history_table(history: History, *, title: str | None = None) -> Table:
    """One row per visit of a level, and where all other seconds went.

    A visit has its number of steps, first and last loss, work units and seconds of training. Below
    stand the accounts that took time: compiling, transfers, new points, weights of residual terms,
    evaluating (with callbacks), the rest, and the sum of all seconds spent in ``fit``.

    Args:
        history: the record of a run.
        title: heading of the table.

    Returns:
        A table for ``rich.print``. Level 0 is the coarsest.

    Raises:
        TypeError: if ``history`` is not a `History`.
    """
    if not isinstance(history, History):
        raise TypeError(f"history must be a History, got {type(history).__name__}")
    table = Table(title=title)
    for name in ("level", "steps", "first loss", "last loss", "work units", "seconds"):
        table.add_column(name, justify="right")
    losses = history.losses
    if history.num_steps:
        for by_work, by_time in zip(
            level_visits(history), level_visits(history, "seconds"), strict=True
        ):
            table.add_row(
                str(by_work.level),
                str(by_work.last - by_work.first),
                f"{losses[by_work.first]:.3e}",
                f"{losses[by_work.last - 1]:.3e}",
                f"{by_work.end - by_work.start:.1f}",
                f"{by_time.end - by_time.start:.1f}",
            )
    table.add_section()
    for name, account in _ACCOUNTS.items():
        seconds = getattr(history, account)
        if seconds:
            table.add_row(name, "", "", "", "", f"{seconds:.1f}")
    return table


def _format(value: Any, specification: str | None) -> str:
    if specification is not None and isinstance(value, Real):
        return format(value, specification)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{value:.3g}"
    return str(value)


def comparison_table(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str | None = None,
    formats: Mapping[str, str] | None = None,
) -> Table:
    """One row per run, one column per quantity.

    Args:
        rows: mappings from column name to value; all have the names of the first, in its order.
        title: heading of the table.
        formats: format specification of the numbers of a column, for instance
            ``{"error": ".2e"}``; other numbers get three significant digits.

    Returns:
        A table for ``rich.print``.

    Raises:
        TypeError: if ``rows`` is not a sequence of mappings.
        ValueError: if ``rows`` is empty, the rows differ in their names, or ``formats`` names a
            column that is not there.
    """
    check_sequence("rows", rows)
    if len(rows) == 0:
        raise ValueError("rows must not be empty")
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"rows[{i}] must be a mapping, got {type(row).__name__}")
        if set(row) != set(rows[0]):
            raise ValueError(f"rows[{i}] has the columns {list(row)}, rows[0] has {list(rows[0])}")
    formats = formats or {}
    unknown = [name for name in formats if name not in rows[0]]
    if unknown:
        raise ValueError(f"formats names the column {unknown[0]!r}, rows have {list(rows[0])}")
    table = Table(title=title)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, Real) else "left")
    for row in rows:
        table.add_row(*(_format(row[name], formats.get(name)) for name in rows[0]))
    return table
