"""Regions of the plane: boxes, discs and polygons, put together by set operations of Shapely.

Shapely is imported when a region is made, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from opifex.core.checks import (
    check_callable,
    check_key,
    check_last_axis,
    check_positive,
    check_positive_int,
)
from opifex.problems.outline import Circle, Outline, Predicate
from opifex.problems.points import Box, interior_points

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon

__all__ = ["BoundaryPoints", "PlanarRegion"]

CIRCLE_EDGES = 72_000
"""Edges of the polygon of a disc; no point of them is 1e-9 of the radius off the circle."""

SLIVER = 1e-12
"""Parts and holes of this mean width, relative to the largest coordinate, come from rounding."""

SMALLEST_SHARE = 1e-3
"""Least share of the bounding box in which interior points are drawn, by rejection."""


class BoundaryPoints(NamedTuple):
    """Points of a boundary and the outward unit normals there.

    ``jnp.hstack`` of the two gives rows ``(x, y, normal_x, normal_y)``, the data of a term with normal
    derivatives.

    Attributes:
        points: shape (n, 2), of JAX's default floating-point type.
        normals: the same.
    """

    points: Float[Array, "n 2"]
    normals: Float[Array, "n 2"]


class PlanarRegion:
    """A bounded region of the plane, possibly with holes and of several parts.

    Regions are made by `box`, `disc`, `polygon`, `from_mesh` or from any polygon of Shapely, and
    combined by ``a - b`` (difference), ``a | b`` (union) and ``a & b`` (intersection).

    Circles of `disc` are kept to rounding: the polygon behind them has 72,000 edges and the area of
    the disc, no point of it is 1e-9 of the radius off the circle, and `boundary_points` are moved onto
    the circle, with its normals. Other curves, such as buffers by Shapely, are the polygons they come
    as: where its edges are shorter than the spacing, points are in the middle of an edge. The normal
    of an arc is exact there and the distance to the arc is its sagitta, the radius times
    ``1 - cos(angle / 2)`` for edges that turn by ``angle``.

    Args:
        geometry: a polygon or multipolygon of Shapely, valid and not empty. Parts and holes that are
            thinner than 1e-12 of the largest coordinate, which set operations leave behind, are
            dropped.

    Attributes:
        geometry: the polygon or multipolygon, exterior rings counter-clockwise, holes clockwise.

    Raises:
        ImportError: if Shapely is not installed (the extra ``geometry``).
        TypeError: if ``geometry`` is no polygon or multipolygon of Shapely; by set operations, if the
            other operand is no region.
        ValueError: if ``geometry`` is empty, without area, or not valid (edges that cross); by set
            operations, if nothing is left.

    Examples:
        >>> import numpy as np
        >>> from opifex.problems import PlanarRegion
        >>> region = PlanarRegion.box((-0.5, -0.5), (0.5, 0.5)) - PlanarRegion.disc((0, 0), 0.1)
        >>> region.interior_points(200).shape
        (200, 2)
        >>> circle = region.boundary_points(50, where=lambda p: np.hypot(p[:, 0], p[:, 1]) < 0.2)
        >>> bool(np.allclose(circle.normals, -10 * circle.points, atol=1e-6))
        True
    """

    geometry: Polygon | MultiPolygon

    def __init__(self, geometry: Polygon | MultiPolygon) -> None:
        shapely = _shapely()
        kind = getattr(geometry, "geom_type", type(geometry).__name__)
        if not isinstance(geometry, (shapely.Polygon, shapely.MultiPolygon)):
            raise TypeError(f"geometry must be a polygon or multipolygon of Shapely, got a {kind}")
        if not geometry.is_valid:
            reason = shapely.is_valid_reason(geometry)
            raise ValueError(f"geometry must be valid, got a {kind} with: {reason}")
        parts = _proper_parts(shapely.force_2d(geometry))
        if not parts:
            raise ValueError(f"geometry must have an area, got a {kind} of area {geometry.area}")
        whole = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
        self.geometry = shapely.orient_polygons(whole)
        self._circles: tuple[Circle, ...] = ()

    @classmethod
    def box(cls, lower: Sequence[float], upper: Sequence[float]) -> PlanarRegion:
        """An axis-parallel rectangle.

        Args:
            lower: smallest coordinates, two of them.
            upper: largest coordinates.

        Raises:
            TypeError: if a coordinate is not a number.
            ValueError: if there are not two of each, finite, and the lower below the upper ones.
        """
        corners = [_numbers(n, v, (2,)).tolist() for n, v in (("lower", lower), ("upper", upper))]
        box = Box(*map(tuple, corners))
        return cls(_shapely().box(*box.lower, *box.upper))

    @classmethod
    def disc(cls, center: Sequence[float], radius: float) -> PlanarRegion:
        """A disc, accurate as `PlanarRegion` says.

        Args:
            center: its two coordinates.
            radius: above zero.

        Raises:
            TypeError: if a coordinate or the radius is not a number.
            ValueError: if ``center`` does not have two finite entries or ``radius`` is not positive.
        """
        x, y = _numbers("center", center, (2,)).tolist()
        radius = check_positive("radius", radius)
        step = 2 * np.pi / CIRCLE_EDGES
        angle = step * (np.arange(CIRCLE_EDGES) + 0.5)
        # Vertices a little outside, so that the polygon has the area of the disc.
        outer = radius * np.sqrt(step / np.sin(step))
        ring = np.stack([x + outer * np.cos(angle), y + outer * np.sin(angle)], axis=1)
        region = cls(_shapely().Polygon(ring))
        region._circles = ((x, y, radius),)
        return region

    @classmethod
    def polygon(cls, vertices: ArrayLike | Sequence[Sequence[float]]) -> PlanarRegion:
        """A polygon without holes.

        Args:
            vertices: shape (n, 2) with n at least 3, in either direction; the first need not be
                repeated.

        Raises:
            TypeError: if ``vertices`` are no numbers.
            ValueError: if the shape is another, numbers are not finite, or edges cross.
        """
        ring = _numbers("vertices", vertices, (None, 2))
        if len(ring) < 3:
            raise ValueError(f"vertices must be at least 3, got {len(ring)}")
        shapely = _shapely()
        polygon = shapely.Polygon(ring)
        if not polygon.is_valid:
            reason = shapely.is_valid_reason(polygon)
            raise ValueError(f"vertices must bound a simple polygon, got: {reason}")
        return cls(polygon)

    @classmethod
    def from_mesh(
        cls, vertices: ArrayLike | Sequence[Sequence[float]], triangles: ArrayLike
    ) -> PlanarRegion:
        """The union of the triangles of a mesh.

        Args:
            vertices: shape (n, 2).
            triangles: numbers of the vertices of each triangle, integers of shape (m, 3).

        Raises:
            TypeError: if ``vertices`` are no numbers or ``triangles`` no integers.
            ValueError: if a shape is another, vertices are not finite or missing, or a triangle has no
                area.
        """
        nodes, cells = _numbers("vertices", vertices, (None, 2)), np.asarray(triangles)
        if not np.issubdtype(cells.dtype, np.integer):
            raise TypeError(f"triangles must be integers, got type {cells.dtype}")
        if cells.ndim != 2 or cells.shape[1] != 3 or len(cells) == 0:
            raise ValueError(f"triangles must have shape (m, 3), m at least 1, got {cells.shape}")
        if np.min(cells) < 0 or np.max(cells) >= len(nodes):
            raise ValueError(
                f"triangles must number the {len(nodes)} vertices from 0, got numbers from "
                f"{np.min(cells)} to {np.max(cells)}"
            )
        shapely = _shapely()
        shapes = shapely.polygons(nodes[cells])
        flat = np.flatnonzero(~shapely.is_valid(shapes))
        if len(flat):
            raise ValueError(f"triangles must have an area, got none for triangles[{flat[0]}]")
        return cls(shapely.union_all(shapes))

    def __sub__(self, other: PlanarRegion) -> PlanarRegion:
        return self._combined(other, "difference")

    def __or__(self, other: PlanarRegion) -> PlanarRegion:
        return self._combined(other, "union")

    def __and__(self, other: PlanarRegion) -> PlanarRegion:
        return self._combined(other, "intersection")

    def _combined(self, other: PlanarRegion, operation: str) -> PlanarRegion:
        if not isinstance(other, PlanarRegion):
            return NotImplemented
        shapely = _shapely()
        # The intersection of two regions may also hold the points and lines in which they touch.
        parts = _proper_parts(getattr(shapely, operation)(self.geometry, other.geometry))
        if not parts:
            raise ValueError(f"the {operation} of two regions must have an area, got nothing")
        region = PlanarRegion(shapely.MultiPolygon(parts))
        region._circles = tuple(dict.fromkeys(self._circles + other._circles))
        return region

    def __repr__(self) -> str:
        box = self.bounds
        return f"PlanarRegion(area={self.area:.6g}, from {box.lower} to {box.upper})"

    @property
    def area(self) -> float:
        """The area, holes left out."""
        return float(self.geometry.area)

    @property
    def perimeter(self) -> float:
        """The length of the boundary, that of holes included."""
        return float(self.geometry.length)

    @property
    def bounds(self) -> Box:
        """The smallest box around the region."""
        left, bottom, right, top = map(float, self.geometry.bounds)
        return Box((left, bottom), (right, top))

    def contains(self, points: ArrayLike) -> Bool[np.ndarray, "*n"]:
        """Whether points lie inside; points of the boundary do not.

        With time as a third coordinate, draw points in the box and keep those of which
        ``region.contains(points[:, :2])`` says that they lie inside.

        Args:
            points: shape (..., 2).

        Returns:
            Truth values, shape (...), of NumPy.

        Raises:
            TypeError: if ``points`` are no numbers.
            ValueError: if the last axis has not two entries.
        """
        shapely, (x, y) = _shapely(), np.moveaxis(_points(points), -1, 0)
        shapely.prepare(self.geometry)
        return np.asarray(shapely.contains_xy(self.geometry, x, y))

    def distance(self, points: ArrayLike) -> Float[np.ndarray, "*n"]:
        """Distance of points to the boundary, from inside and from outside.

        Args:
            points: shape (..., 2).

        Returns:
            Distances of at least zero, shape (...), float64 of NumPy.

        Raises:
            TypeError: if ``points`` are no numbers.
            ValueError: if the last axis has not two entries.
        """
        shapely, boundary = _shapely(), self._boundary
        shapely.prepare(boundary)
        # Unlike a distance, the shortest line is searched with an index of the edges.
        lines = shapely.shortest_line(boundary, shapely.points(_points(points)))
        return np.asarray(shapely.length(lines))

    def interior_points(
        self, num_points: int, *, key: PRNGKeyArray | None = None, method: str = "sobol"
    ) -> Float[Array, "n 2"]:
        """Points inside: those of the bounding box that lie in the region, in their order.

        Sets are nested for equal keys: the first points of a longer set are the shorter one. Shapely
        does not run in compiled code: for points that `fit` draws anew, make many once, outside, and
        choose among them with ``jax.random.choice``.

        Args:
            num_points: how many.
            key: random key; the default is ``jax.random.key(0)``.
            method: ``"sobol"`` or ``"uniform"``, see `opifex.problems.interior_points`.

        Returns:
            Shape (num_points, 2), of JAX's default floating-point type.

        Raises:
            TypeError: if ``num_points`` is not an integer, or ``key`` is no random key or known to
                compiled code alone.
            ValueError: if ``num_points`` is not positive, ``method`` is unknown, or the region fills
                less than a thousandth of its bounding box (draw points of its parts then).
        """
        count = check_positive_int("num_points", num_points)
        _check_known("key", key)
        box = self.bounds
        share = self.area / float(np.prod(np.subtract(box.upper, box.lower)))
        if share < SMALLEST_SHARE:
            raise ValueError(
                f"the region must fill {SMALLEST_SHARE} of its bounding box for points to be drawn "
                f"there, got {share:.2g}"
            )
        count = int(count / share)
        while True:
            points = np.asarray(interior_points(count, box, key=key, method=method))
            inside = points[self.contains(points)]
            if len(inside) >= num_points:
                return jnp.asarray(inside[:num_points])
            count = 2 * count

    def boundary_points(
        self,
        num_points: int,
        *,
        where: Predicate | None = None,
        key: PRNGKeyArray | None = None,
    ) -> BoundaryPoints:
        """Points of the boundary, with normals that point out of the region (and into its holes).

        Without a key they are evenly spaced by arc length, from edge to edge: each edge and each curve
        gets points in proportion to its length, half a spacing away from its ends, so that corners are
        left out. A curve is what turns by at most 15 degrees between edges shorter than the spacing.

        Args:
            num_points: how many.
            where: the part to take: a function of points, NumPy float64 of shape (n, 2), that returns
                n truth values. Where it changes is found to rounding. Parts that are shorter than a
                thousandth of their ring of the boundary may be missed.
            key: random key for independent points, uniform by arc length.

        Returns:
            ``points`` and ``normals``, both of shape (num_points, 2) and JAX's default
            floating-point type.

        Raises:
            TypeError: if ``num_points`` is not an integer, ``key`` is no random key, or ``where`` is no
                such function.
            ValueError: if ``num_points`` is not positive, or ``where`` selects nothing or changes too
                often to be followed.
        """
        check_positive_int("num_points", num_points)
        if where is not None:
            check_callable("where", where)
        unit = None
        if key is not None:
            check_key("key", key)
            _check_known("key", key)
            seed = np.asarray(jax.random.key_data(key)).astype(np.uint32).tolist()
            unit = np.random.default_rng(seed).random(num_points)
        dtype = jnp.result_type(float)
        points, normals = self._outline.points(num_points, where, unit)
        return BoundaryPoints(jnp.asarray(points, dtype), jnp.asarray(normals, dtype))

    @cached_property
    def _boundary(self) -> Any:
        return self.geometry.boundary

    @cached_property
    def _outline(self) -> Outline:
        shapely = _shapely()
        rings = shapely.get_rings(shapely.get_parts(self.geometry))
        return Outline([shapely.get_coordinates(ring) for ring in rings], self._circles)


def _shapely() -> ModuleType:
    try:
        import shapely
    except ImportError as error:
        raise ImportError(
            "regions need Shapely: pip install 'opifex-multilevel[geometry]'"
        ) from error
    return shapely


def _proper_parts(geometry: Any) -> list[Any]:
    """The polygons of a geometry without parts and holes as thin as rounding leaves them."""
    shapely = _shapely()
    smallest = 0.0 if geometry.is_empty else SLIVER * np.max(np.abs(geometry.bounds))

    def is_proper(shape: Any) -> bool:
        return shape.geom_type == "Polygon" and 2 * shape.area > smallest * shape.length

    return [
        shapely.Polygon(part.exterior, [r for r in part.interiors if is_proper(shapely.Polygon(r))])
        for part in filter(is_proper, shapely.get_parts(geometry))
    ]


def _check_known(name: str, value: Any) -> None:
    """Raise ``TypeError`` in compiled code, where Shapely cannot see the numbers."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} must be known when points of a region are computed, got one that only compiled "
            "code knows: make many points once, outside, pool = region.interior_points(10_000), and "
            "choose among them, jax.random.choice(key, pool, (num_points,), replace=False)"
        )


def _as_floats(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {value!r}") from error


def _numbers(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    array = _as_floats(name, value)
    if len(array.shape) != len(shape) or any(
        size not in (None, given) for size, given in zip(shape, array.shape, strict=True)
    ):
        allowed = str(shape).replace("None", "n")
        raise ValueError(f"{name} must have shape {allowed}, got {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return array


def _points(points: Any) -> np.ndarray:
    _check_known("points", points)
    array = _as_floats("points", points)
    check_last_axis("points", array, "dimension", 2)
    return array
