"""Residual-based sampling: the density, the frequencies, and bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opifex.training.adaptive_sampling import RADSampler, RARDSampler
from tolerances import distance, rounding


@pytest.mark.parametrize(("k", "c"), [(1.0, 1.0), (2.0, 0.0), (0.0, 1.0), (0.5, 3.0)])
def test_density_is_that_of_the_paper(k, c):
    r = np.random.default_rng(0).normal(size=50)
    expected = np.abs(r) ** k / np.mean(np.abs(r) ** k) + c
    found = RADSampler(k, c).probabilities(jnp.asarray(r))
    # Sums of 50 positive terms; a power multiplies relative errors by its exponent.
    allowed = rounding(np.float32, condition=1 + k, operations=6)
    assert distance(found, expected / expected.sum()) <= allowed


def test_frequencies_of_single_draws_follow_the_density():
    residuals = jnp.array([0.0, 1.0, 2.0, 5.0])
    sampler = RADSampler(k=1.0, c=0.5)
    draws = jax.vmap(lambda key: sampler.sample_indices(residuals, 1, key)[0])(
        jax.random.split(jax.random.key(0), 20000)
    )
    counts = np.bincount(np.asarray(draws), minlength=4)
    expected = np.asarray(sampler.probabilities(residuals)) * 20000
    assert np.sum((counts - expected) ** 2 / expected) < 16.3  # chi-square, 3 dof, p = 0.001


def test_samples_are_distinct_points_and_jit_works():
    points = jnp.arange(40.0).reshape(20, 2)
    sample = jax.jit(RADSampler().sample, static_argnums=2)
    batch = np.asarray(sample(points, jnp.ones((20, 1)), 20, jax.random.key(3)))
    assert np.array_equal(np.sort(batch, axis=0), points)


def test_components_count_by_their_norm():
    residuals = jnp.array([[3.0, 4.0], [0.0, 5.0], [5.0, 0.0]])
    assert distance(RADSampler().probabilities(residuals), 1 / 3) <= rounding(np.float32)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_residuals_give_a_proper_density(scale):
    p = RADSampler(k=3.0).probabilities(scale * jnp.array([1.0, 2.0, 3.0]))
    assert np.all(np.isfinite(p))
    assert distance(jnp.sum(p), 1.0) <= rounding(np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_residuals_that_are_not_finite(bad):
    """An error by name; in compiled code they count as the largest finite one."""
    residuals = jnp.array([1.0, bad, 3.0, 0.0])
    with pytest.raises(ValueError, match="residuals must be finite, got NaN or infinity at 1 of 4"):
        RADSampler().probabilities(residuals)
    compiled = jax.jit(RADSampler(k=2.0).probabilities)
    expected = RADSampler(k=2.0).probabilities(residuals.at[1].set(3.0))
    assert distance(compiled(residuals), expected) <= rounding(np.float32)


def test_points_of_probability_zero_come_last_and_in_random_order():
    sampler, residuals = RADSampler(k=1.0, c=0.0), jnp.zeros(20).at[7].set(1.0)
    draws = [
        tuple(np.asarray(sampler.sample_indices(residuals, 4, jax.random.key(i)))) for i in range(8)
    ]
    assert all(draw[0] == 7 for draw in draws)
    assert len(set(draws)) == 8


def test_growing_set_adds_points_where_the_residual_is_large():
    start = jnp.zeros((4, 1))
    candidates = jnp.arange(1.0, 101.0)[:, None]
    residuals = jnp.where(candidates > 90, 1.0, 0.0)
    sampler = RARDSampler()
    grown = jax.jit(sampler.add, static_argnums=3)(
        sampler.start(start, 10), candidates, residuals, 5, jax.random.key(0)
    )
    assert int(grown.size) == 9
    new = np.asarray(grown.points[4:9, 0])
    assert np.all(new > 90)
    assert len(np.unique(new)) == 5
    assert int(np.sum(grown.mask)) == 9
    full = sampler.add(grown, candidates, residuals, 5, jax.random.key(1))
    assert int(full.size) == 10
    assert np.array_equal(full.points[:9], grown.points[:9])


def test_a_number_is_no_key():
    with pytest.raises(TypeError, match="key must be a random key"):
        RADSampler().sample(jnp.ones((2, 1)), jnp.ones(2), 1, 0)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="k must"):
        RADSampler(k=-1.0)
    with pytest.raises(TypeError, match="c must"):
        RADSampler(c="much")
    with pytest.raises(ValueError, match="k must"):
        RARDSampler(k=-1.0)
    with pytest.raises(ValueError, match="c must"):
        RARDSampler(c=-1.0)
    points, key = jnp.ones((5, 2)), jax.random.key(0)
    with pytest.raises(ValueError, match="batch_size"):
        RADSampler().sample(points, jnp.ones(5), 6, key)
    with pytest.raises(TypeError, match="batch_size"):
        RADSampler().sample(points, jnp.ones(5), 2.0, key)
    with pytest.raises(ValueError, match="residuals"):
        RADSampler().sample(points, jnp.ones(4), 2, key)
    with pytest.raises(ValueError, match="residuals"):
        RADSampler().probabilities(jnp.array(1.0))
    with pytest.raises(ValueError, match="capacity"):
        RARDSampler().start(points, 4)
