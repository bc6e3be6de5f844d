"""Plane regions: areas, points and normals are those of boxes, discs and polygons put together."""

import functools
import importlib.util
import itertools
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import opifex.problems.planar_region as module
from opifex.problems import Box, PlanarRegion
from tolerances import distance, rounding

FEW = settings(max_examples=25, deadline=None)
CIRCLE_ERROR = 1e-9  # relative to the radius, as the docstring promises
CENTERS = [(0.3, 0.3), (-0.3, 0.3), (0.3, -0.3), (-0.3, -0.3)]
SQUARE = PlanarRegion.box((-0.5, -0.5), (0.5, 0.5))
L_SHAPE = [(0, 0), (4, 0), (4, 2), (2, 2), (2, 3), (0, 3)]


@functools.cache
def perforated():
    region = SQUARE
    for center in CENTERS:
        region = region - PlanarRegion.disc(center, 0.1)
    return region


def on_square(points):
    return np.abs(points).max(axis=1) > 0.499


def boundary(region, *args, **options):
    """Boundary points and normals in double precision."""
    with jax.enable_x64(True):
        return map(np.asarray, region.boundary_points(*args, **options))


def angles(points):
    return np.sort(np.arctan2(points[:, 1], points[:, 0]))


def lens_area(distance, first, second):
    """Common area of two discs, Weisstein, Circle-Circle Intersection, equation 14."""
    if distance <= abs(first - second):
        return np.pi * min(first, second) ** 2
    area = 0.0
    for r, s in ((first, second), (second, first)):
        height = (distance**2 + r**2 - s**2) / (2 * distance)
        area += r**2 * np.arccos(height / r) - height * np.sqrt(r**2 - height**2)
    return area


@st.composite
def star_polygons(draw, most=9):
    """A polygon around the origin, between the circles of radius 0.5 and 2."""
    count = draw(st.integers(3, most))
    shift = draw(st.floats(0, 1))
    radii = draw(st.lists(st.floats(0.5, 2), min_size=count, max_size=count))
    angle = 2 * np.pi * (np.arange(count) + shift) / count
    return np.array(radii)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_areas_and_lengths():
    region = perforated()
    rounded = rounding(np.float64, operations=100)
    assert distance(region.area, 1 - 4 * np.pi * 0.1**2) <= rounded
    assert distance(region.perimeter, 4 + 8 * np.pi * 0.1) <= CIRCLE_ERROR
    assert region.bounds == Box((-0.5, -0.5), (0.5, 0.5))
    assert "0.874" in repr(region)
    assert PlanarRegion.polygon(L_SHAPE).area == 10
    assert PlanarRegion.polygon(L_SHAPE[::-1]).perimeter == 14


@settings(max_examples=10, deadline=None)
@given(
    gap=st.floats(0.01, 2),
    angle=st.floats(0, 6),
    first=st.floats(0.2, 1.5),
    second=st.floats(0.2, 1.5),
)
def test_areas_of_two_discs(gap, angle, first, second):
    if gap > 0.99 * (first + second):
        gap = 0.99 * (first + second)
    a = PlanarRegion.disc((0.1, 0.2), first)
    b = PlanarRegion.disc((0.1 + gap * np.cos(angle), 0.2 + gap * np.sin(angle)), second)
    lens = (a & b).area
    # The width of the strip between circle and polygon, times the lengths of both circles.
    allowed = CIRCLE_ERROR * 2 * np.pi * (first**2 + second**2)
    assert abs(lens - lens_area(gap, first, second)) <= allowed
    assert abs((a | b).area - (np.pi * (first**2 + second**2) - lens)) <= allowed
    if gap > second - first + 0.01:
        assert abs((a - b).area - (np.pi * first**2 - lens)) <= allowed


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("method", ["sobol", "uniform"])
def test_interior_points(method, x64):
    with jax.enable_x64(x64):
        region, dtype = perforated(), np.float64 if x64 else np.float32
        few, many = (
            region.interior_points(n, key=jax.random.key(4), method=method) for n in (1000, 4000)
        )
        assert few.shape == (1000, 2)
        assert few.dtype == many.dtype == dtype
        assert np.array_equal(few, many[:1000])
        assert np.all(region.contains(many))
        assert not np.array_equal(few, region.interior_points(1000, method=method))
        if method == "sobol":
            assert np.array_equal(
                region.interior_points(1000), region.interior_points(1000, method=method)
            )
        # The share of points in a part is its share of the area, up to five standard deviations of
        # independent points.
        for part in (
            PlanarRegion.box((-0.5, -0.5), (0.1, 0.3)),
            PlanarRegion.disc((0.3, 0.3), 0.17),
        ):
            share = (part & region).area / region.area
            spread = np.sqrt(share * (1 - share) / len(many))
            assert abs(np.mean(part.contains(many)) - share) < 5 * spread


@pytest.mark.parametrize("x64", [False, True])
def test_boundary_points_have_the_default_type(x64):
    with jax.enable_x64(x64):
        for key in (None, jax.random.key(0)):
            edge = perforated().boundary_points(37, key=key)
            assert edge.points.shape == edge.normals.shape == (37, 2)
            assert edge.points.dtype == edge.normals.dtype == jnp.result_type(float)
            assert jnp.hstack(edge).shape == (37, 4)


def test_square_with_holes_as_in_the_docstring():
    region = perforated()
    points, normals = boundary(region, 400, where=on_square)
    sides = np.abs(points) == 0.5
    assert np.all(np.sum(sides, axis=1) == 1)
    assert np.array_equal(normals, np.where(sides, np.sign(points), 0))
    along = np.sort(np.round((np.where(sides, 0, points).sum(axis=1) + 0.5) * 200))
    assert np.array_equal(along, np.repeat(np.arange(1, 200, 2), 4))

    points, normals = boundary(region, 400, where=lambda p: ~on_square(p))
    offset = points - 0.3 * np.sign(points)
    rounded = rounding(np.float64, condition=5, operations=5)
    assert np.max(np.abs(np.hypot(*offset.T) - 0.1)) <= 0.1 * rounded
    assert np.max(np.abs(normals + 10 * offset)) <= rounded
    for center in CENTERS:
        around = angles((points - center)[np.all(np.sign(points) == np.sign(center), axis=1)])
        assert len(around) == 100
        assert np.max(np.abs(np.diff(around) - 2 * np.pi / 100)) <= CIRCLE_ERROR


@FEW
@given(star_polygons(), st.floats(0.05, 0.24), st.integers(1, 60), st.sampled_from([None, 7]))
def test_points_and_normals_of_polygons_with_a_hole(vertices, hole, count, seed):
    region = PlanarRegion.polygon(vertices) - PlanarRegion.box((-hole, -hole / 2), (hole, hole / 2))
    key = None if seed is None else jax.random.key(seed)
    points, normals = boundary(region, count, key=key)
    rounded = rounding(np.float64, condition=10, operations=20)
    assert np.max(region.distance(points)) <= rounded
    assert np.max(np.abs(np.hypot(*normals.T) - 1)) <= rounded
    step = 1e-5
    outside, inside = points + step * normals, points - step * normals
    rings = shapely.get_rings(shapely.get_parts(region.geometry))
    edges = [shapely.LineString(e) for r in rings for e in itertools.pairwise(r.coords)]
    second = np.sort(shapely.distance(shapely.points(points)[:, None], edges), axis=1)[:, 1]
    far = second > 10 * step  # from all edges but one
    assert not np.any(region.contains(outside[far]))
    assert np.all(region.contains(inside[far]))
    # A step along the normal leads away from the edge by all its length: the two are orthogonal.
    for moved in (inside, outside):
        assert np.all(np.abs(region.distance(moved[far]) - step) <= rounded)


@FEW
@given(star_polygons(), st.integers(1, 200))
def test_every_edge_has_its_share(vertices, count):
    sides = np.roll(vertices, -1, axis=0) - vertices
    directions = sides @ [1, 1j] / np.hypot(*sides.T)
    # Two edges on a line are one edge, short ones that turn little a curve.
    assume(np.min(np.abs(np.angle(np.roll(directions, -1) / directions))) > np.deg2rad(16))
    region = PlanarRegion.polygon(vertices)
    points, normals = boundary(region, count)
    spacing = region.perimeter / count
    # Each edge has its length in points up to one, and the normals of a closed curve add up to zero.
    assert np.all(np.abs(np.sum(normals, axis=0)) <= len(vertices) * (1 + 1e-9))
    for start, step in zip(vertices, sides, strict=True):
        length = np.hypot(*step)
        along = (points - start) @ step / length
        off = np.abs((points - start) @ [step[1], -step[0]]) / length
        here = np.sort(along[(off < 1e-12) & (along > 0) & (along < length)])
        assert abs(len(here) - length / spacing) <= 1 + 1e-9
        if len(here):
            expected = (np.arange(len(here)) + 0.5) * length / len(here)
            assert np.max(np.abs(here - expected)) <= rounding(np.float64, operations=1000)


def test_divergence_theorem():
    ring = PlanarRegion.disc((0.5, -0.25), 1.0) - PlanarRegion.disc((0.5, -0.25), 0.5)
    points, normals = boundary(ring, 300)
    x, y = (points - [0.5, -0.25]).T
    flux = np.stack([x**3 + y, y**3 - x], axis=1)
    flow = np.sum(flux * normals) * ring.perimeter / 300
    # The divergence is 3 r^2; equal spacing is exact for a polynomial on a circle.
    assert distance(flow, 3 / 2 * np.pi * (1 - 0.5**4)) <= 2 * CIRCLE_ERROR

    region = PlanarRegion.polygon(L_SHAPE) - PlanarRegion.box((0.5, 0.5), (1.5, 1.0))
    points, normals = boundary(region, 17 * 8)
    x, y = points.T
    flow = np.sum(normals * np.stack([2 * x + y, x - 3 * y], axis=1)) / 8
    # The midpoint rule is exact for linear functions.
    assert distance(flow, -(10 - 0.5)) <= rounding(np.float64, condition=10, operations=200)


@pytest.mark.parametrize("turn", [0.0, 0.7, 3.0])
def test_a_part_of_a_circle(turn):
    direction = np.array([np.cos(turn), np.sin(turn)])
    disc = PlanarRegion.disc((0, 0), 2.0)
    points, _ = boundary(disc, 10, where=lambda p: p @ direction > 0)
    around = angles(points @ np.array([direction, [-direction[1], direction[0]]]).T)
    assert np.max(np.abs(around - np.pi * ((np.arange(10) + 0.5) / 10 - 0.5))) <= CIRCLE_ERROR


def test_the_end_of_a_part_is_found_to_rounding():
    points, _ = boundary(SQUARE, 4, where=lambda p: (p[:, 1] == -0.5) & (p[:, 0] > 0.123))
    assert np.all(points[:, 1] == -0.5)
    expected = 0.123 + (0.5 - 0.123) * (np.arange(4) + 0.5) / 4
    assert distance(np.sort(points[:, 0]), expected) <= rounding(np.float64, operations=20)


@pytest.mark.parametrize(
    ("corner", "size", "axis", "count"),
    [
        ((-0.8, -1.9), (0.3, 0.1), 1, 3),
        ((0.4, 1.7), (0.1, 1.4), 1, 1),
        ((1.5, 1.7), (0.8, 0.2), 0, 3),
        ((0.9, -0.8), (0.2, 0.6), 0, 5),
    ],
)
def test_selected_sides_have_no_points_in_corners(corner, size, axis, count):
    # Half a point too many for each of two opposite sides: rounding must not put it between them.
    lower, upper = np.array(corner), np.array(corner) + size
    region = PlanarRegion.box(lower, upper)
    ends = (lower[axis], upper[axis])
    points, _ = boundary(region, count, where=lambda p: np.isin(p[:, axis], ends))
    share = ((points - lower) / (upper - lower))[:, 1 - axis]
    assert np.all((share > 0.1) & (share < 0.9))


@pytest.mark.parametrize("seed", [None, 3])
def test_gaps_that_are_too_short_to_be_seen_get_no_points(seed):
    def outside_the_gap(points):
        return np.abs(points[:, 0] - 0.05) > 1e-4

    key = None if seed is None else jax.random.key(seed)
    count = 10 if seed is None else 4000
    hit, _ = boundary(SQUARE, 4 * count, key=key)
    assert not np.all(outside_the_gap(hit))
    points, _ = boundary(SQUARE, 4 * count, where=outside_the_gap, key=key)
    assert np.all(outside_the_gap(points))


def test_a_small_part_of_a_random_boundary():
    points, _ = boundary(perforated(), 300, where=lambda p: p[:, 0] > 0.3999, key=jax.random.key(1))
    assert np.all(points[:, 0] > 0.3999)
    assert np.any(points[:, 0] < 0.41)


def test_random_boundary_points_are_uniform_by_arc_length():
    region, key = perforated(), jax.random.key(2)
    points, _ = boundary(region, 4000, key=key)
    share = 4 / region.perimeter
    assert abs(np.mean(on_square(points)) - share) < 5 * np.sqrt(share * (1 - share) / 4000)
    assert len(np.unique(points, axis=0)) == 4000
    again, _ = boundary(region, 4000, key=key)
    other, _ = boundary(region, 4000, key=jax.random.key(5))
    assert np.array_equal(points, again)
    assert not np.array_equal(points, other)


def test_other_curves_have_points_in_the_middle_of_edges():
    edges = 64
    region = PlanarRegion(shapely.Point(0.0, 0.0).buffer(1.0, quad_segs=edges // 4))
    points, normals = boundary(region, 20)
    rounded = rounding(np.float64, condition=10, operations=10)
    radius = np.hypot(*points.T)
    assert np.max(np.abs(radius - np.cos(np.pi / edges))) <= rounded  # the circle less the sagitta
    assert np.max(np.abs(normals - points / radius[:, None])) <= rounded
    assert np.max(np.abs(np.diff(angles(points)) - np.pi / 10)) <= 2 * np.pi / edges * (1 + rounded)


def test_a_lens_has_points_on_both_circles_and_none_in_its_corners():
    lens = PlanarRegion.disc((-0.6, 0), 1.0) & PlanarRegion.disc((0.6, 0), 1.0)
    points, normals = boundary(lens, 20)
    offset = points + np.where(points[:, :1] > 0, [[0.6, 0.0]], [[-0.6, 0.0]])
    rounded = rounding(np.float64, condition=2, operations=5)
    assert np.max(np.abs(offset - normals)) <= rounded
    half = np.arccos(0.6)
    right = angles(offset[points[:, 0] > 0])
    assert np.max(np.abs(right - half * ((np.arange(10) + 0.5) / 5 - 1))) <= CIRCLE_ERROR


def test_contains_and_distance():
    region = perforated()
    points = np.array([[[0.0, 0.0], [0.3, 0.3]], [[0.5, 0.0], [2.0, 0.5]]])
    assert region.contains(points).tolist() == [[True, False], [False, False]]
    expected = [[0.3 * np.sqrt(2) - 0.1, 0.1], [0.0, 1.5]]
    assert np.max(np.abs(region.distance(points) - expected)) <= 0.1 * CIRCLE_ERROR
    assert region.contains([0.0, 0.0]).shape == region.distance([0.0, 0.0]).shape == ()
    assert region.distance(jnp.zeros((3, 2))).dtype == np.float64


def test_several_parts():
    parts = PlanarRegion.box((0, 0), (1, 1)) | PlanarRegion.box((2, 0), (3, 2))
    assert parts.geometry.geom_type == "MultiPolygon"
    points, _ = boundary(parts, 100)
    assert np.sum(points[:, 0] <= 1) == 40
    assert np.mean(np.asarray(parts.interior_points(900))[:, 0] < 1) == pytest.approx(
        1 / 3, abs=0.03
    )
    with pytest.raises(ValueError, match=r"fill 0.001 of its bounding box"):
        (PlanarRegion.disc((0, 0), 0.01) | PlanarRegion.disc((1, 1), 0.01)).interior_points(10)


def test_from_mesh():
    count = 6
    lines = np.linspace(0, 1, count + 1)
    vertices = np.stack(np.meshgrid(lines, lines, indexing="ij"), axis=-1).reshape(-1, 2)
    corner = np.arange(count)[:, None] * (count + 1) + np.arange(count)
    corner = np.delete(corner.ravel(), [14, 15, 20, 21])  # a hole in the middle
    triangles = np.concatenate(
        [corner[:, None] + [0, 1, count + 1], corner[:, None] + [count + 2, 1, count + 1]]
    )
    region = PlanarRegion.from_mesh(vertices, triangles)
    assert distance(region.area, 8 / 9) <= rounding(np.float64, operations=100)
    assert distance(region.perimeter, 4 + 4 / 3) <= rounding(np.float64, operations=100)
    points, _ = boundary(region, 16)
    # Vertices within a side are no corners: three points on each side, one on each side of the hole.
    sides = np.round(6 * np.sort(np.max(np.abs(points - 0.5), axis=1)), 9)
    assert sides.tolist() == [1.0] * 4 + [3.0] * 12
    assert set(np.round(6 * np.min(np.abs(points - 0.5), axis=1), 9).tolist()) == {0.0, 2.0}


def test_slivers_of_set_operations_are_dropped():
    angle = np.pi / 7
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    left, right, both = (
        PlanarRegion.polygon(np.array([[a, 0], [b, 0], [b, 1], [a, 1]]) @ turned)
        for a, b in ((0, 1 / 3), (1 / 3, 1), (0, 1))
    )
    assert not (both.geometry - left.geometry - right.geometry).is_empty
    with pytest.raises(ValueError, match="difference of two regions must have an area"):
        (both - left) - right


def test_regions_can_be_pickled():
    region = pickle.loads(pickle.dumps(perforated()))
    for a, b in zip(boundary(region, 30), boundary(perforated(), 30), strict=True):
        assert np.array_equal(a, b)


def test_the_geometry_handed_in_stays_as_it_is():
    clockwise = shapely.Polygon(L_SHAPE[::-1])
    before = clockwise.wkb
    region = PlanarRegion(clockwise)
    region.interior_points(5)
    assert clockwise.wkb == before
    _, normals = boundary(region, 1, where=lambda p: p[:, 1] == 0)
    assert normals.tolist() == [[0, -1]]


def test_without_shapely(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    spec = importlib.util.spec_from_file_location("without_shapely", module.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    for build in (
        lambda: fresh.PlanarRegion.box((0, 0), (1, 1)),
        lambda: fresh.PlanarRegion.disc((0, 0), 1.0),
        lambda: fresh.PlanarRegion(None),
    ):
        with pytest.raises(ImportError, match=r"opifex-multilevel\[geometry\]"):
            build()


@pytest.mark.parametrize(
    "draw",
    [
        lambda region, key: region.interior_points(4, key=key),
        lambda region, key: region.boundary_points(4, key=key).points,
        lambda region, key: region.contains(jax.random.uniform(key, (4, 2))),
    ],
)
def test_compiled_code_is_told_to_choose_from_points_made_before(draw):
    square = PlanarRegion.box((0, 0), (1, 1))
    with pytest.raises(TypeError, match=r"compiled code.*pool"):
        jax.jit(lambda key: draw(square, key))(jax.random.key(0))


BOW_TIE = [(0, 0), (1, 1), (1, 0), (0, 1)]
CORNERS = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (2.0, 0.0)])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PlanarRegion(shapely.Polygon()), "geometry must have an area"),
        (lambda: PlanarRegion(shapely.Polygon(BOW_TIE)), "geometry must be valid.*intersection"),
        (lambda: PlanarRegion.box((0, 0), (0, 1)), "lower must be below upper"),
        (lambda: PlanarRegion.box((0, 0, 0), (1, 1, 1)), r"lower must have shape \(2,\)"),
        (lambda: PlanarRegion.box((0, 0), (1, np.inf)), "upper must be finite"),
        (lambda: PlanarRegion.disc((0, 0), 0), "radius must be positive, got 0"),
        (lambda: PlanarRegion.disc((0, 0), -1.0), "radius must be positive"),
        (lambda: PlanarRegion.disc((0, np.nan), 1.0), "center must be finite"),
        (lambda: PlanarRegion.disc(0.0, 1.0), "center must have shape"),
        (lambda: PlanarRegion.polygon([(0, 0), (1, 1)]), "vertices must be at least 3, got 2"),
        (lambda: PlanarRegion.polygon(BOW_TIE), "vertices must bound a simple polygon.*0.5 0.5"),
        (lambda: PlanarRegion.polygon([1.0, 2.0, 3.0]), r"vertices must have shape \(n, 2\)"),
        (lambda: PlanarRegion.from_mesh(CORNERS, [[0, 1, 4]]), "triangles must number the 4"),
        (lambda: PlanarRegion.from_mesh(CORNERS, [0, 1, 2]), r"triangles must have shape \(m, 3\)"),
        (
            lambda: PlanarRegion.from_mesh(CORNERS, [[0, 1, 2], [0, 1, 3]]),
            r"triangles must have an area, got none for triangles\[1\]",
        ),
        (lambda: SQUARE - SQUARE, "difference of two regions must have an area"),
        (
            lambda: SQUARE & PlanarRegion.box((0.5, 0), (1, 1)),
            "intersection of two regions must have an area",
        ),
        (lambda: SQUARE.interior_points(0), "num_points must be at least 1"),
        (lambda: SQUARE.interior_points(5, method="grid"), "method must be one of"),
        (lambda: SQUARE.boundary_points(0), "num_points must be at least 1"),
        (lambda: SQUARE.boundary_points(5, where=lambda p: p[:, 0] > 1), "where must select"),
        (
            lambda: SQUARE.boundary_points(50, where=lambda p: np.sin(1e12 * p.sum(axis=1)) > 0),
            "where must hold on parts longer",
        ),
        (lambda: SQUARE.contains(np.zeros(3)), "points must have a last axis"),
        (lambda: SQUARE.distance(1.0), "points must have a last axis"),
    ],
)
def test_wrong_values_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PlanarRegion(shapely.Point(0, 0)), "geometry must be a polygon.*got a Point"),
        (lambda: PlanarRegion([(0, 0), (1, 0), (0, 1)]), "geometry must be a polygon.*got a list"),
        (lambda: PlanarRegion.disc((0, 0), "1"), "radius must be a real number"),
        (lambda: PlanarRegion.disc(("a", 0), 1.0), "center must be an array of numbers"),
        (lambda: PlanarRegion.from_mesh(CORNERS, [[0.0, 1.0, 2.0]]), "triangles must be integers"),
        (lambda: SQUARE - shapely.box(0, 0, 1, 1), "unsupported operand"),
        (lambda: SQUARE | 3, "unsupported operand"),
        (lambda: SQUARE.interior_points(2.5), "num_points must be an integer"),
        (lambda: SQUARE.interior_points(5, key=3), "key must be a random key"),
        (lambda: SQUARE.boundary_points(5, key=3), "key must be a random key"),
        (lambda: SQUARE.boundary_points(5, where="left"), "where must be callable"),
        (lambda: SQUARE.boundary_points(5, where=lambda p: p[0] > 0), "where must map all points"),
        (lambda: SQUARE.boundary_points(5, where=lambda p: p[:, 0]), "where must map all points"),
        (lambda: SQUARE.contains("here"), "points must be an array of numbers"),
    ],
)
def test_wrong_types_are_named(build, message):
    with pytest.raises(TypeError, match=message):
        build()
