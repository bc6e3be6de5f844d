"""Two traced models side by side: which axes belong together, and what has to vanish.

Coarse and fine model run the same operations on arrays of other sizes. Walking through both lists in
step gives the map of indices (`index_maps`) of every axis of every array, those of the parameters among
them. On the way it is noted where an old entry of the fine model would depend on a new one: a sum over
new entries (`Need`). Layers that only the fine model has must be terms of a sum, which then have to
vanish as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from opifex.training.multilevel.transfer.tracing.constants import Constants
from opifex.training.multilevel.transfer.tracing.index_maps import (
    IndexMap,
    MapConflictError,
    concatenated,
    factored,
    known,
    leaves,
    multiplied,
    same,
    sliced,
    taken,
    unified,
    unknown,
)
from opifex.training.multilevel.transfer.tracing.program import (
    Operation,
    Path,
    Program,
    Value,
    named,
    needed,
    path_text,
)

__all__ = ["Correspondence", "Need", "StructureError", "Tensor", "correspondence"]


class StructureError(ValueError):
    """Two models are not the same program at two sizes."""


@dataclass
class Tensor:
    """An array of the fine model and its counterpart.

    Attributes:
        maps: where the coarse entries sit, axis by axis; ``None`` for a constant that shrinks.
        ratio: fine over coarse value of the old entries.
        coarse: the value in the coarse program.
    """

    maps: list[IndexMap] | None
    ratio: float
    coarse: Value


@dataclass(frozen=True)
class Need:
    """Something that has to hold for the function to be preserved.

    Attributes:
        kind: ``"contraction"``: the new entries of a product's contracted axes contribute nothing to
            old ones; ``"vanish"``: a value is zero at new entries of some axes; ``"repeat"``: it
            repeats its old entries there; ``"absent"``: a value is zero everywhere.
        value: the value, or the result of the product.
        axes: the axes.
        place: where in the source of the model it arises.
    """

    kind: Literal["contraction", "vanish", "repeat", "absent"]
    value: Value
    axes: tuple[int, ...]
    place: str


@dataclass
class Correspondence:
    """What two programs have in common.

    Attributes:
        coarse: the coarse program.
        fine: the fine program.
        operations: the operations of the fine program that the coarse one has too.
        tensors: counterpart and maps of the values of the fine program, by identity.
        needs: what has to hold for the function to be preserved.
        obstacles: why it cannot be preserved, whatever is done.
        scales: factors by which parameters must be multiplied.
        constants: the constants of both.
    """

    coarse: Program
    fine: Program
    operations: list[Operation] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    needs: list[Need] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    scales: dict[Path, float] = field(default_factory=dict)
    constants: Constants = field(default_factory=Constants)

    def tensor(self, value: Value) -> Tensor:
        """The counterpart of a value of the fine program."""
        return self.tensors[id(value)]

    def maps(self, value: Value) -> list[IndexMap]:
        """The maps of its axes."""
        found = self.tensors[id(value)].maps
        if found is None:
            raise MapConflictError("a constant shrinks from the coarse to the fine level")
        return found

    def users(self) -> dict[int, list[Operation]]:
        """The operations that read each value of the fine program."""
        found: dict[int, list[Operation]] = {}
        for operation in self.operations:
            for value in operation.inputs:
                found.setdefault(id(value), []).append(operation)
        return found


_ELEMENTWISE = named(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp complex conj convert_element_type cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne
    neg nextafter not or pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt
    square stop_gradient sub tan tanh xor branches"""
)
_ALONG = {
    "argmax": "axes",
    "argmin": "axes",
    "cumlogsumexp": "axis",
    "cummax": "axis",
    "cummin": "axis",
    "cumprod": "axis",
    "cumsum": "axis",
    "reduce_window": "window_dimensions",
    "reduce_window_max": "window_dimensions",
    "reduce_window_min": "window_dimensions",
    "reduce_window_sum": "window_dimensions",
    "select_and_scatter_add": "window_dimensions",
    "sort": "dimension",
}
"""Operations that treat some axes as sequences, and the setting that names these axes."""

_PASSES_FACTOR = named(
    """broadcast_in_dim carry carried conj convert_element_type cumsum dynamic_slice fft gather imag
    neg real reduce_max reduce_min reduce_sum reduce_window_sum reduce_window_max reshape rev
    scatter-add slice split squeeze steps stop_gradient transpose reduce_precision"""
) | {"step of"}
_EQUAL_FACTORS = named(
    """add add_any sub max min select_n concatenate carried complex clamp pad branches scatter
    dynamic_update_slice scatter-add"""
)


def remove_added_terms(fine: Program, added: set[Path]) -> list[tuple[Value, str]]:
    """Take the layers that only the fine model has out of its program, where they are terms of sums.

    Args:
        fine: the fine program, whose operations are changed.
        added: paths of the variables that only the fine model has.

    Returns:
        The terms, and where they stand; they have to vanish.
    """
    new = {id(value) for path, value in fine.parameters.items() if path in added}
    while True:
        before = len(new)
        _spread(fine, new)
        if len(new) == before or not any(o.name == "carry" for o in fine.operations):
            break
    replaced: dict[int, Value] = {}
    terms = []
    for operation in fine.operations:
        operation.inputs = [replaced.get(id(value), value) for value in operation.inputs]
        term = _added_term(operation, new)
        if term is not None:
            kept = operation.inputs[1 - term]
            replaced[id(operation.outputs[0])] = kept
            terms.append((operation.inputs[term], operation.place))
    fine.outputs = [replaced.get(id(value), value) for value in fine.outputs]
    return terms


def _added_term(operation: Operation, new: set[int]) -> int | None:
    """Which operand of a sum belongs to an added layer, if the other one does not."""
    if operation.name not in ("add", "add_any", "sub"):
        return None
    belongs = [id(value) in new for value in operation.inputs]
    shape = operation.outputs[0].shape
    for term in (1, 0) if operation.name != "sub" else (1,):
        if belongs[term] and not belongs[1 - term] and operation.inputs[1 - term].shape == shape:
            return term
    return None


def _spread(fine: Program, new: set[int]) -> None:
    for operation in fine.operations:
        if _added_term(operation, new) is not None:
            continue
        depends = any(id(value) in new for value in operation.inputs)
        if operation.name == "carry" and operation.partner is not None:
            depends |= id(operation.partner.inputs[1]) in new
        if depends:
            new.update(id(value) for value in operation.outputs)


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
    _check_added(fine, theirs, added)
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


def _check_added(fine: Program, operations: Sequence[Operation], added: set[Path]) -> None:
    for operation in operations:
        for value in operation.inputs:
            if value.parameter in added:
                raise StructureError(
                    f"{path_text(value.parameter)} exists only on the fine level and has no gate that "
                    f"turns its layer into the identity: the layer at {operation.place} is no term of "
                    "a sum that could start at zero, so the coarse function cannot be preserved; add "
                    "its output to its input (a residual branch), build the models with "
                    "depth_gates=True, or use prolongate"
                )


class _Walk:
    """Gives every value of the fine program its counterpart, operation by operation."""

    def __init__(self, found: Correspondence) -> None:
        self.found = found
        self.constants = found.constants
        self.users = found.users()
        self.rules: dict[str, Callable[..., list[list[IndexMap]]]] = {
            "broadcast_in_dim": self._broadcast,
            "carried": self._carried,
            "carry": self._carry,
            "concatenate": self._concatenate,
            "conv_general_dilated": self._convolution,
            "dot_general": self._product,
            "dynamic_slice": self._dynamic_slice,
            "dynamic_update_slice": self._dynamic_update,
            "fft": self._transform,
            "gather": self._gather,
            "pad": self._pad,
            "reduce_and": self._reduction,
            "reduce_max": self._reduction,
            "reduce_min": self._reduction,
            "reduce_or": self._reduction,
            "reduce_prod": self._reduction,
            "reduce_sum": self._reduction,
            "reshape": self._reshape,
            "rev": self._reverse,
            "scatter": self._scatter,
            "scatter-add": self._scatter,
            "scatter_add": self._scatter,
            "slice": self._slice,
            "split": self._split,
            "squeeze": self._squeeze,
            "step of": self._step_of,
            "steps": self._steps,
            "transpose": self._transpose,
            **dict.fromkeys(_ALONG, self._along),
        } | dict.fromkeys(_ELEMENTWISE, self._elementwise)

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
            maps = self._maps(mine, other, tensors)
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

    def _maps(
        self, mine: Operation, other: Operation, tensors: Sequence[Tensor]
    ) -> list[list[IndexMap]]:
        rule = self.rules.get(mine.name)
        if rule is not None:
            return rule(mine, other, [t.maps for t in tensors])
        if any(m.grows for t in tensors for m in t.maps or ()):
            raise MapConflictError("it is not known what this operation does to an axis that grows")
        return [_pairs(a, b) for a, b in zip(mine.outputs, other.outputs, strict=True)]

    def end(self) -> None:
        """Compare the outputs."""
        for number, (a, b) in enumerate(
            zip(self.found.coarse.outputs, self.found.fine.outputs, strict=False)
        ):
            tensor = self.counterpart(a, b, "the output")
            if abs(tensor.ratio - 1) > 1e-6 and not self._rescaled(b, 1 / tensor.ratio):
                self.found.obstacles.append(
                    f"output {number} of the fine model is {tensor.ratio:.3g} times that of the coarse"
                )
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
            if not self._rescaled(value, 1 / tensor.ratio):
                self.found.obstacles.append(
                    f"at {place} an operand of {name} is {tensor.ratio:.4g} times that of the coarse "
                    "model, since the code divides by a size that grows; no single parameter can be "
                    "scaled to make up for it"
                )
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

    def _rescaled(self, value: Value, factor: float) -> bool:
        """Multiply a value by scaling the parameters that it is made of; whether that is possible."""
        scaled: dict[int, Value] = {}
        if not self._scale(value, scaled):
            return False
        for one in scaled.values():
            for user in self.users.get(id(one), ()):
                inside = any(id(result) in scaled for result in user.outputs)
                if not inside and one is not value:
                    return False
        for one in scaled.values():
            if one.parameter is not None:
                previous = self.found.scales.get(one.parameter, 1.0)
                self.found.scales[one.parameter] = previous * factor
        return True

    def _scale(self, value: Value, scaled: dict[int, Value]) -> bool:
        if id(value) in scaled:
            return True
        operation = value.producer
        if value.parameter is not None:
            scaled[id(value)] = value
            return True
        if operation is None:
            return False
        if operation.name in _PASSES_FACTOR - {"carry", "carried"}:
            choices = [operation.inputs[:1]]
        elif operation.name in ("add", "add_any", "sub", "concatenate", "max", "min"):
            choices = [[i for i in operation.inputs if not self._without_size(i)]]
        elif operation.name in ("mul", "dot_general", "conv_general_dilated"):
            choices = [[i] for i in reversed(operation.inputs)]
        elif operation.name == "div":
            choices = [operation.inputs[:1]]
        else:
            return False
        for choice in choices:
            attempt = dict(scaled)
            attempt[id(value)] = value
            if all(self._scale(i, attempt) for i in choice):
                scaled.update(attempt)
                return True
        return False

    def _growth_of_mean(self, other: Operation, tensor: Tensor) -> float:
        """By what a sum grows: more than not at all if it is the sum of a mean, of repeated entries."""
        growth = self._mean_growth(other, tensor.maps or [])
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

    def _mean_growth(self, other: Operation, maps: Sequence[IndexMap]) -> float | None:
        grown = [maps[axis] for axis in other.settings["axes"] if maps[axis].grows]
        if not grown:
            return None
        growth = math.prod(m.fine / m.coarse for m in grown)
        result = other.outputs[0]
        for user in self.users.get(id(result), ()):
            if user.name in ("div", "mul"):
                divisor = user.inputs[1 - user.inputs.index(result)]
                number = (
                    self.constants.uniform(divisor) if self.constants.is_constant(divisor) else None
                )
                full = math.prod(other.inputs[0].shape[axis] for axis in other.settings["axes"])
                if number and (number if user.name == "div" else 1 / number) == full:
                    return growth
        return None

    # -- rules: the maps of the results from those of the operands ------------------------------

    def _need(self, kind: Any, value: Value, axes: Sequence[int], place: str) -> None:
        self.found.needs.append(Need(kind, value, tuple(axes), place))

    def _elementwise(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        result: list[IndexMap] = []
        for axis, sizes in enumerate(
            zip(mine.outputs[0].shape, other.outputs[0].shape, strict=True)
        ):
            found: IndexMap | None = None
            for of_one in maps:
                if len(of_one) <= axis or (of_one[axis].fine == 1 and sizes[1] != 1):
                    continue
                if of_one[axis].coarse == 1 and sizes[0] != 1:
                    raise MapConflictError("an axis is repeated on the coarse level only")
                found = of_one[axis] if found is None else unified(found, of_one[axis])
            result.append(unknown(*sizes) if found is None else found)
        return [result]

    def _product(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        (contract_l, contract_r), (batch_l, batch_r) = other.settings["dimension_numbers"]
        left, right = maps
        for a, b in zip((*contract_l, *batch_l), (*contract_r, *batch_r), strict=True):
            unified(left[a], right[b])
        if any(left[a].grows for a in contract_l):
            self._need("contraction", other.outputs[0], contract_l, other.place)
        free_l = [m for a, m in enumerate(left) if a not in (*contract_l, *batch_l)]
        free_r = [m for a, m in enumerate(right) if a not in (*contract_r, *batch_r)]
        return [[left[a] for a in batch_l] + free_l + free_r]

    def _convolution(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        field_maps, kernel_maps = maps
        numbers = other.settings["dimension_numbers"]
        lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        groups = mine.settings["feature_group_count"], other.settings["feature_group_count"]
        if other.settings["batch_group_count"] != 1:
            raise MapConflictError("groups of a batch have no rule")
        features, made = field_maps[lhs[1]], kernel_maps[rhs[0]]
        if groups == (1, 1):
            unified(features, kernel_maps[rhs[1]])
        else:
            each = tuple(n // g for n, g in zip((made.coarse, made.fine), groups, strict=True))
            inner = kernel_maps[rhs[1]]
            outer_in, inner_in = factored(features, groups, (inner.coarse, inner.fine))
            outer_out, _ = factored(made, groups, (each[0], each[1]))
            unified(outer_in, outer_out)
            unified(inner_in, inner)
        result: list[IndexMap] = [same(1)] * len(out)
        result[out[0]], result[out[1]] = field_maps[lhs[0]], made
        for number, (a, k, o) in enumerate(zip(lhs[2:], rhs[2:], out[2:], strict=True)):
            if field_maps[a].grows:
                raise MapConflictError("a convolution runs along an axis that grows")
            if kernel_maps[k].grows:
                # The old entries of a larger kernel are where the padding keeps them.
                pads = [o_.settings["padding"][number][0] for o_ in (mine, other)]
                shift = (pads[1] - pads[0]) // other.settings["rhs_dilation"][number]
                unified(
                    kernel_maps[k],
                    known(np.arange(kernel_maps[k].coarse) + shift, kernel_maps[k].fine),
                )
            result[o] = unknown(mine.outputs[0].shape[o], other.outputs[0].shape[o])
        if any(kernel_maps[axis].grows for axis in rhs[1:]):
            self._need("contraction", other.outputs[0], rhs[1:], other.place)
        return [result]

    def _reduction(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        axes = other.settings["axes"]
        grown = [axis for axis in axes if maps[0][axis].grows]
        if grown:
            if other.name == "reduce_sum":
                if self._mean_growth(other, maps[0]) is None:
                    self._need("vanish", other.inputs[0], grown, other.place)
            elif all(
                leaf.fine % leaf.coarse == 0 for axis in grown for leaf in leaves(maps[0][axis])
            ):
                self._need("repeat", other.inputs[0], grown, other.place)
            else:
                self.found.obstacles.append(
                    f"{other.name} at {other.place} runs over entries that only the fine level has"
                )
        return [[m for axis, m in enumerate(maps[0]) if axis not in axes]]

    def _transpose(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        return [[maps[0][axis] for axis in other.settings["permutation"]]]

    def _reshape(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        new = list(zip(mine.outputs[0].shape, other.outputs[0].shape, strict=True))
        return [_regrouped(list(maps[0]), new)]

    def _squeeze(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        return [[m for axis, m in enumerate(maps[0]) if axis not in other.settings["dimensions"]]]

    def _broadcast(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        sizes = list(zip(mine.outputs[0].shape, other.outputs[0].shape, strict=True))
        result = [unknown(*s) for s in sizes]
        if mine.settings["broadcast_dimensions"] != other.settings["broadcast_dimensions"]:
            raise MapConflictError("the levels repeat other axes")
        for m, axis in zip(maps[0], other.settings["broadcast_dimensions"], strict=True):
            if (m.coarse, m.fine) == sizes[axis]:
                result[axis] = m
            elif m.fine != 1:
                raise MapConflictError("an axis is repeated on the coarse level only")
        return [result]

    def _slice(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        result = []
        for axis, m in enumerate(maps[0]):
            (start_c, end_c, step_c), (start_f, end_f, step_f) = (
                (
                    o.settings["start_indices"][axis],
                    o.settings["limit_indices"][axis],
                    (o.settings["strides"] or (1,) * len(maps[0]))[axis],
                )
                for o in (mine, other)
            )
            if step_c == step_f == 1:
                result.append(sliced(m, (start_c, end_c), (start_f, end_f)))
            else:
                result.append(
                    taken(m, np.arange(start_c, end_c, step_c), np.arange(start_f, end_f, step_f))
                )
        return [result]

    def _split(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        axis, results = other.settings["axis"], []
        ends = [np.cumsum([0, *o.settings["sizes"]]) for o in (mine, other)]
        for number in range(len(other.outputs)):
            of_one = list(maps[0])
            spans = [(int(e[number]), int(e[number + 1])) for e in ends]
            of_one[axis] = sliced(of_one[axis], spans[0], spans[1])
            results.append(of_one)
        return results

    def _reverse(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        result = list(maps[0])
        for axis in other.settings["dimensions"]:
            m = result[axis]
            if m.grows:
                result[axis] = taken(m, np.arange(m.coarse)[::-1], np.arange(m.fine)[::-1])
        return [result]

    def _concatenate(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        axis = other.settings["dimension"]
        result = []
        for number in range(other.outputs[0].ndim):
            found = [of_one[number] for of_one in maps if of_one is not None]
            if number != axis:
                first = found[0]
                for m in found[1:]:
                    first = unified(first, m)
                result.append(first)
                continue
            if len(found) == len(maps):
                result.append(concatenated(found))
                continue
            size = other.outputs[0].shape[axis]
            if mine.outputs[0].shape[axis] != size:
                raise MapConflictError("a part of a concatenation shrinks")
            result.append(same(size))
            start_c = start_f = 0
            for part, value, counterpart in zip(maps, other.inputs, mine.inputs, strict=True):
                if part is None:
                    if self.constants.uniform(value) != 0:
                        raise MapConflictError("a part of a concatenation shrinks that is not zero")
                elif part[axis].fine:
                    m = part[axis]
                    unified(m, known(np.arange(m.coarse) + start_c - start_f, m.fine))
                    if m.grows:
                        self._need("vanish", value, [axis], other.place)
                start_c += counterpart.shape[axis]
                start_f += value.shape[axis]
        return [result]

    def _pad(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        result = []
        for axis, m in enumerate(maps[0]):
            (low_c, high_c, inner_c), (low_f, high_f, inner_f) = (
                o.settings["padding_config"][axis] for o in (mine, other)
            )
            sizes = mine.outputs[0].shape[axis], other.outputs[0].shape[axis]
            if not m.grows:
                result.append(unknown(*sizes))
            elif inner_c or inner_f or min(low_c, high_c, low_f, high_f) < 0:
                raise MapConflictError("an axis that grows is padded inside, or cut")
            elif sizes[0] == sizes[1]:
                # Where the fine level has data, the coarse one has the value of the padding.
                if self.constants.uniform(other.inputs[1]) != 0:
                    raise MapConflictError(
                        "an axis that grows is padded by something else than zero"
                    )
                unified(m, known(np.arange(m.coarse) + low_c - low_f, m.fine))
                self._need("vanish", other.inputs[0], [axis], other.place)
                result.append(same(sizes[0]))
            else:
                result.append(concatenated([unknown(low_c, low_f), m, unknown(high_c, high_f)]))
        return [result]

    def _dynamic_slice(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
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

    def _dynamic_update(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        for whole, part in zip(maps[0], maps[1], strict=True):
            if (whole.coarse, whole.fine) == (part.coarse, part.fine):
                unified(whole, part)
            elif whole.grows or part.grows:
                raise MapConflictError("a part of an axis that grows is replaced")
        return [list(maps[0])]

    def _transform(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        first = len(maps[0]) - len(other.settings["fft_lengths"])
        if any(m.grows for m in maps[0][first:]):
            raise MapConflictError("a Fourier transform runs along an axis that grows")
        shapes = zip(mine.outputs[0].shape[first:], other.outputs[0].shape[first:], strict=True)
        return [[*maps[0][:first], *(unknown(*sizes) for sizes in shapes)]]

    def _gather(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        numbers = other.settings["dimension_numbers"]
        operand, indices = maps[0], maps[1][:-1]
        if mine.settings["dimension_numbers"] != numbers:
            raise MapConflictError("the levels index in other ways")
        batch = numbers.operand_batching_dims
        window = [
            a for a in range(len(operand)) if a not in (*numbers.collapsed_slice_dims, *batch)
        ]
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
        rest, offsets = list(indices), iter(window)
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

    def _scatter(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        numbers = other.settings["dimension_numbers"]
        operand, _, updates = maps
        fixed = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        window = [axis for axis in range(len(operand)) if axis not in fixed]
        for axis, u in zip(window, numbers.update_window_dims, strict=True):
            if (operand[axis].coarse, operand[axis].fine) == (updates[u].coarse, updates[u].fine):
                unified(operand[axis], updates[u])
            elif operand[axis].grows or updates[u].grows:
                raise MapConflictError("a part of an axis that grows is replaced")
        others = [u for axis, u in enumerate(updates) if axis not in numbers.update_window_dims]
        if any(u.grows for u in others) or any(operand[axis].grows for axis in fixed):
            raise MapConflictError("entries of an axis that grows are chosen by data")
        return [list(operand)]

    def _along(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        setting = other.settings[_ALONG[other.name]]
        if _ALONG[other.name] == "window_dimensions":
            axes = [axis for axis, size in enumerate(setting) if size != 1]
        else:
            axes = list(setting) if isinstance(setting, tuple | list) else [setting]
        if any(m.grows for axis in axes for m in (maps[0][axis],)):
            raise MapConflictError("it runs along an axis that grows")
        kept = list(maps[0])
        for of_one in maps[1:]:
            if len(of_one) == len(kept):
                kept = [k if k.grows else m for k, m in zip(kept, of_one, strict=True)]
        if other.name.startswith("arg"):
            kept = [m for axis, m in enumerate(kept) if axis not in axes]
        return [
            [
                m if (m.coarse, m.fine) == sizes else unknown(*sizes)
                for m, sizes in zip(kept, zip(a.shape, b.shape, strict=True), strict=True)
            ]
            for a, b in zip(mine.outputs, other.outputs, strict=True)
        ]

    def _carry(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        return [list(maps[0])]

    def _carried(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        return [[unified(a, b) for a, b in zip(*maps, strict=True)]]

    def _step_of(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        if maps[0][0].grows:
            raise MapConflictError(
                "a loop over layers becomes longer; write the layers out, so that each added one can be "
                "a term of a sum"
            )
        return [list(maps[0][1:])]

    def _steps(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        length = mine.outputs[0].shape[0], other.outputs[0].shape[0]
        return [[unknown(*length), *maps[0]]]


def _regrouped(old: list[IndexMap], new: list[tuple[int, int]]) -> list[IndexMap]:
    """The maps of the axes after a reshape: the shortest runs of axes of equal size on both levels."""
    result: list[IndexMap] = []
    old, new = list(old), list(new)
    while old or new:
        if new and new[0] == (1, 1):
            result.append(same(1))
            new.pop(0)
            continue
        if old and (old[0].coarse, old[0].fine) == (1, 1):
            old.pop(0)
            continue
        if not old or not new:
            raise MapConflictError("the axes of a reshape do not line up")
        group_old, group_new = [old.pop(0)], [new.pop(0)]
        while True:
            sizes_old = [math.prod(getattr(m, s) for m in group_old) for s in ("coarse", "fine")]
            sizes_new = [math.prod(size[s] for size in group_new) for s in (0, 1)]
            if sizes_old == sizes_new:
                break
            if sizes_old[1] < sizes_new[1] or (
                sizes_old[1] == sizes_new[1] and sizes_old[0] < sizes_new[0]
            ):
                if not old:
                    raise MapConflictError("the axes of a reshape do not line up")
                group_old.append(old.pop(0))
            else:
                if not new:
                    raise MapConflictError("the axes of a reshape do not line up")
                group_new.append(new.pop(0))
        merged = multiplied(group_old)
        pieces: list[IndexMap] = []
        while len(group_new) > 1:
            last = group_new.pop()
            outer = math.prod(s[0] for s in group_new), math.prod(s[1] for s in group_new)
            merged, piece = factored(merged, outer, last)
            pieces.append(piece)
        result += [merged, *reversed(pieces)]
    return result


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
