"""Argument checks that name the argument, what was given and what is allowed.

All take the name of the argument first. They raise ``TypeError`` for a value of the wrong type and
``ValueError`` for one that is out of range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

__all__ = [
    "check_array",
    "check_bool",
    "check_callable",
    "check_choice",
    "check_finite",
    "check_fraction",
    "check_index",
    "check_key",
    "check_last_axis",
    "check_module",
    "check_nonnegative",
    "check_nonnegative_int",
    "check_not_empty",
    "check_param_dtype",
    "check_positive",
    "check_positive_int",
    "check_positive_numbers",
    "check_rngs",
    "check_sequence",
    "check_sizes",
]


_LARGEST_INT = 2**63 - 1


def _as_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if abs(int(value)) > _LARGEST_INT:
        raise ValueError(f"{name} must fit into 64 bits, got {value!r}")
    return int(value)


def _as_real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a real number, got {value!r} of type {type(value).__name__}"
        )
    try:
        number = float(value)
    except OverflowError:  # of a large integer
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def check_positive_int(name: str, value: Any) -> int:
    """Return ``value`` as an ``int``; raise if it is not an integer of at least one."""
    number = _as_int(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return number


def check_nonnegative_int(name: str, value: Any) -> int:
    """Return ``value`` as an ``int``; raise if it is not an integer of at least zero."""
    number = _as_int(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return number


def check_index(name: str, value: Any, size: int) -> int:
    """Return ``value`` as an ``int``; raise if it is not an integer from zero on and below ``size``."""
    number = _as_int(name, value)
    if not 0 <= number < size:
        raise ValueError(f"{name} must be in 0..{size - 1}, got {value!r}")
    return number


def check_finite(name: str, value: Any) -> float:
    """Return ``value`` as a ``float``; raise if it is not a finite number."""
    return _as_real(name, value)


def check_bool(name: str, value: Any) -> bool:
    """Return ``value``; raise if it is not a truth value."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return value


def check_positive(name: str, value: Any) -> float:
    """Return ``value`` as a ``float``; raise if it is not a finite number above zero."""
    number = _as_real(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return number


def check_nonnegative(name: str, value: Any) -> float:
    """Return ``value`` as a ``float``; raise if it is not a finite number of at least zero."""
    number = _as_real(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return number


def check_fraction(name: str, value: Any) -> float:
    """Return ``value`` as a ``float``; raise unless it lies strictly between zero and one."""
    number = _as_real(name, value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value!r}")
    return number


def check_callable(name: str, value: Any) -> None:
    """Raise unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r} of type {type(value).__name__}")


def check_sequence(name: str, value: Any) -> None:
    """Raise unless ``value`` is a sequence such as a list or tuple; a string does not count as one."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence, got {value!r} of type {type(value).__name__}")


def check_not_empty(name: str, values: Any) -> None:
    """Raise unless ``values`` is a sequence of at least one entry."""
    check_sequence(name, values)
    if len(values) == 0:
        raise ValueError(f"{name} must not be empty, got {values!r}")


def check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """Return ``sizes`` as a tuple; raise unless it is a sequence of at least one positive integer."""
    check_not_empty(name, sizes)
    return tuple(check_positive_int(f"{name}[{i}]", size) for i, size in enumerate(sizes))


def check_positive_numbers(name: str, values: Any) -> tuple[float, ...]:
    """Return ``values`` as a tuple; raise unless it is a sequence of at least one positive number."""
    check_not_empty(name, values)
    return tuple(check_positive(f"{name}[{i}]", value) for i, value in enumerate(values))


def check_last_axis(name: str, array: Any, size_name: str, size: int) -> None:
    """Raise unless the last axis of ``array`` has the given ``size``, which is called ``size_name``."""
    shape = array.shape if hasattr(array, "dtype") else np.shape(check_array(name, array))
    if not shape or shape[-1] != size:
        raise ValueError(
            f"{name} must have a last axis of size {size_name}={size}, got shape {shape}"
        )


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return ``value``; raise unless it is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    return str(value)


def check_array(name: str, value: Any, axes: str | None = None, *, real: bool = False) -> Any:
    """Return ``value`` as an array of numbers or truth values; raise if it is none.

    Args:
        name: of the argument.
        value: an array, or what NumPy makes one of. Those of JAX stay as they are.
        axes: names of the axes that it must have, separated by spaces, of at least one entry each.
        real: whether complex numbers are refused.

    Raises:
        TypeError: if it holds something else than numbers.
        ValueError: if it is ragged, or does not have the axes.
    """
    array: Any = value
    if not isinstance(value, jax.Array):
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} must be an array of numbers: {error}") from error
    is_number = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool
    if not is_number or (real and jnp.issubdtype(array.dtype, jnp.complexfloating)):
        kind = "real numbers" if real else "numbers"
        given = array.dtype if hasattr(value, "dtype") else type(value).__name__
        raise TypeError(f"{name} must be an array of {kind}, got {given}")
    if axes is not None and (array.ndim != len(axes.split()) or 0 in array.shape):
        raise ValueError(
            f"{name} must have shape ({', '.join(axes.split())}) and entries, got {array.shape}"
        )
    return array


def check_module(name: str, value: Any) -> None:
    """Raise unless ``value`` is a model of Flax."""
    if not isinstance(value, nnx.Module):
        raise TypeError(f"{name} must be an nnx.Module, got {type(value).__name__}")


def check_param_dtype(name: str, value: Any) -> None:
    """Raise unless ``value`` is a real floating-point dtype, or the name of one."""
    try:
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None:
        raise TypeError(f"{name} must be a dtype such as jnp.float32, got {value!r}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a real floating-point dtype, got {dtype}")


def check_rngs(name: str, value: Any) -> None:
    """Raise unless ``value`` holds random streams of Flax."""
    if not isinstance(value, nnx.Rngs):
        raise TypeError(f"{name} must be an nnx.Rngs, got {value!r} of type {type(value).__name__}")


def check_key(name: str, value: Any) -> None:
    """Raise unless ``value`` is one random key, of the typed kind or a pair of ``uint32``."""
    typed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    raw = isinstance(value, jax.Array) and value.dtype == jnp.uint32 and value.shape == (2,)
    if not (typed and value.shape == ()) and not raw:
        raise TypeError(f"{name} must be a random key such as jax.random.key(0), got {value!r}")
