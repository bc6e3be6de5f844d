"""Which frequencies fields hold, and how much of them a coarser grid loses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opifex.training.multilevel.transfer.grids import interpolate_field, restrict_field

__all__ = ["frequencies_needed", "grid_error", "spectral_tail"]

_SAMPLES = 64
"""Samples that a mean error is taken over: it varies little between more."""

_SMOOTH = {"periodic": "spectral", "cell": "cosine", "vertex": "cosine"}
"""The interpolation of each kind of grid that adds the least error of its own."""


def spectral_tail(fields: np.ndarray, spatial_dims: int) -> np.ndarray:
    r"""The relative $L^2$ norm of what lies at and beyond each frequency.

    Fields that are not periodic have a jump at the boundary, whose slowly decaying spectrum would
    hide their own; they are continued evenly on every axis first, which leaves periodic fields with
    at most a kink.

    Args:
        fields: shape (samples, *spatial, channels).
        spatial_dims: number of spatial axes.

    Returns:
        Entry ``m`` is the norm of all coefficients with a frequency of at least ``m`` on some axis
        over the norm of all; frequencies count waves per length of the domain. Shape
        (n // 2 + 2,) for n points on the longest axis.
    """
    values = np.asarray(fields, np.float64)
    axes = tuple(range(1, 1 + spatial_dims))
    for axis in axes:
        values = np.concatenate([values, np.flip(values, axis)], axis)
    energy = np.sum(np.abs(np.fft.fftn(values, axes=axes)) ** 2, axis=(0, -1))
    frequencies = np.stack(
        np.meshgrid(
            # The continued field is twice as long: its frequency 2k is frequency k of the field.
            *[np.abs(np.fft.fftfreq(n, 1 / n)) / 2 for n in energy.shape],
            indexing="ij",
        )
    )
    largest = np.max(frequencies, axis=0)
    bounds = np.arange(int(np.max(largest)) + 2)
    total = float(np.sum(energy))
    if total == 0:
        return np.zeros(len(bounds))
    # One histogram instead of one mask per bound: fields of 128 x 128 have many bounds.
    per_frequency = np.bincount(
        np.floor(largest).astype(int).ravel(), weights=energy.ravel(), minlength=len(bounds)
    )
    beyond = np.cumsum(per_frequency[::-1])[::-1]
    return np.sqrt(np.maximum(beyond[: len(bounds)], 0.0) / total)


def frequencies_needed(tail: np.ndarray, error: float) -> int:
    """The fewest frequencies that leave at most a relative error.

    Args:
        tail: as `spectral_tail` returns it.
        error: relative error.

    Example:
        >>> import numpy as np
        >>> from opifex.training.multilevel.advisor.spectrum import frequencies_needed
        >>> frequencies_needed(np.array([1.0, 0.5, 0.01, 0.0]), 0.1)
        2
    """
    return int(np.argmax(tail <= error)) if np.any(tail <= error) else len(tail)


def few(fields: np.ndarray) -> np.ndarray:
    """Some samples, spread over all of them."""
    stride = max(1, len(fields) // _SAMPLES)
    return np.asarray(fields[::stride][:_SAMPLES])


def grid_error(fields: np.ndarray, shape: Sequence[int], grid_kind: str) -> float:
    r"""The mean relative $L^2$ error of fields that go to a coarser grid and back.

    They go down as the data of a level do (`resolution_hierarchy`), and back by the smoothest
    interpolation of that kind of grid: what is lost is what the coarse grid cannot hold.

    Args:
        fields: shape (samples, *spatial, channels); some of the samples are used if there are many.
        shape: points per axis of the coarser grid.
        grid_kind: where the points lie.

    Example:
        >>> import numpy as np
        >>> from opifex.training.multilevel.advisor.spectrum import grid_error
        >>> x = np.arange(64) / 64
        >>> wave = np.sin(2 * np.pi * 3 * x)[None, :, None]
        >>> grid_error(wave, (16,), "periodic") < 1e-6 < grid_error(wave, (4,), "periodic")
        True
    """
    exact = few(fields).astype(np.float64)
    if tuple(shape) == exact.shape[1:-1]:
        return 0.0
    coarse = restrict_field(exact, shape, grid_kind=grid_kind)
    method = _SMOOTH[grid_kind]
    back = interpolate_field(coarse, exact.shape[1:-1], grid_kind=grid_kind, method=method)
    axes = tuple(range(1, exact.ndim))
    norms = np.sqrt(np.sum(exact**2, axes))
    lost = np.sqrt(np.sum((back - exact) ** 2, axes))
    return float(np.mean(lost / np.where(norms > 0, norms, 1.0)))
