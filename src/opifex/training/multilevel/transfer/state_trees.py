"""What an optimizer state holds for parameters, recognised by their key paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array

from opifex.training.multilevel.transfer.linear_part import KeyPath

TreePath = tuple[KeyPath, KeyPath]
"""Where one tree of a state lies: the key path before that of a parameter, and the one behind it."""

__all__ = ["StateTrees", "TreePath", "name_of", "sibling", "trees_of"]


@dataclass(frozen=True)
class StateTrees:
    """What a state of one level holds for its parameters.

    Attributes:
        shapes: shapes of the parameters.
        trees: trees of the state, each as leaves by the paths of their parameters.
    """

    shapes: dict[KeyPath, tuple[int, ...]]
    trees: dict[TreePath, dict[KeyPath, Array]]

    def has(self, prefix: KeyPath) -> bool:
        """Whether a tree of parameters lies behind a key path."""
        return any(before == prefix for before, _ in self.trees)


def trees_of(state: Any, shapes: dict[KeyPath, tuple[int, ...]]) -> StateTrees:
    """What a state holds for parameters: everything whose key path contains the whole one of one.

    Args:
        state: an optimizer state.
        shapes: shapes of the parameters.
    """
    lengths = sorted({len(path) for path in shapes}, reverse=True)
    trees: dict[TreePath, dict[KeyPath, Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        places = ((end - n, end) for end in range(len(path), 0, -1) for n in lengths if n <= end)
        place = next((p for p in places if path[slice(*p)] in shapes), None)
        if place is not None:
            tree = path[: place[0]], path[place[1] :]
            trees.setdefault(tree, {})[path[slice(*place)]] = leaf
    return StateTrees(shapes, trees)


def name_of(key: Any) -> Any:
    """The field that a part of a key path names, ``None`` if it names no field.

    Args:
        key: the part.
    """
    return getattr(key, "name", None)


def sibling(prefix: KeyPath, name: str) -> KeyPath:
    """The key path of another field of the same node.

    Args:
        prefix: the key path of one field.
        name: name of the other.
    """
    return (*prefix[:-1], jax.tree_util.GetAttrKey(name))
