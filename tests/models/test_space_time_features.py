"""Random features on elements and slabs: which element answers, and with what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import RandomFeatures, SpaceTimeFeatures
from tolerances import distance, rounding

FEATURES = RandomFeatures(2, 1, 6, slope=2.0, rngs=nnx.Rngs(0))
TIMES = np.array([0.0, 0.5, 2.0], np.float32)
NODES = np.array([[-1.0, 0.0, 0.5, 1.0], [-1.0, -0.25, 0.0, 1.0]], np.float32)
COEFFICIENTS = np.random.default_rng(0).normal(size=(2, 3, 6, 2)).astype(np.float32)


def model():
    return SpaceTimeFeatures(FEATURES, *map(jnp.asarray, (TIMES, NODES, COEFFICIENTS)))


def by_hand(place, time):
    slab = 0 if time < 0.5 else 1
    element = sum(bool(place >= node) for node in NODES[slab, 1:-1])
    left, right = NODES[slab, element : element + 2]
    first, last = TIMES[slab : slab + 2]
    local = [
        (2 * place - left - right) / (right - left),
        (2 * time - first - last) / (last - first),
    ]
    values = FEATURES.activation(np.array(local) @ FEATURES.weights[...] + FEATURES.biases[...])
    return values @ COEFFICIENTS[slab, element]


# Subnormal numbers are flushed to zero on devices, which is on the other side of a node.
@given(
    st.floats(-1.5, 1.5, width=32, allow_subnormal=False),
    st.floats(-0.5, 2.5, width=32, allow_subnormal=False),
)
@settings(max_examples=50, deadline=None)
def test_the_element_around_a_point_answers(place, time):
    found = model()(jnp.array([place, time], jnp.float32))
    scale = np.abs(COEFFICIENTS).sum()
    assert found.shape == (2,)
    assert distance(found, by_hand(place, time), scale=scale) < rounding(np.float32, operations=50)


def test_on_a_node_the_right_and_the_later_element_answer():
    u, small = model(), 1e-6
    at_node = u(jnp.array([0.0, 0.2]))
    np.testing.assert_allclose(at_node, u(jnp.array([small, 0.2])), atol=1e-4)
    assert np.abs(at_node - u(jnp.array([-small, 0.2]))).max() > 1e-2
    at_time = u(jnp.array([0.7, 0.5]))
    np.testing.assert_allclose(at_time, u(jnp.array([0.7, 0.5 + small])), atol=1e-4)
    assert np.abs(at_time - u(jnp.array([0.7, 0.5 - small]))).max() > 1e-2


def test_batches_are_points_side_by_side():
    points = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (3, 4, 2)), jnp.float32)
    one_by_one = jax.vmap(jax.vmap(model()))(points)
    assert distance(model()(points), one_by_one) < rounding(np.float32, operations=20)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"times, nodes and coefficients .* \(slabs, elements, 6,"):
        SpaceTimeFeatures(
            FEATURES, jnp.asarray(TIMES), jnp.asarray(NODES), jnp.asarray(COEFFICIENTS[:, :2])
        )
    with pytest.raises(ValueError, match="last axis"):
        model()(jnp.ones((4, 3)))
