"""The protocol, and the criteria that need no more than the losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from opifex.core.checks import check_fraction, check_positive, check_positive_int
from opifex.training.multilevel.monitor import LevelProgress

__all__ = ["FixedEpochs", "LossPlateau", "StoppingCriterion", "WorkOptimal"]


class StoppingCriterion(Protocol):
    """Says when a level has done its part."""

    def should_stop(self, progress: LevelProgress) -> bool:
        """Whether to end the work on this level now."""
        ...


@dataclass(frozen=True)
class FixedEpochs:
    """Stop when the planned epochs are done. The default."""

    def should_stop(self, progress: LevelProgress) -> bool:
        """True once the planned number is reached."""
        return progress.epoch >= progress.max_epochs


def _window_means(losses: np.ndarray, windows: int, steps: int) -> tuple[np.ndarray, bool]:
    """Means over the last windows, of the logarithms if all losses there are positive.

    Returns:
        The means, float64 of shape (windows,), and whether they are those of logarithms.
    """
    values = np.asarray(losses[-windows * steps :], np.float64)
    logarithmic = bool(np.all(values > 0))
    values = np.log(values) if logarithmic else values
    return values.reshape(windows, steps).mean(axis=1), logarithmic


@dataclass(frozen=True)
class LossPlateau:
    """Stop when the loss no longer falls (the loss-gap rule of iFNO, arXiv:2211.15188).

    The mean loss of the last window is compared with that of the window before. Positive losses are
    averaged geometrically, so that a single large one counts little. Where the two windows hold a
    loss that is zero or negative (an energy, say), the means are arithmetic, and the improvement is
    relative to the absolute value of the earlier mean.

    Attributes:
        window: epochs over which losses are averaged.
        relative_improvement: stop when a window improves on the one before it by less than this
            fraction.
        min_epochs: stay at least this long.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if a number is not positive, or ``relative_improvement`` not below one.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import Cascade, CascadeTrainer, LossPlateau, Monitor
        >>> cycle = Cascade(stop=LossPlateau(window=5))
        >>> trainer = CascadeTrainer(input_dim=1, output_dim=1, base_hidden_dims=[8], rngs=nnx.Rngs(0))
        >>> history = trainer.fit(lambda model: 1.0, cycle=cycle, monitor=Monitor(every=5))
        >>> history.num_steps  # a loss that cannot fall: two windows on each of three levels
        30
    """

    window: int = 20
    relative_improvement: float = 0.02
    min_epochs: int = 1

    def __post_init__(self) -> None:
        check_positive_int("window", self.window)
        check_fraction("relative_improvement", self.relative_improvement)
        check_positive_int("min_epochs", self.min_epochs)

    def should_stop(self, progress: LevelProgress) -> bool:
        """Compare the last two windows."""
        steps = self.window * progress.steps_per_epoch
        if progress.epoch < self.min_epochs or len(progress.losses) < 2 * steps:
            return False
        (before, after), logarithmic = _window_means(progress.losses, 2, steps)
        if logarithmic:
            return bool(after - before > np.log1p(-self.relative_improvement))
        return bool(before - after <= self.relative_improvement * abs(before))


@dataclass(frozen=True)
class WorkOptimal:
    r"""Stop when the next level is expected to gain more per work unit.

    The gain of the present level is its decay of $\log L$ per work unit over the last window,
    $g_l = \Delta \log L / (n\, c_l)$ with $c_l$ the cost of a step. The decay per *step* of the next
    level is not known before it is tried; it is estimated as the best decay per step that the
    present level showed in any earlier window, times ``optimism``, since a level starts with the
    error components that its predecessor could not reduce.

    If any loss of the visit is zero or negative (an energy, say, or a loss that underflows), the
    decay of $L$ itself takes the place of that of $\log L$: only decays of one visit are compared
    with each other, so that their scale does not matter.

    Attributes:
        window: epochs over which the decay is measured.
        optimism: expected decay per step of the next level relative to the present one's best.
        min_epochs: stay at least this long.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if a number is not positive.
    """

    window: int = 20
    optimism: float = 0.25
    min_epochs: int = 40

    def __post_init__(self) -> None:
        check_positive_int("window", self.window)
        check_positive("optimism", self.optimism)
        check_positive_int("min_epochs", self.min_epochs)

    def should_stop(self, progress: LevelProgress) -> bool:
        """Compare the present gain with the estimated next one."""
        steps = self.window * progress.steps_per_epoch
        windows = len(progress.losses) // steps
        if progress.is_finest or progress.epoch < self.min_epochs or windows < 2:
            return False
        means, _ = _window_means(progress.losses, windows, steps)
        decays = -np.diff(means) / steps
        here = decays[-1] / progress.step_work(progress.level)
        there = self.optimism * np.max(decays) / progress.step_work(progress.level + 1)
        return bool(here < there)
