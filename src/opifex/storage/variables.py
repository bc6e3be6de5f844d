"""The variables of a model as arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.models import FrozenVariable
from opifex.storage.trees import is_key, on_host

__all__ = ["Entry", "arrays_of", "entries", "freeze_as", "with_arrays"]


@dataclass(frozen=True)
class Entry:
    """What is known of a variable besides its value.

    Attributes:
        shape: its shape; of a random key, that of its bits.
        dtype: name of its dtype; of a random key, that of its bits.
        type: name of the class of the variable.
        key: the generator of a random key, else ``None``.
    """

    shape: tuple[int, ...]
    dtype: str
    type: str
    key: str | None = None


def _leaves(model: nnx.Module) -> list[tuple[tuple[Any, ...], Any]]:
    return list(nnx.to_flat_state(nnx.state(model)))


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _value(leaf: Any) -> Any:
    return leaf[...] if isinstance(leaf, nnx.Variable) else leaf


def entries(model: nnx.Module) -> dict[str, Entry]:
    """What a model's variables are, by their names.

    Args:
        model: any module; names are paths, joined with dots.

    Raises:
        TypeError: if a variable holds something else than an array.
        ValueError: if two variables have one name.
    """
    found: dict[str, Entry] = {}
    for path, leaf in _leaves(model):
        name, value = _name(path), _value(leaf)
        if not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(f"variable {name} must hold an array, got {type(value).__name__}")
        if name in found:
            raise ValueError(f"variables of a model must have names of their own, got {name} twice")
        key = str(jax.random.key_impl(value)) if is_key(value) else None
        bits = jax.random.key_data(value) if key else value
        found[name] = Entry(tuple(bits.shape), str(bits.dtype), type(leaf).__name__, key)
    return found


def arrays_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """The values of a model's variables by name; random keys as their bits."""
    values = {_name(path): _value(leaf) for path, leaf in _leaves(model)}
    return {name: on_host(value) for name, value in values.items()}


def with_arrays(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Give a model's variables other values, in place.

    Args:
        model: the model.
        arrays: values by name, as `arrays_of` returned them for a model like this one.
    """
    known = entries(model)
    flat = []
    for path, leaf in _leaves(model):
        name = _name(path)
        value = jnp.asarray(arrays[name])
        if known[name].key:
            value = jax.random.wrap_key_data(value, impl=known[name].key)
        flat.append((path, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value))
    nnx.update(model, nnx.from_flat_state(flat))


def freeze_as(model: nnx.Module, wanted: Mapping[str, Entry]) -> None:
    """Freeze the parameters of a model that are frozen in another, in place.

    Args:
        model: the model.
        wanted: the variables of the other, by name.
    """
    for path, node in nnx.iter_graph(model):
        other = wanted.get(_name(path))
        if type(node) is nnx.Param and other is not None and other.type == FrozenVariable.__name__:
            node.__class__ = FrozenVariable  # type: ignore[assignment]
