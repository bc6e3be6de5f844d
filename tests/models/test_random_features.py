"""Random features: where they lie, what they span, how they grow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.core import ResidualTerm
from opifex.core.physics import laplacian
from opifex.models import FrozenVariable, PartitionOfUnity, RandomFeatures
from opifex.optimization.second_order import GaussNewton
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


@given(
    patches=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    low=st.floats(-5, 5),
    extent=st.floats(0.1, 10),
)
@settings(max_examples=20, deadline=None)
def test_windows_are_a_partition_of_unity_and_end_with_their_patches(patches, low, extent):
    bounds = np.array([[low, low + extent], [-1.0, 3.0]])
    cover = PartitionOfUnity(bounds, patches)
    assert cover.centres.shape == (cover.number, 2)
    with jax.enable_x64(True):
        unit = jax.random.uniform(jax.random.key(0), (200, 2), jnp.float64)
        points = bounds[:, 0] + unit * (bounds[:, 1] - bounds[:, 0])
        points, windows = np.asarray(points), np.asarray(cover.windows(points))
    assert np.all(windows >= 0)
    assert distance(np.sum(windows, axis=1), 1.0) < rounding(np.float64, operations=50)
    local = np.abs(points[:, None] - cover.centres) / cover.half_widths
    assert not np.any(windows[np.any(local > 1 + 1e-9, axis=2)])
    assert np.all(windows[np.all(local < 0.99, axis=2)] > 0)


def test_features_of_a_patch_are_those_of_a_domain_times_its_window():
    with jax.enable_x64(True):
        model = with_weights(features(24, patches=(3, 2), param_dtype=jnp.float64))
        cover = PartitionOfUnity(np.tile([-1.0, 1.0], (2, 1)), (3, 2))
        x = jnp.array([0.3, -0.2])
        inner = jnp.sin(x @ model.weights[...] + model.biases[...])
        patch = np.arange(24) % cover.number
        expected = model.output(inner * cover.windows(x)[patch])
        assert distance(model(x), expected) < rounding(np.float64, operations=50)
        # Every feature is centred in its own patch: there its argument is at most slope times two.
        at_centre = jnp.sum(model.weights[...] * cover.centres[patch].T, axis=0)
        assert float(jnp.max(jnp.abs(at_centre + model.biases[...]))) <= 2 * 8.0 * (1 + 1e-12)


@pytest.mark.slow
def test_patches_are_smooth_enough_for_equations_of_fourth_order():
    """The Laplacian of the Laplacian does not jump where a patch ends."""
    with jax.enable_x64(True):
        model = RandomFeatures(1, 1, 8, patches=(4,), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        model = with_weights(model)
        bilaplacian = laplacian(lambda x: laplacian(model)(x)[None])
        for end in (-0.25, 0.25):  # of the patches around -0.75 and 0.75, half a unit wide
            left, right = (float(bilaplacian(jnp.array([end + s]))) for s in (-1e-7, 1e-7))
            assert abs(left - right) < 1e-4 * (abs(left) + abs(right))


def test_patches_take_more_features_and_no_other_patches():
    coarse = with_weights(features(20, patches=(2, 2)))
    fine = prolongate_preserving(coarse, features(40, seed=5, patches=(2, 2)))
    points = jax.random.uniform(jax.random.key(0), (30, 2), minval=-1)
    assert distance(fine(points), coarse(points)) < rounding(np.float32, operations=50)


@pytest.mark.slow
def test_patches_resolve_what_global_features_do_not():
    """Fifteen waves across the domain, with 200 features."""

    def misfit(**options) -> float:
        model = RandomFeatures(1, 1, 200, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        points = jnp.linspace(-1, 1, 800)[:, None]
        term = ResidualTerm("fit", lambda u, x: u(x) - jnp.sin(15 * jnp.pi * x))
        solver = GaussNewton()
        bind = lambda p: nnx.merge(graph, p, rest)  # noqa: E731
        state = solver.init(params)
        params, state, _ = solver.step([term], bind, params, state, (points,))
        return float(solver.step([term], bind, params, state, (points,))[2])

    with jax.enable_x64(True):
        assert misfit(slope=3.0, patches=(10,)) < 1e-8 < 1e-3 < misfit(slope=3.0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_features": 0}, ValueError),
        ({"patches": (2,)}, ValueError),
        ({"patches": (0, 1)}, ValueError),
        ({"patches": (2, 2)}, ValueError),  # three features for four patches
        ({"patches": (1.5, 1)}, TypeError),
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
    with pytest.raises(error, match=f"{next(iter(change))}|num_features"):
        RandomFeatures(**(good | change), rngs=nnx.Rngs(0))


def test_points_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match="input_dim"):
        features()(jnp.ones((4, 3)))
