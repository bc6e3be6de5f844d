"""Operator data from files that others have written, read as a whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from opifex.data.fields import OperatorData
from opifex.data.stored import open_fields

__all__ = ["Fields", "read_fields"]


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
    with open_fields(
        path,
        inputs=inputs,
        outputs=outputs,
        layout=layout,
        times=times,
        channel_axis=channel_axis,
    ) as stored:
        return Fields(
            *stored[:],
            coordinates=stored.coordinates,
            grid_kind=stored.grid_kind,
            input_names=stored.input_names,
            output_names=stored.output_names,
        )
