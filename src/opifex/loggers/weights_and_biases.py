"""Rows for Weights & Biases, offline unless asked otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from opifex.core.checks import check_choice
from opifex.core.optional import optional_module
from opifex.loggers.protocol import Outcome, Row, RunInfo

__all__ = ["WandbLogger"]

_MODES = ("offline", "online", "disabled")


class WandbLogger:
    """Logs a run to Weights & Biases.

    Args:
        folder: where its files go.
        mode: ``"offline"`` writes files that ``wandb sync`` uploads later, ``"online"`` sends rows as
            they come and needs an account, ``"disabled"`` does nothing.
        **options: further arguments of ``wandb.init``.

    Raises:
        ImportError: if wandb is missing.
        ValueError: if ``mode`` is unknown.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        mode: Literal["offline", "online", "disabled"] = "offline",
        **options: Any,
    ) -> None:
        check_choice("mode", mode, _MODES)
        self._module = optional_module("wandb", "wandb", "WandbLogger")
        self._folder, self._mode, self._options = Path(folder), mode, options
        self._run: Any = None

    def open(self, info: RunInfo) -> None:
        """Begin a run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = self._module.init(
            project=info.project,
            name=info.name,
            config=dict(info.settings),
            dir=str(self._folder),
            mode=self._mode,
            **self._options,
        )

    def log(self, step: int, row: Row) -> None:
        """Log a row."""
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=step)

    def close(self, outcome: Outcome) -> None:
        """End the run; one that failed is marked so."""
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
