"""Relative errors against NumPy, analytic norms, and at zero error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.core.metrics import relative_h1, relative_l2
from tolerances import distance, rounding


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10.0))
def test_relative_l2_is_the_mean_of_ratios_and_scale_free(seed, factor):
    u, v = np.random.default_rng(seed).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    expected = np.mean(
        [
            np.linalg.norm(a - b) / np.linalg.norm(b)
            for a, b in zip(u.astype(float), v.astype(float), strict=True)
        ]
    )
    # Sums of 40 squares; the differences of independent fields are no smaller than the fields.
    allowed = rounding(np.float32, operations=40)
    assert distance(relative_l2(jnp.asarray(u), jnp.asarray(v)), expected) <= allowed
    scaled = relative_l2(jnp.asarray(factor * u), jnp.asarray(factor * v))
    assert distance(scaled, expected) <= allowed


@pytest.mark.parametrize("norm", [relative_l2, relative_h1])
def test_zero_error_has_value_and_gradient_zero(norm):
    v = jnp.arange(12.0).reshape(2, 6, 1) + 1
    value, gradient = jax.value_and_grad(norm)(v, v)
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("n", [15, 16])
@pytest.mark.parametrize("k", [1, 4, 7, 8])
def test_periodic_h1_of_waves_up_to_the_highest(n, k):
    """A wave of frequency k has norm (1 + (2 pi k)^2)^1/2 times its L2 norm: all are seen."""
    with jax.enable_x64(True):
        x = jnp.arange(n) / n
        target = jnp.cos(2 * jnp.pi * x)[None, :, None]
        error = jnp.cos(2 * jnp.pi * k * x)[None, :, None]
        found = relative_h1(target + error, target, periodic=True)
        k = min(k, n - k)  # of the 15 points, 8 waves look like 7
        ratio = (1 + (2 * np.pi * k) ** 2) / (1 + (2 * np.pi) ** 2)
        expected = jnp.sqrt(ratio * jnp.sum(error**2) / jnp.sum(target**2))
        assert distance(found, expected) <= rounding(np.float64, operations=n * k)


@pytest.mark.parametrize("spacing", [None, (0.25, 3.0)])
def test_periodic_h1_adds_the_axes(spacing):
    """Of a wave in the plane; a spacing of h makes the period of n points n h long."""
    with jax.enable_x64(True):
        x, y = jnp.meshgrid(jnp.arange(8) / 8, jnp.arange(6) / 6, indexing="ij")
        target = jnp.ones((1, 8, 6, 1))
        error = jnp.sin(2 * jnp.pi * (2 * x - y))[None, ..., None]
        periods = (1, 1) if spacing is None else (8 * spacing[0], 6 * spacing[1])
        square = (1 + (2 * np.pi * 2 / periods[0]) ** 2 + (2 * np.pi / periods[1]) ** 2) / 2
        found = relative_h1(target + error, target, periodic=True, spacing=spacing)
        assert distance(found, np.sqrt(square)) <= rounding(np.float64, operations=14)


def test_h1_sees_the_highest_frequency_without_periodicity():
    """Of +1, -1, ... at distance h the differences are 2 / h."""
    error = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])[None, :, None]
    found = relative_h1(1 + error, jnp.ones((1, 5, 1)))
    assert distance(found, np.sqrt(1 + 8.0**2)) <= rounding(np.float32, operations=5)


def test_integers_are_fields():
    """Differences of unsigned integers would wrap around."""
    u, v = np.array([[[1], [2], [3]]], np.uint8), np.array([[[2], [2], [2]]], np.uint8)
    for norm in (relative_l2, relative_h1):
        expected = norm(jnp.asarray(u, float), jnp.asarray(v, float))
        np.testing.assert_array_equal(norm(jnp.asarray(u), jnp.asarray(v)), expected)


def test_h1_of_a_linear_error_is_exact_up_to_the_boundary():
    x, y = jnp.meshgrid(jnp.linspace(0, 1, 5), jnp.linspace(0, 1, 9), indexing="ij")
    target = jnp.ones((1, 5, 9, 1))
    error = (2 * x - 3 * y)[None, ..., None]
    # All values are multiples of 1/8, so that only the last few operations round.
    expected = jnp.sqrt((jnp.sum(error**2) + 45 * 13) / 45)
    for spacing in (None, (0.25, 0.125)):
        found = relative_h1(target + error, target, spacing=spacing)
        assert distance(found, expected) <= rounding(np.float32, operations=2)


def test_bad_arguments():
    v = jnp.ones((2, 4, 1))
    for norm in (relative_l2, relative_h1):
        with pytest.raises(ValueError, match=r"same shape, got \(2, 4, 1\) and \(2, 3, 1\)"):
            norm(v, v[:, :3])
    with pytest.raises(ValueError, match="at least 2 axes"):
        relative_l2(v[:, 0, 0], v[:, 0, 0])
    with pytest.raises(ValueError, match="at least 3 axes"):
        relative_h1(v[..., 0], v[..., 0])
    with pytest.raises(ValueError, match="spatial axis 0 needs at least 2 points"):
        relative_h1(v[:, :1], v[:, :1])
    with pytest.raises(ValueError, match="spacing must be positive"):
        relative_h1(v, v, spacing=0.0)
    with pytest.raises(ValueError, match=r"spacing\[0\] must be positive"):
        relative_h1(v, v, spacing=[-1.0])
    with pytest.raises(ValueError, match="spacing must have 1 entries"):
        relative_h1(v, v, spacing=[1.0, 1.0])
