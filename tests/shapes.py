"""Annotations of arrays, checked while the tests run (``--jaxtyping-packages`` in pyproject.toml)."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray, AbstractDtype

__all__ = ["checked", "leave_functions_without_arrays"]


def _speaks_of_arrays(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray | AbstractDtype)
    return is_array or any(map(_speaks_of_arrays, get_args(hint)))


def _may_speak_of_arrays(function: Any) -> bool:
    """By the names in annotations that are strings still; an alias of arrays speaks of them, too."""
    if isinstance(function, (classmethod, staticmethod)):
        return _may_speak_of_arrays(function.__func__)
    if isinstance(function, property):
        return any(map(_may_speak_of_arrays, filter(None, (function.fget, function.fset))))
    if inspect.isclass(function):  # of which only the arguments of a dataclass are checked
        return "__dataclass_fields__" in vars(function) and _may_speak_of_arrays(function.__init__)
    names = getattr(function, "__globals__", {})
    return any(
        any(_speaks_of_arrays(names.get(name)) for name in re.findall(r"\w+", hint))
        if isinstance(hint, str)
        else _speaks_of_arrays(hint)
        for hint in getattr(function, "__annotations__", {}).values()
    )


def leave_functions_without_arrays() -> None:
    """Keep jaxtyping from wrapping functions that have nothing to check.

    It would bind the arguments of every call of every function of the library, and compile two
    stand-ins for each local function whenever it is defined, which costs more than all the checks.
    """
    wrap = jaxtyping.jaxtyped

    @functools.wraps(wrap)
    def wrap_if_arrays(function: Any = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(wrap_if_arrays, **options)
        is_left = not isinstance(function, str) and not _may_speak_of_arrays(function)
        return function if is_left else wrap(function, **options)

    jaxtyping.jaxtyped = wrap_if_arrays


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
