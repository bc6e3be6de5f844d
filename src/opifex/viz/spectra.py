r"""Spectra of errors and residuals over the levels: which frequencies are learnt when.

A field on the centres of equal cells is expanded in orthonormal sines, cosines or waves, and the
squares of its coefficients are summed over the shells $|k| \in [n - 1/2, n + 1/2)$ of wave vectors. By
Parseval's theorem the squares of all amplitudes add up to the mean square of the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from opifex.core.checks import check_choice, check_positive_int, check_sequence
from opifex.viz.snapshots import SnapshotRecorder
from opifex.viz.style import Axes, level_colors, new_axes, start_axes

__all__ = [
    "Spectrum",
    "error_spectra",
    "plot_spectra",
    "plot_spectral_history",
    "radial_spectrum",
]

_AXIS = {
    "cosine": "wavenumber (half waves per side)",
    "sine": "wavenumber (half waves per side)",
    "fourier": "wavenumber (waves per side)",
}

# Decimal digits of the map, below the largest amplitude of the start.
_DIGITS = 6


@dataclass(frozen=True)
class Spectrum:
    """Amplitudes of a field by wavenumber, at one moment of a run.

    Attributes:
        level: level of the model; 0 is the coarsest.
        epoch: epochs done during this visit of the level.
        cycle: number of the cycle, zero for a cascade.
        kind: ``"cosine"``, ``"sine"`` or ``"fourier"``.
        wavenumbers: shape (n,).
        amplitudes: root mean square of what belongs to each wavenumber, shape (n,).
    """

    level: int
    epoch: int
    cycle: int
    kind: str
    wavenumbers: np.ndarray
    amplitudes: np.ndarray

    @property
    def total(self) -> float:
        """Root mean square of the whole field."""
        return float(np.sqrt(np.sum(self.amplitudes**2)))


def radial_spectrum(values: Any, *, kind: str = "cosine") -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of a field on the centres of equal cells, by the length of the wave vector.

    Args:
        values: the field, real, one axis per coordinate.
        kind: ``"cosine"`` for any field; ``"sine"`` for fields that vanish on the boundary;
            ``"fourier"`` for periodic ones. In the wrong basis the jump at the boundary shows as a
            slowly falling tail.

    Returns:
        Wavenumbers, in half waves per side or, for ``"fourier"``, in waves per side; and the root mean
        square of what belongs to each. Both have the same shape (n,). The squares of the amplitudes
        add up to the mean square of the field.

    Raises:
        TypeError: if ``values`` are complex.
        ValueError: if ``values`` are empty or not finite, or ``kind`` is something else.

    Example:
        >>> import numpy as np
        >>> from opifex.viz import radial_spectrum
        >>> x = (np.arange(16) + 0.5) / 16
        >>> wavenumbers, amplitudes = radial_spectrum(np.sin(3 * np.pi * x), kind="sine")
        >>> int(wavenumbers[np.argmax(amplitudes)]), round(float(amplitudes.max() ** 2), 6)
        (3, 0.5)
    """
    check_choice("kind", kind, list(_AXIS))
    field = np.asarray(values)
    if np.iscomplexobj(field):
        raise TypeError("values must be real, got complex ones")
    if field.ndim == 0 or field.size == 0:
        raise ValueError(f"values must have one axis per coordinate, got shape {field.shape}")
    field = field.astype(np.float64)
    if not np.all(np.isfinite(field)):
        raise ValueError("values must be finite, got some that are not")
    if kind == "fourier":
        squares = np.abs(scipy.fft.fftn(field, norm="ortho")) ** 2
        numbers = [np.abs(np.fft.fftfreq(n, 1 / n)) for n in field.shape]
    elif kind == "sine":
        squares = scipy.fft.dstn(field, type=2, norm="ortho") ** 2
        numbers = [np.arange(1.0, n + 1) for n in field.shape]
    else:
        squares = scipy.fft.dctn(field, type=2, norm="ortho") ** 2
        numbers = [np.arange(float(n)) for n in field.shape]
    lengths = np.sqrt(sum(k**2 for k in np.meshgrid(*numbers, indexing="ij", sparse=True)))
    shells = np.floor(lengths + 0.5).astype(int).ravel()
    sums = np.bincount(shells, weights=squares.ravel()) / field.size
    # The first shells of sines are empty, but those between two occupied ones cannot be.
    first = int(shells.min())
    return np.arange(first, len(sums)), np.sqrt(sums[first:])


def error_spectra(
    recorder: SnapshotRecorder, reference: Any = None, *, kind: str = "cosine"
) -> list[Spectrum]:
    """The spectrum of the error (or of a residual) at each snapshot of a run.

    Args:
        recorder: what was recorded.
        reference: a problem with an exact solution, a function of points, or an array on the
            recorder's grid, to be subtracted from each snapshot; ``None`` takes the snapshots as they
            are, which is meant for residuals.
        kind: basis, see `radial_spectrum`.

    Returns:
        One `Spectrum` per snapshot, in order.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if nothing was recorded, values are not finite, an array has another shape, or
            ``kind`` is something else.

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.problems import Poisson
        >>> from opifex.viz import SnapshotRecorder, error_spectra
        >>> problem = Poisson()
        >>> recorder = SnapshotRecorder(problem, resolution=16)
        >>> recorder.record(lambda points: jnp.zeros(len(points)))
        >>> (spectrum,) = error_spectra(recorder, problem, kind="sine")
        >>> [round(a, 4) for a in spectrum.amplitudes[:3].tolist()]  # sin(pi x) sin(pi y) alone
        [0.0253, 0.0, 0.0]
    """
    if not isinstance(recorder, SnapshotRecorder):
        raise TypeError(f"recorder must be a SnapshotRecorder, got {type(recorder).__name__}")
    if not recorder.snapshots:
        raise ValueError("recorder must hold at least one snapshot, got none")
    exact = recorder.reference(reference)
    return [
        Spectrum(s.level, s.epoch, s.cycle, kind, *radial_spectrum(s.values - exact, kind=kind))
        for s in recorder.snapshots
    ]


def _check_spectra(spectra: Any, largest: int | None) -> list[Spectrum]:
    """The spectra, up to the largest wavenumber that is wanted."""
    check_sequence("spectra", spectra)
    if len(spectra) == 0:
        raise ValueError("spectra must hold at least one spectrum, got none")
    for i, spectrum in enumerate(spectra):
        if not isinstance(spectrum, Spectrum):
            raise TypeError(f"spectra[{i}] must be a Spectrum, got {type(spectrum).__name__}")
    shapes = {(spectrum.kind, spectrum.wavenumbers.shape) for spectrum in spectra}
    if len(shapes) > 1:
        raise ValueError(f"spectra must be of one kind and one grid, got {sorted(shapes)}")
    if largest is None:
        return list(spectra)
    check_positive_int("largest", largest)
    kept = spectra[0].wavenumbers <= largest
    return [
        replace(s, wavenumbers=s.wavenumbers[kept], amplitudes=s.amplitudes[kept]) for s in spectra
    ]


def plot_spectra(
    spectra: Sequence[Spectrum], *, largest: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the spectrum with which the run began, and that with which each level ended.

    Where a coarse level stops to help is seen as the wavenumber behind which its curve lies on the
    one before; the next level takes it from there.

    Args:
        spectra: of one run, in order, as from `error_spectra`.
        largest: wavenumber to draw up to; all by default.
        ax: axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if ``spectra`` are not a sequence of `Spectrum`.
        ValueError: if there is none, they are of different kinds or grids, or ``largest`` is not
            positive.
    """
    found = _check_spectra(spectra, largest)
    ax = start_axes(ax)
    colors = level_colors(max(s.level for s in found) + 1)
    first = found[0]
    # Zeros have no place on a logarithmic axis.
    ax.plot(
        first.wavenumbers,
        np.where(first.amplitudes > 0, first.amplitudes, np.nan),
        color="0.6",
        linestyle="--",
        linewidth=1.2,
        label=f"level {first.level}, epoch {first.epoch}",
    )
    for i, spectrum in enumerate(found):
        following = found[i + 1] if i + 1 < len(found) else None
        if following is not None and following.level == spectrum.level:
            continue
        if i == 0:
            continue
        ax.plot(
            spectrum.wavenumbers,
            np.where(spectrum.amplitudes > 0, spectrum.amplitudes, np.nan),
            color=colors[spectrum.level],
            linewidth=1.5,
            label=f"level {spectrum.level}, epoch {spectrum.epoch}",
        )
    ax.set_yscale("log")
    ax.set_xlabel(_AXIS[first.kind])
    ax.set_ylabel("amplitude (root mean square)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small")
    return ax


def plot_spectral_history(
    spectra: Sequence[Spectrum], *, largest: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how the amplitude of each wavenumber changes over the run, as a map.

    The horizontal axis counts the snapshots; white lines separate the levels. The colour is the
    amplitude relative to the largest of the first snapshot, on a logarithmic scale of at most six
    digits.

    Args:
        spectra: of one run, in order, as from `error_spectra`.
        largest: wavenumber to draw up to; all by default.
        ax: axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if ``spectra`` are not a sequence of `Spectrum`.
        ValueError: if there is none, they are of different kinds or grids, ``largest`` is not positive,
            or the first one is zero.
    """
    found = _check_spectra(spectra, largest)
    scale = float(np.max(found[0].amplitudes))
    if scale == 0:
        raise ValueError(
            "spectra[0] must not be zero everywhere, the others are drawn relative to it"
        )
    relative = np.stack([s.amplitudes for s in found], axis=1) / scale
    digits = np.log10(np.maximum(relative, 10.0**-_DIGITS))
    if ax is None:
        (ax,) = new_axes()
    wavenumbers = found[0].wavenumbers
    mesh = ax.pcolormesh(
        np.arange(len(found) + 1) - 0.5,
        np.append(wavenumbers, wavenumbers[-1] + 1) - 0.5,
        digits,
        cmap="cividis",
        vmin=float(np.min(digits)),
        vmax=float(np.max(digits)),
        rasterized=True,
    )
    bar = ax.figure.colorbar(mesh, ax=ax)
    bar.set_label("decimal logarithm of the amplitude")
    starts = [0, *(i for i in range(1, len(found)) if found[i].level != found[i - 1].level)]
    for start, end in zip(starts, [*starts[1:], len(found)], strict=True):
        if start:
            ax.axvline(start - 0.5, color="white", linewidth=1.2)
        ax.annotate(
            f"level {found[start].level}",
            ((start + end - 1) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    ax.set_xlabel("snapshot")
    ax.set_ylabel(_AXIS[found[0].kind])
    return ax
