"""Elements that are short where a function bends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.training.equidistribution import equidistributed_nodes

PLACES = np.linspace(-1, 3, 2001)


@given(st.integers(3, 40), st.floats(-1, 3), st.floats(0.01, 3), st.booleans())
@settings(max_examples=50, deadline=None)
def test_nodes_ascend_from_end_to_end(elements, where, width, periodic):
    values = np.tanh((PLACES - where) / width)[:, None]
    nodes = equidistributed_nodes(PLACES, values, elements, periodic=periodic)
    assert nodes.shape == (elements + 1,)
    assert nodes[0] == -1
    assert abs(nodes[-1] - 3) < 1e-12
    assert (np.diff(nodes) > 0).all()


@pytest.mark.parametrize("values", [np.ones_like(PLACES), PLACES, 1 + PLACES**2])
def test_evenly_spaced_where_nothing_bends_more_than_elsewhere(values):
    nodes = equidistributed_nodes(PLACES, values[:, None], 8)
    np.testing.assert_allclose(nodes, np.linspace(-1, 3, 9), atol=1e-9)


@pytest.mark.parametrize("width", [0.2, 0.1, 0.05])
def test_the_shortest_elements_are_at_a_front_and_as_short_as_the_front_asks(width):
    lengths = {}
    for scale in (width, width / 2):
        nodes = equidistributed_nodes(PLACES, np.tanh((PLACES - 1) / scale)[:, None], 24)
        shortest = np.argmin(np.diff(nodes))
        assert nodes[shortest] - 3 * scale < 1 < nodes[shortest + 1] + 3 * scale
        lengths[scale] = np.diff(nodes).min()
    assert 1.4 < lengths[width] / lengths[width / 2] < 2.6


def test_components_count_alike():
    front = np.tanh((PLACES - 1) / 0.05)
    alone = equidistributed_nodes(PLACES, np.stack([front, 0 * front], axis=1), 16)
    np.testing.assert_allclose(alone, equidistributed_nodes(PLACES, front[:, None], 16))
    scaled = equidistributed_nodes(PLACES, np.stack([1e6 * front, 0 * front], axis=1), 16)
    np.testing.assert_allclose(scaled, alone, atol=1e-3)
