"""Following one axis of an array back to the arrays that it was made of."""

from __future__ import annotations

from typing import Any

from opifex.training.multilevel.transfer.tracing.axis_roles import free_axes, window_axes
from opifex.training.multilevel.transfer.tracing.correspondence import Correspondence
from opifex.training.multilevel.transfer.tracing.index_maps import IndexMap, leaves
from opifex.training.multilevel.transfer.tracing.program import Path, Value, named

__all__ = ["FORM", "UnfollowedError", "axes_behind", "carries", "contracted_axes"]

FORM = named(
    """broadcast_in_dim complex concatenate convert_element_type imag mul neg real reshape rev slice
    squeeze transpose split div"""
)
"""Operations that change the form of an array, or its sign or size, but not what it is."""


class UnfollowedError(ValueError):
    """An axis cannot be followed further back."""


def carries(found: Correspondence, value: Value, axis: int, group: IndexMap) -> bool:
    """Whether an axis is made of a group of features.

    Args:
        found: the models.
        value: an array of the fine one.
        axis: its axis.
        group: the group.
    """
    tensor = found.tensors.get(id(value))
    if tensor is None or tensor.maps is None:
        return False
    roots = leaves(group)
    return any(leaf is root for leaf in leaves(tensor.maps[axis]) for root in roots)


def axes_behind(
    found: Correspondence, operation: Any, value: Value, axis: int, group: IndexMap
) -> list[tuple[Value, int]]:
    """The axes of the operands from which one axis of a result comes.

    Args:
        found: the models.
        operation: the operation that computes the result.
        value: the result.
        axis: its axis.
        group: a group of features that the axis is made of.

    Raises:
        UnfollowedError: if an index decides which entries there are.
    """
    name, settings, inputs = operation.name, operation.settings, operation.inputs
    if name == "dot_general":
        _, (batch_l, batch_r) = settings["dimension_numbers"]
        left, right = inputs
        if axis < len(batch_l):
            return [(left, batch_l[axis]), (right, batch_r[axis])]
        free_l, free_r = free_axes(operation)
        free = [*((left, a) for a in free_l), *((right, a) for a in free_r)]
        return [free[axis - len(batch_l)]]
    if name == "conv_general_dilated":
        numbers = settings["dimension_numbers"]
        grouped = [(inputs[0], numbers.lhs_spec[1])] * (settings["feature_group_count"] > 1)
        return [(inputs[1], numbers.rhs_spec[0]), *grouped]
    if name == "transpose":
        return [(inputs[0], settings["permutation"][axis])]
    if name == "broadcast_in_dim":
        kept = list(settings["broadcast_dimensions"])
        return [(inputs[0], kept.index(axis))] if axis in kept else []
    if name == "squeeze" or (name.startswith("reduce_") and "axes" in settings):
        dropped = settings["dimensions" if name == "squeeze" else "axes"]
        kept = [a for a in range(inputs[0].ndim) if a not in dropped]
        return [(inputs[0], kept[axis])]
    if name == "step of":
        return [(inputs[0], axis + 1)]
    if name == "steps":
        return [(inputs[0], axis - 1)] if axis else []
    if name == "reshape":
        # The n-th axis with this group comes from the n-th one.
        number = sum(carries(found, value, a, group) for a in range(axis))
        axes = [a for a in range(inputs[0].ndim) if carries(found, inputs[0], a, group)]
        return [(inputs[0], axes[min(number, len(axes) - 1)])]
    if name == "gather":
        numbers = settings["dimension_numbers"]
        if axis not in numbers.offset_dims:
            raise UnfollowedError("entries of it are chosen by an index")
        return [(inputs[0], window_axes(operation)[list(numbers.offset_dims).index(axis)])]
    if name in ("scatter", "scatter-add"):
        numbers = settings["dimension_numbers"]
        update = numbers.update_window_dims[window_axes(operation).index(axis)]
        return [(inputs[0], axis), (inputs[2], update)]
    return [(i, axis - value.ndim + i.ndim) for i in inputs if axis - value.ndim + i.ndim >= 0]


def contracted_axes(found: Correspondence) -> set[tuple[Path, int]]:
    """Paths and growing axes of parameters over which a product runs."""
    result: set[tuple[Path, int]] = set()
    for operation in found.operations:
        if operation.name == "dot_general":
            contracted = operation.settings["dimension_numbers"][0]
        elif operation.name == "conv_general_dilated":
            contracted = ((), operation.settings["dimension_numbers"].rhs_spec[1:])
        else:
            continue
        for operand, axes in zip(operation.inputs, contracted, strict=True):
            tensor = found.tensors.get(id(operand))
            for axis in axes if tensor is not None and tensor.maps is not None else ():
                for group in leaves(found.maps(operand)[axis]):
                    result |= _parameter_axes(found, operand, axis, group)
    return result


def _parameter_axes(
    found: Correspondence, value: Value, axis: int, group: IndexMap
) -> set[tuple[Path, int]]:
    if not carries(found, value, axis, group):
        return set()
    if value.parameter is not None:
        return {(value.parameter, axis)}
    operation = value.producer
    if operation is None or operation.name not in FORM:
        return set()
    result: set[tuple[Path, int]] = set()
    for operand, behind in axes_behind(found, operation, value, axis, group):
        result |= _parameter_axes(found, operand, behind, group)
    return result
