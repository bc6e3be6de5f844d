r"""Gaussian random fields with a power of the shifted Laplacian as covariance.

$u \sim N(0, \sigma^2 (-\Delta + \tau^2 I)^{-\alpha})$ on the unit cube: the Karhunen-Loève
expansion has the eigenfunctions of the Laplacian, sines and cosines for periodic fields, cosines
for fields with zero normal derivative, with standard deviations
$\sigma (\lambda + \tau^2)^{-\alpha/2}$ for an eigenvalue $\lambda$ of $-\Delta$.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import scipy
from jaxtyping import Float

from opifex.core.checks import (
    check_choice,
    check_nonnegative,
    check_nonnegative_int,
    check_positive,
    check_positive_int,
)

__all__ = ["gaussian_random_field"]

_LARGEST_SHIFT = 1e150  # whose square is a number


def _deviations(eigenvalues: list[np.ndarray], shift: float, power: float) -> np.ndarray:
    """(lambda + shift)^(-power/2), with lambda the sum of one eigenvalue per axis."""
    total = sum(np.ix_(*eigenvalues))
    return (np.asarray(total) + shift) ** (-power / 2)


def _periodic_field(
    noise: np.ndarray, shape: tuple[int, ...], shift: float, power: float, random_mean: bool
) -> np.ndarray:
    # The transform of real white noise on an odd grid has exactly the symmetry of the coefficients
    # of a real field, and no Nyquist frequency: independent complex normals up to that symmetry.
    sizes = noise.shape[1:]
    axes = tuple(range(1, noise.ndim))
    frequencies = [scipy.fft.fftfreq(n, 1 / n) for n in sizes]
    deviations = _deviations([(2 * np.pi * k) ** 2 for k in frequencies], shift, power)
    if not random_mean:
        deviations[(0,) * deviations.ndim] = 0.0
    coefficients = deviations * scipy.fft.fftn(noise, axes=axes, norm="ortho")
    spectrum = np.zeros((noise.shape[0], *shape), complex)
    places = [k.astype(int) % n for k, n in zip(frequencies, shape, strict=True)]
    spectrum[:, *np.ix_(*places)] = coefficients
    return scipy.fft.ifftn(spectrum, axes=axes, norm="forward").real


def _neumann_field(
    noise: np.ndarray, shape: tuple[int, ...], shift: float, power: float, random_mean: bool
) -> np.ndarray:
    eigenvalues = [(np.pi * np.arange(m)) ** 2 for m in noise.shape[1:]]
    deviations = _deviations(eigenvalues, shift, power)
    if not random_mean:
        deviations[(0,) * deviations.ndim] = 0.0
    spectrum = np.zeros((noise.shape[0], *shape))
    spectrum[:, *(slice(m) for m in noise.shape[1:])] = deviations * noise
    axes = tuple(range(1, noise.ndim))
    # The orthonormal cosines of the grid are those of the interval over the root of its size.
    return np.sqrt(np.prod(shape)) * scipy.fft.idctn(spectrum, axes=axes, norm="ortho")


def _is_sequence(shape: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(shape, Sequence) and not isinstance(shape, bytes)


def gaussian_random_field(
    num_samples: int,
    shape: int | Sequence[int],
    *,
    smoothness: float = 2.0,
    inverse_length: float = 5.0,
    scale: float = 1.0,
    boundary: str = "periodic",
    modes: int | None = None,
    random_mean: bool = True,
    seed: int = 0,
) -> Float[np.ndarray, "samples ..."]:
    r"""Samples of $N(0, \sigma^2 (-\Delta + \tau^2 I)^{-\alpha})$ on the unit cube, in float64.

    Args:
        num_samples: number of independent samples.
        shape: points per axis, any number of axes; periodic fields are given at j / n, Neumann
            fields at the cell centres (j + 1/2) / n.
        smoothness: the power $\alpha$; at least half the dimension for fields of finite variance.
        inverse_length: the shift $\tau$, above zero.
        scale: the factor $\sigma$.
        boundary: ``"periodic"`` or ``"neumann"`` (zero normal derivative).
        modes: keep the frequencies $|k| < m$ per axis; by default all that the grid carries. With
            ``modes`` given, one seed gives samples of the same fields on every grid.
        random_mean: keep the constant mode, with its standard deviation
            $\sigma \tau^{-\alpha}$; otherwise every sample has mean zero.
        seed: of the random numbers.

    Returns:
        Shape (num_samples, *shape), float64.

    Raises:
        ValueError: if a number is out of range, ``boundary`` is unknown, or the grid has fewer
            points than ``modes`` needs (``2 m - 1`` per axis if periodic, else ``m``).
        TypeError: if a size or the seed is not an integer.
    """
    check_positive_int("num_samples", num_samples)
    sizes = tuple(
        check_positive_int(f"shape[{i}]", n)
        for i, n in enumerate(shape if _is_sequence(shape) else (shape,))
    )
    if not sizes:
        raise ValueError("shape must name at least one axis, got an empty sequence")
    check_positive("smoothness", smoothness)
    if check_positive("inverse_length", inverse_length) > _LARGEST_SHIFT:
        raise ValueError(f"inverse_length must be at most {_LARGEST_SHIFT}, got {inverse_length}")
    check_nonnegative("scale", scale)
    check_choice("boundary", boundary, ("periodic", "neumann"))
    check_nonnegative_int("seed", seed)
    periodic = boundary == "periodic"
    most = tuple((n + 1) // 2 if periodic else n for n in sizes)
    kept = most if modes is None else (check_positive_int("modes", modes),) * len(sizes)
    for axis, (m, largest) in enumerate(zip(kept, most, strict=True)):
        if m > largest:
            raise ValueError(
                f"modes must be at most {largest} on axis {axis} of {sizes[axis]} points, got {m}"
            )
    drawn = tuple(2 * m - 1 if periodic else m for m in kept)
    noise = np.random.default_rng(seed).standard_normal((num_samples, *drawn))
    make = _periodic_field if periodic else _neumann_field
    return scale * make(noise, sizes, inverse_length**2, smoothness, random_mean)
