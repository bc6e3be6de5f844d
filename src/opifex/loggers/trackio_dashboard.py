"""Rows for Trackio, whose dashboard runs on the own machine."""

from __future__ import annotations

from typing import Any

from opifex.core.optional import optional_module
from opifex.loggers.protocol import Outcome, Row, RunInfo

__all__ = ["TrackioLogger"]


class TrackioLogger:
    """Logs to Trackio's local store; look at it with ``trackio show``.

    Nothing leaves the machine unless ``options`` name a ``space_id``.

    Args:
        **options: further arguments of ``trackio.init``.

    Raises:
        ImportError: if Trackio is missing.
    """

    def __init__(self, **options: Any) -> None:
        self._module = optional_module("trackio", "trackio", "TrackioLogger")
        self._options = options

    def open(self, info: RunInfo) -> None:
        """Begin a run."""
        self._module.init(
            project=info.project, name=info.name, config=dict(info.settings), **self._options
        )

    def log(self, step: int, row: Row) -> None:
        """Log a row."""
        self._module.log({name: value for name, value in row.items() if name != "step"}, step=step)

    def close(self, outcome: Outcome) -> None:
        """End the run; Trackio has no place for the outcome."""
        del outcome
        self._module.finish()
