"""Trees of arrays as arrays by name, and back into a tree of the same structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["filled", "is_key", "named_leaves", "on_host"]


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds typed random keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def named_leaves(prefix: str, tree: Any) -> dict[str, Any]:
    """The leaves of a tree as they are, by the prefix and their paths.

    Args:
        prefix: beginning of all names.
        tree: any pytree.
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{prefix}{jax.tree_util.keystr(path)}": leaf for path, leaf in found}


def on_host(leaf: Any) -> np.ndarray:
    """A leaf in the memory of the host; random keys as their bits."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def filled(prefix: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A tree with named values in the place of others of the same shapes and dtypes.

    Values go to the devices on which the others lie.

    Args:
        prefix: beginning of all names.
        like: a tree of arrays or their shapes.
        arrays: values by name; others may be among them.

    Raises:
        ValueError: naming what is missing or different.
    """
    leaves = [
        _like(name, leaf, arrays.get(name)) for name, leaf in named_leaves(prefix, like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _like(name: str, leaf: Any, value: np.ndarray | None) -> Any:
    wanted = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    wanted = jax.ShapeDtypeStruct(np.shape(wanted), jnp.result_type(wanted))
    if value is None:
        raise ValueError(f"there is no {name}")
    if (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
        raise ValueError(
            f"{name} must be {wanted.dtype.name}{list(wanted.shape)}, it is "
            f"{value.dtype.name}{list(value.shape)}"
        )
    placed = getattr(leaf, "committed", False)
    found = jax.device_put(value, leaf.sharding) if placed else jnp.asarray(value)
    if is_key(leaf):
        impl = jax.random.key_impl(leaf) if isinstance(leaf, jax.Array) else None
        found = jax.random.wrap_key_data(found, impl=impl)
    return found
