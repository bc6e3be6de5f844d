"""What the axes of stored arrays are: samples, grid, channels; and where the points of a grid lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["checked_grid_kind", "grid_axes", "matching_coordinates", "shown_grid_kind"]

MOST_CHANNELS = 8
"""A last axis of at most so many entries is read as channels where nothing else decides."""


def grid_axes(
    entries: Sequence[tuple[str, tuple[int, ...], bool | None]],
    known: int,
    channel_axis: bool | None,
) -> int:
    """The number of axes of the grid that all arrays share.

    Args:
        entries: name and shape of each array, and whether its last axis is channels where its file says
            so.
        known: number of coordinate arrays of the file.
        channel_axis: whether the last axis of all arrays is channels; ``None`` to find out.

    Raises:
        ValueError: if the arrays cannot lie on one grid.
    """
    shapes = {label: shape for label, shape, _ in entries}
    named = [len(shape) - 1 - channels for _, shape, channels in entries if channels is not None]
    least = min(map(len, shapes.values()))
    if channel_axis is not None:
        dims = least - 1 - channel_axis
    elif named:
        dims = named[0]
    elif known and all(len(shape) - 1 - known in (0, 1) for shape in shapes.values()):
        dims = known
    elif least == 2 or any(len(shape) != least for shape in shapes.values()):
        # The array with fewer axes is the one without channels.
        dims = least - 1
    elif len({shape[1:] for shape in shapes.values()}) > 1:
        # Grids are equal, so that axes of different sizes are channels.
        dims = least - 2
    else:
        dims = least - 2 if next(iter(shapes.values()))[-1] <= MOST_CHANNELS else least - 1
    if dims < 1 or any(len(shape) - 1 - dims not in (0, 1) for shape in shapes.values()):
        shown = ", ".join(f"{label} {shape}" for label, shape in shapes.items())
        raise ValueError(
            "inputs and outputs must have shape (samples, *grid) or (samples, *grid, channels) on one "
            f"grid, got {shown}"
        )
    return dims


def matching_coordinates(
    known: Mapping[str, np.ndarray], grid: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
    """Coordinate arrays if they belong to this grid.

    Args:
        known: those of a file, by axis.
        grid: points along each axis.
    """
    arrays = tuple(known.values())
    fits = len(arrays) == len(grid) and all(
        a.ndim == 1 and len(a) == n and a.dtype.kind in "fiu"
        for a, n in zip(arrays, grid, strict=True)
    )
    return tuple(np.asarray(a, float) for a in arrays) if fits else ()


def checked_grid_kind(kind: str | None) -> str | None:
    """The kind of grid that a file states.

    Args:
        kind: as it stands in the file; ``None`` where nothing does.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind is not None and kind not in ("cell", "vertex", "periodic"):
        raise ValueError(
            f"grid_kind of the file must be one of ['cell', 'periodic', 'vertex'], got {kind!r}"
        )
    return kind


def shown_grid_kind(coordinates: Sequence[np.ndarray]) -> str | None:
    """Where equally spaced points lie between whole numbers, or multiples of pi.

    Args:
        coordinates: of the points along each axis.
    """
    kinds = {_kind_of_axis(axis) for axis in coordinates}
    return kinds.pop() if len(kinds) == 1 else None


def _kind_of_axis(points: np.ndarray) -> str | None:
    if len(points) < 4:
        return None
    spacing = (points[-1] - points[0]) / (len(points) - 1)
    # Coordinates are often kept in single precision.
    near = 1e-3 * abs(spacing)
    if spacing <= 0 or np.abs(np.diff(points) - spacing).max() > near:
        return None
    for unit in (1.0, np.pi):
        lower = unit * np.floor((points[0] + near) / unit)
        upper = unit * np.ceil((points[-1] - near) / unit)
        gaps = (points[0] - lower) / spacing, (upper - points[-1]) / spacing
        for kind, expected in (("cell", (0.5, 0.5)), ("vertex", (0, 0)), ("periodic", (0, 1))):
            if np.allclose(gaps, expected, atol=2e-3):
                return kind
    return None
