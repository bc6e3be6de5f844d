"""Operator data from files that others have written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from opifex.data.field_files import FieldFile, open_field_file
from opifex.data.fields import OperatorData
from opifex.data.layouts import Part, select

__all__ = ["Fields", "read_fields"]

MOST_CHANNELS = 8
"""A last axis of at most so many entries is read as channels where nothing else decides."""


@dataclass(frozen=True)
class Fields:
    """Samples of an operator as a file holds them.

    Attributes:
        inputs: shape (samples, *grid, input channels), in the file's own precision.
        outputs: shape (samples, *grid, output channels), likewise.
        coordinates: positions of the points along each axis of the grid, shape (points,) each; empty
            if the file does not say.
        grid_kind: ``"cell"``, ``"vertex"`` or ``"periodic"``, see `opifex.models.FNO`, if the file says
            it or the coordinates show it; ``None`` otherwise.
        input_names: where the input channels come from.
        output_names: where the output channels come from.
    """

    inputs: Float[np.ndarray, "samples *grid input_channels"]
    outputs: Float[np.ndarray, "samples *grid output_channels"]
    coordinates: tuple[np.ndarray, ...] = ()
    grid_kind: str | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Names and sizes, without the numbers."""
        sides = (
            (f"{name}={array.dtype}{list(array.shape)} of {', '.join(names) or 'no name'}")
            for name, array, names in (
                ("inputs", self.inputs, self.input_names),
                ("outputs", self.outputs, self.output_names),
            )
        )
        return f"Fields({', '.join(sides)}, grid_kind={self.grid_kind!r})"

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.inputs)

    @property
    def grid(self) -> tuple[int, ...]:
        """Points along each axis."""
        return self.inputs.shape[1:-1]

    @property
    def data(self) -> OperatorData:
        """Inputs and outputs as the loss functions and hierarchies take them."""
        return OperatorData(self.inputs, self.outputs)


def read_fields(
    path: str | os.PathLike[str],
    *,
    inputs: str | Sequence[str] | None = None,
    outputs: str | Sequence[str] | None = None,
    layout: str | None = None,
    times: tuple[int, int] = (0, -1),
    channel_axis: bool | None = None,
) -> Fields:
    """Read pairs of input and output fields from NPZ, HDF5, NetCDF or Zarr.

    The first axis of every array is samples, then come the axes of the grid. A **missing axis of
    channels is added**. Whether it is missing is decided by the first of these that says anything:
    ``channel_axis``; names of dimensions (NetCDF, Zarr); the number of coordinate arrays; the number
    and the sizes of axes of inputs and outputs, which have one grid; and at last the size of the last
    axis: up to 8 entries are channels, more are points. Whole numbers and truth values become float32;
    floating-point numbers keep their precision.

    Args:
        path: a file whose name ends in ``.npz``, ``.h5``, ``.hdf5``, ``.nc`` or ``.zarr``.
        inputs: name of an array, or several whose channels follow one another; ``"group/name"``
            inside groups of HDF5. By default the usual names are tried (``inputs`` and ``outputs``,
            ``train_x`` and ``train_y``, ``x`` and ``y``, ``a`` and ``u``, ``coeff`` and ``sol``).
        outputs: likewise.
        layout: ``"pairs"``: two arrays; ``"trajectory"``: one array (samples, times, *grid) whose
            values at two times are inputs and outputs; ``"pdebench"``: as files of that benchmark
            are laid out, that is ``nu`` and ``tensor`` of steady problems, ``tensor`` of evolution
            equations, ``density``, ``pressure``, ``Vx`` ... of flows, or one group with ``data`` and
            ``grid`` per sample. By default the names decide.
        times: indices of the times of inputs and outputs in a trajectory.
        channel_axis: whether the last axis of all arrays is channels.

    Returns:
        The fields, with what the file says about its grid.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the package that reads the format is not installed (``[data]``).
        ValueError: if the file cannot be read; an array is missing (the message lists those that are
            there), has no numbers, or values that are not finite; or inputs and outputs differ in
            their samples or grids.
        TypeError: if a name is no string.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from opifex.data import read_fields
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "mine.npz")
        ...     np.savez(path, force=np.ones((5, 32, 32)), height=np.zeros((5, 32, 32)))
        ...     fields = read_fields(path, inputs="force", outputs="height")
        >>> len(fields), fields.grid, fields.inputs.shape
        (5, (32, 32), (5, 32, 32, 1))
    """
    with open_field_file(path) as file:
        chosen = select(file, inputs, outputs, layout, times)
        raw = [
            [(_label(part), _read(file, part), _axes(file, part)) for part in parts]
            for parts in (chosen.inputs, chosen.outputs)
        ]
        known, stated_kind = file.coordinates, file.grid_kind
    name = Path(path).name
    flat = [entry for side in raw for entry in side]
    for label, values, _ in flat:
        _check_values(label, values)
    samples = {label: len(values) for label, values, _ in flat}
    if len(set(samples.values())) > 1:
        counted = ", ".join(f"{count} of {label}" for label, count in samples.items())
        raise ValueError(f"inputs and outputs must have equally many samples, got {counted}")
    dims = _grid_axes(flat, len(known), channel_axis)
    sides = [_joined(side, dims) for side in raw]
    if sides[0].shape[:-1] != sides[1].shape[:-1]:
        raise ValueError(
            "inputs and outputs must lie on one grid, got "
            f"{sides[0].shape[1:-1]} and {sides[1].shape[1:-1]} points in {name!r}"
        )
    coordinates = _matching(known, sides[0].shape[1:-1])
    return Fields(
        inputs=sides[0],
        outputs=sides[1],
        coordinates=coordinates,
        grid_kind=_checked_kind(stated_kind) or _kind_of(coordinates),
        input_names=tuple(label for label, *_ in raw[0]),
        output_names=tuple(label for label, *_ in raw[1]),
    )


# -- reading -------------------------------------------------------------------------------------


def _label(part: Part) -> str:
    return part.name if isinstance(part.name, str) else f"{part.name[0]} ..."


def _read(file: FieldFile, part: Part) -> np.ndarray:
    """The values of a part, shape (samples, *grid) or (samples, *grid, channels)."""
    if isinstance(part.name, tuple):
        return np.stack([file.arrays[name].read(_at(part.time)) for name in part.name])
    array = file.arrays[part.name]
    if part.time is None:
        return np.asarray(array.read(...))
    if len(array.shape) < 3:
        raise ValueError(
            f"{part.name} must have axes (samples, times, *grid) to be read as a trajectory, got "
            f"shape {array.shape}"
        )
    if not -array.shape[1] <= part.time < array.shape[1]:
        raise ValueError(
            f"times must lie within the {array.shape[1]} times of {part.name}, got {part.time}"
        )
    return np.asarray(array.read((slice(None), *_at(part.time))))


def _at(time: int | None) -> tuple[int, ...]:
    return () if time is None else (time,)


def _axes(file: FieldFile, part: Part) -> bool | None:
    """Whether a part has an axis of channels, if the file names its axes."""
    if isinstance(part.name, tuple):
        return None
    dimensions = file.arrays[part.name].dimensions
    return None if dimensions is None else dimensions[-1] == "channel"


def _check_values(label: str, values: np.ndarray) -> None:
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{label} must hold real numbers, got dtype {values.dtype}")
    if values.ndim < 2 or values.size == 0:
        raise ValueError(f"{label} must have axes (samples, *grid), got shape {values.shape}")
    rows = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not rows.all():
        wrong = np.flatnonzero(~rows)
        raise ValueError(
            f"{label} must be finite, got NaN or infinite values in {len(wrong)} of {len(rows)} "
            f"samples, the first in sample {wrong[0]}"
        )


# -- channels ------------------------------------------------------------------------------------


def _grid_axes(
    entries: Sequence[tuple[str, np.ndarray, bool | None]], known: int, channel_axis: bool | None
) -> int:
    """The number of axes of the grid that all arrays share."""
    shapes = {label: values.shape for label, values, _ in entries}
    named = [values.ndim - 1 - channels for _, values, channels in entries if channels is not None]
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


def _joined(
    entries: Sequence[tuple[str, np.ndarray, bool | None]], dims: int
) -> Float[np.ndarray, "samples *grid channels"]:
    """Arrays of one side, channel after channel, in a floating-point dtype of this machine."""
    parts = []
    for _, values, _ in entries:
        fields = values if values.ndim == dims + 2 else values[..., None]
        dtype = fields.dtype.newbyteorder("=") if fields.dtype.kind == "f" else np.dtype(np.float32)
        parts.append(np.ascontiguousarray(fields, dtype))
    grids = {label: p.shape[1:-1] for (label, *_), p in zip(entries, parts, strict=True)}
    if len(set(grids.values())) > 1:
        raise ValueError(f"all arrays of one side must lie on one grid, got {grids}")
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


# -- grids ---------------------------------------------------------------------------------------


def _matching(known: Mapping[str, np.ndarray], grid: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Coordinate arrays if they belong to this grid."""
    arrays = tuple(known.values())
    fits = len(arrays) == len(grid) and all(
        a.ndim == 1 and len(a) == n and a.dtype.kind in "fiu"
        for a, n in zip(arrays, grid, strict=True)
    )
    return tuple(np.asarray(a, float) for a in arrays) if fits else ()


def _checked_kind(kind: str | None) -> str | None:
    if kind is not None and kind not in ("cell", "vertex", "periodic"):
        raise ValueError(
            f"grid_kind of the file must be one of ['cell', 'periodic', 'vertex'], got {kind!r}"
        )
    return kind


def _kind_of(coordinates: Sequence[np.ndarray]) -> str | None:
    """Where equally spaced points lie between whole numbers, or multiples of pi."""
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
