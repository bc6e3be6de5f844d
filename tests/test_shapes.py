"""The check of annotated arrays finds what does not fit, and leaves bad input to the library."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from opifex.models import MLP
from shapes import checked


@jaxtyped(typechecker=checked)
def first_column(x: Float[Array, "n 2"], drop: int = 0) -> Float[Array, " n"]:
    if x.ndim != 2:
        raise ValueError("x must have two axes")
    return x[drop:, 0]


def test_arrays_that_fit_pass():
    assert first_column(jnp.ones((3, 2))).shape == (3,)


def test_what_is_refused_keeps_its_error():
    with pytest.raises(ValueError, match="x must have two axes"):
        first_column(jnp.ones(3))


@pytest.mark.parametrize("columns_dropped", [(3, 0), (2, 1)])
def test_arguments_and_results_that_do_not_fit_are_found(columns_dropped):
    columns, dropped = columns_dropped
    with pytest.raises(TypeCheckError, match="first_column"):
        first_column(jnp.ones((3, columns)), dropped)


def test_the_library_is_checked():
    model = MLP(2, 1, [3], rngs=nnx.Rngs(0))
    with pytest.raises(TypeCheckError, match="HiddenLayer"):
        model.hidden[0](np.ones((4, 2)))
    assert model(np.ones((4, 2))).shape == (4, 1)  # only whole models take NumPy arrays


Matrix = Float[np.ndarray, "rows columns"]


def number_of_columns(matrix: Matrix) -> int:
    return matrix.shape[-1]


def half(number: int) -> int:
    return number // 2


@dataclass
class Pair:
    one: Float[np.ndarray, " n"]
    other: Float[np.ndarray, " n"]


def test_functions_are_checked_where_their_annotations_speak_of_arrays():
    check = jaxtyped(typechecker=checked)
    assert check(half) is half
    assert check(number_of_columns)(np.ones((2, 3))) == 3
    with pytest.raises(TypeCheckError, match="number_of_columns"):
        check(number_of_columns)(np.ones(3))
    pair = check(Pair)
    pair(np.ones(2), np.ones(2))
    with pytest.raises(TypeCheckError, match="__init__"):
        pair(np.ones(2), np.ones(3))
