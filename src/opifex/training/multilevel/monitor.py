"""Observing a run: what callbacks and stopping criteria are given, and at which interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from opifex.core.checks import check_callable, check_positive_int, check_sequence

__all__ = ["Callback", "LevelProgress", "Metrics", "Monitor"]


@dataclass(frozen=True)
class LevelProgress:
    """What a stopping criterion or callback is given.

    Attributes:
        level: present level; 0 is the coarsest.
        num_levels: number of levels.
        cycle: number of the cycle, zero for a cascade.
        epoch: epochs done during this visit of the level.
        max_epochs: epochs planned for it.
        losses: the losses of this visit, one per step: shape (steps,).
        steps_per_epoch: steps of one epoch.
        metrics: latest evaluation by name, empty if there was none.
        get_model: returns the present model (a copy).
        step_work: returns the cost of one step of a level in steps of the finest level.
    """

    level: int
    num_levels: int
    cycle: int
    epoch: int
    max_epochs: int
    losses: np.ndarray
    steps_per_epoch: int
    metrics: dict[str, float]
    get_model: Callable[[], nnx.Module]
    step_work: Callable[[int], float]

    @property
    def model(self) -> nnx.Module:
        """The present model, as a copy: changing it does not touch the run."""
        return self.get_model()

    @property
    def is_finest(self) -> bool:
        """Whether there is no finer level."""
        return self.level == self.num_levels - 1


Callback = Callable[[LevelProgress], Any]
"""Called at the end of every evaluation interval; a true return value ends the run."""

Metrics = Callable[[Any], Any]
"""``evaluate(model)``: a scalar, or a dictionary of scalars. It is compiled."""


@dataclass(frozen=True)
class Monitor:
    """The evaluation interval, and what is done at its end.

    Attributes:
        every: the evaluation interval in epochs: how often the metrics are computed, the callbacks
            called and the stopping criterion asked; by default a twentieth of what is planned for the
            visit of a level.
        callbacks: called with a `LevelProgress`; a true return value ends the *run*, where a
            stopping criterion ends the *level*.
        progress: show a progress bar.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if ``every`` is not positive.

    Example:
        >>> from opifex.training.multilevel import Monitor
        >>> monitor = Monitor(every=50, callbacks=[lambda progress: progress.losses[-1] < 1e-6])
        >>> monitor.interval(400), Monitor().interval(400)
        (50, 20)
    """

    every: int | None = None
    callbacks: Sequence[Callback] = ()
    progress: bool = False

    def __post_init__(self) -> None:
        if self.every is not None:
            check_positive_int("every", self.every)
        check_sequence("callbacks", self.callbacks)
        for i, callback in enumerate(self.callbacks):
            check_callable(f"callbacks[{i}]", callback)
        if not isinstance(self.progress, bool):
            raise TypeError(f"progress must be a bool, got {self.progress!r}")

    def interval(self, epochs: int) -> int:
        """The evaluation interval of a visit that is planned to last so many epochs."""
        return self.every or max(1, epochs // 20)
