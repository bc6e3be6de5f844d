"""What a logger is: three methods, and the two kinds of values that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = ["Logger", "Outcome", "Row", "RunInfo"]

Row = Mapping[str, float]
"""Numbers of one moment by name; the step, level and epoch are among them."""

Outcome = Literal["finished", "interrupted", "failed"]
"""How a run ended."""


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told before the first row.

    Attributes:
        name: name of the run.
        project: what the run belongs to, for services that group runs.
        settings: the configuration, a tree of plain values.
    """

    name: str
    project: str = "opifex-multilevel"
    settings: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Logger(Protocol):
    """Takes the rows of a run.

    Example:
        >>> from opifex.loggers import Logger
        >>> class LastRow:
        ...     def open(self, info):
        ...         self.row = {}
        ...     def log(self, step, row):
        ...         self.row = dict(row)
        ...     def close(self, outcome):
        ...         self.row["outcome"] = outcome
        >>> isinstance(LastRow(), Logger)
        True
    """

    def open(self, info: RunInfo) -> None:
        """Begin; called once, before the first row."""
        ...

    def log(self, step: int, row: Row) -> None:
        """Take a row.

        Args:
            step: optimizer steps so far, increasing from row to row.
            row: numbers by name.
        """
        ...

    def close(self, outcome: Outcome) -> None:
        """End; called once, whatever ended the run."""
        ...
