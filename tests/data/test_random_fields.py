"""Gaussian random fields: their covariance, reproducibility on every grid, bad input."""

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.data import gaussian_random_field
from tolerances import distance, rounding

SETTINGS = {"smoothness": 2.0, "inverse_length": 5.0, "scale": 25.0}


@pytest.mark.parametrize("random_mean", [True, False])
def test_periodic_spectrum_is_that_of_the_covariance(random_mean):
    """E |c_k|^2 = 625 (4 pi^2 k^2 + 25)^-2 for the coefficients of u = sum c_k exp(2 pi i k x).

    The mean of 20000 squares of normal numbers has a relative standard deviation of 0.01.
    """
    u = gaussian_random_field(20000, 15, random_mean=random_mean, seed=1, **SETTINGS)
    power = np.mean(np.abs(scipy.fft.fft(u, norm="forward")) ** 2, axis=0)
    k = scipy.fft.fftfreq(15, 1 / 15)
    expected = 625 * (4 * np.pi**2 * k**2 + 25) ** -2.0
    np.testing.assert_allclose(power[1:], expected[1:], rtol=0.05)
    if random_mean:
        np.testing.assert_allclose(power[0], expected[0], rtol=0.05)
    else:
        assert np.sqrt(power[0]) <= rounding(np.float64) * np.sqrt(np.sum(expected))


def test_neumann_spectrum_is_that_of_the_covariance():
    u = gaussian_random_field(
        20000, (6, 5), smoothness=2.0, inverse_length=3.0, boundary="neumann", seed=2
    )
    power = np.mean(scipy.fft.dctn(u, axes=(1, 2), norm="ortho") ** 2, axis=0) / 30
    eigenvalue = np.pi**2 * (np.arange(6)[:, None] ** 2 + np.arange(5) ** 2)
    np.testing.assert_allclose(power, (eigenvalue + 9.0) ** -2.0, rtol=0.06)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(1, 3), st.integers(0, 99))
def test_one_seed_gives_one_periodic_field_on_nested_grids(modes, extra, dims, seed):
    n = 2 * modes - 1 + extra
    coarse = gaussian_random_field(2, (n,) * dims, modes=modes, seed=seed)
    fine = gaussian_random_field(2, (3 * n,) * dims, modes=modes, seed=seed)
    subsampled = fine[(slice(None), *(slice(None, None, 3),) * dims)]
    assert distance(subsampled, coarse) <= rounding(np.float64, operations=3 * n * dims)


def test_one_seed_gives_one_neumann_field_on_nested_grids():
    coarse = gaussian_random_field(2, (4, 5), boundary="neumann", modes=4, seed=3)
    fine = gaussian_random_field(2, (12, 15), boundary="neumann", modes=4, seed=3)
    assert distance(fine[:, 1::3, 1::3], coarse) <= rounding(np.float64, operations=12 + 15)


def test_seeds_are_reproducible_and_differ():
    one, again, other = (gaussian_random_field(2, 8, seed=s) for s in (4, 4, 5))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"shape": (4, 0)}, ValueError, r"shape\[1\] must be at least 1"),
        ({"shape": ()}, ValueError, "shape must name at least one axis"),
        ({"shape": 4.0}, TypeError, r"shape\[0\] must be an integer"),
        ({"smoothness": 0.0}, ValueError, "smoothness must be positive"),
        ({"inverse_length": -1.0}, ValueError, "inverse_length must be positive"),
        ({"scale": -1.0}, ValueError, "scale must be at least 0"),
        ({"boundary": "dirichlet"}, ValueError, "boundary must be one of"),
        ({"modes": 5}, ValueError, "modes must be at most 4 on axis 0 of 8 points, got 5"),
        ({"modes": 0}, ValueError, "modes must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        gaussian_random_field(**({"num_samples": 1, "shape": 8} | arguments))
