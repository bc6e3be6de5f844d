"""The samples of a data file, divided into those that are trained and those that are held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opifex.cli.errors import nearest
from opifex.cli.settings import DataSettings
from opifex.data import read_fields

__all__ = ["Samples", "held_out_rows", "read_samples"]


@dataclass(frozen=True)
class Samples:
    """The samples of a data file, divided.

    Attributes:
        inputs: training inputs, shape (samples, *grid, channels) or (samples, features).
        outputs: training outputs, likewise.
        held_out_inputs: inputs that are never trained; may have no rows.
        held_out_outputs: their outputs.
        grid_kind: where the points lie.
        names: names of the arrays of inputs and outputs.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    held_out_inputs: np.ndarray
    held_out_outputs: np.ndarray
    grid_kind: str
    names: tuple[str, str]

    @property
    def grid(self) -> tuple[int, ...]:
        """Points along each axis; empty for tables."""
        return self.inputs.shape[1:-1]

    def examples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first samples that are held out, or of all where none is."""
        if len(self.held_out_inputs):
            return self.held_out_inputs[:count], self.held_out_outputs[:count]
        return self.inputs[:count], self.outputs[:count]


def held_out_rows(samples: int, share: float) -> np.ndarray:
    """Rows that are held out: the same for every seed and every configuration of a file.

    Args:
        samples: number of samples.
        share: share to hold out, in [0, 1); at least one sample unless it is 0.

    Returns:
        Sorted row numbers.

    Raises:
        ValueError: if nothing is left to train.
    """
    count = 0 if share == 0 else max(1, round(share * samples))
    if count >= samples:
        raise ValueError(
            f"data.held_out={share} leaves nothing to train of {samples} samples: at least two are "
            "needed, or held_out: 0"
        )
    return np.sort(np.random.default_rng(0).permutation(samples)[:count])


def read_samples(settings: DataSettings, *, table: bool = False) -> Samples:
    """Read and divide the samples of a file.

    Args:
        settings: the data section.
        table: read arrays (samples, features), which have no grid.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it does not hold what is asked for.
        ImportError: if a package for its format is missing.
    """
    if not Path(settings.path).exists():
        raise FileNotFoundError(f"data.path: there is no file {settings.path}")
    kind: str | None = None
    if table:
        inputs, outputs, names = _read_table(settings)
    else:
        fields = read_fields(
            settings.path,
            inputs=settings.inputs,
            outputs=settings.outputs,
            layout=settings.layout,
        )
        inputs, outputs, kind = fields.inputs, fields.outputs, fields.grid_kind
        names = ", ".join(fields.input_names), ", ".join(fields.output_names)
        zero = ~np.any(outputs.reshape(len(outputs), -1), axis=1)
        if np.any(zero):
            raise ValueError(
                f"{names[1]} must not vanish: the relative error of sample {int(np.argmax(zero))}, "
                "which is zero everywhere, has no meaning"
            )
    rows = held_out_rows(len(inputs), settings.held_out)
    trained = np.setdiff1d(np.arange(len(inputs)), rows)
    return Samples(
        inputs=inputs[trained],
        outputs=outputs[trained],
        held_out_inputs=inputs[rows],
        held_out_outputs=outputs[rows],
        grid_kind=settings.grid_kind or kind or "cell",
        names=names,
    )


def _read_table(settings: DataSettings) -> tuple[np.ndarray, np.ndarray, tuple[str, str]]:
    """Two arrays (samples, features) of an NPZ file; one of shape (samples,) gets its axis."""
    if Path(settings.path).suffix != ".npz":
        raise ValueError(
            f"data.path must be an .npz file with hierarchy.kind network, got {settings.path}"
        )
    usual = (("inputs", "outputs"), ("x", "y"), ("X", "y"), ("a", "u"))
    with np.load(settings.path) as file:
        pairs = [pair for pair in usual if set(pair) <= set(file.files)]
        default = pairs[0] if pairs else (None, None)
        names = (settings.inputs or default[0], settings.outputs or default[1])
        arrays = []
        for side, name in zip(("inputs", "outputs"), names, strict=True):
            if name is None or name not in file.files:
                told = f"got {name!r}" if name else "and no usual name is there"
                raise ValueError(
                    f"data.{side} must name an array of the file, {told}; "
                    f"{nearest(name or '', file.files)}"
                )
            values = np.asarray(file[name])
            values = values[:, None] if values.ndim == 1 else values
            if values.ndim != 2 or values.dtype.kind not in "fiub" or not len(values):
                raise ValueError(
                    f"data.{side}: {name} must hold numbers of shape (samples, features) with "
                    f"hierarchy.kind network, got {values.dtype} of shape {values.shape}"
                )
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"data.{side}: {name} must be finite, row {int(np.argmin(finite))} is not"
                )
            arrays.append(values.astype(values.dtype if values.dtype.kind == "f" else np.float32))
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(
            f"inputs and outputs must have equally many samples, got {len(arrays[0])} of {names[0]} "
            f"and {len(arrays[1])} of {names[1]}"
        )
    return arrays[0], arrays[1], (str(names[0]), str(names[1]))
