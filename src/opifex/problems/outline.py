"""The outline of a plane region: closed polygonal rings, parametrised by arc length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["Circle", "Outline", "Predicate"]

Circle = tuple[float, float, float]
"""Coordinates of the centre, and the radius."""

Predicate = Callable[[Float[np.ndarray, "n 2"]], Bool[np.ndarray, " n"]]
"""Which of the points, shape (n, 2), are meant: one truth value each."""

CIRCLE_TOLERANCE = 1e-9
"""Points of edges this close to a known circle, relative to its radius, are moved onto it."""

TESTS_PER_RING = 1024
"""At how many points of a ring, at least, a predicate is asked first."""

MOST_REFINEMENTS = 10
"""How often points that a predicate refuses refine the parts on which it holds."""

SAME_LINE = 1e-9
"""Angle up to which two edges are one straight line, but for rounding."""

STRAIGHT, SHARP = 1e-3, np.deg2rad(15)
"""Angles up to which a vertex is no corner: between edges longer than the spacing, and shorter."""


@dataclass(frozen=True)
class Places:
    """Places on rings: the number of the ring, and the arc length from the start of the first one.

    The arc length may pass the end of the ring by up to one turn, and then goes on at its start.
    """

    ring: Int[np.ndarray, " n"]
    arc: Float[np.ndarray, " n"]

    def __getitem__(self, chosen: np.ndarray) -> Places:
        return Places(self.ring[chosen], self.arc[chosen])


@dataclass(frozen=True)
class Pieces:
    """Pieces of rings, each from one arc length to a larger one, counted as in `Places`."""

    ring: Int[np.ndarray, " n"]
    start: Float[np.ndarray, " n"]
    end: Float[np.ndarray, " n"]

    @property
    def length(self) -> Float[np.ndarray, " n"]:
        """Length of each piece."""
        return self.end - self.start

    def __getitem__(self, chosen: np.ndarray) -> Pieces:
        return Pieces(self.ring[chosen], self.start[chosen], self.end[chosen])


def _joined(pieces: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> Pieces:
    rings = [np.full(len(start), ring) for ring, start, _ in pieces]
    starts, ends = ([piece[side] for piece in pieces] for side in (1, 2))
    empty = np.zeros(0)
    return Pieces(
        np.concatenate([empty.astype(int), *rings]),
        np.concatenate([empty, *starts]),
        np.concatenate([empty, *ends]),
    )


def _checked(where: Predicate) -> Predicate:
    def checked(points: np.ndarray) -> np.ndarray:
        chosen = np.asarray(where(points))
        if chosen.shape != (len(points),) or chosen.dtype != bool:
            raise TypeError(
                f"where must map all points, shape {points.shape}, to truth values of shape "
                f"{(len(points),)}, got shape {chosen.shape} of type {chosen.dtype}"
            )
        return chosen

    return checked


class Outline:
    """Closed polygonal rings with the region to the left of each, and circles that they follow.

    Args:
        rings: vertices of each ring, shape (vertices, 2), the last equal to the first.
        circles: circles of which the rings have approximate arcs.
    """

    def __init__(self, rings: Sequence[np.ndarray], circles: Sequence[Circle] = ()) -> None:
        self.circles = tuple(circles)
        starts = np.concatenate([ring[:-1] for ring in rings])
        steps = np.concatenate([np.diff(ring, axis=0) for ring in rings])
        ring_of = np.repeat(np.arange(len(rings)), [len(ring) - 1 for ring in rings])
        lengths = np.hypot(*steps.T)
        proper = lengths > 0
        self._starts, self._steps = starts[proper], steps[proper]
        self._lengths, self._ring_of = lengths[proper], ring_of[proper]
        ends = np.cumsum(self._lengths)
        self._arcs = np.concatenate([[0.0], ends[:-1]])
        numbers = np.arange(len(rings))
        self._first = np.searchsorted(self._ring_of, numbers)
        self._last = np.searchsorted(self._ring_of, numbers, side="right") - 1
        self._ring_start = self._arcs[self._first]
        self._ring_length = ends[self._last] - self._ring_start
        before = np.arange(len(self._lengths)) - 1
        before[self._first] = self._last
        (x0, y0), (x1, y1) = self._steps[before].T, self._steps.T
        self._turn = np.arctan2(np.abs(x0 * y1 - y0 * x1), x0 * x1 + y0 * y1)
        self._longer = np.maximum(self._lengths[before], self._lengths)
        bends = self._turn > SAME_LINE
        self._curved = bends.copy()
        self._curved[before] &= bends

    def points(
        self, num_points: int, where: Predicate | None = None, unit: np.ndarray | None = None
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
        """Points with their outward unit normals, evenly spaced unless ``unit`` is given.

        Args:
            num_points: how many.
            where: on which part; everywhere by default.
            unit: places to take instead, shape (num_points,), between 0 and 1 (1 is the whole
                length that was selected).

        Returns:
            Points and normals, both of shape (num_points, 2).

        Raises:
            TypeError: if ``where`` does not return one truth value per point.
            ValueError: if ``where`` selects nothing, or changes too often to be followed.
        """

        def placed(pieces: Pieces) -> Places:
            return self._spread(num_points, pieces) if unit is None else self._at(unit, pieces)

        if where is None:
            return self._located(placed(self._whole()))[:2]
        where, tests = _checked(where), self._tests()
        for _ in range(MOST_REFINEMENTS):
            selected = self._selected(where, tests)
            if not np.sum(selected.length) > 0:
                raise ValueError(
                    f"where must select a part of the boundary, got none of {len(tests.arc)} points"
                )
            places = placed(selected)
            points, normals, _ = self._located(places)
            refused = ~where(points)
            if not np.any(refused):
                return points, normals
            more = self._wrapped(places)[refused]
            tests = Places(
                np.concatenate([tests.ring, more.ring]), np.concatenate([tests.arc, more.arc])
            )
        raise ValueError(
            f"where must hold on parts longer than a {TESTS_PER_RING}th of a ring, got changes so "
            f"often that {np.sum(refused)} of {num_points} points lie where it does not hold"
        )

    def _wrapped(self, places: Places) -> Places:
        start, length = self._ring_start[places.ring], self._ring_length[places.ring]
        return Places(places.ring, start + np.mod(places.arc - start, length))

    def _segments(self, places: Places) -> tuple[np.ndarray, np.ndarray]:
        """Number of the edge at each place, and the arc length along it."""
        arc = self._wrapped(places).arc
        segment = np.searchsorted(self._arcs, arc, side="right") - 1
        segment = np.clip(segment, self._first[places.ring], self._last[places.ring])
        return segment, np.clip(arc - self._arcs[segment], 0.0, self._lengths[segment])

    def _located(self, places: Places) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points, outward normals, and whether the point lies on a known circle."""
        segment, along = self._segments(places)
        step, length = self._steps[segment], self._lengths[segment][:, None]
        points = self._starts[segment] + along[:, None] / length * step
        normals = np.stack([step[:, 1], 0.0 - step[:, 0]], axis=1) / length
        known = np.zeros(len(points), bool)
        for *center, radius in self.circles:
            offset = points - center
            distance = np.hypot(*offset.T)
            near = np.flatnonzero(np.abs(distance - radius) <= CIRCLE_TOLERANCE * radius)
            radial = offset[near] / distance[near, None]
            outward = np.sum(radial * normals[near], axis=1)
            # The polygon of a disc turns by less than this within an edge.
            arc = 1 - np.abs(outward) < CIRCLE_TOLERANCE * 10
            near, radial, outward = near[arc], radial[arc], outward[arc]
            points[near] = center + radius * radial
            normals[near] = np.sign(outward)[:, None] * radial
            known[near] = True
        return points, normals, known

    def _whole(self) -> Pieces:
        rings = np.arange(len(self._first))
        return Pieces(rings, self._ring_start, self._ring_start + self._ring_length)

    def _tests(self) -> Places:
        """Places that are less than a thousandth of a ring apart, in the middle of edges."""
        bin_length = (self._ring_length / TESTS_PER_RING)[self._ring_of]
        parts = np.ceil(self._lengths / bin_length).astype(int)
        segment = np.repeat(np.arange(len(parts)), parts)
        number = np.arange(len(segment)) - np.repeat(np.cumsum(parts) - parts, parts)
        along = (number + 0.5) / parts[segment] * self._lengths[segment]
        places = Places(self._ring_of[segment], self._arcs[segment] + along)
        bins = (places.arc - self._ring_start[places.ring]) // bin_length[segment]
        _, first = np.unique(places.ring * 2 * TESTS_PER_RING + bins, return_index=True)
        return places[first]

    def _selected(self, where: Predicate, tests: Places) -> Pieces:
        """Where the predicate holds: found at the tests, its changes between them by bisection."""
        tests = tests[np.argsort(tests.arc, kind="stable")]
        holds = where(self._located(tests)[0])
        following = np.arange(1, len(holds) + 1)
        last = np.searchsorted(tests.ring, np.arange(len(self._first)), side="right") - 1
        first = np.concatenate([[0], last[:-1] + 1])
        following[last] = first
        target = tests.arc[following]
        target[last] += self._ring_length
        change = np.flatnonzero(holds != holds[following])
        ring, falls = tests.ring[change], holds[change]
        before, after = tests.arc[change], target[change]
        while len(change):
            middle = before + (after - before) / 2
            if not np.any((before < middle) & (middle < after)):
                break
            same = where(self._located(Places(ring, middle))[0]) == falls
            before, after = np.where(same, middle, before), np.where(same, after, middle)
        pieces = []
        for number, begin in enumerate(first):
            here = ring == number
            starts, ends = after[here & ~falls], before[here & falls]
            if len(starts) and ends[0] < starts[0]:
                ends = np.append(ends[1:], ends[0] + self._ring_length[number])
            if not len(starts) and holds[begin]:
                starts = self._ring_start[number : number + 1]
                ends = starts + self._ring_length[number]
            pieces.append((number, starts, ends))
        return _joined(pieces)

    def _cut_at_corners(self, pieces: Pieces, spacing: float) -> Pieces:
        corner = self._turn > np.where(self._longer < spacing, SHARP, STRAIGHT)
        arcs, ring_of = self._arcs[corner], self._ring_of[corner]
        cut = []
        for ring, start, end in zip(pieces.ring, pieces.start, pieces.end, strict=True):
            corners = arcs[slice(*np.searchsorted(ring_of, [ring, ring + 1]))]
            length = self._ring_length[ring]
            if len(corners) and start == self._ring_start[ring] and end == start + length:
                start, end = corners[0], corners[0] + length
            corners = np.concatenate([corners, corners + length])
            inner = corners[(corners > start) & (corners < end)]
            cut.append((ring, np.append(start, inner), np.append(inner, end)))
        return _joined(cut)

    def _spread(self, num_points: int, pieces: Pieces) -> Places:
        """Equal distances in each piece without corners, half of one at both ends.

        Numbers of points are lengths divided by the mean spacing, rounded so that the sums from
        the first piece on are off by at most one half.
        """
        total = np.sum(pieces.length)
        pieces = self._cut_at_corners(pieces, total / num_points)
        # Where a selected part ends at a corner, rounding may leave a bit of the next edge.
        pieces = pieces[pieces.length > 1e-9 * total / num_points]
        sums = np.cumsum(pieces.length)
        counts = np.diff(np.floor(sums / sums[-1] * num_points + 0.5).astype(int), prepend=0)
        piece = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(num_points) - np.repeat(np.cumsum(counts) - counts, counts)
        start, end, ring = pieces.start[piece], pieces.end[piece], pieces.ring[piece]
        spacing = (end - start) / counts[piece]
        arc = start + (number + 0.5) * spacing
        # The middle of a short edge of a curve, or of what is selected of it.
        places = Places(ring, arc)
        segment, along = self._segments(places)
        lower = np.maximum(arc - along, start)
        upper = np.minimum(arc - along + self._lengths[segment], end)
        short = self._curved[segment] & (self._lengths[segment] < spacing)
        short &= ~self._located(places)[2]
        return Places(ring, np.where(short, (lower + upper) / 2, arc))

    def _at(self, unit: np.ndarray, pieces: Pieces) -> Places:
        sums = np.cumsum(pieces.length)
        arc = unit * sums[-1]
        piece = np.minimum(np.searchsorted(sums, arc, side="right"), len(sums) - 1)
        along = arc - (sums - pieces.length)[piece]
        along = np.clip(along, 0.0, pieces.length[piece])
        return Places(pieces.ring[piece], pieces.start[piece] + along)
