"""Problems: exact solutions solve them, references agree with independent solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

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
    solve_allen_cahn,
)
from tolerances import distance, rounding

ANALYTIC = [
    Poisson(),
    Helmholtz(),
    Helmholtz(wave_number=3.0, half_waves=2, amplitude=0.1),
    Heat(),
    Burgers(viscosity=0.05),
]


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


def finite_differences(x, viscosity, u0, times):
    """Burgers by second-order differences and a stiff SciPy solver: another method altogether."""
    h = x[1] - x[0]

    def rhs(_, u):
        full = np.concatenate([[0], u, [0]])
        convection = (full[2:] ** 2 - full[:-2] ** 2) / (4 * h)
        return -convection + viscosity * (full[2:] - 2 * u + full[:-2]) / h**2

    found = solve_ivp(
        rhs,
        (0, times[-1]),
        u0[1:-1],
        method="LSODA",
        t_eval=times,
        rtol=1e-8,
        atol=1e-10,
        lband=1,
        uband=1,
    )
    return found.y.T


def test_burgers_reference_agrees_with_scipy():
    with jax.enable_x64(True):
        problem = Burgers(viscosity=0.05)
        times = np.array([0.25, 0.5, 1.0])
        errors = []
        for n in (101, 201):
            x = np.linspace(-1, 1, n)
            solved = finite_differences(x, 0.05, -np.sin(np.pi * x), times)
            points = np.stack(np.meshgrid(x[1:-1], times), axis=-1).reshape(-1, 2)
            exact = np.asarray(problem.exact(jnp.asarray(points))).reshape(solved.shape)
            errors.append(np.max(np.abs(solved - exact)))
        assert errors[1] < 2e-3
        assert 3.0 < errors[0] / errors[1] < 5.0  # second order towards the reference


def test_burgers_reference_at_the_usual_viscosity_is_converged():
    with jax.enable_x64(True):
        problem = Burgers()
        grid = problem.evaluation_points(21)
        value = np.asarray(problem.exact(grid))
        assert np.all(np.isfinite(value))
        # Odd in x, and the initial value at t = 0.
        shaped = value.reshape(21, 21)
        # Exponents of up to 1 / (pi viscosity) = 100 in sums of 200 terms.
        allowed = rounding(np.float64, condition=100, operations=200)
        assert distance(shaped, -shaped[::-1]) <= allowed
        assert distance(shaped[:, 0], -np.sin(np.pi * np.linspace(-1, 1, 21))) <= allowed


def test_allen_cahn_reference_converges_and_agrees_with_scipy():
    x, times, fine = solve_allen_cahn(num_modes=256, num_steps=1000, save_every=500)
    errors = []
    _, _, best = solve_allen_cahn(num_steps=500, save_every=250)
    for modes in (256, 512):
        _, _, value = solve_allen_cahn(num_modes=modes, num_steps=500, save_every=250)
        errors.append(np.max(np.abs(best[:, :: 1024 // modes] - value)))
    assert errors[0] < 1e-3
    assert errors[1] < 1e-5
    h = x[1] - x[0]
    frequency = np.fft.rfftfreq(256, h) * 2 * np.pi

    def rhs(_, u):
        return 1e-4 * np.fft.irfft(-(frequency**2) * np.fft.rfft(u), 256) + 5 * (u - u**3)

    # Both time steppers err by less than 1e-7, SciPy's by its tolerance over some thousand steps.
    found = solve_ivp(rhs, (0, 1), x**2 * np.cos(np.pi * x), rtol=1e-10, atol=1e-12, t_eval=times)
    np.testing.assert_allclose(fine, found.y.T, atol=1e-7)


def test_allen_cahn_interpolates_its_reference():
    with jax.enable_x64(True):
        problem = AllenCahn()
        x = np.linspace(-1, 1, 9)
        start = problem.exact(jnp.asarray(np.stack([x, np.zeros(9)], axis=1)))
        # The condition number of interpolation by quintic splines at their knots is moderate.
        allowed = rounding(np.float64, condition=100, operations=10)
        assert distance(start[:, 0], x**2 * np.cos(np.pi * x)) <= allowed
        points = problem.sample_points(jax.random.key(0), 10, 8)
        assert [p.shape for p in points] == [(10, 2), (4, 2), (4, 2)]
        assert np.isfinite(float(problem.loss(lambda y: jnp.tanh(y[:1] * y[1]), *points)))


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
        lambda: generate_boundary_points(5, key=key),
    ):
        with pytest.raises(TypeError, match="key must be a random key"):
            draw()
