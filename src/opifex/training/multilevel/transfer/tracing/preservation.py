"""Which new entries of parameters have to be zero, or repeat old ones, so that a function is preserved.

Every `Need` is followed backwards through the fine program until parameters are reached. A product is
kept free of new entries by zeros in that factor which is a parameter; where neither is one (the scores
of attention), by zeros in what makes one of them (`zeros_behind`). Factors make up for sizes that the
code divides by (`factors_behind`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opifex.training.multilevel.transfer.tracing.axes_behind import (
    UnfollowedError,
    axes_behind,
    carries,
)
from opifex.training.multilevel.transfer.tracing.correspondence import Correspondence, Need
from opifex.training.multilevel.transfer.tracing.factors_behind import FactorsBehind
from opifex.training.multilevel.transfer.tracing.index_maps import (
    IndexMap,
    leaves,
    source_entries,
)
from opifex.training.multilevel.transfer.tracing.program import Path, Value, path_text
from opifex.training.multilevel.transfer.tracing.zeros_behind import (
    ImpossibleError,
    Mask,
    Zeros,
    ZerosBehind,
)

__all__ = ["Preservation", "preservation"]


@dataclass
class Preservation:
    """What the new entries of the parameters of a fine model must be.

    Attributes:
        zeros: by path, an array of bools that can be broadcast to the parameter: zero there.
        factors: by path, a number and where the parameter must be multiplied by it.
        repeated: by path, axes and groups of features along which the parameter repeats its old
            entries.
        obstacles: why the function cannot be preserved; empty if it can.
    """

    zeros: Zeros = field(default_factory=dict)
    factors: dict[Path, tuple[float, Mask]] = field(default_factory=dict)
    repeated: dict[Path, list[tuple[int, IndexMap]]] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)


def preservation(found: Correspondence) -> Preservation:
    """Work out what the needs of two models in correspondence ask of the parameters."""
    solver = _Solver(found)
    result = solver.result
    result.obstacles += found.obstacles
    for need in sorted(found.needs, key=lambda n: n.kind != "repeat"):
        try:
            solver.meet(need)
        except (ImpossibleError, UnfollowedError) as error:
            result.obstacles.append(f"{_described(need)} at {need.place}: {error}")
    solver.check_repetitions()
    return result


def _described(need: Need) -> str:
    return {
        "factor": f"{1 / need.factor:.4g} times the value of the coarse model, since the code divides "
        "by a size that grows, and no parameter can make up for it,",
        "contraction": "a sum over features that are new on the fine level",
        "vanish": "a sum or a padded axis with entries that are new on the fine level",
        "repeat": "a statistic over features whose number grows",
        "absent": "a term that only the fine level has",
    }[need.kind]


def _is_part(zeros: Zeros, other: Zeros) -> bool:
    """Whether zeros are some of those of another way."""
    return all(path in other and not np.any(m & ~other[path]) for path, m in zeros.items())


class _Solver(ZerosBehind):
    """Follows what is needed back to parameters."""

    def __init__(self, found: Correspondence) -> None:
        self.result = Preservation()
        super().__init__(found, self.result.zeros)

    # -- needs ----------------------------------------------------------------------------------

    def meet(self, need: Need) -> None:
        """Add what one need asks for to the result."""
        if need.kind == "repeat":
            for axis in need.axes:
                for group in leaves(self.found.maps(need.value)[axis]):
                    self.repeat(need.value, axis, group, set())
            return
        if need.kind == "factor":
            self.multiply(need)
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

    def multiply(self, need: Need) -> None:
        """Multiply the parameters that a value is made of."""
        parts = FactorsBehind(self.found, {}).parts(need.value)
        for path, mask in parts.items():
            factor, before = self.result.factors.get(path, (need.factor, mask))
            if not np.array_equal(before, mask):
                raise ImpossibleError(f"two parts of {path_text(path)} would be multiplied")
            known = path in self.result.factors
            self.result.factors[path] = factor * need.factor if known else factor, mask

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
        ways: list[tuple[Any, Zeros]] = []
        reasons = []
        for value, mask in sorted(candidates, key=lambda pair: self.distance(pair[0])):
            distance = self.distance(value)
            try:
                zeros = self.zero(value, mask)
            except ImpossibleError as error:
                reasons.append(str(error))
                continue
            if distance == 0:
                return zeros
            cost = sum(self.cost(path, m) for path, m in zeros.items())
            ways.append((((cost > 0) * (1 + distance), cost), zeros))
        if not ways:
            raise ImpossibleError("; ".join(dict.fromkeys(reasons)))
        # What does with a part of the zeros of another way leaves more that is not zero.
        least = [
            way for way in ways if not any(_is_part(o[1], way[1]) for o in ways if o is not way)
        ]
        return min(least or ways, key=lambda way: way[0])[1]

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
                raise ImpossibleError("a constant there differs from entry to entry")
            return
        operation = value.producer
        if operation is None:
            raise ImpossibleError("an input of the model reaches it")
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
