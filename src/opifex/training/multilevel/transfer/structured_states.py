r"""Statistics that belong to a parameter and are not shaped like it, and how they grow.

Shampoo and SOAP keep a square array for each axis of a parameter, Adafactor means over one axis, SM3 a
vector for each axis, GaLore a projection and moments in its image. The rule is one for all: **old
entries stay with their rows and columns, and what is new starts as ``init`` of the fine level gives
it**, except that a square array with orthonormal columns gets the identity, so that it stays a basis.

Which axis an array runs along is its layout (`opifex.training.multilevel.transfer.layouts`). Adafactor
and GaLore choose theirs by size, differently from level to level: they are known by the names of their
fields. Where the layouts that are left would move entries differently, or where the transfer does
not leave slices together and their values alone, the array starts afresh.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from opifex.training.multilevel.transfer.axis_maps import AxisMaps
from opifex.training.multilevel.transfer.layouts import Layout, layouts_of_tree
from opifex.training.multilevel.transfer.linear_part import KeyPath
from opifex.training.multilevel.transfer.state_trees import StateTrees, TreePath, name_of, sibling

__all__ = ["grown", "predecessors", "restarted_counts"]


# -- methods that choose axes by size --------------------------------------------------------------


def _factored_layout(name: str, shape: tuple[int, ...]) -> Layout:
    """What Adafactor averages over: the largest axis for ``v_row``, the second largest for ``v_col``."""
    second, largest = np.argsort(shape)[-2:].tolist()
    dropped = largest if name == "v_row" else second
    return tuple(axis for axis in range(len(shape)) if axis != dropped)


def _fields(level: StateTrees, tree: TreePath, path: KeyPath) -> dict[str, Array]:
    """The three arrays of Adafactor for one parameter."""
    prefix, tail = tree
    return {n: level.trees[sibling(prefix, n), tail][path] for n in ("v_row", "v_col", "v")}


def _factored_source(shape: tuple[int, ...], fields: dict[str, Array], layout: Layout) -> Any:
    """The coarse averages of a layout, taken from the unfactored ones if there are no others."""
    if fields["v"].shape == shape:
        dropped = tuple(axis for axis in range(len(shape)) if axis not in layout)
        return np.mean(np.asarray(fields["v"]), axis=dropped)
    names = ("v_row", "v_col")
    return next((fields[n] for n in names if _factored_layout(n, shape) == layout), None)


def _is_factored(level: StateTrees, prefix: KeyPath) -> bool:
    """Whether a tree holds the row or column averages of Adafactor."""
    return (
        bool(prefix)
        and name_of(prefix[-1]) in ("v_row", "v_col")
        and level.has(sibling(prefix, "v"))
    )


def _factored(
    coarse: StateTrees, fine: StateTrees, tree: TreePath
) -> dict[KeyPath, tuple[Array, set[Layout] | None]]:
    found: dict[KeyPath, tuple[Array, set[Layout] | None]] = {}
    for path in fine.trees[tree]:
        shape = fine.shapes[path]
        if path in coarse.trees.get(tree, {}) and _fields(fine, tree, path)["v"].shape != shape:
            layout = _factored_layout(name_of(tree[0][-1]), shape)
            source = _factored_source(coarse.shapes[path], _fields(coarse, tree, path), layout)
            if source is not None:
                found[path] = source, {layout}
    return found


def _low_rank_root(level: StateTrees, prefix: KeyPath) -> KeyPath | None:
    """Where the state of GaLore begins that a tree belongs to."""
    for length, key in enumerate(prefix):
        root = prefix[:length]
        if name_of(key) in ("projector", "base_optimizer_state") and level.has(_projector(root)[0]):
            return root
    return None


def _projector(root: KeyPath) -> TreePath:
    return (*root, jax.tree_util.GetAttrKey("projector")), ()


def _low_rank_layout(level: StateTrees, tree: TreePath, path: KeyPath) -> Layout | None:
    """The layout of GaLore's projection or of what it projects: the longer axis is projected."""
    root = _low_rank_root(level, tree[0])
    assert root is not None
    shape, projector = level.shapes[path], level.trees[_projector(root)][path].shape
    if len(shape) != 2 or len(projector) != 2:
        return None
    longer = 0 if shape[0] >= shape[1] else 1
    if projector[0] != shape[longer] or tree[1]:
        return None
    if tree == _projector(root):
        return longer, None
    wanted = (projector[1], shape[1]) if longer == 0 else (shape[0], projector[1])
    layout = (None, 1) if longer == 0 else (0, None)
    return layout if level.trees[tree][path].shape == wanted else None


def _low_rank(coarse: StateTrees, fine: StateTrees, tree: TreePath) -> dict[KeyPath, Any]:
    found: dict[KeyPath, set[Layout]] = {}
    for path in fine.trees[tree]:
        if path in coarse.trees.get(tree, {}):
            before, after = (_low_rank_layout(level, tree, path) for level in (coarse, fine))
            if before is not None or after is not None:
                found[path] = {after} if before == after and after is not None else set()
    return found


def restarted_counts(coarse: StateTrees, fine: StateTrees) -> set[KeyPath]:
    """Counts that start again: those by which GaLore knows when to compute its projections.

    A projection that knows nothing of new rows gives them no update. It is computed anew with the
    next gradient, where one has grown.

    Args:
        coarse: the state of the coarse level.
        fine: a fresh state of the fine level.

    Returns:
        Their key paths.
    """
    found = set()
    for prefix, tail in fine.trees:
        if (
            prefix
            and _low_rank_root(fine, prefix) == prefix[:-1]
            and (prefix, tail) in coarse.trees
        ):
            before, after = (level.trees[prefix, tail] for level in (coarse, fine))
            if any(path in before and before[path].shape != a.shape for path, a in after.items()):
                found.add(sibling(prefix, "count"))
    return found


def predecessors(
    coarse: StateTrees, fine: StateTrees, tree: TreePath
) -> dict[KeyPath, tuple[Array, set[Layout] | None]]:
    """For each leaf of a fine tree that has one, the coarse array that it continues, and its layouts.

    Args:
        coarse: the state of the coarse level.
        fine: a fresh state of the fine level.
        tree: the tree.

    Returns:
        Arrays and layouts by the paths of parameters: none where an array does not tell, ``None``
        where it belongs to no axis on either level.
    """
    if _is_factored(fine, tree[0]):
        return _factored(coarse, fine, tree)
    layouts = layouts_of_tree(coarse, fine, tree)
    if _low_rank_root(fine, tree[0]) is not None:
        layouts |= _low_rank(coarse, fine, tree)
    return {path: (coarse.trees[tree][path], of_leaf) for path, of_leaf in layouts.items()}


# -- growth ----------------------------------------------------------------------------------------


def _rows(
    layout: Layout, maps: AxisMaps, old: tuple[int, ...], new: tuple[int, ...]
) -> list[np.ndarray] | None:
    """For each axis of an array, the old index of each new one; ``None`` where that is not known."""
    rows = [
        np.where(np.arange(n) < m, np.arange(n), -1) if axis is None else maps[axis]
        for axis, m, n in zip(layout, old, new, strict=True)
    ]
    return None if any(row is None for row in rows) else rows  # type: ignore[return-value]


def _agreed(options: Iterable[list[np.ndarray] | None]) -> list[np.ndarray] | None:
    first, *others = [*options] or [None]
    if first is None:
        return None
    same = all(other is not None and all(map(np.array_equal, first, other)) for other in others)
    return first if same else None


def _is_basis(array: np.ndarray) -> bool:
    """Whether a square array has orthonormal columns, to half of its digits."""
    if not jax.numpy.issubdtype(array.dtype, np.inexact) or not np.all(np.isfinite(array)):
        return False
    wide = array.astype(np.result_type(array.dtype, np.float64))
    bound = float(np.sqrt(jax.numpy.finfo(array.dtype).eps))
    return bool(np.max(np.abs(wide.conj().T @ wide - np.eye(len(wide))), initial=0) <= bound)


def _placed(old: np.ndarray, start: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    values = np.array(start)
    values[np.ix_(*(np.flatnonzero(row >= 0) for row in rows))] = old[
        np.ix_(*(row[row >= 0] for row in rows))
    ]
    return values


def grown(
    old: np.ndarray, fresh: np.ndarray, layouts: set[Layout], maps: AxisMaps, fill: float | None
) -> np.ndarray:
    """A fresh array with the old entries in place.

    Args:
        old: the coarse array.
        fresh: the fine array as ``init`` gives it.
        layouts: what its axes may run along.
        maps: where the slices of the parameter come from.
        fill: what new entries start from instead; that is for averages, not for squares.

    Returns:
        The fresh array where the layouts disagree, or where a basis would not stay one.
    """
    rows = _agreed(_rows(layout, maps, old.shape, fresh.shape) for layout in layouts)
    if rows is None:
        return fresh
    if all(len(layout) == 2 and layout[0] == layout[1] for layout in layouts):
        if not _is_basis(old):
            return _placed(old, fresh, rows)
        values = _placed(old, np.diag((rows[0] < 0).astype(old.dtype)), rows)
        return values if _is_basis(values) else fresh
    start = fresh if fill is None else np.full(fresh.shape, fill, fresh.dtype)
    return _placed(old, start, rows)
