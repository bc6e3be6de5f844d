"""Functions and classes by name, so that files need no pickled code."""

from __future__ import annotations

import contextlib
import importlib
import sys
from functools import reduce
from typing import Any

__all__ = ["OwnClassError", "UnnamedError", "name_of", "named"]

# Where users find functions; their own ``__module__`` may be a private one, which moves.
_PUBLIC = ("jax.numpy", "jax.nn", "jax.lax", "flax.nnx", "jax.scipy.special")
_TRUSTED = ("jax", "flax", "opifex")


class UnnamedError(ValueError):
    """Something has no name by which another program could find it."""


class OwnClassError(UnnamedError):
    """A model is of a class that this library does not build."""


def name_of(what: str, value: Any) -> str:
    """The name of a function or class, ``"module:name"``.

    Args:
        what: what the value is, for the message.
        value: the function or class.

    Raises:
        UnnamedError: if there is no such name, as for a lambda.
    """
    own = getattr(value, "__name__", "")
    for module in _PUBLIC:
        if own and getattr(sys.modules.get(module), own, None) is value:
            return f"{module}:{own}"
    home, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if home and qualified and _attribute(sys.modules.get(home), qualified) is value:
        return f"{home}:{qualified}"
    raise UnnamedError(f"{what} must be a function or class with a name in a module, got {value!r}")


def named(what: str, name: str) -> Any:
    """The function or class of a name.

    No file can make a program import strange code: a module is imported if it belongs to JAX, Flax or
    this library; any other must have been imported before.

    Args:
        what: what the value is, for the message.
        name: as `name_of` returned it.

    Raises:
        ValueError: if the module is not imported, or has no such name.
    """
    module, _, qualified = name.partition(":")
    if module.partition(".")[0] in _TRUSTED:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    if module not in sys.modules:
        raise ValueError(f"{what} is {name}: import {module} before, or give build")
    value = _attribute(sys.modules[module], qualified)
    if value is None:
        raise ValueError(f"{what} is {name}, but {module} has no {qualified}; give build")
    return value


def _attribute(module: Any, qualified: str) -> Any:
    return reduce(lambda found, part: getattr(found, part, None), qualified.split("."), module)
