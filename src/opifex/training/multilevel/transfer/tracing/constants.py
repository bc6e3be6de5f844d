"""The values of what a traced model computes from constants alone, worked out only where they matter."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from opifex.training.multilevel.transfer.tracing.program import Value

__all__ = ["Constants"]

_LARGEST = 2**26


def _broadcast(operand: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    shape = [1] * len(settings["shape"])
    for axis, size in zip(settings["broadcast_dimensions"], operand.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(operand.reshape(shape), settings["shape"])


class Constants:
    """Which values of a program are constant, and what they are."""

    def __init__(self) -> None:
        self._values: dict[int, np.ndarray] = {}
        self._constant: dict[int, bool] = {}

    def is_constant(self, value: Value) -> bool:
        """Whether a value depends on neither parameters nor inputs."""
        known = self._constant.get(id(value))
        if known is None:
            made_by = value.producer
            primitive = None if made_by is None else made_by.primitive
            known = not jax.numpy.issubdtype(value.dtype, jax.dtypes.extended) and (
                value.constant is not None
                or (
                    made_by is not None
                    and primitive is not None
                    and not primitive.multiple_results
                    and all(map(self.is_constant, made_by.inputs))
                )
            )
            self._constant[id(value)] = known
        return known

    def same(self, a: Value, b: Value) -> bool:
        """Whether two constants are computed in the same way from the same numbers."""
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.constant is not None or b.constant is not None:
            both = a.constant is not None and b.constant is not None
            return both and bool(np.array_equal(a.constant, b.constant))
        first, second = a.producer, b.producer
        assert first is not None
        assert second is not None
        return (
            first.name == second.name
            and first.settings == second.settings
            and len(first.inputs) == len(second.inputs)
            and all(map(self.same, first.inputs, second.inputs))
        )

    def value(self, value: Value) -> np.ndarray | None:
        """The value of a constant; ``None`` if it would be too large to be worked out."""
        if id(value) in self._values:
            return self._values[id(value)]
        if value.constant is not None:
            result = np.asarray(value.constant)
        else:
            operation = value.producer
            assert operation is not None
            if math.prod(value.shape) > _LARGEST:
                return None
            inputs = [self.value(i) for i in operation.inputs]
            if any(i is None for i in inputs):
                return None
            if operation.name == "broadcast_in_dim":
                result = _broadcast(np.asarray(inputs[0]), operation.settings)
            elif operation.name == "reshape":
                result = np.reshape(np.asarray(inputs[0]), value.shape)
            else:
                with jax.ensure_compile_time_eval():
                    result = np.asarray(
                        operation.primitive.bind(
                            *map(jax.numpy.asarray, inputs), **operation.settings
                        )
                    )
        self._values[id(value)] = result
        return result

    def uniform(self, value: Value) -> Any:
        """The one number that a constant consists of, else ``None``."""
        while value.producer is not None and value.producer.name in ("broadcast_in_dim", "reshape"):
            value = value.producer.inputs[0]
        array = self.value(value)
        if array is None or array.size == 0 or np.any(array != array.flat[0]):
            return None
        return array.flat[0]
