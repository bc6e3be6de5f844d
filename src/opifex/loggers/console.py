"""Plain lines for terminals, pipes and files: one per row."""

from __future__ import annotations

import sys
from typing import TextIO

from opifex.loggers.protocol import Outcome, Row, RunInfo

__all__ = ["ConsoleLogger"]

_COUNTS = frozenset({"step", "level", "epoch", "cycle"})


class ConsoleLogger:
    """Prints one line per row, without colours or cursor movements.

    Args:
        stream: where to print; standard output as it is at that moment by default.

    Example:
        >>> from opifex.loggers import ConsoleLogger
        >>> ConsoleLogger().log(20, {"level": 1, "epoch": 10, "loss": 0.25})
        step 20  level 1  epoch 10  loss 2.500e-01
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def open(self, info: RunInfo) -> None:
        """Print the name of the run."""
        self._print(f"run {info.name}")

    def log(self, step: int, row: Row) -> None:
        """Print a row."""
        words = [f"step {step}"]
        for name, value in row.items():
            if name != "step":
                words.append(f"{name} {value:g}" if name in _COUNTS else f"{name} {value:.3e}")
        self._print("  ".join(words))

    def close(self, outcome: Outcome) -> None:
        """Print the outcome."""
        self._print(outcome)

    def _print(self, text: str) -> None:
        print(text, file=self._stream or sys.stdout, flush=True)
