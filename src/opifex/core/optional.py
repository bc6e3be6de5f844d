"""Packages that only a part of the library needs, imported where that part begins to work."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["optional_module"]


def optional_module(name: str, extra: str, purpose: str) -> ModuleType:
    """Import a package that an extra installs.

    Args:
        name: full name of the module.
        extra: the extra of ``opifex-multilevel`` that brings it.
        purpose: what it is needed for, the beginning of the message: ``"reading HDF5"``.

    Raises:
        ImportError: if the package is not installed; the message says which extra installs it. If the
            package is there and fails by itself, its own error passes through.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise ImportError(
            f"{purpose} needs the package {top}: pip install 'opifex-multilevel[{extra}]'",
            name=error.name,
        ) from error
