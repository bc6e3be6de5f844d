"""What the settings of an operation say of the axes of its operands."""

from __future__ import annotations

from typing import Any

from opifex.training.multilevel.transfer.tracing.program import Operation, Value

__all__ = ["free_axes", "part_taken", "window_axes"]


def free_axes(operation: Operation) -> tuple[list[int], list[int]]:
    """The axes of both factors of a product that are neither contracted nor common to both.

    Args:
        operation: the product.
    """
    left, right = (
        [axis for axis in range(operand.ndim) if axis not in (*contracted, *common)]
        for operand, contracted, common in zip(
            operation.inputs, *operation.settings["dimension_numbers"], strict=True
        )
    )
    return left, right


def window_axes(operation: Operation) -> list[int]:
    """The axes of an indexed array along which a window is taken or written.

    Args:
        operation: a ``gather`` or a ``scatter``.
    """
    numbers = operation.settings["dimension_numbers"]
    gathered = operation.name == "gather"
    dropped = numbers.collapsed_slice_dims if gathered else numbers.inserted_window_dims
    fixed = (*dropped, *numbers.operand_batching_dims)
    return [axis for axis in range(operation.inputs[0].ndim) if axis not in fixed]


def part_taken(operation: Operation, result: Value) -> tuple[slice, ...]:
    """The index by which a result is a part of the operand.

    Args:
        operation: a ``slice`` or a ``split``.
        result: one of its results.
    """
    settings: dict[str, Any] = operation.settings
    if operation.name == "slice":
        starts, ends = settings["start_indices"], settings["limit_indices"]
        steps = settings["strides"] or (1,) * result.ndim
        return tuple(slice(*bounds) for bounds in zip(starts, ends, steps, strict=True))
    number = next(n for n, part in enumerate(operation.outputs) if part is result)
    axis, sizes = settings["axis"], settings["sizes"]
    start = sum(sizes[:number])
    return (slice(None),) * axis + (slice(start, start + sizes[number]),)
