"""Hierarchies: sizes of the levels, coarsest first."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import MLP
from opifex.training.multilevel import (
    Hierarchy,
    create_fno_hierarchy,
    create_hierarchy,
    create_network_hierarchy,
)


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


# -- of one's own class -----------------------------------------------------------------------------


class Polynomial(nnx.Module):
    def __init__(self, degree, rngs):
        self.coefficients = nnx.Param(rngs.params.normal((degree,)))


@dataclass(frozen=True)
class Settings:
    degree: int


@pytest.mark.parametrize(
    ("sizes", "degree"),
    [
        ([2, 3], lambda size: size),
        (range(2, 4), lambda size: size),
        (((2, "low"), (3, "high")), lambda size: size[0]),
        ([{"degree": 2}, {"degree": 3}], lambda size: size["degree"]),
        ([Settings(2), Settings(3)], lambda size: size.degree),
    ],
)
def test_a_size_may_be_anything(sizes, degree):
    given = []

    def build(size, rngs):
        given.append(size)
        return Polynomial(degree(size), rngs)

    rngs = nnx.Rngs(0)
    models = create_hierarchy(build, sizes, rngs)
    assert isinstance(models, Hierarchy)
    assert given == list(sizes)
    # One stream for all levels: what a loop over the sizes would make.
    same = nnx.Rngs(0)
    for model, size in zip(models, sizes, strict=True):
        expected = Polynomial(degree(size), same).coefficients[...]
        np.testing.assert_array_equal(model.coefficients[...], expected)


def test_equal_numbers_of_parameters_are_allowed():
    models = create_hierarchy(Polynomial, [3, 3], nnx.Rngs(0))
    assert not jnp.array_equal(*(model.coefficients[...] for model in models))


def fails_at_four(size, rngs):
    if size == 4:
        raise KeyError("four")
    return Polynomial(size, rngs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, [1]), TypeError, "build must be callable, got 3"),
        ((Polynomial, []), ValueError, "sizes must not be empty"),
        ((Polynomial, 3), TypeError, "sizes must be a sequence, got 3"),
        ((Polynomial, "12"), TypeError, "sizes must be a sequence, got '12'"),
        ((Polynomial, (n for n in (1, 2))), TypeError, "sizes must be a sequence"),
        ((Polynomial, [1], jax.random.key(0)), TypeError, "rngs must be an nnx.Rngs"),
        (
            (lambda size, rngs: (jnp.ones(size), jnp.tanh), [1, 2]),
            TypeError,
            r"build must return an nnx.Module, got tuple for sizes\[0\] = 1; EquinoxModel and",
        ),
        (
            (
                lambda s, rngs: (Polynomial if s < 2 else lambda n, r: MLP(1, 1, [n], rngs=r))(
                    s, rngs
                ),
                [1, 2],
            ),
            TypeError,
            "build must return models of one class, got Polynomial for 1 and MLP for 2",
        ),
        (
            (lambda size, rngs: Polynomial(size["n"], rngs), [{"n": 2}, {"n": 5}, {"n": 4}]),
            ValueError,
            r"sizes must be ordered from coarse to fine, got {'n': 5} with 5 parameters before "
            "{'n': 4} with 4",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    build, sizes, *rngs = arguments
    with pytest.raises(error, match=message):
        create_hierarchy(build, sizes, *(rngs or [nnx.Rngs(0)]))


def test_an_error_while_building_says_at_which_size():
    with pytest.raises(KeyError) as raised:
        create_hierarchy(fails_at_four, [3, 4, 5], nnx.Rngs(0))
    assert raised.value.__notes__ == ["build(size, rngs) was called with sizes[1] = 4."]
