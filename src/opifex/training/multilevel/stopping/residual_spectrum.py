"""Stopping when what is left to learn lies beyond the frequencies of a level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from opifex.core.checks import check_callable, check_fraction, check_positive_int, check_sizes
from opifex.training.multilevel.monitor import LevelProgress

__all__ = ["ResidualSpectrum"]


@dataclass(frozen=True)
class ResidualSpectrum:
    r"""Stop when what is left to learn lies beyond the level's frequencies.

    The residual $r$ of the present model on a regular grid is Fourier transformed. The level can
    only reduce the part with all frequencies $|k| < m$; when that part holds less than a given
    fraction of the energy, smoothing here is wasted.

    Attributes:
        residual_fn: ``residual_fn(model)`` returns the residual on a regular grid: one field of
            shape (*spatial), or as the operators of this library return it, shape (batch, *spatial,
            channels). Which of the two follows from the number of axes; any other number is an
            error.
        modes: for each level, the number of frequencies per axis it represents.
        spatial_dims: number of axes in ``spatial``.
        energy_fraction: stop when the share of energy below the level's modes falls under this.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if a number is out of range, or ``modes`` is empty.
    """

    residual_fn: Callable[[Any], Any]
    modes: tuple[int, ...]
    spatial_dims: int = 1
    energy_fraction: float = 0.5

    def __post_init__(self) -> None:
        check_callable("residual_fn", self.residual_fn)
        check_sizes("modes", self.modes)
        check_positive_int("spatial_dims", self.spatial_dims)
        check_fraction("energy_fraction", self.energy_fraction)

    def low_energy_share(self, residual: Any, level: int) -> float:
        """Share of the residual's energy in the frequencies of a level.

        Args:
            residual: shape (*spatial) or (batch, *spatial, channels), real or complex.
            level: the level; 0 is the coarsest.

        Returns:
            The share, between 0 and 1, over all samples and channels; 0 for a residual of zero.

        Raises:
            ValueError: if ``modes`` does not name the level, the residual has another number of
                axes, or a spatial axis has too few points to hold a frequency beyond the modes of
                the coarsest level.
        """
        if level >= len(self.modes):
            raise ValueError(f"modes names {len(self.modes)} levels, level {level} asked for")
        values, dims = np.asarray(residual), self.spatial_dims
        if values.ndim not in (dims, dims + 2):
            raise ValueError(
                f"residual_fn must return shape (*spatial) or (batch, *spatial, channels), which "
                f"have {dims} or {dims + 2} axes for spatial_dims={dims}; got shape {values.shape}"
            )
        samples_and_channels = values.ndim == dims + 2
        spatial = values.shape[1:-1] if samples_and_channels else values.shape
        # On such a grid every level represents everything: more likely the axes mean something else.
        if min(spatial) // 2 < min(self.modes):
            raise ValueError(
                f"residual_fn must return at least {2 * min(self.modes)} points per spatial axis "
                f"(twice the fewest modes), got shape {values.shape} with spatial_dims={dims}"
            )
        fields = values if samples_and_channels else values[None, ..., None]
        coefficients = np.fft.fftn(fields, axes=range(1, 1 + dims))
        energy = np.sum(np.abs(coefficients) ** 2, axis=(0, -1))
        low = np.ones(spatial, bool)
        for frequency in np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in spatial], indexing="ij"):
            low &= np.abs(frequency) < self.modes[level]
        total = float(np.sum(energy))
        return float(np.sum(energy[low])) / total if total != 0 else 0.0

    def should_stop(self, progress: LevelProgress) -> bool:
        """Transform the present residual."""
        residual = self.residual_fn(progress.model)
        return self.low_energy_share(residual, progress.level) < self.energy_fraction
