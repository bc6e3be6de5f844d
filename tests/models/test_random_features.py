"""Random features: where they lie, what they span, how they grow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import FrozenVariable, RandomFeatures
from opifex.training.multilevel import prolongate_preserving
from tolerances import distance, rounding


def features(count: int = 50, seed: int = 0, **options) -> RandomFeatures:
    return RandomFeatures(2, 3, count, rngs=nnx.Rngs(seed), **options)


def with_weights(model: RandomFeatures, seed: int = 1) -> RandomFeatures:
    kernel = model.output.kernel
    kernel[...] = jax.random.normal(jax.random.key(seed), kernel.shape, kernel.dtype)
    return model


def test_the_model_is_zero_at_first_and_linear_in_its_parameters():
    model = features()
    points = jnp.ones((4, 5, 2))
    assert model(points).shape == (4, 5, 3)
    assert model(points[0, 0]).shape == (3,)
    assert not model(points).any()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 51 * 3
    assert {type(variable) for _, variable in nnx.to_flat_state(rest)} == {FrozenVariable}
    first, second = (
        jax.tree.map(lambda leaf, s=seed: jax.random.normal(jax.random.key(s), leaf.shape), params)
        for seed in (0, 1)
    )
    at = lambda values: nnx.merge(graph, values, rest)(points)  # noqa: E731
    mixed = at(jax.tree.map(lambda a, b: 2 * a - 3 * b, first, second))
    expected = 2 * at(first) - 3 * at(second)
    scale = float(np.linalg.norm(2 * at(first)) + np.linalg.norm(3 * at(second)))
    assert distance(mixed, expected, scale=scale) < rounding(np.float32, operations=100)


@given(
    low=st.floats(-10, 10),
    extent=st.floats(0.1, 10),
    slope=st.floats(0.1, 20),
    seed=st.integers(0, 9),
)
@settings(max_examples=20, deadline=None)
def test_every_feature_changes_inside_the_domain(low, extent, slope, seed):
    domain = [(low, low + extent), (-1.0, 3.0)]
    with jax.enable_x64(True):
        model = features(200, seed, domain=domain, slope=slope, param_dtype=jnp.float64)
        weights, biases = model.weights[...], model.biases[...]
        half = jnp.array([extent / 2, 2.0])[:, None]
        assert float(jnp.max(jnp.abs(weights * half))) <= slope * (1 + 1e-12)
        # The argument of a feature at the corners: its zero is a line that meets the box.
        corners = jnp.array([(x, y) for x in domain[0] for y in domain[1]])
        arguments = corners @ weights + biases
        assert jnp.all(arguments.min(axis=0) <= 1e-9 * slope)
        assert jnp.all(arguments.max(axis=0) >= -1e-9 * slope)


def test_the_domain_is_only_a_change_of_variables():
    with jax.enable_x64(True):
        here = with_weights(features(domain=[(2, 6), (0, 1)], param_dtype=jnp.float64))
        there = with_weights(features(param_dtype=jnp.float64))
        points = jax.random.uniform(jax.random.key(0), (20, 2), minval=-1)
        moved = points * jnp.array([2, 0.5]) + jnp.array([4, 0.5])
        scale = float(jnp.linalg.norm(there(points)))
        # Arguments of features, up to 30, are differences of numbers of that size.
        assert distance(here(moved), there(points), scale=scale) < rounding(
            np.float64, condition=30, operations=50
        )


def test_more_features_contain_fewer():
    coarse = with_weights(features(20))
    fine = prolongate_preserving(coarse, features(50, seed=5))
    points = jax.random.uniform(jax.random.key(0), (30, 2), minval=-1)
    assert distance(fine(points), coarse(points)) < rounding(np.float32, operations=50)
    assert np.array_equal(fine.weights[...][:, :20], coarse.weights[...])
    assert np.array_equal(fine.biases[...][:20], coarse.biases[...])
    assert not np.array_equal(fine.biases[...][20:40], coarse.biases[...])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_features": 0}, ValueError),
        ({"num_features": 2.5}, TypeError),
        ({"input_dim": 0}, ValueError),
        ({"domain": [(0, 1)]}, ValueError),
        ({"domain": [(0, 1), (1, 1)]}, ValueError),
        ({"domain": [(0, 1), (0, np.inf)]}, ValueError),
        ({"slope": 0.0}, ValueError),
        ({"slope": (1.0,)}, ValueError),
        ({"slope": (1.0, -1.0)}, ValueError),
        ({"activation": "tanh"}, TypeError),
    ],
)
def test_bad_arguments_are_named(change, error):
    good = {"input_dim": 2, "output_dim": 1, "num_features": 3}
    with pytest.raises(error, match=next(iter(change))):
        RandomFeatures(**(good | change), rngs=nnx.Rngs(0))


def test_points_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match="input_dim"):
        features()(jnp.ones((4, 3)))
