"""Which slice of a fine parameter continues which slice of the coarse one, read off the transfer itself.

The transfer moves trees that hold their own coordinates along one axis. What they become says, for
each fine entry, the coarse index that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from opifex.training.multilevel.transfer.linear_part import KeyPath, LinearPart

AxisMaps = tuple[np.ndarray | None, ...]
"""For each axis of a fine parameter, the coarse index of each fine one, -1 where there is none;
``None`` for an axis whose slices do not stay together."""

__all__ = ["AxisMaps", "axis_maps"]


def axis_maps(
    linear_part: LinearPart, coarse_shapes: dict[KeyPath, tuple[int, ...]]
) -> dict[KeyPath, AxisMaps]:
    """Where the transfer takes the slices of each fine parameter from.

    Args:
        linear_part: that of the transfer.
        coarse_shapes: shapes of the coarse parameters.

    Returns:
        `AxisMaps` by the path of a parameter. Those are absent whose values the transfer changes, or
        whose old entries are no block of rows and columns.
    """
    # Coordinates are exact in float32, whatever the parameters are.
    like: Any = dict.fromkeys(linear_part.of_ones, np.zeros((), np.float32))

    def image(of_shape: Callable[[tuple[int, ...]], np.ndarray]) -> dict[KeyPath, np.ndarray]:
        values: Any = {path: of_shape(shape) for path, shape in coarse_shapes.items()}
        return linear_part(values, like)

    def coordinate(axis: int) -> Callable[[tuple[int, ...]], np.ndarray]:
        def along(shape: tuple[int, ...]) -> np.ndarray:
            return 1 + np.indices(shape)[axis] if axis < len(shape) else np.ones(shape)

        return along

    ones = image(np.ones)
    ranks = range(max(map(len, coarse_shapes.values()), default=0))
    coordinates = [image(coordinate(axis)) for axis in ranks]
    found = {
        path: _maps_of_one(ones[path], [of_axis[path] for of_axis in coordinates[: len(shape)]])
        for path, shape in coarse_shapes.items()
        if path in ones and ones[path].ndim == len(shape)
    }
    return {path: maps for path, maps in found.items() if maps is not None}


def _maps_of_one(ones: np.ndarray, coordinates: list[np.ndarray]) -> AxisMaps | None:
    carried = ones != 0
    if np.any(np.abs(ones[carried] - 1) > 16 * np.finfo(np.float32).eps):
        return None
    slices = [
        np.any(carried, axis=tuple(other for other in range(ones.ndim) if other != axis))
        for axis in range(ones.ndim)
    ]
    if np.count_nonzero(carried) != np.prod([np.count_nonzero(rows) for rows in slices]):
        return None
    return tuple(_map_of_axis(c, carried, axis) for axis, c in enumerate(coordinates))


def _map_of_axis(coordinate: np.ndarray, carried: np.ndarray, axis: int) -> np.ndarray | None:
    """The coarse index of each slice along an axis, if all its old entries agree on one."""
    along = [np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in (coordinate, carried)]
    index, old = np.rint(np.real(along[0])).astype(int) - 1, along[1]
    highest = np.max(index, axis=1, initial=-1, where=old)
    agree = np.all((index == highest[:, None]) | ~old)
    sources = highest[highest >= 0]
    return highest if agree and len(set(sources.tolist())) == len(sources) else None
