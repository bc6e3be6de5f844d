"""Rows as TensorBoard events, by tensorboardX (TensorFlow is not needed)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from opifex.core.optional import optional_module
from opifex.loggers.protocol import Outcome, Row, RunInfo

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Writes event files; look at them with ``tensorboard --logdir FOLDER``.

    Args:
        folder: where; it is made if it is missing. A resumed run may write to the same folder.

    Raises:
        ImportError: if tensorboardX is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._module = optional_module("tensorboardX", "cli", "TensorBoardLogger")
        self._writer: Any = None

    def open(self, info: RunInfo) -> None:
        """Open an event file and write the configuration as text."""
        self._writer = self._module.SummaryWriter(str(self._folder))
        lines = [f"    {name}: {value}" for name, value in info.settings.items()]
        self._writer.add_text("configuration", "\n".join(lines) or info.name)

    def log(self, step: int, row: Row) -> None:
        """Write a scalar for every entry but the step itself."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, outcome: Outcome) -> None:
        """Close the event file."""
        self._writer.add_text("outcome", outcome)
        self._writer.close()
