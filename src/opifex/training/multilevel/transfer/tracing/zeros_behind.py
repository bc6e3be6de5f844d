"""Which entries of parameters have to be zero so that a value of a program vanishes at given places.

A value is zero where all terms of a sum, or one factor of a product, are zero there, and functions with
$f(0) = 0$ pass that on. Of several ways the one is taken that sets the fewest numbers to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from opifex.training.multilevel.transfer.tracing.axes_behind import FORM
from opifex.training.multilevel.transfer.tracing.axis_roles import (
    free_axes,
    part_taken,
    window_axes,
)
from opifex.training.multilevel.transfer.tracing.correspondence import Correspondence
from opifex.training.multilevel.transfer.tracing.index_maps import old_entries
from opifex.training.multilevel.transfer.tracing.program import Path, Value, named, path_text

__all__ = ["ImpossibleError", "Mask", "Zeros", "ZerosBehind", "compressed"]


class ImpossibleError(Exception):
    """A value cannot be made zero, or be made to repeat itself."""


Mask = np.ndarray[Any, Any]
Zeros = dict[Path, Mask]


_ALL_ZERO = named("""add add_any sub max min complex carried branches select_n""")


def compressed(mask: Mask) -> Mask:
    """A mask without the axes along which it is constant."""
    for axis in range(mask.ndim):
        if mask.shape[axis] > 1:
            first = np.take(mask, [0], axis)
            if np.array_equal(np.broadcast_to(first, mask.shape), mask):
                mask = first
    return mask


class ZerosBehind:
    """Follows places where a value has to vanish back to parameters.

    Args:
        found: the models.
        already: zeros that parameters have anyway, which cost nothing.
    """

    passed_on = named(
        """abs asin asinh atan atanh cbrt ceil conj convert_element_type cumsum erf erf_inv expm1 floor
        imag integer_pow log1p neg real reduce_precision round sign sin sinh sqrt square
        stop_gradient tan tanh"""
    )
    """Functions of one array that pass on what is asked of their result."""
    may_be_more = True
    """Whether more entries than those that are asked for may be dealt with."""

    def __init__(self, found: Correspondence, already: Zeros) -> None:
        self.found = found
        self.already = already
        self.users = found.users()
        self.seen: dict[tuple[int, bytes], Zeros] = {}
        self.impossible: dict[tuple[int, bytes], str] = {}

    def old(self, value: Value, axis: int) -> Mask:
        """Which entries of an axis are old, ready to be broadcast."""
        old = old_entries(self.found.maps(value)[axis])
        if old.all():
            old = old[:1]
        return old.reshape([-1 if a == axis else 1 for a in range(value.ndim)])

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
        already = self.already.get(path, np.zeros((), bool))
        shape = self.found.fine.parameters[path].shape
        return int(np.sum(np.broadcast_to(mask & ~already, shape)))

    # -- zeros ----------------------------------------------------------------------------------

    def zero(self, value: Value, mask: Mask) -> Zeros:
        """Zeros of parameters that make a value vanish where a mask is set."""
        self.seen = {}
        return self._zero(value, compressed(mask))

    def _zero(self, value: Value, mask: Mask) -> Zeros:
        if not mask.any():
            return {}
        key = id(value), mask.tobytes() + repr(mask.shape).encode()
        if key in self.impossible:
            raise ImpossibleError(self.impossible[key])
        if key not in self.seen:
            self.seen[key] = {}  # what a loop carries is zero if it begins and goes on so
            try:
                self.seen[key] = self.zero_by_rule(value, mask)
            except ImpossibleError as error:
                del self.seen[key]
                self.impossible[key] = str(error)
                raise
        return self.seen[key]

    def zero_by_rule(self, value: Value, mask: Mask) -> Zeros:
        """What has to be zero behind a value, by the rule of the operation that computes it."""
        if value.parameter is not None:
            return self._zero_parameter(value, mask)
        if self.found.constants.is_constant(value):
            return self._zero_constant(value, mask)
        operation = value.producer
        if operation is None:
            raise ImpossibleError("an input of the model reaches it")
        name, inputs = operation.name, operation.inputs
        rule = getattr(self, "_zero_" + name.replace("-", "_").replace(" ", "_"), None)
        if rule is not None:
            return rule(operation, value, mask)
        if name in self.passed_on:
            return self._zero(inputs[0], mask)
        if name in _ALL_ZERO:
            values = inputs[1:] if name in ("branches", "select_n") else inputs
            return self._all([(i, self._for_operand(i, value, mask)) for i in values])
        if name in ("mul", "div"):
            factors = inputs if name == "mul" else inputs[:1]
            return self._any([(i, partial(self._for_operand, i, value, mask)) for i in factors])
        raise ImpossibleError(f"{name} at {operation.place} does not keep zeros")

    def _for_operand(self, operand: Value, value: Value, mask: Mask) -> Mask:
        return self._repeated(mask, operand.shape, value.ndim - operand.ndim)

    def _merged(self, mask: Mask, axis: Any, keepdims: bool = False) -> Mask:
        """A mask for an array that does not know some axes: set where anything along them is."""
        return np.any(mask, axis=axis, keepdims=keepdims)

    def _repeated(self, mask: Mask, shape: Sequence[int], offset: int) -> Mask:
        """A mask of a result for an operand which is repeated along some of its axes."""
        mask = self._merged(mask, axis=tuple(range(offset)))
        for axis, size in enumerate(shape):
            if size == 1 and mask.shape[axis] != 1:
                mask = self._merged(mask, axis=axis, keepdims=True)
        return mask

    def _all(self, wanted: Sequence[tuple[Value, Mask]]) -> Zeros:
        zeros: Zeros = {}
        for value, mask in wanted:
            for path, one in self._zero(value, mask).items():
                zeros[path] = zeros.get(path, np.zeros((), bool)) | one
        return zeros

    def _any(self, wanted: Sequence[tuple[Value, Callable[[], Mask]]]) -> Zeros:
        best: tuple[int, Zeros] | None = None
        reasons = []
        for value, mask in wanted:
            try:
                zeros = self._zero(value, mask())
            except ImpossibleError as error:
                reasons.append(str(error))
                continue
            cost = sum(self.cost(path, m) for path, m in zeros.items())
            if best is None or cost < best[0]:
                best = cost, zeros
        if best is None:
            raise ImpossibleError("; ".join(dict.fromkeys(reasons)))
        return best[1]

    def _zero_constant(self, value: Value, mask: Mask) -> Zeros:
        number = self.found.constants.value(value)
        if number is not None and not np.any(np.broadcast_to(mask, value.shape) & (number != 0)):
            return {}
        raise ImpossibleError("a constant there is not zero")

    def _zero_carry(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        ends = [operation.partner.inputs[1]] if operation.partner is not None else []
        return self._all([(i, mask) for i in (*operation.inputs, *ends)])

    def _zero_parameter(self, value: Value, mask: Mask) -> Zeros:
        path = value.parameter
        assert path is not None
        if id(value) in self.found.tensors:
            old = np.ones((1,) * value.ndim, bool)
            for axis in range(value.ndim):
                old = old & self.old(value, axis)
            if np.any(mask & old):
                raise ImpossibleError(f"old entries of {path_text(path)} would have to be zero")
        return {path: mask}

    def _zero_dot_general(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        _, (batch_l, batch_r) = operation.settings["dimension_numbers"]
        left, right = operation.inputs
        n = len(batch_l)
        free_l, free_r = free_axes(operation)

        def of(operand: Value, batch: Any, free: Any, first: int) -> Mask:
            keep = [*range(n), *range(first, first + len(free))]
            drop = tuple(a for a in range(mask.ndim) if a not in keep)
            reduced = self._merged(mask, axis=drop)
            order = [*batch, *free]
            shape = [1] * operand.ndim
            for position, axis in enumerate(order):
                shape[axis] = reduced.shape[position]
            return reduced.transpose(np.argsort(order)).reshape(shape)

        wanted = [
            (right, partial(of, right, batch_r, free_r, n + len(free_l))),
            (left, partial(of, left, batch_l, free_l, n)),
        ]
        direct = [pair for pair in wanted if self.distance(pair[0]) == 0]
        return self._any(direct or wanted)

    def _zero_conv_general_dilated(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        numbers = operation.settings["dimension_numbers"]
        made = numbers.out_spec[1]
        features = self._merged(mask, axis=tuple(a for a in range(mask.ndim) if a != made))
        kernel = operation.inputs[1]
        shape = [1] * kernel.ndim
        shape[numbers.rhs_spec[0]] = -1
        wanted = [(kernel, partial(features.reshape, shape))]
        if operation.settings["feature_group_count"] == 1 and self.may_be_more:
            field = operation.inputs[0]
            wanted.append((field, partial(np.ones, (1,) * field.ndim, bool)))
        return self._any(wanted)

    def _zero_reduce_sum(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(operation.inputs[0], np.expand_dims(mask, operation.settings["axes"]))

    _zero_reduce_max = _zero_reduce_min = _zero_reduce_sum

    def _zero_reduce_window_sum(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        window = operation.settings["window_dimensions"]
        axes = tuple(axis for axis, size in enumerate(window) if size != 1)
        return self._zero(operation.inputs[0], self._merged(mask, axis=axes, keepdims=True))

    _zero_reduce_window_max = _zero_reduce_window_min = _zero_reduce_window_sum

    def _zero_transpose(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        order = np.argsort(operation.settings["permutation"])
        return self._zero(operation.inputs[0], mask.transpose(order))

    def _zero_reshape(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand = operation.inputs[0]
        return self._zero(
            operand, compressed(np.broadcast_to(mask, value.shape).reshape(operand.shape))
        )

    def _zero_squeeze(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(
            operation.inputs[0], np.expand_dims(mask, operation.settings["dimensions"])
        )

    def _zero_broadcast_in_dim(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand, kept = operation.inputs[0], operation.settings["broadcast_dimensions"]
        mask = self._merged(mask, axis=tuple(a for a in range(value.ndim) if a not in kept))
        return self._zero(operand, self._repeated(mask, operand.shape, 0))

    def _zero_slice(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand = operation.inputs[0]
        full = np.zeros(operand.shape, bool)
        full[part_taken(operation, value)] = np.broadcast_to(mask, value.shape)
        return self._zero(operand, compressed(full))

    _zero_split = _zero_slice

    def _zero_rev(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(operation.inputs[0], np.flip(mask, operation.settings["dimensions"]))

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
            raise ImpossibleError("it is padded by something else than zero")
        full = np.broadcast_to(mask, value.shape)
        for axis, (low, high, inner) in enumerate(operation.settings["padding_config"]):
            if low < 0 or high < 0:
                raise ImpossibleError("it is cut by a negative padding")
            index = np.arange(operand.shape[axis]) * (inner + 1) + low
            full = np.take(full, index, axis)
        return self._zero(operand, compressed(full))

    def _zero_dynamic_slice(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand = operation.inputs[0]
        for axis, (n, m) in enumerate(zip(operand.shape, value.shape, strict=True)):
            if n != m and mask.shape[axis] != 1:
                mask = self._merged(mask, axis=axis, keepdims=True)
        return self._zero(operand, mask)

    def _zero_dynamic_update_slice(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        operand, update = operation.inputs[:2]
        part = mask
        for axis, (n, m) in enumerate(zip(operand.shape, update.shape, strict=True)):
            if n != m and part.shape[axis] != 1:
                part = self._merged(part, axis=axis, keepdims=True)
        return self._all([(operand, mask), (update, part)])

    def _zero_gather(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        numbers, operand = operation.settings["dimension_numbers"], operation.inputs[0]
        reduced = self._merged(
            mask, axis=tuple(a for a in range(value.ndim) if a not in numbers.offset_dims)
        )
        shape = [1] * operand.ndim
        for position, axis in enumerate(window_axes(operation)):
            if operation.settings["slice_sizes"][axis] != operand.shape[axis]:
                reduced = self._merged(reduced, axis=position, keepdims=True)
            shape[axis] = reduced.shape[position]
        return self._zero(operand, reduced.reshape(shape))

    def _zero_scatter_add(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        numbers = operation.settings["dimension_numbers"]
        operand, _, updates = operation.inputs
        window = window_axes(operation)
        reduced = self._merged(mask, axis=tuple(a for a in range(operand.ndim) if a not in window))
        shape = [1] * updates.ndim
        for position, (axis, u) in enumerate(zip(window, numbers.update_window_dims, strict=True)):
            if operand.shape[axis] != updates.shape[u]:
                reduced = self._merged(reduced, axis=position, keepdims=True)
            shape[u] = reduced.shape[position]
        return self._all([(operand, mask), (updates, reduced.reshape(shape))])

    _zero_scatter = _zero_scatter_add

    def _zero_fft(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        count = len(operation.settings["fft_lengths"])
        axes = tuple(range(value.ndim - count, value.ndim))
        return self._zero(operation.inputs[0], self._merged(mask, axis=axes, keepdims=True))

    def _zero_step_of(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(operation.inputs[0], mask[None])

    def _zero_steps(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        return self._zero(operation.inputs[0], self._merged(mask, axis=0))
