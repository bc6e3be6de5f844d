"""Batches of stored fields for every level, each restricted to the grid that its modes need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from opifex.data import OperatorData, StoredFields
from opifex.models import FNO
from opifex.training.multilevel.transfer import resolution_hierarchy

__all__ = ["resolution_batches"]


def resolution_batches(
    fields: StoredFields,
    modes: Sequence[nnx.Module | int | Sequence[int]],
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[Any]:
    """The data of every level in place of `resolution_hierarchy`, where they do not fit into memory.

    Args:
        fields: from `opifex.data.open_fields`; they stay open.
        modes: the models of all levels, coarsest first, or their modes.
        batch_size: samples of a batch.
        seed: of the order of the samples, which is the same on all levels.
        shuffle: whether the order is another one in every epoch, or that of the file.
        cache: folder in which the restricted fields of each coarse level are kept, so that each is
            restricted once; ``None`` restricts every batch when it is read. The finest level is read
            from where it is.
        **options: further arguments of `resolution_hierarchy`. By default ``grid_kind`` is what the
            models say, or else the file.

    Returns:
        One Grain dataset per level, for `fit` to take as data.

    Raises:
        ImportError: if Grain is not installed (``[data]``).
        TypeError: if ``fields`` is not open fields, or an argument has the wrong type.
        ValueError: if an argument is not allowed, see `resolution_hierarchy`, or the folder holds other
            fields.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from opifex.data import open_fields
        >>> from opifex.training.multilevel import resolution_batches
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "mine.npz")
        ...     np.savez(path, inputs=np.ones((50, 64, 1)), outputs=np.zeros((50, 64, 1)))
        ...     with open_fields(path) as fields:
        ...         levels = resolution_batches(fields, [4, 8, 16], batch_size=10)
        ...         [level[0].inputs.shape for level in levels]
        [(10, 16, 1), (10, 32, 1), (10, 64, 1)]
    """
    if not isinstance(fields, StoredFields):
        raise TypeError(
            f"fields must come from open_fields, got {type(fields).__name__}; resolution_hierarchy "
            "takes arrays"
        )
    first = fields[:1]
    if options.get("grid_kind") is None and not any(isinstance(level, FNO) for level in modes):
        options["grid_kind"] = fields.grid_kind
    levels = resolution_hierarchy(*first, modes, **options)
    shapes = [level.shape for level in levels]
    options = {name: value for name, value in options.items() if name != "shapes"}
    batches = []
    for level, shape in enumerate(shapes):
        reading: dict[str, Any] = {"seed": seed, "shuffle": shuffle}
        restricted = partial(_restricted, modes[level], shape, options)
        source = fields
        if shape != fields.grid and cache is None:
            reading["transform"] = restricted
        elif shape != fields.grid:
            assert cache is not None
            name = f"{fields.path.stem}-{'x'.join(map(str, shape))}.npz"
            what = f"{shape} {sorted((key, repr(value)) for key, value in options.items())}"
            source = fields.cached(Path(cache) / name, restricted, description=what)
        batches.append(source.batches(batch_size, **reading))
    return batches


def _restricted(
    modes: Any, shape: tuple[int, ...], options: dict[str, Any], data: OperatorData
) -> OperatorData:
    """Samples on the grid of one level."""
    (level,) = resolution_hierarchy(*data, [modes], shapes=[shape], **options)
    return OperatorData(np.asarray(level.inputs), np.asarray(level.outputs))
