"""Hierarchies: sizes of the levels, coarsest first."""

from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.training.multilevel import create_fno_hierarchy, create_network_hierarchy


def abstract(create, *args, **options):
    """The levels without their parameters, which nothing has to be compiled for."""
    return nnx.eval_shape(lambda: nnx.List(create(*args, **options, rngs=nnx.Rngs(0))))


def test_widths_grow_up_to_those_that_were_asked_for():
    models = abstract(create_network_hierarchy, 2, 1, [12, 20], 3, 0.5)
    assert [m.hidden_dims for m in models] == [(3, 5), (6, 10), (12, 20)]
    assert [m.output.kernel.shape for m in models] == [(5, 1), (10, 1), (20, 1)]
    tiny = abstract(create_network_hierarchy, 1, 1, [2], 4, 0.5)
    assert [m.hidden_dims for m in tiny] == [(1,), (1,), (1,), (2,)]


def test_operators_know_where_they_are_unless_the_data_are_periodic():
    for options, coordinates in (
        ({}, True),
        ({"grid_kind": "vertex"}, True),
        ({"grid_kind": "periodic"}, False),
        ({"grid_kind": "periodic", "append_coordinates": True}, True),
    ):
        models = abstract(create_fno_hierarchy, 4, 2, 2, num_layers=1, **options)
        for model in models:
            assert model.append_coordinates is coordinates
            assert model.grid_kind == options.get("grid_kind", "cell")
            assert model.lifting.kernel.shape[0] == 1 + coordinates


@settings(max_examples=8, deadline=None)
@given(base=st.integers(1, 40), levels=st.integers(1, 4), factor=st.sampled_from([1.5, 2, 3]))
def test_modes_grow_up_to_those_that_were_asked_for(base, levels, factor):
    models = abstract(create_fno_hierarchy, base, 1, levels, factor, num_layers=1)
    modes = [m.modes[0] for m in models]
    assert len(modes) == levels
    assert modes[-1] == base
    assert modes == sorted(modes)
    assert all(m >= 1 for m in modes)
