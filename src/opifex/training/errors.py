"""Errors raised by training."""

from __future__ import annotations

from typing import Any

__all__ = ["LossExplosionError", "NonFiniteLossError"]


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


class LossExplosionError(FloatingPointError):
    """The loss grew beyond what a `FaultPolicy` allows.

    The trainer that raised it keeps the last state whose loss was allowed.

    Attributes:
        level: level at which it happened; 0 is the coarsest.
        step: number of steps taken on that level before.
        loss: the loss.
        allowed: the largest loss that was allowed.
    """

    def __init__(self, level: int, step: int, loss: float, allowed: float) -> None:
        super().__init__(
            f"the loss exploded on level {level} at step {step}: {loss:.4e}, of which {allowed:.4e} was "
            "allowed; the trainer keeps the last good state"
        )
        self.level, self.step, self.loss, self.allowed = level, step, loss, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.level, self.step, self.loss, self.allowed)
