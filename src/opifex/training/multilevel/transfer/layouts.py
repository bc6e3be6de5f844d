"""Along which axes of its parameter an array of an optimizer state runs.

The sizes of one array may fit several axes. Those of all parameters with as many axes, on both levels,
mostly leave one; a position in a list or tuple behind the parameter names it.
"""

from __future__ import annotations

from opifex.training.multilevel.transfer.linear_part import KeyPath
from opifex.training.multilevel.transfer.state_trees import StateTrees, TreePath

Layout = tuple[int | None, ...]
"""For each axis of an array, the axis of its parameter that it runs along; ``None`` for one that runs
along none, such as the rank of a projection."""

__all__ = ["Layout", "fitting_layouts", "is_mirrored", "layouts_of_tree", "sizes"]


def fitting_layouts(parameter: tuple[int, ...], leaf: tuple[int, ...]) -> set[Layout]:
    """The layouts by which an array of one shape may belong to a parameter of another.

    They are: the parameter's own; without one of its axes, which may stay with size one; along a
    single axis; a square along one axis.

    Args:
        parameter: shape of the parameter.
        leaf: shape of the array.
    """
    own = tuple(range(len(parameter)))
    options: set[Layout] = {own, *((a,) for a in own), *((a, a) for a in own)}
    options |= {own[:a] + own[a + 1 :] for a in own}
    options |= {(*own[:a], None, *own[a + 1 :]) for a in own}
    options |= {tuple(a if a == kept else None for a in own) for kept in own}
    return {o for o in options if set(o) - {None} and sizes(o, parameter) == leaf}


def is_mirrored(layouts: set[Layout] | None, rank: int, *, behind: bool) -> bool:
    """Whether an array with the shape of its parameter has the same axes.

    One that lies where its parameter would, in a tree of the same structure, is taken for such even
    if it might be a square along one axis. One that lies behind must be nothing else.

    Args:
        layouts: those that fit it.
        rank: number of axes of the parameter.
        behind: whether it lies behind the parameter's key path.
    """
    own = tuple(range(rank))
    return layouts == {own} if behind and rank else not rank or own in (layouts or ())


def sizes(layout: Layout, parameter: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array with a layout; axes that run along none have size one.

    Args:
        layout: the layout.
        parameter: shape of the parameter.
    """
    return tuple(1 if axis is None else parameter[axis] for axis in layout)


def _at_position(layouts: set[Layout], tail: KeyPath) -> set[Layout]:
    """Those along the axis that a position behind the parameter names, if there are any."""
    position = getattr(tail[-1], "idx", None) if tail else None
    named = {layout for layout in layouts if set(layout) == {position}}
    return named or layouts


def layouts_of_tree(
    coarse: StateTrees, fine: StateTrees, tree: TreePath
) -> dict[KeyPath, set[Layout] | None]:
    """The layouts of each leaf that both levels have.

    Args:
        coarse: the state of the coarse level.
        fine: a fresh state of the fine level.
        tree: the tree.

    Returns:
        Layouts by the paths of parameters: those that fit all leaves of parameters with as many axes
        or, if there are none, those that fit the leaf, provided they are the same on both levels.
        ``None`` for a leaf that belongs to no axis on either level.
    """
    fits = {
        path: tuple(
            _at_position(
                fitting_layouts(level.shapes[path], level.trees[tree][path].shape), tree[1]
            )
            for level in (coarse, fine)
        )
        for path in fine.trees[tree]
        if path in coarse.trees.get(tree, {})
    }
    common: dict[int, set[Layout]] = {}
    for path, (before, after) in fits.items():
        if before and after:  # else a placeholder
            rank = len(fine.shapes[path])
            common[rank] = common.get(rank, before) & before & after
    chosen: dict[KeyPath, set[Layout] | None] = {}
    for path, (before, after) in fits.items():
        shared = before & after & common.get(len(fine.shapes[path]), set())
        if before or after:
            chosen[path] = shared or (before if before == after else set())
        else:
            chosen[path] = None
    return chosen
