"""The criterion that looks at the frequencies of the residual, on waves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax import nnx

from opifex.models import FNO
from opifex.training.multilevel import LevelProgress
from opifex.training.multilevel.stopping import ResidualSpectrum
from tolerances import rounding

N = 64
TOLERANCE = rounding(np.float64, operations=N)


def at_level(level: int, model: Any = None) -> LevelProgress:
    return LevelProgress(
        level=level,
        num_levels=2,
        cycle=0,
        epoch=1,
        max_epochs=2,
        losses=np.ones(1, np.float32),
        steps_per_epoch=1,
        metrics={},
        get_model=lambda: model,
        step_work=lambda level: 1.0,
    )


def waves(*amplitudes: tuple[int, float]) -> np.ndarray:
    x = np.arange(N) / N
    return sum(a * np.sin(2 * np.pi * k * x) for k, a in amplitudes)


def criterion(residual: Any = None, **options: Any) -> ResidualSpectrum:
    return ResidualSpectrum(lambda model: residual, modes=(8, 16), **options)


def share(residual: np.ndarray, level: int = 0, **options: Any) -> float:
    return criterion(**options).low_energy_share(residual, level)


def test_share_of_low_frequencies_is_exact_for_waves() -> None:
    assert share(waves((3, 1.0), (20, 2.0))) == pytest.approx(0.2, rel=TOLERANCE)
    assert share(waves((7, 1.0))) == pytest.approx(1.0, rel=TOLERANCE)
    assert share(waves((8, 1.0))) == pytest.approx(0.0, abs=TOLERANCE)
    assert share(waves((8, 1.0)), level=1) == pytest.approx(1.0, rel=TOLERANCE)
    assert share(np.zeros(N)) == 0


def test_samples_and_channels_of_fields_as_operators_return_them() -> None:
    fields = np.stack(
        [
            np.stack([waves((3, 1.0)), waves((20, 2.0))], axis=-1),
            np.stack([waves((20, 1.0)), waves((5, 2.0))], axis=-1),
        ]
    )
    assert fields.shape == (2, N, 2)
    assert share(fields) == pytest.approx(0.5, rel=TOLERANCE)
    assert share(waves((20, 1.0))[None, :, None]) == pytest.approx(0.0, abs=TOLERANCE)


def test_two_dimensions_with_samples_and_without() -> None:
    low, high = waves((3, 1.0)), waves((20, 1.0))
    products = [np.outer(low, low), np.outer(low, high), np.outer(high, low), np.outer(high, high)]
    for field, wanted in zip(products, [1, 0, 0, 0], strict=True):
        assert share(field, spatial_dims=2) == pytest.approx(wanted, abs=TOLERANCE)
    samples = np.stack(products)[..., None]
    assert share(samples, spatial_dims=2) == pytest.approx(0.25, rel=TOLERANCE)


def test_residual_of_an_operator_of_this_library() -> None:
    model = FNO(4, 2, num_layers=1, rngs=nnx.Rngs(0))
    inputs = waves((20, 1.0))[None, :, None].astype(np.float32)
    looking = ResidualSpectrum(lambda model: 1e3 * inputs - model(inputs), modes=(4, 16))
    assert looking.should_stop(at_level(0, model))


@pytest.mark.parametrize(("fraction", "stops"), [(0.1, False), (0.3, True)])
def test_share_is_compared_with_the_fraction(fraction: float, stops: bool) -> None:
    residual = waves((3, 1.0), (20, 2.0))
    assert criterion(residual, energy_fraction=fraction).should_stop(at_level(0)) is stops


def test_the_present_model_and_level_are_looked_at() -> None:
    looking = ResidualSpectrum(lambda model: model * waves((10, 1.0)), modes=(8, 16))
    assert looking.should_stop(at_level(0, 2.0))
    assert not looking.should_stop(at_level(1, 2.0))


@pytest.mark.parametrize(
    ("shape", "dims"), [((3, N), 1), ((N, N), 1), ((3, N, N), 2), ((N,), 2), ((2, 3, N, 1), 1)]
)
def test_a_number_of_axes_that_could_mean_either_is_an_error(
    shape: tuple[int, ...], dims: int
) -> None:
    with pytest.raises(ValueError, match=rf"residual_fn .* for spatial_dims={dims}; got shape"):
        share(np.ones(shape), spatial_dims=dims)


def test_too_few_points_for_anything_beyond_the_modes_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"at least 16 points per spatial axis.*\(2, 3, 64\)"):
        share(np.ones((2, 3, N)))
    assert share(np.ones(16)) == pytest.approx(1.0, rel=TOLERANCE)


def test_level_without_modes_is_an_error() -> None:
    with pytest.raises(ValueError, match="modes names 2 levels, level 2 asked for"):
        criterion(np.ones(N)).should_stop(at_level(2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"residual_fn": None}, TypeError, "residual_fn must be callable"),
        ({"modes": (4, 0)}, ValueError, r"modes\[1\] must be at least 1"),
        ({"modes": 4}, TypeError, "modes must be a sequence"),
        ({"modes": ()}, ValueError, "modes must not be empty"),
        ({"spatial_dims": 0}, ValueError, "spatial_dims must be at least 1"),
        ({"energy_fraction": 0.0}, ValueError, "energy_fraction must lie strictly"),
    ],
)
def test_wrong_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ResidualSpectrum(**{"residual_fn": lambda model: np.ones(N), "modes": (2, 4), **options})
