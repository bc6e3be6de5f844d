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


def test_periodic_h1_of_a_wave():
    """The error sin(2 pi k x) has the H1 norm sqrt((1 + (2 pi k)^2) / 2).

    Difference quotients at distance 1/n err by less than (2 pi k / n)^2 / 6 = 2.3e-4.
    """
    n, k = 512, 3
    x = jnp.arange(n) / n
    target = jnp.cos(2 * jnp.pi * x)[None, :, None]
    error = jnp.sin(2 * jnp.pi * k * x)[None, :, None]
    expected = np.sqrt((1 + (2 * np.pi * k) ** 2) / (1 + (2 * np.pi) ** 2))
    assert relative_h1(target + error, target, periodic=True) == pytest.approx(expected, rel=1e-3)


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
