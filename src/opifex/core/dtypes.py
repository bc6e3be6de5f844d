"""Which arrays hold floating-point numbers, and integers where those are meant."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_array

__all__ = ["as_inexact", "as_input_of", "is_inexact"]


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of floating-point numbers, real or complex, of JAX or NumPy.

    Args:
        leaf: anything; Python's own numbers are no arrays.
    """
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) and bool(
        jnp.issubdtype(leaf.dtype, jnp.inexact)
    )


def as_inexact(x: Any, dtype: Any = float) -> Array:
    """``x`` as an array, in ``dtype`` if it holds integers or booleans.

    Args:
        x: an array or what can be made one.
        dtype: a floating-point dtype; by default JAX's default one.

    Raises:
        TypeError: if ``x`` does not hold numbers.
        ValueError: if it is ragged.
    """
    array = jnp.asarray(check_array("x", x))
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return array.astype(jnp.result_type(dtype))


def as_input_of(model: Any, x: Any) -> Array:
    """``x`` as an array, in the dtype of a model's variables if it holds integers or booleans.

    That is what the layers of Flax promote to.

    Args:
        model: an ``nnx.Module``.
        x: an array or what can be made one.

    Raises:
        TypeError: if ``x`` does not hold numbers.
        ValueError: if it is ragged.
    """
    array = jnp.asarray(check_array("x", x))
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    inexact = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return array.astype(jnp.result_type(*inexact) if inexact else jnp.result_type(float))
