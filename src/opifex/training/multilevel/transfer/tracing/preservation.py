"""Which new entries of parameters have to be zero, or repeat old ones, so that a function is preserved.

Every `Need` is followed backwards through the fine program until parameters are reached. A product is
kept free of new entries by zeros in that factor which is a parameter; where neither is one (the scores
of attention), by zeros in what makes one of them. A value is zero where all terms of a sum, or one
factor of a product, are zero there, and functions with $f(0) = 0$ pass that on. Of several ways the one
is taken that sets the fewest numbers to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opifex.training.multilevel.transfer.tracing.axes_behind import (
    FORM,
    UnfollowedError,
    axes_behind,
    carries,
)
from opifex.training.multilevel.transfer.tracing.correspondence import Correspondence, Need
from opifex.training.multilevel.transfer.tracing.index_maps import (
    IndexMap,
    leaves,
    old_entries,
    source_entries,
)
from opifex.training.multilevel.transfer.tracing.program import Path, Value, named, path_text

__all__ = ["Preservation", "preservation"]


class _ImpossibleError(Exception):
    """A value cannot be made zero, or be made to repeat itself."""


Mask = np.ndarray[Any, Any]
Zeros = dict[Path, Mask]


@dataclass
class Preservation:
    """What the new entries of the parameters of a fine model must be.

    Attributes:
        zeros: by path, an array of bools that can be broadcast to the parameter: zero there.
        repeated: by path, axes and groups of features along which the parameter repeats its old
            entries.
        obstacles: why the function cannot be preserved; empty if it can.
    """

    zeros: Zeros = field(default_factory=dict)
    repeated: dict[Path, list[tuple[int, IndexMap]]] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)


_KEEPS_ZERO = named(
    """abs asin asinh atan atanh cbrt ceil conj convert_element_type cumsum erf erf_inv expm1 floor
    imag integer_pow log1p neg real reduce_precision round sign sin sinh sqrt square
    stop_gradient tan tanh"""
)
_ALL_ZERO = named("""add add_any sub max min complex carried branches select_n""")


def preservation(found: Correspondence) -> Preservation:
    """Work out what the needs of two models in correspondence ask of the parameters."""
    solver = _Solver(found)
    result = solver.result
    result.obstacles += found.obstacles
    for need in sorted(found.needs, key=lambda n: n.kind != "repeat"):
        try:
            solver.meet(need)
        except (_ImpossibleError, UnfollowedError) as error:
            result.obstacles.append(f"{_described(need)} at {need.place}: {error}")
    solver.check_repetitions()
    return result


def _described(need: Need) -> str:
    return {
        "contraction": "a sum over features that are new on the fine level",
        "vanish": "a sum or a padded axis with entries that are new on the fine level",
        "repeat": "a statistic over features whose number grows",
        "absent": "a term that only the fine level has",
    }[need.kind]


def _reduced(mask: Mask, shape: Sequence[int], offset: int) -> Mask:
    """A mask of a result for an operand which is repeated along some of its axes."""
    mask = np.any(mask, axis=tuple(range(offset)))
    for axis, size in enumerate(shape):
        if size == 1 and mask.shape[axis] != 1:
            mask = np.any(mask, axis=axis, keepdims=True)
    return mask


def _compressed(mask: Mask) -> Mask:
    """A mask without the axes along which it is constant."""
    for axis in range(mask.ndim):
        if mask.shape[axis] > 1:
            first = np.take(mask, [0], axis)
            if np.array_equal(np.broadcast_to(first, mask.shape), mask):
                mask = first
    return mask


class _Solver:
    """Follows what is needed back to parameters."""

    def __init__(self, found: Correspondence) -> None:
        self.found = found
        self.result = Preservation()
        self.users = found.users()
        self.seen: dict[tuple[int, bytes], Zeros] = {}
        self.impossible: dict[tuple[int, bytes], str] = {}

    # -- needs ----------------------------------------------------------------------------------

    def meet(self, need: Need) -> None:
        """Add what one need asks for to the result."""
        if need.kind == "repeat":
            for axis in need.axes:
                for group in leaves(self.found.maps(need.value)[axis]):
                    self.repeat(need.value, axis, group, set())
            return
        if need.kind == "absent":
            self.add(self.zero(need.value, np.ones((1,) * need.value.ndim, bool)))
        elif need.kind == "vanish":
            self.add(self.zero(need.value, self.new(need.value, need.axes)))
        else:
            self.add(self.empty_product(need))

    def add(self, zeros: Zeros) -> None:
        for path, mask in zeros.items():
            self.result.zeros[path] = self.result.zeros.get(path, np.zeros((), bool)) | mask

    def old(self, value: Value, axis: int) -> Mask:
        """Which entries of an axis are old, ready to be broadcast."""
        old = old_entries(self.found.maps(value)[axis])
        if old.all():
            old = old[:1]
        return old.reshape([-1 if a == axis else 1 for a in range(value.ndim)])

    def new(self, value: Value, axes: Sequence[int]) -> Mask:
        """Entries that are new along one of some axes, and old along all others."""
        mask = np.zeros((1,) * value.ndim, bool)
        for axis in axes:
            mask = mask | ~self.old(value, axis)
        for axis in range(value.ndim):
            if axis not in axes:
                mask = mask & self.old(value, axis)
        return mask

    def empty_product(self, need: Need) -> Zeros:
        """Zeros that keep new entries of contracted axes away from the old results."""
        operation = need.value.producer
        assert operation is not None
        left, right = operation.inputs
        if operation.name == "conv_general_dilated":
            kernel = need.axes
            candidates = [(right, self.new(right, kernel))]
        else:
            (axes_l, axes_r), _ = operation.settings["dimension_numbers"]
            candidates = [(left, self.new(left, axes_l)), (right, self.new(right, axes_r))]
        return self.cheapest(candidates)

    def cheapest(self, candidates: Sequence[tuple[Value, Mask]]) -> Zeros:
        """The way to empty a product that touches parameters alone, and as few of them as can be."""
        best: tuple[Any, Zeros] | None = None
        reasons = []
        for value, mask in sorted(candidates, key=lambda pair: self.distance(pair[0])):
            distance = self.distance(value)
            try:
                zeros = self.zero(value, mask)
            except _ImpossibleError as error:
                reasons.append(str(error))
                continue
            if distance == 0:
                return zeros
            cost: Any = sum(self.cost(path, m) for path, m in zeros.items())
            cost = (cost > 0) * (1 + distance), cost
            if best is None or cost < best[0]:
                best = cost, zeros
        if best is None:
            raise _ImpossibleError("; ".join(dict.fromkeys(reasons)))
        return best[1]

    def distance(self, value: Value) -> int:
        """0 for what is a parameter but for its form, 2 for what is computed, 3 for shared parameters.

        A shared parameter is used in several ways: zeros in it could keep all of them from learning.
        """
        if value.parameter is not None:
            return 3 * (len(self.roles(value)) > 1)
        operation = value.producer
        if operation is None or operation.name not in FORM:
            return 2
        made_of = [i for i in operation.inputs if not self.found.constants.is_constant(i)]
        return max(map(self.distance, made_of), default=2)

    def roles(self, value: Value) -> set[str]:
        """In which ways a value is used, apart from changes of its form."""
        found: set[str] = set()
        for user in self.users.get(id(value), ()):
            if user.name in FORM:
                found |= self.roles(user.outputs[0])
            else:
                number = next(n for n, i in enumerate(user.inputs) if i is value)
                found.add(f"{user.name} {number} {user.settings.get('dimension_numbers')}")
        return found

    def cost(self, path: Path, mask: Mask) -> int:
        """How many further entries of a parameter would become zero."""
        already = self.result.zeros.get(path, np.zeros((), bool))
        shape = self.found.fine.parameters[path].shape
        return int(np.sum(np.broadcast_to(mask & ~already, shape)))

    # -- zeros ----------------------------------------------------------------------------------

    def zero(self, value: Value, mask: Mask) -> Zeros:
        """Zeros of parameters that make a value vanish where a mask is set."""
        self.seen = {}
        return self._zero(value, _compressed(mask))

    def _zero(self, value: Value, mask: Mask) -> Zeros:
        if not mask.any():
            return {}
        key = id(value), mask.tobytes() + repr(mask.shape).encode()
        if key in self.impossible:
            raise _ImpossibleError(self.impossible[key])
        if key not in self.seen:
            self.seen[key] = {}  # what a loop carries is zero if it begins and goes on so
            try:
                self.seen[key] = self._zero_unseen(value, mask)
            except _ImpossibleError as error:
                del self.seen[key]
                self.impossible[key] = str(error)
                raise
        return self.seen[key]

    def _zero_unseen(self, value: Value, mask: Mask) -> Zeros:
        if value.parameter is not None:
            return self._zero_parameter(value, mask)
        if self.found.constants.is_constant(value):
            number = self.found.constants.value(value)
            if number is not None and not np.any(
                np.broadcast_to(mask, value.shape) & (number != 0)
            ):
                return {}
            raise _ImpossibleError("a constant there is not zero")
        operation = value.producer
        if operation is None:
            raise _ImpossibleError("an input of the model reaches it")
        name, inputs = operation.name, operation.inputs
        rule = getattr(self, "_zero_" + name.replace("-", "_").replace(" ", "_"), None)
        if rule is not None:
            return rule(operation, value, mask)
        if name in _KEEPS_ZERO:
            return self._zero(inputs[0], mask)
        if name in _ALL_ZERO:
            values = inputs[1:] if name in ("branches", "select_n") else inputs
            return self._all([(i, self._for_operand(i, value, mask)) for i in values])
        if name == "carry":
            ends = [operation.partner.inputs[1]] if operation.partner is not None else []
            return self._all([(i, mask) for i in (*inputs, *ends)])
        if name in ("mul", "div"):
            factors = inputs if name == "mul" else inputs[:1]
            return self._any([(i, self._for_operand(i, value, mask)) for i in factors])
        raise _ImpossibleError(f"{name} at {operation.place} does not keep zeros")

    @staticmethod
    def _for_operand(operand: Value, value: Value, mask: Mask) -> Mask:
        return _reduced(mask, operand.shape, value.ndim - operand.ndim)

    def _all(self, wanted: Sequence[tuple[Value, Mask]]) -> Zeros:
        zeros: Zeros = {}
        for value, mask in wanted:
            for path, one in self._zero(value, mask).items():
                zeros[path] = zeros.get(path, np.zeros((), bool)) | one
        return zeros

    def _any(self, wanted: Sequence[tuple[Value, Mask]]) -> Zeros:
        best: tuple[int, Zeros] | None = None
        reasons = []
        for value, mask in wanted:
            try:
                zeros = self._zero(value, mask)
            except _ImpossibleError as error:
                reasons.append(str(error))
                continue
            cost = sum(self.cost(path, m) for path, m in zeros.items())
            if best is None or cost < best[0]:
                best = cost, zeros
        if best is None:
            raise _ImpossibleError("; ".join(dict.fromkeys(reasons)))
        return best[1]

    def _zero_parameter(self, value: Value, mask: Mask) -> Zeros:
        path = value.parameter
        assert path is not None
        if id(value) in self.found.tensors:
            old = np.ones((1,) * value.ndim, bool)
            for axis in range(value.ndim):
                old = old & self.old(value, axis)
            if np.any(mask & old):
                raise _ImpossibleError(f"old entries of {path_text(path)} would have to be zero")
        return {path: mask}

    def _zero_dot_general(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        (contract_l, contract_r), (batch_l, batch_r) = operation.settings["dimension_numbers"]
        left, right = operation.inputs
        n = len(batch_l)
        free_l = [a for a in range(left.ndim) if a not in (*contract_l, *batch_l)]
        free_r = [a for a in range(right.ndim) if a not in (*contract_r, *batch_r)]

        def of(operand: Value, batch: Any, free: Any, first: int) -> Mask:
            keep = [*range(n), *range(first, first + len(free))]
            drop = tuple(a for a in range(mask.ndim) if a not in keep)
            reduced = np.any(mask, axis=drop)
            order = [*batch, *free]
            shape = [1] * operand.ndim
            for position, axis in enumerate(order):
                shape[axis] = reduced.shape[position]
            return reduced.transpose(np.argsort(order)).reshape(shape)

        wanted = [
            (right, of(right, batch_r, free_r, n + len(free_l))),
            (left, of(left, batch_l, free_l, n)),
        ]
        direct = [pair for pair in wanted if self.distance(pair[0]) == 0]
        return self._any(direct or wanted)

    def _zero_conv_general_dilated(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        numbers = operation.settings["dimension_numbers"]
        made = numbers.out_spec[1]
        features = np.any(mask, axis=tuple(a for a in range(mask.ndim) if a != made))
        kernel = operation.inputs[1]
        shape = [1] * kernel.ndim
        shape[numbers.rhs_spec[0]] = -1
        wanted = [(kernel, features.reshape(shape))]
        if operation.settings["feature_group_count"] == 1:
            wanted.append((operation.inputs[0], np.ones((1,) * operation.inputs[0].ndim, bool)))
        return self._any(wanted)

    def _zero_reduce_sum(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(operation.inputs[0], np.expand_dims(mask, operation.settings["axes"]))

    _zero_reduce_max = _zero_reduce_min = _zero_reduce_sum

    def _zero_transpose(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        order = np.argsort(operation.settings["permutation"])
        return self._zero(operation.inputs[0], mask.transpose(order))

    def _zero_reshape(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand = operation.inputs[0]
        return self._zero(
            operand, _compressed(np.broadcast_to(mask, value.shape).reshape(operand.shape))
        )

    def _zero_squeeze(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(
            operation.inputs[0], np.expand_dims(mask, operation.settings["dimensions"])
        )

    def _zero_broadcast_in_dim(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand, kept = operation.inputs[0], operation.settings["broadcast_dimensions"]
        mask = np.any(mask, axis=tuple(a for a in range(value.ndim) if a not in kept))
        return self._zero(operand, _reduced(mask, operand.shape, 0))

    def _from_positions(self, operation: Any, value: Value, mask: Mask, index: Any) -> Zeros:
        """Of an operation that takes some entries of its operand."""
        operand = operation.inputs[0]
        full = np.zeros(operand.shape, bool)
        full[index] = np.broadcast_to(mask, value.shape)
        return self._zero(operand, _compressed(full))

    def _zero_slice(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        starts, ends = operation.settings["start_indices"], operation.settings["limit_indices"]
        steps = operation.settings["strides"] or (1,) * value.ndim
        index = tuple(slice(*bounds) for bounds in zip(starts, ends, steps, strict=True))
        return self._from_positions(operation, value, mask, index)

    def _zero_rev(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(operation.inputs[0], np.flip(mask, operation.settings["dimensions"]))

    def _zero_split(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        number = next(i for i, result in enumerate(operation.outputs) if result is value)
        axis, sizes = operation.settings["axis"], operation.settings["sizes"]
        start = sum(sizes[:number])
        index = (slice(None),) * axis + (slice(start, start + sizes[number]),)
        return self._from_positions(operation, value, mask, index)

    def _zero_concatenate(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        axis, start, wanted = operation.settings["dimension"], 0, []
        for part in operation.inputs:
            end = start + part.shape[axis]
            index = (slice(None),) * axis + (slice(start, end),)
            wanted.append((part, mask if mask.shape[axis] == 1 else mask[index]))
            start = end
        return self._all(wanted)

    def _zero_pad(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand, filling = operation.inputs
        if (
            not self.found.constants.is_constant(filling)
            or self.found.constants.uniform(filling) != 0
        ):
            raise _ImpossibleError("it is padded by something else than zero")
        full = np.broadcast_to(mask, value.shape)
        for axis, (low, high, inner) in enumerate(operation.settings["padding_config"]):
            if low < 0 or high < 0:
                raise _ImpossibleError("it is cut by a negative padding")
            index = np.arange(operand.shape[axis]) * (inner + 1) + low
            full = np.take(full, index, axis)
        return self._zero(operand, _compressed(full))

    def _zero_dynamic_slice(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand = operation.inputs[0]
        for axis, (n, m) in enumerate(zip(operand.shape, value.shape, strict=True)):
            if n != m and mask.shape[axis] != 1:
                mask = np.any(mask, axis=axis, keepdims=True)
        return self._zero(operand, mask)

    def _zero_dynamic_update_slice(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand, update = operation.inputs[:2]
        part = mask
        for axis, (n, m) in enumerate(zip(operand.shape, update.shape, strict=True)):
            if n != m and part.shape[axis] != 1:
                part = np.any(part, axis=axis, keepdims=True)
        return self._all([(operand, mask), (update, part)])

    def _zero_gather(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        numbers, operand = operation.settings["dimension_numbers"], operation.inputs[0]
        fixed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        window = [a for a in range(operand.ndim) if a not in fixed]
        reduced = np.any(
            mask, axis=tuple(a for a in range(value.ndim) if a not in numbers.offset_dims)
        )
        shape = [1] * operand.ndim
        for position, axis in enumerate(window):
            if operation.settings["slice_sizes"][axis] != operand.shape[axis]:
                reduced = np.any(reduced, axis=position, keepdims=True)
            shape[axis] = reduced.shape[position]
        return self._zero(operand, reduced.reshape(shape))

    def _zero_scatter_add(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        numbers = operation.settings["dimension_numbers"]
        operand, _, updates = operation.inputs
        fixed = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        window = [a for a in range(operand.ndim) if a not in fixed]
        reduced = np.any(mask, axis=fixed)
        shape = [1] * updates.ndim
        for position, (axis, u) in enumerate(zip(window, numbers.update_window_dims, strict=True)):
            if operand.shape[axis] != updates.shape[u]:
                reduced = np.any(reduced, axis=position, keepdims=True)
            shape[u] = reduced.shape[position]
        return self._all([(operand, mask), (updates, reduced.reshape(shape))])

    _zero_scatter = _zero_scatter_add

    def _zero_fft(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        count = len(operation.settings["fft_lengths"])
        axes = tuple(range(value.ndim - count, value.ndim))
        return self._zero(operation.inputs[0], np.any(mask, axis=axes, keepdims=True))

    def _zero_step_of(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(operation.inputs[0], mask[None])

    def _zero_steps(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(operation.inputs[0], np.any(mask, axis=0))

    # -- repetitions ----------------------------------------------------------------------------

    def repeat(self, value: Value, axis: int, group: IndexMap, seen: set[tuple[int, int]]) -> None:
        """Let a value repeat its old entries along one axis, for one group of features."""
        if (id(value), axis) in seen or not carries(self.found, value, axis, group):
            return
        seen.add((id(value), axis))
        if value.parameter is not None:
            repeated = self.result.repeated.setdefault(value.parameter, [])
            if not any(axis == a and group is g for a, g in repeated):
                repeated.append((axis, group))
            return
        if self.found.constants.is_constant(value):
            if self.found.constants.uniform(value) is None:
                raise _ImpossibleError("a constant there differs from entry to entry")
            return
        operation = value.producer
        if operation is None:
            raise _ImpossibleError("an input of the model reaches it")
        for operand, of_operand in axes_behind(self.found, operation, value, axis, group):
            self.repeat(operand, of_operand, group, seen)
        if operation.name == "carry" and operation.partner is not None:
            self.repeat(operation.partner.inputs[1], axis, group, seen)

    def check_repetitions(self) -> None:
        """Refuse what would have to be zero and to repeat an old entry at once."""
        for path, repeated in self.result.repeated.items():
            value = self.found.fine.parameters[path]
            mask = np.broadcast_to(self.result.zeros.get(path, np.zeros((), bool)), value.shape)
            for axis, term in enumerate(self.found.maps(value)):
                sources = source_entries(term, [g for a, g in repeated if a == axis])
                if np.any(mask & ~np.take(mask, sources, axis)):
                    self.result.obstacles.append(
                        f"new entries of {path_text(path)} would have to be zero, and repeat old ones "
                        "for a statistic over features whose number grows"
                    )
                    break
