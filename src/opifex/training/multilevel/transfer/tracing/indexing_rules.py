"""What operations that take or replace entries by their index do to the index maps of axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from opifex.training.multilevel.transfer.tracing.axis_roles import window_axes
from opifex.training.multilevel.transfer.tracing.constants import Constants
from opifex.training.multilevel.transfer.tracing.index_maps import (
    IndexMap,
    MapConflictError,
    known,
    same,
    sliced,
    taken,
    unified,
)

__all__ = ["IndexingRules"]


class IndexingRules:
    """The rules of slices at computed places, of gathering and of scattering."""

    constants: Constants

    def dynamic_slice(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        """A part that begins at a computed place."""
        result = []
        sizes = zip(mine.settings["slice_sizes"], other.settings["slice_sizes"], strict=True)
        for axis, (m, (size_c, size_f)) in enumerate(zip(maps[0], sizes, strict=True)):
            if (size_c, size_f) == (m.coarse, m.fine):
                result.append(m)
            elif not m.grows and size_c == size_f:
                result.append(same(size_c))
            else:
                starts = [self.constants.value(o.inputs[1 + axis]) if self.constants.is_constant(
                    o.inputs[1 + axis]) else None for o in (mine, other)]  # fmt: skip
                if starts[0] is None or starts[1] is None:
                    raise MapConflictError("a part of an axis that grows is chosen by data")
                a, b = (int(s) for s in starts if s is not None)
                result.append(sliced(m, (a, a + size_c), (b, b + size_f)))
        return [result]

    def dynamic_update(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        """A part that begins at a computed place is replaced."""
        for whole, part in zip(maps[0], maps[1], strict=True):
            if (whole.coarse, whole.fine) == (part.coarse, part.fine):
                unified(whole, part)
            elif whole.grows or part.grows:
                raise MapConflictError("a part of an axis that grows is replaced")
        return [list(maps[0])]

    def gather(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        """Entries that are chosen by an index."""
        numbers = other.settings["dimension_numbers"]
        operand, indices = maps[0], maps[1][:-1]
        if mine.settings["dimension_numbers"] != numbers:
            raise MapConflictError("the levels index in other ways")
        batch = numbers.operand_batching_dims
        for a, i in zip(batch, numbers.start_indices_batching_dims, strict=True):
            unified(operand[a], indices[i])
        taken_maps: dict[int, IndexMap] = {}
        sizes = zip(mine.settings["slice_sizes"], other.settings["slice_sizes"], strict=True)
        for axis, (size_c, size_f) in enumerate(sizes):
            m = operand[axis]
            if axis in batch:
                continue
            if (size_c, size_f) == (m.coarse, m.fine) and axis not in numbers.collapsed_slice_dims:
                taken_maps[axis] = m
            elif not m.grows and size_c == size_f:
                taken_maps[axis] = same(size_c)
            elif axis in numbers.collapsed_slice_dims:
                starts = self._starts(mine, other, axis)
                if starts is None:
                    # An index stands for the same row on both levels.
                    unified(m, known(np.arange(m.coarse), m.fine))
                elif starts[0].size == starts[1].size == 1:
                    taken(m, starts[0], starts[1])
                elif len(numbers.start_index_map) == 1 and len(indices) == 1:
                    indices = [taken(m, *starts)]
                else:
                    raise MapConflictError(
                        "an axis that grows is indexed together with another one"
                    )
            else:
                starts = self._starts(mine, other, axis)
                if starts is None or starts[0].size != 1 or starts[1].size != 1:
                    raise MapConflictError("a part of an axis that grows is chosen by data")
                a, b = int(starts[0][0]), int(starts[1][0])
                taken_maps[axis] = sliced(m, (a, a + size_c), (b, b + size_f))
        result: list[IndexMap] = []
        rest, offsets = list(indices), iter(window_axes(other))
        for axis in range(other.outputs[0].ndim):
            if axis in numbers.offset_dims:
                result.append(taken_maps[next(offsets)])
            else:
                result.append(rest.pop(0))
        return [result]

    def _starts(self, mine: Any, other: Any, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The constant indices with which an axis is indexed on both levels."""
        column = list(other.settings["dimension_numbers"].start_index_map).index(axis)
        found = []
        for operation in (mine, other):
            if not self.constants.is_constant(operation.inputs[1]):
                return None
            values = self.constants.value(operation.inputs[1])
            if values is None:
                return None
            found.append(values[..., column].ravel())
        return found[0], found[1]

    def scatter(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        """Entries that are chosen by an index are replaced, or added to."""
        numbers = other.settings["dimension_numbers"]
        operand, _, updates = maps
        window = window_axes(other)
        for axis, u in zip(window, numbers.update_window_dims, strict=True):
            if (operand[axis].coarse, operand[axis].fine) == (updates[u].coarse, updates[u].fine):
                unified(operand[axis], updates[u])
            elif operand[axis].grows or updates[u].grows:
                raise MapConflictError("a part of an axis that grows is replaced")
        others = [u for axis, u in enumerate(updates) if axis not in numbers.update_window_dims]
        if any(u.grows for u in others) or any(
            m.grows for axis, m in enumerate(operand) if axis not in window
        ):
            raise MapConflictError("entries of an axis that grows are chosen by data")
        return [list(operand)]
