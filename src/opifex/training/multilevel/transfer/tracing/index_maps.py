r"""Where the entries of a coarse axis sit on the corresponding fine axis.

Every axis of every array in a traced model has an injective map of its coarse indices into its fine
ones. The operations of a model relate these maps: a sum over an axis of two arrays needs the same map on
both, a concatenation lines maps up, a reshape multiplies them in mixed radix,

$$e_{ab}(i\,b_c + j) = e_a(i)\, b_f + e_b(j).$$

The maps of parameters are unknown at first. So a map is a term: unknown, known, a concatenation or a
product of other maps. Making two maps one (`unify`) is the unification of such terms; what nothing
determines in the end keeps the old entries in front. An axis whose size does not change keeps its order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

__all__ = [
    "IndexMap",
    "MapConflictError",
    "concatenated",
    "factored",
    "known",
    "leaves",
    "multiplied",
    "old_entries",
    "regrouped",
    "resolved",
    "same",
    "sliced",
    "source_entries",
    "taken",
    "unified",
    "unknown",
]


class MapConflictError(ValueError):
    """Two operations of a model ask for different places of the same coarse entries."""


class IndexMap:
    """One term: the map of an axis of ``coarse`` entries into one of ``fine`` entries.

    Attributes:
        coarse: size of the coarse axis.
        fine: size of the fine axis.
        kind: what is known of the map.
        array: fine index of every coarse one, of a known map.
        parts: the maps that a concatenation or a product consists of.
        linked: the term that this one was unified with.
    """

    __slots__ = ("array", "coarse", "fine", "kind", "linked", "parts")

    def __init__(self, coarse: int, fine: int) -> None:
        if fine < coarse:
            raise MapConflictError(f"an axis shrinks from {coarse} to {fine}")
        self.coarse, self.fine = coarse, fine
        self.kind: Literal["unknown", "known", "concatenation", "product"] = "unknown"
        self.array: np.ndarray | None = None
        self.parts: list[IndexMap] = []
        self.linked: IndexMap | None = None
        if coarse == fine:
            self._know(np.arange(coarse))

    def _know(self, array: np.ndarray) -> None:
        self.kind, self.array, self.parts = "known", np.asarray(array), []

    @property
    def grows(self) -> bool:
        """Whether there are fine entries without a coarse counterpart."""
        return self.coarse != self.fine


def unknown(coarse: int, fine: int) -> IndexMap:
    """A map of which nothing is known but the sizes.

    Args:
        coarse: size of the coarse axis.
        fine: size of the fine axis.
    """
    return IndexMap(coarse, fine)


def same(size: int) -> IndexMap:
    """The map of an axis that does not grow."""
    return IndexMap(size, size)


def known(array: np.ndarray, fine: int) -> IndexMap:
    """A map given by the fine index of every coarse one.

    Args:
        array: these indices.
        fine: size of the fine axis.
    """
    term = IndexMap(len(array), fine)
    if not term.grows:
        if not np.array_equal(array, np.arange(fine)):
            raise MapConflictError("the entries of an axis that does not grow change their order")
        return term
    if len(array) and (
        len(np.unique(array)) < len(array) or array.min() < 0 or array.max() >= fine
    ):
        raise MapConflictError("two coarse entries share a place on the fine level")
    term._know(array)
    return term


def _root(term: IndexMap) -> IndexMap:
    while term.linked is not None:
        term = term.linked
    return term


def _sizes(term: IndexMap) -> tuple[int, int]:
    return term.coarse, term.fine


def concatenated(parts: Iterable[IndexMap]) -> IndexMap:
    """The maps of axes behind each other."""
    flat: list[IndexMap] = []
    for part in map(_root, parts):
        for piece in map(_root, part.parts) if part.kind == "concatenation" else (part,):
            if piece.fine == 0:
                continue
            if flat and not piece.grows and not flat[-1].grows:
                flat[-1] = same(flat[-1].coarse + piece.coarse)
            else:
                flat.append(piece)
    if len(flat) == 1:
        return flat[0]
    term = IndexMap(sum(p.coarse for p in flat), sum(p.fine for p in flat))
    if term.grows:
        term.kind, term.parts = "concatenation", flat
    return term


def multiplied(factors: Iterable[IndexMap]) -> IndexMap:
    """The map of axes that are merged into one, the last of them running fastest."""
    flat: list[IndexMap] = []
    for factor in map(_root, factors):
        for piece in map(_root, factor.parts) if factor.kind == "product" else (factor,):
            if _sizes(piece) == (1, 1):
                continue
            if flat and not piece.grows and not flat[-1].grows:
                flat[-1] = same(flat[-1].coarse * piece.coarse)
            else:
                flat.append(piece)
    if len(flat) == 1:
        return flat[0]
    term = IndexMap(
        int(np.prod([p.coarse for p in flat], dtype=int)),
        int(np.prod([p.fine for p in flat], dtype=int)),
    )
    if term.grows:
        term.kind, term.parts = "product", flat
    return term


def resolved(term: IndexMap) -> np.ndarray:
    """Fine index of every coarse one; what is unknown keeps the old entries in front from now on."""
    term = _root(term)
    if term.kind == "unknown":
        term._know(np.arange(term.coarse))
    if term.kind == "concatenation":
        starts = np.cumsum([0, *(_root(p).fine for p in term.parts)])
        pieces = [resolved(p) + s for p, s in zip(term.parts, starts, strict=False)]
        return np.concatenate(pieces)
    if term.kind == "product":
        result = np.zeros(1, int)
        for part in term.parts:
            result = (result[:, None] * _root(part).fine + resolved(part)).ravel()
        return result
    assert term.array is not None
    return term.array


def old_entries(term: IndexMap) -> np.ndarray:
    """For every fine index whether it has a coarse counterpart."""
    old = np.zeros(term.fine, bool)
    old[resolved(term)] = True
    return old


def leaves(term: IndexMap) -> list[IndexMap]:
    """The growing maps that a map is made of, each once; they are the groups of features."""
    term = _root(term)
    if term.kind in ("concatenation", "product"):
        found = [leaf for part in term.parts for leaf in leaves(part)]
        return list({id(leaf): leaf for leaf in found}.values())
    return [term] if term.grows else []


def source_entries(term: IndexMap, copied: Sequence[IndexMap]) -> np.ndarray:
    """For every fine index the one whose value it repeats; itself, unless it is in a copied group.

    Args:
        term: the map.
        copied: leaves whose new entries repeat the old ones, in turn and equally often.
    """
    term = _root(term)
    if term.kind == "concatenation":
        starts = np.cumsum([0, *(_root(p).fine for p in term.parts)])
        return np.concatenate(
            [source_entries(p, copied) + s for p, s in zip(term.parts, starts, strict=False)]
        )
    if term.kind == "product":
        result = np.zeros(1, int)
        for part in term.parts:
            result = (result[:, None] * _root(part).fine + source_entries(part, copied)).ravel()
        return result
    sources = np.arange(term.fine)
    if any(term is _root(leaf) for leaf in copied):
        new = ~old_entries(term)
        sources[new] = np.resize(resolved(term), int(new.sum()))
    return sources


def _divide(term: IndexMap, coarse: int, fine: int) -> tuple[IndexMap, IndexMap]:
    """The maps before and behind a place of an axis, given on both levels."""
    term = _root(term)
    if coarse == 0 and fine == 0:
        return same(0), term
    if (coarse, fine) == _sizes(term):
        return term, same(0)
    if not (0 <= coarse <= fine and 0 <= term.coarse - coarse <= term.fine - fine):
        raise MapConflictError(
            f"an axis of {term.coarse} and {term.fine} entries is divided behind {coarse} and {fine}"
        )
    if term.kind == "unknown":
        left = unknown(coarse, fine)
        right = unknown(term.coarse - coarse, term.fine - fine)
        term.kind, term.parts = "concatenation", [left, right]
        return left, right
    if term.kind == "concatenation":
        before: list[IndexMap] = []
        rest = list(map(_root, term.parts))
        while rest and rest[0].coarse <= coarse and rest[0].fine <= fine:
            coarse, fine = coarse - rest[0].coarse, fine - rest[0].fine
            before.append(rest.pop(0))
        if coarse or fine:
            left, right = _divide(rest[0], coarse, fine)
            before, rest = [*before, left], [right, *rest[1:]]
        return concatenated(before), concatenated(rest)
    if term.kind == "product":
        first, inner = _root(term.parts[0]), multiplied(term.parts[1:])
        (outer_c, rest_c), (outer_f, rest_f) = (
            divmod(coarse, inner.coarse),
            divmod(fine, inner.fine),
        )
        if rest_c == rest_f == 0:
            left, right = _divide(first, outer_c, outer_f)
            return multiplied([left, inner]), multiplied([right, inner])
    array = resolved(term)
    if np.any(array[:coarse] >= fine) or np.any(array[coarse:] < fine):
        raise MapConflictError("a part of an axis is not a part of it on the other level")
    return known(array[:coarse], fine), known(array[coarse:] - fine, term.fine - fine)


def taken(term: IndexMap, coarse: np.ndarray, fine: np.ndarray) -> IndexMap:
    """The map of an axis of which each level takes some entries.

    Args:
        term: the map of the whole axis.
        coarse: indices of the entries that the coarse level takes.
        fine: those that the fine level takes.
    """
    places = {int(index): place for place, index in reversed(list(enumerate(fine)))}
    try:
        return known(np.array([places[int(i)] for i in resolved(term)[coarse]], int), len(fine))
    except KeyError:
        raise MapConflictError(
            "the coarse level takes entries of an axis that the fine level drops"
        ) from None


def sliced(term: IndexMap, coarse: tuple[int, int], fine: tuple[int, int]) -> IndexMap:
    """The map of a part of an axis.

    Args:
        term: the map of the whole axis.
        coarse: start and end of the part on the coarse level.
        fine: start and end on the fine level.
    """
    try:
        rest, _ = _divide(term, coarse[1], fine[1])
        return _divide(rest, coarse[0], fine[0])[1]
    except MapConflictError:
        return taken(term, np.arange(*coarse), np.arange(*fine))


def factored(
    term: IndexMap, outer: tuple[int, int], inner: tuple[int, int]
) -> tuple[IndexMap, IndexMap]:
    """The maps of the two axes into which one is split; sizes are (coarse, fine).

    Args:
        term: the map of the axis.
        outer: sizes of the first axis.
        inner: sizes of the second axis, which runs fastest.
    """
    term = _root(term)
    if inner == (1, 1):
        return term, same(1)
    if outer == (1, 1):
        return same(1), term
    if not term.grows:
        return unknown(*outer), unknown(*inner)
    if term.kind == "unknown":
        first, last = unknown(*outer), unknown(*inner)
        term.kind, term.parts = "product", [p for p in (first, last) if _sizes(p) != (1, 1)]
        return first, last
    if term.kind == "product":
        last = _root(term.parts[-1])
        front = multiplied(term.parts[:-1])
        if _sizes(last) == inner:
            return front, last
        if inner[0] % last.coarse == 0 and inner[1] % last.fine == 0:
            middle = inner[0] // last.coarse, inner[1] // last.fine
            first, between = factored(front, outer, middle)
            return first, multiplied([between, last])
        if last.coarse % inner[0] == 0 and last.fine % inner[1] == 0:
            between, end = factored(last, (last.coarse // inner[0], last.fine // inner[1]), inner)
            return multiplied([front, between]), end
    if term.kind == "concatenation" and all(
        p.coarse % inner[0] == 0 and p.fine % inner[1] == 0 for p in map(_root, term.parts)
    ):
        pairs = [
            factored(p, (p.coarse // inner[0], p.fine // inner[1]), inner)
            for p in map(_root, term.parts)
        ]
        last = pairs[0][1]
        for _, other in pairs[1:]:
            unified(last, other)
        return concatenated([first for first, _ in pairs]), last
    table = resolved(term).reshape(outer[0], inner[0])
    outside, inside = table[:, 0] // inner[1], table[0] % inner[1]
    if not np.array_equal(table, outside[:, None] * inner[1] + inside):
        raise MapConflictError("an axis that is split consists of other parts on the other level")
    return known(outside, outer[1]), known(inside, inner[1])


def unified(a: IndexMap, b: IndexMap) -> IndexMap:
    """The one map that two axes have, from now on.

    Args:
        a: the map of one axis.
        b: the map of the other one.

    Raises:
        MapConflictError: if they cannot have the same.
    """
    a, b = _root(a), _root(b)
    if a is b:
        return a
    if _sizes(a) != _sizes(b):
        raise MapConflictError(
            f"an axis that grows from {a.coarse} to {a.fine} meets one from {b.coarse} to {b.fine}"
        )
    if not a.grows:
        return a
    if a.kind == "unknown":
        a, b = b, a
    if b.kind == "unknown":
        if any(b is leaf for leaf in leaves(a)):
            raise MapConflictError("an axis would be a part of itself")
        b.linked = a
        return a
    if a.kind == "known":
        a, b = b, a
    if a.kind == "known":
        if not np.array_equal(resolved(a), resolved(b)):
            raise MapConflictError("the same entries would have to be at two places")
        b.linked = a
        return a
    if a.kind == "product" and b.kind == "concatenation":
        a, b = b, a
    try:
        if a.kind == "concatenation":
            rest = b
            for part in list(map(_root, a.parts)):
                head, rest = _divide(rest, part.coarse, part.fine)
                unified(part, head)
        else:
            rest = b
            for part in reversed(list(map(_root, a.parts[1:]))):
                outer = rest.coarse // part.coarse, rest.fine // part.fine
                rest, last = factored(rest, outer, _sizes(part))
                unified(part, last)
            unified(_root(a.parts[0]), rest)
    except MapConflictError:
        if not np.array_equal(resolved(a), resolved(b)):
            raise
    if _root(a) is not _root(b):
        b.linked = a
    return a


def regrouped(old: list[IndexMap], new: list[tuple[int, int]]) -> list[IndexMap]:
    """The maps of the axes after a reshape: the shortest runs of axes of equal size on both levels.

    Args:
        old: the maps of the axes before.
        new: coarse and fine sizes of the axes after it.
    """
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
