"""When to leave a level: rules that look at its progress and say stay or go.

To write a rule of your own, give a class one method::

    class BelowThreshold:
        def should_advance(self, progress: LevelProgress) -> bool:
            return progress.losses[-1] < 1e-3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flax import nnx

from opifex.core.checks import (
    check_callable,
    check_fraction,
    check_nonnegative,
    check_positive,
    check_positive_int,
    check_sequence,
)

__all__ = [
    "AdvanceRule",
    "FixedEpochs",
    "LevelProgress",
    "PlateauAdvance",
    "ResidualSpectrumAdvance",
    "WorkOptimalAdvance",
]


@dataclass(frozen=True)
class LevelProgress:
    """What a rule or callback may look at.

    Attributes:
        level: present level, 0 the coarsest.
        num_levels: number of levels.
        cycle: number of the cycle, zero for a cascade.
        epoch: epochs done during this visit of the level.
        max_epochs: epochs planned for it.
        losses: the losses of this visit, one per step.
        steps_per_epoch: steps of one epoch.
        metrics: latest evaluation, empty if there was none.
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


class AdvanceRule(Protocol):
    """Says when a level has done its part."""

    def should_advance(self, progress: LevelProgress) -> bool:
        """Whether to go on to the next level now."""
        ...


@dataclass(frozen=True)
class FixedEpochs:
    """Leave a level when its planned epochs are done. The default."""

    def should_advance(self, progress: LevelProgress) -> bool:
        """True once the planned number is reached."""
        return progress.epoch >= progress.max_epochs


def _smoothed(losses: np.ndarray, window: int) -> tuple[float, float] | None:
    """Geometric means of the last two windows, or ``None`` if there are not enough losses."""
    if len(losses) < 2 * window:
        return None
    logs = np.log(np.maximum(losses[-2 * window :], np.finfo(losses.dtype).tiny))
    return float(np.exp(np.mean(logs[:window]))), float(np.exp(np.mean(logs[window:])))


@dataclass(frozen=True)
class PlateauAdvance:
    """Leave a level when the loss stops falling (the loss-gap rule of iFNO, arXiv:2211.15188).

    Attributes:
        window: epochs over which losses are averaged (geometrically).
        relative_improvement: go on when a window improves on the one before it by less than this
            fraction.
        min_epochs: stay at least this long.
    """

    window: int = 20
    relative_improvement: float = 0.02
    min_epochs: int = 1

    def __post_init__(self) -> None:
        check_positive_int("window", self.window)
        check_fraction("relative_improvement", self.relative_improvement)
        check_positive_int("min_epochs", self.min_epochs)

    def should_advance(self, progress: LevelProgress) -> bool:
        """Compare the last two windows."""
        means = _smoothed(progress.losses, self.window * progress.steps_per_epoch)
        if progress.epoch < self.min_epochs or means is None:
            return False
        before, after = means
        return after > before * (1 - self.relative_improvement)


@dataclass(frozen=True)
class ResidualSpectrumAdvance:
    r"""Leave a level when what is left to learn lies beyond the level's frequencies.

    The residual $r$ of the present model on a regular grid is Fourier transformed. The level can
    only reduce the part with all frequencies $|k| < m$; when that part holds less than a given
    fraction of the energy, smoothing here is wasted.

    Attributes:
        residual_fn: ``residual_fn(model)`` returns the residual on a regular grid, shape
            (n,), (n, n) or with leading batch axes; only the last ``spatial_dims`` are transformed.
        modes: for each level, the number of frequencies per axis it represents.
        spatial_dims: number of grid axes.
        energy_fraction: go on when the share of energy below the level's modes falls under this.
    """

    residual_fn: Callable[[Any], Any]
    modes: tuple[int, ...]
    spatial_dims: int = 1
    energy_fraction: float = 0.5

    def __post_init__(self) -> None:
        check_callable("residual_fn", self.residual_fn)
        check_sequence("modes", self.modes)
        for i, m in enumerate(self.modes):
            check_positive_int(f"modes[{i}]", m)
        check_positive_int("spatial_dims", self.spatial_dims)
        check_fraction("energy_fraction", self.energy_fraction)

    def low_energy_share(self, residual: np.ndarray, level: int) -> float:
        """Share of the residual's energy in the frequencies of a level."""
        if level >= len(self.modes):
            raise ValueError(f"modes names {len(self.modes)} levels, level {level} asked for")
        axes = tuple(range(residual.ndim - self.spatial_dims, residual.ndim))
        energy = np.abs(np.fft.fftn(residual, axes=axes)) ** 2
        total = float(np.sum(energy))
        low = np.ones(energy.shape, bool)
        for axis in axes:
            n = residual.shape[axis]
            frequency = np.abs(np.fft.fftfreq(n, 1 / n)) < self.modes[level]
            shape = [1] * energy.ndim
            shape[axis] = n
            low = low & frequency.reshape(shape)
        return float(np.sum(energy[low])) / total if total > 0 else 0.0

    def should_advance(self, progress: LevelProgress) -> bool:
        """Transform the present residual."""
        residual = np.asarray(self.residual_fn(progress.model))
        if residual.ndim < self.spatial_dims:
            raise ValueError(
                f"residual_fn must return at least spatial_dims={self.spatial_dims} axes, got "
                f"shape {residual.shape}"
            )
        return self.low_energy_share(residual, progress.level) < self.energy_fraction


@dataclass(frozen=True)
class WorkOptimalAdvance:
    r"""Leave a level when the next one is expected to gain more per work unit.

    The gain of the present level is its decay of $\log L$ per work unit over the last window,
    $g_l = \Delta \log L / (n\, c_l)$ with $c_l$ the cost of a step. The decay per *step* of the next
    level is not known before it is tried; it is estimated as the best decay per step that the
    present level showed in any earlier window, times ``optimism``, since a level starts with the
    error components that its predecessor could not reduce.

    Attributes:
        window: epochs over which the decay is measured.
        optimism: expected decay per step of the next level relative to the present one's best.
        min_epochs: stay at least this long.
    """

    window: int = 20
    optimism: float = 0.25
    min_epochs: int = 40

    def __post_init__(self) -> None:
        check_positive_int("window", self.window)
        check_nonnegative("optimism", self.optimism)
        check_positive("optimism", self.optimism)
        check_positive_int("min_epochs", self.min_epochs)

    def should_advance(self, progress: LevelProgress) -> bool:
        """Compare the present gain with the estimated next one."""
        steps = self.window * progress.steps_per_epoch
        if progress.is_finest or progress.epoch < self.min_epochs:
            return False
        windows = len(progress.losses) // steps
        if windows < 2:
            return False
        logs = np.log(np.maximum(progress.losses[-windows * steps :], 1e-300))
        means = logs.reshape(windows, steps).mean(axis=1)
        decays = -np.diff(means) / steps
        here = decays[-1] / progress.step_work(progress.level)
        there = self.optimism * np.max(decays) / progress.step_work(progress.level + 1)
        return bool(here < there)
