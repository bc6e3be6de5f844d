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

__all__ = [
    "check_callable",
    "check_choice",
    "check_fraction",
    "check_key",
    "check_last_axis",
    "check_nonnegative",
    "check_nonnegative_int",
    "check_positive",
    "check_positive_int",
    "check_positive_numbers",
    "check_sequence",
    "check_sizes",
]


def _as_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    return int(value)


def _as_real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a real number, got {value!r} of type {type(value).__name__}"
        )
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


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
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence, got {value!r} of type {type(value).__name__}")


def _check_not_empty(name: str, values: Any) -> None:
    check_sequence(name, values)
    if len(values) == 0:
        raise ValueError(f"{name} must not be empty, got {values!r}")


def check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """Return ``sizes`` as a tuple; raise unless it is a sequence of at least one positive integer."""
    _check_not_empty(name, sizes)
    return tuple(check_positive_int(f"{name}[{i}]", size) for i, size in enumerate(sizes))


def check_positive_numbers(name: str, values: Any) -> tuple[float, ...]:
    """Return ``values`` as a tuple; raise unless it is a sequence of at least one positive number."""
    _check_not_empty(name, values)
    return tuple(check_positive(f"{name}[{i}]", value) for i, value in enumerate(values))


def check_last_axis(name: str, array: Any, size_name: str, size: int) -> None:
    """Raise unless the last axis of ``array`` has the given ``size``, which is called ``size_name``."""
    shape = array.shape if hasattr(array, "shape") else np.shape(array)
    if not shape or shape[-1] != size:
        raise ValueError(
            f"{name} must have a last axis of size {size_name}={size}, got shape {shape}"
        )


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return ``value``; raise unless it is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    return str(value)


def check_key(name: str, value: Any) -> None:
    """Raise unless ``value`` is one random key, of the typed kind or a pair of ``uint32``."""
    typed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    raw = isinstance(value, jax.Array) and value.dtype == jnp.uint32 and value.shape == (2,)
    if not (typed and value.shape == ()) and not raw:
        raise TypeError(f"{name} must be a random key such as jax.random.key(0), got {value!r}")
