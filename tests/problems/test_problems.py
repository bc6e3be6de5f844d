"""Problems: analytic solutions solve them, points lie where they should, bad input is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opifex.problems import (
    AllenCahn,
    Box,
    Burgers,
    Heat,
    Helmholtz,
    Poisson,
    generate_boundary_points,
    grid_points,
    interior_points,
)
from tolerances import distance, rounding

ANALYTIC = [
    Poisson(),
    Helmholtz(),
    Helmholtz(wave_number=3.0, half_waves=2, amplitude=0.1),
    Heat(),
    Burgers(viscosity=0.05),
]
EVOLUTION = [Heat(), Burgers(), AllenCahn()]


@pytest.mark.parametrize("problem", ANALYTIC, ids=lambda p: type(p).__name__)
def test_the_exact_solution_has_no_residual(problem):
    with jax.enable_x64(True):
        points = problem.sample_points(jax.random.key(0), 40, 24)

        def exact(x):
            return problem.exact(x[None])[0]

        # Second derivatives of waves of frequency up to 4 pi, or quotients of sums of 200 terms.
        allowed = rounding(np.float64, condition=(4 * np.pi) ** 2, operations=200)
        residuals = jax.jit(lambda *p: problem.residual_vector(exact, *p))(*points)
        assert distance(residuals, 0.0, scale=1.0) <= allowed


def test_a_wrong_solution_is_noticed():
    problem = Poisson()
    points = problem.sample_points(jax.random.key(0), 100, 40)

    def off(x):
        return 1.1 * problem.exact(x[None])[0]

    loss = problem.loss(off, *points)
    assert loss > 1e-3
    squares = jnp.sum(problem.residual_vector(off, *points) ** 2)
    assert distance(loss, squares) <= rounding(np.float32, condition=10, operations=10)
    error = problem.relative_l2_error(off)
    assert distance(error, 0.1) <= rounding(np.float32, condition=11, operations=2)


@pytest.mark.parametrize("problem", EVOLUTION, ids=lambda p: type(p).__name__)
def test_points_of_one_key_are_independent(problem):
    key, count = jax.random.key(3), 400
    unit = [
        (np.asarray(points) - problem.domain.lower) / np.subtract(*reversed(sides))
        for sides in [(problem.domain.lower, problem.domain.upper)]
        for points in (
            interior_points(count // 2, problem.domain, key=key),
            *problem.condition_points(count, key),
        )
    ]
    columns = [*unit[0].T, unit[1][:, 0], unit[2][:, 1]]
    correlation = np.corrcoef(columns) - np.eye(4)
    # Five standard deviations of the correlation of independent numbers.
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(count // 2)


@pytest.mark.parametrize("problem", EVOLUTION, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("key", [None, 5])
@pytest.mark.parametrize(("asked", "counts"), [(1, (1, 1)), (2, (1, 1)), (7, (4, 3)), (8, (4, 4))])
def test_condition_points_are_as_many_as_asked_for(problem, key, asked, counts):
    key = None if key is None else jax.random.key(key)
    initial, sides = problem.condition_points(asked, key)
    assert (len(initial), len(sides)) == counts
    assert np.all(np.asarray(initial)[:, 1] == 0)
    ends = (problem.domain.lower[0], problem.domain.upper[0])
    assert set(np.asarray(sides)[:, 0].tolist()) <= set(ends)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("key", [None, 5])
def test_boundary_points_lie_on_every_face(dim, key):
    box = Box((-1.0,) * dim, tuple(1.0 + i for i in range(dim)))
    points = np.asarray(
        generate_boundary_points(10 * dim, box, key=None if key is None else jax.random.key(key))
    )
    assert points.shape == (10 * dim, dim)
    lower, upper = points == np.array(box.lower), points == np.array(box.upper)
    assert np.all(np.any(lower | upper, axis=1))
    assert np.all(np.sum(lower, axis=0) >= 5)
    assert np.all(np.sum(upper, axis=0) >= 5)
    assert np.all((points >= np.array(box.lower)) & (points <= np.array(box.upper)))


def test_page_boundary_points():
    points = np.asarray(generate_boundary_points(100))
    assert points.shape == (100, 2)
    assert len(np.unique(points, axis=0)) == 100


@pytest.mark.parametrize("method", ["uniform", "sobol"])
def test_interior_points_are_nested(method):
    few, many = (interior_points(n, key=jax.random.key(1), method=method) for n in (13, 50))
    assert np.array_equal(few, many[:13])
    assert np.all((np.asarray(many) > 0) & (np.asarray(many) < 1))
    other = interior_points(13, key=jax.random.key(2), method=method)
    assert not np.array_equal(few, other)


def test_evaluation_grid():
    grid = np.asarray(grid_points([3, 2], Box((0.0, 1.0), (1.0, 3.0))))
    assert grid.tolist() == [[0, 1], [0, 3], [0.5, 1], [0.5, 3], [1, 1], [1, 3]]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: Poisson(boundary_weight=0), "boundary_weight"),
        (lambda: Helmholtz(wave_number=-1), "wave_number"),
        (lambda: Helmholtz(half_waves=0), "half_waves"),
        (lambda: Helmholtz(amplitude=0.0), "amplitude"),
        (lambda: Helmholtz(boundary_weight=-2), "boundary_weight"),
        (lambda: Heat(diffusivity=0), "diffusivity"),
        (lambda: Heat(condition_weight=0), "condition_weight"),
        (lambda: Burgers(viscosity=0.0), "viscosity"),
        (lambda: Burgers(condition_weight=-1), "condition_weight"),
        (lambda: AllenCahn(diffusivity=0), "diffusivity"),
        (lambda: AllenCahn(reaction=-5), "reaction"),
        (lambda: AllenCahn(condition_weight=0), "condition_weight"),
        (lambda: Box((0.0,), (0.0,)), "lower"),
        (lambda: Box((0.0,), (1.0, 2.0)), "lower"),
        (lambda: generate_boundary_points(0), "num_points"),
        (lambda: interior_points(0), "num_points"),
        (lambda: interior_points(5, method="regular"), "method"),
        (lambda: grid_points([3]), "shape"),
        (lambda: Poisson().sample_points(jax.random.key(0), 0, 10), "num_interior"),
        (lambda: Poisson().sample_points(jax.random.key(0), 10, 0), "num_boundary"),
        (lambda: Heat().condition_points(0), "num_points"),
        (lambda: Poisson().loss(lambda x: x[:1], jnp.ones((3, 2))), "points"),
    ],
)
def test_wrong_arguments_are_named(build, name):
    with pytest.raises(ValueError, match=name):
        build()


@pytest.mark.parametrize("key", [3, "seed", np.zeros(2, np.uint32), jax.random.split])
def test_random_keys_are_checked(key):
    for draw in (
        lambda: Poisson().sample_points(key, 10, 10),
        lambda: interior_points(5, key=key),
        lambda: Heat().condition_points(5, key),
        lambda: generate_boundary_points(5, key=key),
    ):
        with pytest.raises(TypeError, match="key must be a random key"):
            draw()
