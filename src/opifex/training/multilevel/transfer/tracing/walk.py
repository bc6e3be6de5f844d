"""Two traced models side by side, operation by operation.

Coarse and fine model run the same operations on arrays of other sizes. Walking through both lists in
step gives the map of indices (`index_maps`) of every axis of every array, those of the parameters among
them. On the way it is noted where an old entry of the fine model would depend on a new one: a sum over
new entries (`Need`). Layers that only the fine model has must be terms of a sum, which then have to
vanish as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from opifex.training.multilevel.transfer.tracing.added_terms import check_added, remove_added_terms
from opifex.training.multilevel.transfer.tracing.correspondence import (
    Correspondence,
    Need,
    StructureError,
    Tensor,
)
from opifex.training.multilevel.transfer.tracing.index_maps import (
    IndexMap,
    MapConflictError,
    known,
    leaves,
    unknown,
)
from opifex.training.multilevel.transfer.tracing.program import (
    Operation,
    Program,
    Value,
    named,
    needed,
)
from opifex.training.multilevel.transfer.tracing.rules import Rules

__all__ = ["correspondence"]

_PASSES_FACTOR = named(
    """broadcast_in_dim carry carried conj convert_element_type cumsum dynamic_slice fft gather imag
    neg real reduce_max reduce_min reduce_sum reduce_window_sum reduce_window_max reshape rev
    scatter-add slice split squeeze steps stop_gradient transpose reduce_precision"""
) | {"step of"}
_EQUAL_FACTORS = named(
    """add add_any sub max min select_n concatenate carried complex clamp pad branches scatter
    dynamic_update_slice scatter-add"""
)


def correspondence(coarse: Program, fine: Program) -> Correspondence:
    """Walk through two programs in step.

    Args:
        coarse: program of the coarse model.
        fine: program of the fine model, which is changed.

    Raises:
        StructureError: if they are not the same program at two sizes; the message names the place.
    """
    found = Correspondence(coarse, fine)
    added = set(fine.parameters) - set(coarse.parameters)
    if added:
        for value, place in remove_added_terms(fine, added):
            found.needs.append(Need("absent", value, (), place))
    for path, value in coarse.parameters.items():
        other = fine.parameters[path]
        found.tensors[id(other)] = Tensor(_pairs(value, other), 1.0, value)
    for value, other in zip(coarse.inputs, fine.inputs, strict=True):
        found.tensors[id(other)] = Tensor(_pairs(value, other), 1.0, value)
    ours, theirs = needed(coarse), needed(fine)
    check_added(theirs, added)
    found.operations = theirs
    walk = _Walk(found)
    rest = list(reversed(ours))
    for operation in theirs:
        mine = rest.pop() if rest else None
        if operation.name == "slice" and (mine is None or mine.name != "slice"):
            # The coarse level takes all there is, which leaves no trace.
            rest += [mine] if mine is not None else []
            mine = walk.whole(operation)
        if mine is None:
            raise StructureError(
                f"the fine model computes {operation.name} at {operation.place}, which the coarse one "
                "does not"
            )
        walk.step(mine, operation)
    if rest:
        raise StructureError(
            f"the coarse model computes {rest[-1].name} at {rest[-1].place}, which the fine one does not"
        )
    walk.end()
    return found


def _pairs(coarse: Value, fine: Value) -> list[IndexMap]:
    return [unknown(c, f) for c, f in zip(coarse.shape, fine.shape, strict=True)]


class _Walk:
    """Gives every value of the fine program its counterpart, operation by operation."""

    def __init__(self, found: Correspondence) -> None:
        self.found = found
        self.constants = found.constants
        self.users = found.users()
        self.rules = Rules(found)

    # -- one step -------------------------------------------------------------------------------

    def counterpart(self, coarse: Value, fine: Value, place: str) -> Tensor:
        """The pair of two operands; constants are compared here."""
        known_tensor = self.found.tensors.get(id(fine))
        both = self.constants.is_constant(coarse), self.constants.is_constant(fine)
        if known_tensor is None and all(both):
            known_tensor = self.found.tensors[id(fine)] = self._constant(coarse, fine)
        if known_tensor is None and coarse.constant is not None and fine.constant is not None:
            # Random keys, whose values nobody compares.
            known_tensor = self.found.tensors[id(fine)] = Tensor(_pairs(coarse, fine), 1.0, coarse)
        if known_tensor is None or (known_tensor.coarse is not coarse and not all(both)):
            raise StructureError(
                f"the two models differ at {place}: an operand there comes from elsewhere"
            )
        return known_tensor

    def whole(self, other: Operation) -> Operation:
        """The slice of all of a coarse array, where the fine program takes a part of its own."""
        tensor = self.found.tensors.get(id(other.inputs[0]))
        value = tensor.coarse if tensor is not None else other.inputs[0]
        settings = {
            "start_indices": (0,) * value.ndim,
            "limit_indices": value.shape,
            "strides": None,
        }
        return Operation(other.name, other.primitive, settings, [value], [value], other.place)

    def step(self, mine: Operation, other: Operation) -> None:
        """Pair the results of one operation of each program."""
        places = mine.place if mine.place == other.place else f"{mine.place} and {other.place}"
        if mine.name != other.name or len(mine.inputs) != len(other.inputs):
            raise StructureError(
                f"the coarse model computes {mine.name} where the fine model computes {other.name}, at "
                f"{places}; both must run the same operations: their code may not choose by size, and "
                "what is added must be a term of a sum"
            )
        if all(map(self.constants.is_constant, [*mine.outputs, *other.outputs])):
            return  # compared where it is used
        try:
            tensors = [
                self.counterpart(a, b, places)
                for a, b in zip(mine.inputs, other.inputs, strict=True)
            ]
            if any(t.maps is None for t in tensors) and mine.name != "concatenate":
                raise MapConflictError("a constant shrinks from the coarse to the fine level")
            maps = self.rules.results(mine, other, [t.maps for t in tensors])
            ratio = self._ratio(other, tensors, places)
        except MapConflictError as error:
            raise StructureError(f"{other.name} at {places}: {error}") from None
        for a, b, of_one in zip(mine.outputs, other.outputs, maps, strict=True):
            sizes = [(m.coarse, m.fine) for m in of_one]
            if sizes != list(zip(a.shape, b.shape, strict=True)):
                raise StructureError(
                    f"{other.name} at {places}: the sizes {a.shape} and {b.shape} do not follow from "
                    f"those of its operands, {[i.shape for i in mine.inputs]} and "
                    f"{[i.shape for i in other.inputs]}"
                )
            self.found.tensors[id(b)] = Tensor(of_one, ratio, a)

    def end(self) -> None:
        """Compare the outputs."""
        for number, (a, b) in enumerate(
            zip(self.found.coarse.outputs, self.found.fine.outputs, strict=False)
        ):
            tensor = self.counterpart(a, b, "the output")
            if abs(tensor.ratio - 1) > 1e-6:
                reader = f"output {number}"
                self.found.needs.append(Need("factor", b, (), reader, 1 / tensor.ratio))
        if len(self.found.coarse.outputs) != len(self.found.fine.outputs):
            raise StructureError("the models return other numbers of arrays")

    # -- constants ------------------------------------------------------------------------------

    def _constant(self, coarse: Value, fine: Value) -> Tensor:
        if coarse.ndim != fine.ndim:
            raise MapConflictError(f"a constant has shape {coarse.shape} and {fine.shape}")
        if self.constants.same(coarse, fine):
            return Tensor(_pairs(coarse, fine), 1.0, coarse)
        numbers = self.constants.uniform(coarse), self.constants.uniform(fine)
        shrinks = any(f < c for c, f in zip(coarse.shape, fine.shape, strict=True))
        if numbers[0] is not None and numbers[1] is not None:
            a, b = numbers
            ratio = 1.0 if a == b or (a != a and b != b) else float(b / a) if a != 0 else math.inf
            if shrinks:
                return Tensor(None, ratio, coarse)
            return Tensor(_pairs(coarse, fine), ratio, coarse)
        values = self.constants.value(coarse), self.constants.value(fine)
        if shrinks or values[0] is None or values[1] is None:
            raise MapConflictError(f"a constant changes from shape {coarse.shape} to {fine.shape}")
        maps = _matched(np.asarray(values[0]), np.asarray(values[1]))
        return Tensor(maps, 1.0, coarse)

    # -- factors --------------------------------------------------------------------------------

    def _ratio(self, other: Operation, tensors: Sequence[Tensor], place: str) -> float:
        """The factor between the results, made one where the operation needs that."""
        name = other.name
        ratios = [t.ratio for t in tensors]
        if all(abs(r - 1) <= 1e-6 for r in ratios) and name != "reduce_sum":
            return 1.0
        if name in ("mul", "dot_general", "conv_general_dilated"):
            return ratios[0] * ratios[1]
        if name == "div":
            return ratios[0] / ratios[1]
        if name == "square":
            return ratios[0] ** 2
        if name == "integer_pow":
            return float(ratios[0] ** other.settings["y"])
        if name in ("sqrt", "rsqrt"):
            return float(ratios[0] ** (0.5 if name == "sqrt" else -0.5))
        if name == "reduce_sum":
            return ratios[0] * self._growth_of_mean(other, tensors[0])
        if name in _PASSES_FACTOR and name not in _EQUAL_FACTORS:
            return ratios[0]
        if name in _EQUAL_FACTORS:
            counted = [
                t.ratio
                for t, value in zip(tensors, other.inputs, strict=True)
                if not self._without_size(value)
            ]
            if counted and all(abs(r - counted[0]) <= 1e-6 * abs(r) for r in counted):
                return counted[0]
        for value, tensor in zip(other.inputs, tensors, strict=True):
            if abs(tensor.ratio - 1) <= 1e-6 or self._without_size(value):
                continue
            reader = f"{name} at {place}"
            self.found.needs.append(Need("factor", value, (), reader, 1 / tensor.ratio))
            tensor.ratio = 1.0
        return 1.0

    def _without_size(self, value: Value) -> bool:
        """Whether a value is zero or infinite, or chooses, so that a factor says nothing."""
        if value.dtype is not None and not jnp.issubdtype(value.dtype, jnp.inexact):
            return True
        if not self.constants.is_constant(value):
            return False
        number = self.constants.uniform(value)
        return number is not None and (number == 0 or not np.isfinite(number))

    def _growth_of_mean(self, other: Operation, tensor: Tensor) -> float:
        """By what a sum grows: more than not at all if it is the sum of a mean, of repeated entries."""
        growth = self.rules.mean_growth(other, tensor.maps or [])
        if growth is None:
            return 1.0
        axes = tuple(other.settings["axes"])
        groups = [leaf for axis in axes for leaf in leaves((tensor.maps or [])[axis])]
        if growth != round(growth) or any(leaf.fine % leaf.coarse for leaf in groups):
            self.found.obstacles.append(
                f"the mean at {other.place} runs over features whose number grows by a factor of "
                f"{growth:.4g}; it stays the same only if that is a whole number, so that the new "
                "features can repeat the old ones"
            )
        else:
            self.found.needs.append(Need("repeat", other.inputs[0], axes, other.place))
        return growth


def _matched(coarse: np.ndarray, fine: np.ndarray) -> list[IndexMap]:
    """Where the entries of a coarse constant are found in the fine one."""
    grown = [
        axis for axis, (c, f) in enumerate(zip(coarse.shape, fine.shape, strict=True)) if c != f
    ]
    maps = [unknown(c, f) for c, f in zip(coarse.shape, fine.shape, strict=True)]
    if not grown:
        if not np.array_equal(coarse, fine, equal_nan=coarse.dtype.kind in "fc"):
            raise MapConflictError("a constant has other values on the fine level")
        return maps
    if len(grown) == 1:
        axis = grown[0]
        rows: dict[bytes, list[int]] = {}
        for index in reversed(range(fine.shape[axis])):
            row = np.ascontiguousarray(np.take(fine, index, axis)).tobytes()
            rows.setdefault(row, []).append(index)
        try:
            places = [
                rows[
                    np.ascontiguousarray(np.take(coarse, i, axis)).astype(fine.dtype).tobytes()
                ].pop()
                for i in range(coarse.shape[axis])
            ]
        except (KeyError, IndexError):
            raise MapConflictError(
                "a constant of the coarse model is no part of that of the fine model"
            ) from None
        maps[axis] = known(np.array(places), fine.shape[axis])
        return maps
    block = tuple(slice(0, size) for size in coarse.shape)
    if not np.array_equal(fine[block], coarse):
        raise MapConflictError(
            "a constant of the coarse model is no part of that of the fine model"
        )
    for axis in grown:
        maps[axis] = known(np.arange(coarse.shape[axis]), fine.shape[axis])
    return maps
