"""Annotations of arrays, checked while the tests run (``--jaxtyping-packages`` in pyproject.toml)."""

from __future__ import annotations

from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray

__all__ = ["checked"]


def _speaks_of_arrays(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(map(_speaks_of_arrays, get_args(hint)))


def checked(function):
    """Check the arrays of a call that returned, arguments and result; nothing if it raised.

    jaxtyping hands over two stand-ins for every function: one for the arguments before the call,
    and one for the arguments and the result after it, which takes the result as a keyword. Only the
    second is checked. Bad input is to be refused by the library itself, with an error that names
    the argument; what it lets pass although it does not fit is an error of the annotation or a
    missing check. Annotations without shapes are left to mypy.
    """
    hints = {k: v for k, v in function.__annotations__.items() if _speaks_of_arrays(v)}
    if "ret0" not in function.__code__.co_varnames or not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)
