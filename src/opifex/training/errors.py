"""Errors raised by training."""

from __future__ import annotations

from typing import Any

__all__ = ["NonFiniteLossError"]


class NonFiniteLossError(FloatingPointError):
    """The loss or the parameters became NaN or infinite.

    The trainer that raised it keeps the last state whose loss was finite.

    Attributes:
        level: level at which it happened; 0 is the coarsest.
        step: number of steps taken on that level before the one that failed.
        last_loss: last finite loss of this level, NaN if there was none.
    """

    def __init__(self, level: int, step: int, last_loss: float) -> None:
        super().__init__(
            f"training became non-finite on level {level} at step {step} (last finite loss "
            f"{last_loss:.4e}); the trainer keeps the last good state"
        )
        self.level = level
        self.step = step
        self.last_loss = last_loss

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.level, self.step, self.last_loss)
