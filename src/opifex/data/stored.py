"""Operator data that stay in their file, of which samples are read when they are asked for."""

from __future__ import annotations

import json
import os
import weakref
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from opifex.core.checks import check_callable, check_nonnegative_int, check_positive_int
from opifex.core.optional import optional_module
from opifex.data.axes import (
    checked_grid_kind,
    grid_axes,
    matching_coordinates,
    shown_grid_kind,
)
from opifex.data.cache import new_file
from opifex.data.field_files import FieldFile, StoredArray, open_field_file
from opifex.data.fields import OperatorData
from opifex.data.layouts import Part, select

__all__ = ["FieldsTransform", "StoredFields", "open_fields"]

FieldsTransform = Callable[[OperatorData], OperatorData]
"""Makes of some samples as many others, on a coarser grid for instance."""

_BLOCK_BYTES = 16 * 2**20


def open_fields(
    path: str | os.PathLike[str],
    *,
    inputs: str | Sequence[str] | None = None,
    outputs: str | Sequence[str] | None = None,
    layout: str | None = None,
    times: tuple[int, int] = (0, -1),
    channel_axis: bool | None = None,
) -> StoredFields:
    """Open pairs of input and output fields in NPZ, HDF5, NetCDF or Zarr; samples are read later.

    The arguments are those of `read_fields`, and so are the rules by which arrays and their axes are
    understood. Any sample of HDF5, NetCDF, Zarr and uncompressed NPZ is found at once. In compressed
    NPZ (``numpy.savez_compressed``) all samples before it are decompressed: read such a file in
    order, or keep an uncompressed copy with `StoredFields.cached`.

    Args:
        path: a file whose name ends in ``.npz``, ``.h5``, ``.hdf5``, ``.nc`` or ``.zarr``.
        inputs: name of an array, or several whose channels follow one another.
        outputs: likewise.
        layout: ``"pairs"``, ``"trajectory"`` or ``"pdebench"``; by default the names decide.
        times: indices of the times of inputs and outputs in a trajectory.
        channel_axis: whether the last axis of all arrays is channels.

    Returns:
        The open file.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the package that reads the format is not installed (``[data]``).
        ValueError: if the file cannot be read; an array is missing, or has no numbers; or inputs and
            outputs differ in their samples or grids.
        TypeError: if a name is no string.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from opifex.data import open_fields
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "mine.npz")
        ...     np.savez(path, inputs=np.ones((50, 32, 32)), outputs=np.zeros((50, 32, 32)))
        ...     with open_fields(path) as fields:
        ...         some = fields[[3, 40, 7]]
        >>> some.inputs.shape
        (3, 32, 32, 1)
    """
    options = {
        "inputs": inputs,
        "outputs": outputs,
        "layout": layout,
        "times": times,
        "channel_axis": channel_axis,
    }
    return StoredFields(path, options)


class StoredFields:
    """Samples of an operator in an open file; from `open_fields`.

    ``fields[index]`` reads samples: one (an integer), or several (a slice or a sequence of integers)
    with the samples along the first axis. It is a context manager, which closes the file.

    Args:
        path: the file.
        options: the other arguments of `open_fields`.

    Attributes:
        path: the file.
        coordinates: positions of the points along each axis of the grid, see `Fields`.
        grid_kind: where the points lie, see `Fields`.
        input_names: where the input channels come from.
        output_names: where the output channels come from.
        grid: points along each axis.
    """

    def __init__(self, path: str | os.PathLike[str], options: dict[str, Any]) -> None:
        self.path, self._options = Path(path), options
        self._closing = ExitStack()
        # Also before the interpreter ends, when libraries are no longer whole.
        self._finalizer = weakref.finalize(self, self._closing.close)
        try:
            file = self._closing.enter_context(open_field_file(path))
            chosen = select(
                file, *(options[name] for name in ("inputs", "outputs", "layout", "times"))
            )
            sides = [
                [_Piece(file, part) for part in side] for side in (chosen.inputs, chosen.outputs)
            ]
            self._understand(sides, file, options["channel_axis"])
        except BaseException:
            self.close()
            raise

    def _understand(
        self, sides: list[list[_Piece]], file: FieldFile, channel_axis: bool | None
    ) -> None:
        """Find samples, grid and channels from shapes and names."""
        pieces = [piece for side in sides for piece in side]
        for piece in pieces:
            piece.check()
        samples = {piece.label: piece.shape[0] for piece in pieces}
        if len(set(samples.values())) > 1:
            counted = ", ".join(f"{count} of {label}" for label, count in samples.items())
            raise ValueError(f"inputs and outputs must have equally many samples, got {counted}")
        entries = [(piece.label, piece.shape, piece.has_channels) for piece in pieces]
        dims = grid_axes(entries, len(file.coordinates), channel_axis)
        for side in sides:
            grids = {piece.label: piece.shape[1 : 1 + dims] for piece in side}
            if len(set(grids.values())) > 1:
                raise ValueError(f"all arrays of one side must lie on one grid, got {grids}")
        one, other = (side[0].shape[1 : 1 + dims] for side in sides)
        if one != other:
            raise ValueError(
                f"inputs and outputs must lie on one grid, got {one} and {other} points in "
                f"{self.path.name!r}"
            )
        self._sides, self._samples = sides, pieces[0].shape[0]
        self.grid = one
        self.coordinates = matching_coordinates(file.coordinates, one)
        self.grid_kind = checked_grid_kind(file.grid_kind) or shown_grid_kind(self.coordinates)
        self.input_names, self.output_names = (tuple(p.label for p in side) for side in sides)

    def __repr__(self) -> str:
        """What is where, without the numbers."""
        return (
            f"StoredFields({str(self.path)!r}, {len(self)} samples on {self.grid}, "
            f"{', '.join(self.input_names)} to {', '.join(self.output_names)}, "
            f"grid_kind={self.grid_kind!r})"
        )

    def __len__(self) -> int:
        """Number of samples."""
        return self._samples

    def __getitem__(self, index: Any) -> OperatorData:
        """Read samples.

        Args:
            index: an integer, a slice, or a sequence of integers; negative ones count from the end.

        Raises:
            IndexError: if there is no such sample.
            ValueError: if values are not finite.
        """
        numbers = np.arange(len(self))[index]
        if numbers.ndim > 1:
            raise IndexError(f"index must be one integer, or a row of them, got {index!r}")
        found = OperatorData(*(self._read(side, np.atleast_1d(numbers)) for side in self._sides))
        return found if numbers.ndim else OperatorData(*(values[0] for values in found))

    def _read(self, side: Sequence[_Piece], numbers: np.ndarray) -> np.ndarray:
        parts = []
        for piece in side:
            values = piece.read(numbers)
            _check_finite(piece.label, values, numbers)
            parts.append(values if values.ndim == len(self.grid) + 2 else values[..., None])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        transform: FieldsTransform | None = None,
    ) -> Any:
        """A Grain dataset of batches, which are read when they are asked for; `fit` takes it as data.

        Args:
            batch_size: samples of a batch; what does not fill one is left out of an epoch.
            seed: of the order of the samples.
            shuffle: whether the order is another one in every epoch, or that of the file.
            transform: makes other samples of those of a batch, such as restricted ones.

        Returns:
            A ``grain.MapDataset`` whose elements are `OperatorData`.

        Raises:
            ImportError: if Grain is not installed (``[data]``).
            TypeError: if an argument has the wrong type.
            ValueError: if there are fewer samples than one batch, or ``seed`` does not fit 32 bits.
        """
        grain = optional_module("grain", "data", "reading batches")
        if check_positive_int("batch_size", batch_size) > len(self):
            raise ValueError(
                f"batch_size must be at most the {len(self)} samples, got {batch_size}"
            )
        if transform is not None:
            check_callable("transform", transform)
        if check_nonnegative_int("seed", seed) >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {seed}")
        order = grain.MapDataset.range(len(self)).seed(seed)
        order = order.shuffle() if shuffle else order
        dataset = order.batch(batch_size, drop_remainder=True).map(self.__getitem__)
        return dataset if transform is None else dataset.map(transform)

    def cached(
        self,
        path: str | os.PathLike[str],
        transform: FieldsTransform | None = None,
        *,
        description: str = "",
    ) -> StoredFields:
        """A copy in an uncompressed NPZ file, made block by block or found there.

        Args:
            path: the file, which ends in ``.npz``.
            transform: makes other samples of some; with the same number of them, and one grid for all.
            description: what ``transform`` does, by which a copy that is there already is known.

        Returns:
            The open copy.

        Raises:
            ValueError: if ``path`` does not end in ``.npz``, or holds something else than this copy.
            TypeError: if an argument has the wrong type.
        """
        where = Path(path)
        if where.suffix != ".npz":
            raise ValueError(f"path must end in .npz, got {where.name!r}")
        if transform is not None:
            check_callable("transform", transform)
        if not isinstance(description, str):
            raise TypeError(f"description must be a string, got {description!r}")
        state = self.path.stat()
        origin = json.dumps(
            [
                str(self.path.resolve()),
                state.st_size,
                state.st_mtime_ns,
                repr(sorted(self._options.items())),
                description,
            ]
        )
        if where.exists():
            with open_field_file(where) as file:
                found = (
                    str(file.arrays["origin"].read(())) if "origin" in file.arrays else "no origin"
                )
            if found != origin:
                raise ValueError(
                    f"path must be free or hold this copy, {where} holds another one ({found}, not "
                    f"{origin}): delete it, or give another path"
                )
        else:
            self._copy(where, transform or _same, origin)
        return open_fields(where, inputs="inputs", outputs="outputs", channel_axis=True)

    def _copy(self, where: Path, transform: FieldsTransform, origin: str) -> None:
        first = transform(self[:1])
        per_sample = sum(values.nbytes for values in (*self[:1], *first))
        rows = max(1, _BLOCK_BYTES // max(1, per_sample))
        more = {"origin": np.asarray(origin)}
        if self.grid_kind is not None:
            more["grid_kind"] = np.asarray(self.grid_kind)
        with new_file(where) as file, zipfile.ZipFile(file, "w") as archive:
            for key, value in more.items():
                with archive.open(f"{key}.npy", "w") as entry:
                    np.lib.format.write_array(entry, value, allow_pickle=False)
            # One side after the other: an archive takes one array at a time.
            for side, key in enumerate(("inputs", "outputs")):
                like = first[side]
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    _write_header(entry, (len(self), *like.shape[1:]), like.dtype)
                    for start in range(0, len(self), rows):
                        block = np.asarray(transform(self[start : start + rows])[side])
                        entry.write(np.ascontiguousarray(block, like.dtype).tobytes())

    def close(self) -> None:
        """Close the file."""
        self._finalizer()

    def __enter__(self) -> StoredFields:
        """The open file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def __reduce__(self) -> Any:
        """Another process opens the file itself."""
        return StoredFields, (self.path, self._options)


def _same(data: OperatorData) -> OperatorData:
    return data


def _write_header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)


class _Piece:
    """Channels of one side of all samples, in a file.

    Args:
        file: the open file.
        part: which array, at which time.
    """

    def __init__(self, file: FieldFile, part: Part) -> None:
        names = (part.name,) if isinstance(part.name, str) else part.name
        self._arrays = [file.arrays[name] for name in names]
        self._one_each = not isinstance(part.name, str)
        self._time: tuple[int, ...] = () if part.time is None else (part.time,)
        self.label = f"{names[0]} ..." if self._one_each else names[0]
        array = self._arrays[0]
        self.dtype = array.dtype
        first = 0 if self._one_each else 1
        if self._time and not self._one_each and len(array.shape) < 3:
            raise ValueError(
                f"{self.label} must have axes (samples, times, *grid) to be read as a trajectory, got "
                f"shape {array.shape}"
            )
        if self._time and not -array.shape[first] <= self._time[0] < array.shape[first]:
            raise ValueError(
                f"times must lie within the {array.shape[first]} times of {self.label}, got "
                f"{self._time[0]}"
            )
        self._time = tuple(time % array.shape[first] for time in self._time)
        rest = array.shape[first + len(self._time) :]
        samples = (len(self._arrays),) if self._one_each else array.shape[:1]
        self.shape: tuple[int, ...] = (*samples, *rest)
        named = None if self._one_each else array.dimensions
        self.has_channels = None if named is None else named[-1] == "channel"

    def check(self) -> None:
        """Raise unless there are samples of real numbers on a grid."""
        if self.dtype.kind not in "fiub":
            raise ValueError(f"{self.label} must hold real numbers, got dtype {self.dtype}")
        if len(self.shape) < 2 or 0 in self.shape:
            raise ValueError(
                f"{self.label} must have axes (samples, *grid), got shape {self.shape}"
            )

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Samples, in a floating-point type of this machine.

        Args:
            numbers: of the samples, shape (samples,).
        """
        if self._one_each:
            values = np.stack([self._arrays[n].read(self._time) for n in numbers])
        else:
            values = _rows(self._arrays[0], numbers, self._time)
        native = self.dtype.newbyteorder("=") if self.dtype.kind == "f" else np.dtype(np.float32)
        return np.ascontiguousarray(values, native)


def _rows(array: StoredArray, numbers: np.ndarray, others: tuple[Any, ...]) -> np.ndarray:
    """Rows by their numbers: neighbours at once, each row once, as all formats can."""
    wanted, places = np.unique(numbers, return_inverse=True)
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1) if len(wanted) else []
    if array.scattered and len(runs) > 1:
        return np.asarray(array.read((wanted, *others)))[places]
    blocks = [np.asarray(array.read((slice(int(r[0]), int(r[-1]) + 1), *others))) for r in runs]
    if not blocks:
        blocks = [np.asarray(array.read((slice(0, 0), *others)))]
    found = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    ordered = len(places) == len(wanted) and np.array_equal(places, np.arange(len(wanted)))
    return found if ordered else found[places]


def _check_finite(label: str, values: np.ndarray, numbers: np.ndarray) -> None:
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
        wrong = np.sort(numbers[~finite])
        raise ValueError(
            f"{label} must be finite, got NaN or infinite values in {len(wrong)} of {len(finite)} "
            f"samples, the first in sample {wrong[0]}"
        )
