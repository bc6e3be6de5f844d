"""Arrays in files of several formats, behind one face: names, shapes, and reading of parts."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from opifex.core.optional import optional_module

__all__ = ["FieldFile", "StoredArray", "open_field_file"]

FORMATS = {
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".nc": "netcdf",
    ".nc4": "netcdf",
    ".netcdf": "netcdf",
    ".zarr": "zarr",
}

# Names of dimensions by which xarray users say what an axis is.
SAMPLE_NAMES = ("sample", "samples", "batch", "case", "realization", "member", "ensemble", "n")
TIME_NAMES = ("time", "t")
CHANNEL_NAMES = ("channel", "channels", "component", "components", "variable", "feature", "c")

# Names of coordinate arrays in files whose axes have no names, by axis.
_AXIS_KEYS = ("{}-coordinate", "{}_coordinate", "{}_coordinates", "grid/{}", "grid_{}")


@dataclass(frozen=True)
class StoredArray:
    """An array in an open file.

    Attributes:
        shape: its shape.
        dtype: its type.
        read: returns the part that an index selects; nothing else has to be in memory.
        dimensions: names of the axes where the file has any: ``"sample"``, ``"time"`` and
            ``"channel"`` for those, whatever the file calls them.
        scattered: whether ``read`` takes an array of ascending numbers of samples, faster than one by
            one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Any], np.ndarray]
    dimensions: tuple[str, ...] | None = None
    scattered: bool = False


@dataclass(frozen=True)
class FieldFile:
    """What an open file holds.

    Attributes:
        arrays: the arrays by name; groups of HDF5 are written ``"group/name"``.
        coordinates: ascending positions of the grid's points, one array per axis; empty where the
            file does not give them.
        grid_kind: what the file says about it, see `opifex.models.FNO`.
    """

    arrays: Mapping[str, StoredArray]
    coordinates: Mapping[str, np.ndarray] = field(default_factory=dict)
    grid_kind: str | None = None


@contextmanager
def open_field_file(path: str | os.PathLike[str]) -> Iterator[FieldFile]:
    """Open a file by the ending of its name, and close it at the end of the block.

    Args:
        path: a file that ends in ``.npz``, ``.h5``, ``.hdf5``, ``.nc``, or a folder ``.zarr``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the ending is unknown, or the content is not what the ending says.
        ImportError: if the package that reads the format is not installed.
    """
    where = Path(path)
    kind = FORMATS.get(where.suffix.lower())
    if kind is None:
        raise ValueError(f"path must end in one of {sorted(FORMATS)}, got {where.name!r}")
    if not where.exists():
        raise FileNotFoundError(f"path must be an existing file, got {str(path)!r}")
    openers: dict[str, Callable[[Path], AbstractContextManager[FieldFile]]] = {
        "npz": _npz,
        "hdf5": _hdf5,
        "netcdf": _netcdf,
        "zarr": _zarr,
    }
    with ExitStack() as stack:
        try:
            content = stack.enter_context(openers[kind](where))
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"path must be a readable {kind} file, {where.name!r}: {error}"
            ) from error
        yield content


def _named_axes(arrays: Mapping[str, StoredArray]) -> dict[str, np.ndarray]:
    """Coordinate arrays of files without named axes: x, then y, then z, as far as they go.

    A plain ``x`` may be something else: it counts where it is as long as an axis behind the samples
    of another array.
    """
    found: dict[str, np.ndarray] = {}
    behind_samples = {n for array in arrays.values() for n in array.shape[1:]}
    for axis in "xyz":
        names = [key.format(axis) for key in _AXIS_KEYS]
        present = [n for n in names if n in arrays and len(arrays[n].shape) == 1]
        if (
            axis in arrays
            and len(arrays[axis].shape) == 1
            and arrays[axis].shape[0] in behind_samples
        ):
            present.append(axis)
        if not present:
            break
        found[axis] = arrays[present[0]].read(...)
    return found


@contextmanager
def _npz(path: Path) -> Iterator[FieldFile]:
    try:
        stored = np.load(path, allow_pickle=False)
    except zipfile.BadZipFile as error:
        raise ValueError("it is damaged, or no archive") from error
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array without a name")
    with stored, ExitStack() as closing:
        arrays = {name: _in_archive(stored, path, name, closing) for name in stored.files}
        text = [name for name in ("grid_kind",) if name in arrays and arrays[name].shape == ()]
        yield FieldFile(
            arrays, _named_axes(arrays), str(arrays[text[0]].read(())) if text else None
        )


def _in_archive(stored: Any, path: Path, name: str, closing: ExitStack) -> StoredArray:
    """An array of an archive, of which only the header is read."""
    entry = stored.zip.getinfo(name if name in stored.zip.namelist() else f"{name}.npy")
    with stored.zip.open(entry) as file:
        version = np.lib.format.read_magic(file)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, columns_first, dtype = reader(file)
        header = file.tell()
    if dtype.hasobject:

        def refused(_: Any) -> np.ndarray:
            raise ValueError(f"array {name!r} cannot be read: it holds Python objects")

        return StoredArray(shape, dtype, refused)
    if columns_first or not shape:
        return StoredArray(shape, dtype, lambda index: stored[name][index])
    opened: Callable[[], Any] = partial(stored.zip.open, entry)
    if entry.compress_type == zipfile.ZIP_STORED:
        # Not through the archive, which reads all that lies before.
        opened, header = partial(open, path, "rb"), header + _data_offset(path, entry)
    return StoredArray(shape, dtype, _Rows(opened, header, shape, dtype, closing).read)


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin, behind its local header, whose size only that header says."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return entry.header_offset + 30 + name + extra


class _Rows:
    """Rows of an array that lie one behind the other in a file; several threads may ask for some.

    In a compressed file all that lies before is decompressed, but for what was read last.

    Args:
        opened: opens the file.
        start: where the numbers begin.
        shape: of the array.
        dtype: of the array.
        closing: closes the file.
    """

    def __init__(
        self,
        opened: Callable[[], Any],
        start: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        closing: ExitStack,
    ) -> None:
        self._opened, self._closing, self._start = opened, closing, start
        self._shape, self._dtype = shape, dtype
        self._row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        self._file: Any = None
        self._lock = Lock()

    def read(self, index: Any) -> np.ndarray:
        """What an index selects."""
        rows, *others = index if isinstance(index, tuple) else (index,)
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(self._shape[0])
            return np.array(self._rows(start, stop)[(slice(None), *others)])
        return np.array(self._rows(0, self._shape[0])[index])

    def _rows(self, start: int, stop: int) -> np.ndarray:
        count = max(0, stop - start)
        with self._lock:
            if self._file is None:
                self._file = self._closing.enter_context(self._opened())
            self._file.seek(self._start + start * self._row_bytes)
            content = self._file.read(count * self._row_bytes)
        return np.frombuffer(content, self._dtype).reshape(count, *self._shape[1:])


@contextmanager
def _hdf5(path: Path) -> Iterator[FieldFile]:
    h5py = optional_module("h5py", "data", "reading HDF5")
    with h5py.File(path, "r") as file:
        datasets: dict[str, Any] = {}
        file.visititems(
            lambda name, item: datasets.update({name: item}) if hasattr(item, "dtype") else None
        )
        arrays = {
            name: StoredArray(tuple(item.shape or ()), item.dtype, item.__getitem__)
            for name, item in datasets.items()
        }
        # One group per sample, each with its grid: all have the same.
        first = next((n for n in arrays if n.endswith("/grid/x")), None)
        group = "" if first is None else first.removesuffix("grid/x")
        inside = {n.removeprefix(group): a for n, a in arrays.items() if n.startswith(group)}
        kind = file.attrs.get("grid_kind")
        kind = kind.decode() if isinstance(kind, bytes) else kind
        yield FieldFile(arrays, _named_axes(inside), kind)


def _netcdf(path: Path) -> AbstractContextManager[FieldFile]:
    # The classic format, which HDF5 does not read, is SciPy's.
    with open(path, "rb") as file:
        classic = file.read(3) == b"CDF"
    if not classic:
        optional_module("h5netcdf", "data", "reading NetCDF")
    return _xarray(path, engine="scipy" if classic else "h5netcdf")


@contextmanager
def _zarr(path: Path) -> Iterator[FieldFile]:
    zarr = optional_module("zarr", "data", "reading Zarr")
    group = zarr.open_group(path, mode="r")
    members = {name: item for name, item in group.members(max_depth=None) if hasattr(item, "dtype")}
    if all(_zarr_dimensions(item) for item in members.values()):
        with _xarray(path, engine="zarr", consolidated=False) as content:
            yield content
        return
    # xarray refuses arrays whose axes have no names.
    arrays = {
        name: StoredArray(
            tuple(item.shape),
            np.dtype(item.dtype),
            _ZarrRows(path / name, item).read,
            scattered=True,
        )
        for name, item in members.items()
    }
    yield FieldFile(arrays, _named_axes(arrays), group.attrs.get("grid_kind"))


class _ZarrRows:
    """Parts of an array of Zarr, by TensorStore, which decompresses in several threads.

    Args:
        path: folder of the array.
        item: the array.
    """

    def __init__(self, path: Path, item: Any) -> None:
        self._path, self._item = path, item

    @cached_property
    def _store(self) -> Any:
        tensorstore = optional_module("tensorstore", "data", "reading Zarr")
        driver = "zarr3" if self._item.metadata.zarr_format == 3 else "zarr"
        where = {"driver": "file", "path": str(self._path)}
        try:
            return tensorstore.open({"driver": driver, "kvstore": where}, read=True).result()
        except ValueError:  # a type or a codec that it does not know
            return None

    def read(self, index: Any) -> np.ndarray:
        """What an index selects; no number in it is negative."""
        if self._store is None:
            return np.asarray(self._item.oindex[index])
        return np.asarray(self._store.oindex[index].read().result())


def _zarr_dimensions(array: Any) -> Any:
    """Names of the axes of an array, in the third or the second version of the format."""
    names = getattr(array.metadata, "dimension_names", None)
    return names or array.attrs.get("_ARRAY_DIMENSIONS")


@contextmanager
def _xarray(path: Path, **options: Any) -> Iterator[FieldFile]:
    xarray = optional_module("xarray", "data", "reading NetCDF and Zarr")
    with xarray.open_dataset(path, decode_times=False, **options) as dataset:
        arrays = {}
        axes: tuple[str, ...] = ()
        for name, variable in dataset.data_vars.items():
            order, dimensions = _ordered(variable.dims)
            arrays[str(name)] = StoredArray(
                tuple(variable.sizes[d] for d in order),
                variable.dtype,
                partial(_part, variable.transpose(*order)),
                dimensions,
            )
            axes = axes or tuple(
                d for d in order if _role(d) == d and d in dataset.coords and d != order[0]
            )
        coordinates = {axis: np.asarray(dataset.coords[axis].values) for axis in axes}
        yield FieldFile(arrays, coordinates, dataset.attrs.get("grid_kind"))


def _part(variable: Any, index: Any) -> np.ndarray:
    return np.asarray(variable[index].values)


def _role(dimension: str) -> str:
    """``"sample"``, ``"time"`` or ``"channel"`` where the name says that, else the name itself."""
    lower = str(dimension).lower()
    for role, names in (
        ("sample", SAMPLE_NAMES),
        ("time", TIME_NAMES),
        ("channel", CHANNEL_NAMES),
    ):
        if lower in names:
            return role
    return str(dimension)


def _ordered(dims: Sequence[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """Dimensions with samples first, then time, space as it is, and channels last.

    Returns:
        The order, and the roles in it, or ``None`` for these if no dimension is named as samples: the
        order is then left as it is, and the first axis counts as samples.
    """
    roles = [_role(d) for d in dims]
    if "sample" not in roles:
        return list(dims), None
    rank = {"sample": 0, "time": 1, "channel": 3}
    order = sorted(range(len(dims)), key=lambda i: rank.get(roles[i], 2))
    return [dims[i] for i in order], tuple(roles[i] for i in order)
