"""Spectra: each basis finds its own waves, energy is kept, and pictures draw these numbers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from opifex.problems import Box
from opifex.viz import (
    SnapshotRecorder,
    Spectrum,
    error_spectra,
    level_colors,
    plot_spectra,
    plot_spectral_history,
    radial_spectrum,
)
from tolerances import distance, rounding

SQUARE = Box((0.0, 0.0), (1.0, 1.0))


def centres(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


WAVES = {
    "sine": lambda k, x: np.sin(k * np.pi * x),
    "cosine": lambda k, x: np.cos(k * np.pi * x),
    "fourier": lambda k, x: np.sin(2 * np.pi * k * x + 0.3),
}


@pytest.mark.parametrize("kind", WAVES)
@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_wave_is_found_at_its_wavenumber(kind: str, number: int) -> None:
    wavenumbers, amplitudes = radial_spectrum(WAVES[kind](number, centres(16)), kind=kind)
    expected = np.where(wavenumbers == number, np.sqrt(0.5), 0.0)
    # A fast transform takes about log2(n) additions per entry.
    assert distance(amplitudes, expected) <= rounding(np.float64, operations=4)


@pytest.mark.parametrize("kind", WAVES)
@pytest.mark.parametrize("shape", [(9,), (8, 12), (4, 5, 6)])
def test_squares_add_up_to_the_mean_square(kind: str, shape: tuple[int, ...]) -> None:
    field = np.random.default_rng(0).normal(size=shape)
    wavenumbers, amplitudes = radial_spectrum(field, kind=kind)
    assert wavenumbers.shape == amplitudes.shape
    total = np.sum(amplitudes**2)
    assert abs(total - np.mean(field**2)) <= rounding(np.float64, operations=8) * total
    spectrum = Spectrum(0, 0, 0, kind, wavenumbers, amplitudes)
    assert spectrum.total == np.sqrt(total)


def test_shells_are_of_the_length_of_the_wave_vector() -> None:
    x, y = np.meshgrid(centres(16), centres(16), indexing="ij")
    # The lengths of (3, 4) and (4, 3) are 5, that of (1, 1) is 1.41, that of (2, 2) 2.83.
    field = np.sin(3 * np.pi * x) * np.sin(4 * np.pi * y)
    field += np.sin(4 * np.pi * x) * np.sin(3 * np.pi * y)
    field += 2 * np.sin(np.pi * x) * np.sin(np.pi * y)
    field += 4 * np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y)
    wavenumbers, amplitudes = radial_spectrum(field, kind="sine")
    expected = np.zeros(len(wavenumbers))
    expected[wavenumbers == 5] = np.sqrt(0.25 + 0.25)
    expected[wavenumbers == 1] = 2 * np.sqrt(0.25)
    expected[wavenumbers == 3] = 4 * np.sqrt(0.25)
    assert distance(amplitudes, expected) <= rounding(np.float64, operations=8)


def two_waves(recorder: SnapshotRecorder) -> None:
    """The low wave falls on level 0, the high one on level 1."""
    sizes = [(0, 0, 1.0, 0.5), (0, 5, 0.01, 0.5), (1, 5, 0.01, 0.2), (1, 9, 0.01, 0.001)]
    for level, epoch, low, high in sizes:

        def model(p: Any, low: float = low, high: float = high) -> Any:
            return jnp.sin(jnp.pi * p[:, 0]) * (1 + low) + high * jnp.sin(6 * jnp.pi * p[:, 0])

        recorder.record(model, level=level, epoch=epoch)


@pytest.fixture
def spectra() -> list[Spectrum]:
    recorder = SnapshotRecorder(Box((0.0,), (1.0,)), resolution=16)
    two_waves(recorder)
    return error_spectra(recorder, lambda p: jnp.sin(jnp.pi * p[:, 0]), kind="sine")


def test_spectra_of_errors_are_those_of_the_differences(spectra: list[Spectrum]) -> None:
    assert [(s.level, s.epoch, s.kind) for s in spectra] == [
        (0, 0, "sine"),
        (0, 5, "sine"),
        (1, 5, "sine"),
        (1, 9, "sine"),
    ]
    found = np.array([s.amplitudes[[0, 5]] for s in spectra]) / np.sqrt(0.5)
    expected = np.array([[1.0, 0.5], [0.01, 0.5], [0.01, 0.2], [0.01, 0.001]])
    # Sines of arguments up to 6 pi in single precision, at values around one.
    assert np.max(np.abs(found - expected)) <= rounding(np.float32, condition=6 * np.pi)


def test_without_a_reference_the_values_themselves_are_expanded() -> None:
    recorder = SnapshotRecorder(SQUARE, resolution=4)
    recorder.record(lambda p: jnp.ones(len(p)))
    (spectrum,) = error_spectra(recorder)
    assert spectrum.kind == "cosine"
    assert spectrum.wavenumbers[0] == 0
    assert distance(spectrum.amplitudes[0], 1.0) <= rounding(np.float64, operations=4)


def test_the_picture_has_the_start_and_the_end_of_each_level(spectra: list[Spectrum]) -> None:
    ax = plot_spectra(spectra)
    lines = ax.get_lines()
    names = [line.get_label() for line in lines]
    assert names == ["level 0, epoch 0", "level 0, epoch 5", "level 1, epoch 9"]
    for line, spectrum in zip(lines, [spectra[0], spectra[1], spectra[3]], strict=True):
        np.testing.assert_array_equal(line.get_xdata(), spectrum.wavenumbers)
        shown = np.where(spectrum.amplitudes > 0, spectrum.amplitudes, np.nan)
        np.testing.assert_array_equal(line.get_ydata(), shown)
    assert [line.get_color() for line in lines[1:]] == level_colors(2)
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "wavenumber (half waves per side)"


def test_the_range_of_wavenumbers_can_be_cut(spectra: list[Spectrum]) -> None:
    ax = plot_spectra(spectra, largest=6)
    assert ax.get_lines()[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    mapped = plot_spectral_history(spectra, largest=6)
    assert mapped.collections[0].get_array().shape == (6, 4)


def test_the_map_shows_digits_relative_to_the_start(spectra: list[Spectrum]) -> None:
    ax = plot_spectral_history(spectra)
    drawn = np.asarray(ax.collections[0].get_array())
    relative = np.array([s.amplitudes for s in spectra]).T / spectra[0].amplitudes.max()
    np.testing.assert_array_equal(drawn, np.log10(np.maximum(relative, 1e-6)))
    (border,) = ax.get_lines()
    np.testing.assert_array_equal(border.get_xdata(), [1.5, 1.5])
    assert [text.get_text() for text in ax.texts] == ["level 0", "level 1"]


NOTHING = SnapshotRecorder(SQUARE)
ZERO = Spectrum(0, 0, 0, "sine", np.arange(3), np.zeros(3))
OTHER = Spectrum(0, 0, 0, "cosine", np.arange(3), np.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: radial_spectrum(np.ones(3), kind="wavelet"), ValueError, "kind must be one of"),
        (lambda: radial_spectrum(np.ones(3) * 1j), TypeError, "values must be real"),
        (lambda: radial_spectrum(1.0), ValueError, "values must have one axis per coordinate"),
        (lambda: radial_spectrum([1.0, np.nan]), ValueError, "values must be finite"),
        (lambda: error_spectra([]), TypeError, "recorder must be a SnapshotRecorder, got list"),
        (lambda: error_spectra(NOTHING), ValueError, "recorder must hold at least one snapshot"),
        (lambda: plot_spectra([]), ValueError, "spectra must hold at least one spectrum"),
        (lambda: plot_spectra(3), TypeError, "spectra must be a sequence"),
        (lambda: plot_spectra([3]), TypeError, r"spectra\[0\] must be a Spectrum, got int"),
        (lambda: plot_spectra([ZERO, OTHER]), ValueError, "of one kind and one grid"),
        (lambda: plot_spectra([OTHER], largest=0), ValueError, "largest must be at least 1"),
        (lambda: plot_spectral_history([ZERO]), ValueError, r"spectra\[0\] must not be zero"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
