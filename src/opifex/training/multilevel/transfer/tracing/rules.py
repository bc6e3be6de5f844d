"""What each operation does to the index maps of the axes of its operands.

A rule gets an operation of the coarse program, the same one of the fine program and the maps of the
operands, axis by axis, and returns the maps of the results. On the way it notes what has to hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from opifex.training.multilevel.transfer.tracing.axis_roles import free_axes
from opifex.training.multilevel.transfer.tracing.correspondence import Correspondence, Need
from opifex.training.multilevel.transfer.tracing.index_maps import (
    IndexMap,
    MapConflictError,
    concatenated,
    factored,
    known,
    leaves,
    regrouped,
    same,
    sliced,
    taken,
    unified,
    unknown,
)
from opifex.training.multilevel.transfer.tracing.indexing_rules import IndexingRules
from opifex.training.multilevel.transfer.tracing.program import Operation, Value, named

__all__ = ["Rules"]

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


class Rules(IndexingRules):
    """The rules, and what they note about two models.

    Args:
        found: the models, of which maps and needs are noted.
    """

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
            "dynamic_slice": self.dynamic_slice,
            "dynamic_update_slice": self.dynamic_update,
            "fft": self._transform,
            "gather": self.gather,
            "pad": self._pad,
            "reduce_and": self._reduction,
            "reduce_max": self._reduction,
            "reduce_min": self._reduction,
            "reduce_or": self._reduction,
            "reduce_prod": self._reduction,
            "reduce_sum": self._reduction,
            "reshape": self._reshape,
            "rev": self._reverse,
            "scatter": self.scatter,
            "scatter-add": self.scatter,
            "scatter_add": self.scatter,
            "slice": self._slice,
            "split": self._split,
            "squeeze": self._squeeze,
            "step of": self._step_of,
            "steps": self._steps,
            "transpose": self._transpose,
            **dict.fromkeys(_ALONG, self._along),
        } | dict.fromkeys(_ELEMENTWISE, self._elementwise)

    def results(
        self, mine: Operation, other: Operation, maps: Sequence[Any]
    ) -> list[list[IndexMap]]:
        """The maps of the results of an operation, from those of its operands.

        Args:
            mine: the operation of the coarse program.
            other: the operation of the fine program.
            maps: of every operand the maps of its axes, ``None`` for a constant that shrinks.

        Raises:
            MapConflictError: if the levels cannot belong together in this way.
        """
        rule = self.rules.get(mine.name)
        if rule is not None:
            return rule(mine, other, maps)
        if any(m.grows for of_one in maps for m in of_one or ()):
            raise MapConflictError("it is not known what this operation does to an axis that grows")
        return [
            [unknown(c, f) for c, f in zip(a.shape, b.shape, strict=True)]
            for a, b in zip(mine.outputs, other.outputs, strict=True)
        ]

    def mean_growth(self, other: Operation, maps: Sequence[IndexMap]) -> float | None:
        """By what factor the terms of a mean become more, ``None`` of anything else."""
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
        free_l, free_r = free_axes(other)
        return [[left[a] for a in (*batch_l, *free_l)] + [right[a] for a in free_r]]

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
                if self.mean_growth(other, maps[0]) is None:
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
        return [regrouped(list(maps[0]), new)]

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

    def _transform(self, mine: Any, other: Any, maps: Any) -> list[list[IndexMap]]:
        first = len(maps[0]) - len(other.settings["fft_lengths"])
        if any(m.grows for m in maps[0][first:]):
            raise MapConflictError("a Fourier transform runs along an axis that grows")
        shapes = zip(mine.outputs[0].shape[first:], other.outputs[0].shape[first:], strict=True)
        return [[*maps[0][:first], *(unknown(*sizes) for sizes in shapes)]]

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
