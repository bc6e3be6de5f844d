"""By which factors parameters must be multiplied so that a value of a program is.

Code may divide by a size that grows, as attention does by the root of the width of its heads. The
values that are too small by a factor are then followed back to parameters in the same way as values
that have to vanish (`zeros_behind`): a sum passes a factor on to all its terms, a product to one of its
factors. But a factor must reach exactly the entries that it is for, and nothing else may read them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opifex.training.multilevel.transfer.tracing.axis_roles import part_taken
from opifex.training.multilevel.transfer.tracing.program import Operation, Value, named
from opifex.training.multilevel.transfer.tracing.zeros_behind import (
    ImpossibleError,
    Mask,
    Zeros,
    ZerosBehind,
    compressed,
)

__all__ = ["FactorsBehind"]

_PRODUCTS = named("mul div dot_general conv_general_dilated")


class FactorsBehind(ZerosBehind):
    """Follows a value that has to be multiplied back to parameters.

    Args:
        found: the models.
        already: entries that are zero in any case.
    """

    passed_on = named(
        "conj convert_element_type cumsum imag neg real reduce_precision stop_gradient"
    )
    may_be_more = False

    def parts(self, value: Value) -> Zeros:
        """The entries of parameters that are to be multiplied, so that a value is.

        Raises:
            ImpossibleError: if there are none, or if something else reads them too.
        """
        reasons = []
        # Of a product either factor will do, but perhaps only one that nothing else reads.
        for self.first_factor in (0, 1):
            self.chain: dict[int, tuple[Value, Mask]] = {}
            try:
                parts = self._zero(value, np.ones((1,) * value.ndim, bool))
                self._check_users(value)
            except ImpossibleError as error:
                reasons.append(str(error))
            else:
                return parts
        raise ImpossibleError("; ".join(dict.fromkeys(reasons)))

    def _check_users(self, value: Value) -> None:
        for one, mask in self.chain.values():
            for user in self.users.get(id(one), ()):
                if one is not value:
                    self._check_user(user, one, mask)

    def _check_user(self, user: Operation, value: Value, mask: Mask) -> None:
        multiplied = [id(i) in self.chain for i in user.inputs]
        inside = [id(result) in self.chain for result in user.outputs]
        if all(inside) and user.name in _PRODUCTS and sum(multiplied) > 1:
            raise ImpossibleError(f"both factors of {user.name} at {user.place} would change")
        for result, is_inside in zip(user.outputs, inside, strict=True):
            if not is_inside and np.any(_taken(user, value, result, mask)):
                raise ImpossibleError(f"{user.name} at {user.place} reads the same numbers")

    def _zero(self, value: Value, mask: Mask) -> Zeros:
        mask = compressed(mask)
        if not mask.any():
            return {}
        if id(value) in self.chain:
            if not np.array_equal(self.chain[id(value)][1], mask):
                raise ImpossibleError("two parts of an array would be multiplied")
            return {}
        before = dict(self.chain)
        self.chain[id(value)] = value, mask
        try:
            return self.zero_by_rule(value, mask)
        except ImpossibleError:
            self.chain = before
            raise

    def _merged(self, mask: Mask, axis: Any, keepdims: bool = False) -> Mask:
        merged = super()._merged(mask, axis, keepdims=True)
        if not np.array_equal(np.broadcast_to(merged, mask.shape), mask):
            raise ImpossibleError("only a part of what an array is used for would be multiplied")
        return merged if keepdims else np.squeeze(merged, axis)

    def _any(self, wanted: Any) -> Zeros:
        reasons = []
        for value, mask in wanted if self.first_factor == 0 else reversed(wanted):
            try:
                return self._zero(value, mask())
            except ImpossibleError as error:
                reasons.append(str(error))
        raise ImpossibleError("; ".join(dict.fromkeys(reasons)))

    def _zero_constant(self, value: Value, mask: Mask) -> Zeros:
        number = self.found.constants.value(value)
        if number is None or np.any(
            np.broadcast_to(mask, value.shape) & np.isfinite(number) & (number != 0)
        ):
            raise ImpossibleError("a constant there would change")
        return {}

    def _zero_parameter(self, value: Value, mask: Mask) -> Zeros:
        path = value.parameter
        assert path is not None
        return {path: mask}

    def _zero_carry(self, operation: Any, value: Value, mask: Mask) -> Zeros:
        raise ImpossibleError(f"a loop at {operation.place} carries it along")


def _taken(user: Operation, value: Value, result: Value, mask: Mask) -> Mask:
    """What an operation that takes a part of an array takes of a mask; all of it, if it is none."""
    if user.name in ("slice", "split"):
        return np.broadcast_to(mask, value.shape)[part_taken(user, result)]
    return mask
