"""What is done where the loss stops being finite, or explodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from opifex.core.checks import check_choice, check_fraction, check_positive, check_positive_int

__all__ = ["FaultAction", "FaultPolicy"]

FaultAction = Literal["raise", "rollback", "skip"]
"""What is done about a fault. ``"raise"``: an error, with the last good state in the trainer.
``"rollback"``: back to the last end of an evaluation interval, and on with smaller steps. ``"skip"``:
the batch of the bad loss is left out; for data with bad samples, not for steps that are too long."""


@dataclass(frozen=True)
class FaultPolicy:
    """What `fit` does where a loss or a parameter is not finite, or the loss explodes.

    Attributes:
        action: see `FaultAction`.
        explosion: a loss of more than so many times the mean of the evaluation interval before it (at
            first, the first loss of the visit) is a fault, too; ``None`` lets losses be as large as
            they like.
        tries: faults of one visit of a level that are mended; the next one raises.
        step_factor: factor of all steps on the level after a rollback, once more after each. Steps,
            not rates: it works for every optimizer and solver.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if ``action`` is unknown, ``explosion`` not above one, ``tries`` not positive, or
            ``step_factor`` not between zero and one.

    Example:
        >>> from opifex.training.multilevel import FaultPolicy, MultilevelConfig
        >>> config = MultilevelConfig(faults=FaultPolicy("rollback", explosion=1e3))
        >>> config.faults.first_fault([1.0, 2.0, float("nan")], reference=1.0)
        2
    """

    action: FaultAction = "raise"
    explosion: float | None = None
    tries: int = 3
    step_factor: float = 0.5

    def __post_init__(self) -> None:
        check_choice("action", self.action, get_args(FaultAction))
        if self.explosion is not None and not check_positive("explosion", self.explosion) > 1:
            raise ValueError(f"explosion must be above one, got {self.explosion}")
        check_positive_int("tries", self.tries)
        check_fraction("step_factor", self.step_factor)

    def first_fault(self, losses: np.ndarray | list[float], reference: float) -> int | None:
        """Number of the first loss that is a fault, ``None`` if there is none.

        Args:
            losses: the losses of consecutive steps.
            reference: what an explosion is measured by.
        """
        values = np.asarray(losses)
        bad = ~np.isfinite(values)
        if self.explosion is not None:
            bad |= values > self.explosion * abs(reference)
        return int(np.argmax(bad)) if np.any(bad) else None
