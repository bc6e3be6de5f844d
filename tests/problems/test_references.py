"""Computed solutions are as exact as they say, and refuse what they cannot resolve."""

from decimal import Decimal, getcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.integrate import solve_ivp

from opifex.models import MLP
from opifex.problems import AllenCahn, Burgers, Poisson
from opifex.problems.kink import repeated_erfc
from tolerances import distance, rounding

BEST_PUBLISHED = {Burgers: 2.9e-6, AllenCahn: 1.7e-5}
"""Smallest relative errors on the page of benchmarks."""


def burgers_in_extended_precision(points, viscosity):
    """The quotient of integrals over y itself, on three times as many points as are needed."""
    pi = np.longdouble("3.14159265358979323846264338327950288")
    values = []
    for x, t in np.asarray(points, np.longdouble):
        reach = np.sqrt(2 * t * (90 * viscosity + 2 / pi))
        spacing = np.sqrt(2 * viscosity / (1 / t + pi)) / 6
        y = x + spacing * np.arange(-int(reach / spacing) - 1, int(reach / spacing) + 2)
        exponent = -((x - y) ** 2) / (4 * viscosity * t) - np.cos(pi * y) / (2 * pi * viscosity)
        weights = np.exp(exponent - exponent.max())
        values.append(-np.sum(weights * np.sin(pi * y)) / np.sum(weights))
    return np.array(values, np.float64)


@pytest.mark.parametrize("scaled", [0.3, 1e-2, 3e-3, 1e-3, 1e-4])
def test_burgers_is_as_exact_as_it_says(scaled):
    problem = Burgers(viscosity=scaled / np.pi)
    draw = np.random.default_rng(0)
    place = np.concatenate([draw.uniform(-1, 1, 20), problem.viscosity * draw.uniform(-9, 9, 20)])
    points = np.stack([place.clip(-1, 1), draw.uniform(0.001, 1, 40)], axis=1).astype(np.float32)
    truth = burgers_in_extended_precision(points, problem.viscosity)
    single = problem.exact(jnp.asarray(points))
    with jax.enable_x64(True):
        double = problem.exact(jnp.asarray(points, jnp.float64))
    assert single.dtype == np.float32
    assert np.max(np.abs(np.asarray(double)[:, 0] - truth)) <= problem.exact_error
    assert np.max(np.abs(np.asarray(single)[:, 0] - truth)) <= np.finfo(np.float32).eps


def residual_of_the_solution(problem, points):
    with jax.enable_x64(True):
        where = jnp.asarray(points)
        return np.asarray(jax.jit(lambda x: problem.terms[0].evaluate(problem.exact, x))(where))


@pytest.mark.parametrize("problem", [Burgers(), AllenCahn()], ids=lambda p: type(p).__name__)
def test_references_judge_the_best_results(problem):
    assert problem.exact_error <= 1e-2 * BEST_PUBLISHED[type(problem)]
    assert problem.exact_error <= 1e-10


def test_the_allen_cahn_solution_solves_its_equation():
    problem = AllenCahn()
    place = np.concatenate(
        [np.linspace(-1, 1, 21), 0.5 + np.linspace(-0.02, 0.02, 9), [0.999, 0.9999]]
    )
    time = np.geomspace(1e-5, 1, 24)
    points = np.stack(np.meshgrid(place, time), axis=-1).reshape(-1, 2)
    residual = np.abs(residual_of_the_solution(problem, points)).reshape(time.size, place.size)
    # The slope of the reaction is at most rho. By the maximum principle the error at t = 1 is then at
    # most the integral of exp(rho (1 - t)) times the largest residual at each time.
    growth = np.exp(problem.reaction * (1 - time))
    bound = np.trapezoid(growth * residual.max(axis=1), time)
    assert bound <= 1e-2 * BEST_PUBLISHED[AllenCahn]
    with jax.enable_x64(True):
        start = jnp.asarray(np.stack([place, np.zeros(place.size)], axis=1))
        error = np.asarray(problem.exact(start))[:, 0] - place**2 * np.cos(np.pi * place)
        assert np.max(np.abs(error)) <= problem.exact_error
        assert np.all(np.isnan(problem.exact(jnp.array([[0.0, -0.1], [0.0, 1.1]]))))


def test_allen_cahn_agrees_with_finite_differences():
    """Cells of second order in [0, 1], without a flux at the ends, and a stiff SciPy solver."""
    diffusivity, reaction, errors = 0.01, 3.0, []
    problem = AllenCahn(diffusivity=diffusivity, reaction=reaction)
    times = np.array([0.2, 0.5, 1.0])
    for n in (60, 120):
        x = (np.arange(n) + 0.5) / n

        def rhs(_, u, n=n):
            flux = np.diff(u, prepend=u[0], append=u[-1])
            return diffusivity * n**2 * np.diff(flux) + reaction * (u - u**3)

        start = x**2 * np.cos(np.pi * x)
        options = {"method": "LSODA", "rtol": 1e-9, "atol": 1e-11, "lband": 1, "uband": 1}
        found = solve_ivp(rhs, (0, 1), start, t_eval=times, **options).y.T
        points = np.stack(np.meshgrid(x, times), axis=-1).reshape(-1, 2)
        with jax.enable_x64(True):
            exact = np.asarray(problem.exact(jnp.asarray(points))).reshape(found.shape)
        errors.append(np.max(np.abs(found - exact)))
    assert errors[1] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.5  # second order towards the reference


def test_analytic_solutions_are_exact_to_rounding():
    problem = Poisson()
    with jax.enable_x64(True):
        grid = problem.evaluation_points(31)
        truth = np.prod(np.sin(np.longdouble(np.pi) * np.asarray(grid)), axis=1) / 2 / np.pi**2
        assert np.max(np.abs(np.asarray(problem.exact(grid))[:, 0] - truth)) <= problem.exact_error


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Burgers(viscosity=1e-7), "viscosity=1e-07 is too small.*at least 3e-7"),
        (AllenCahn(reaction=3000.0), "diffusivity=0.0001 and reaction=3000.0.*at most 50"),
        (AllenCahn(diffusivity=2.0), "diffusivity must be at most 1.*got 2.0"),
    ],
)
def test_what_cannot_be_resolved_is_refused(problem, message):
    for use in (lambda: problem.exact(jnp.ones((1, 2))), lambda: problem.exact_error):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("diffusivity", "reaction"), [(1e-4, 50.0), (5e-5, 50.0), (1e-6, 1.0), (1.0, 50.0), (1.0, 1e-3)]
)
def test_what_is_said_to_be_resolved_is(diffusivity, reaction):
    assert AllenCahn(diffusivity=diffusivity, reaction=reaction).exact_error <= 1e-8


def decimal_pi():
    """By Machin's formula."""

    def inverse_tangent(n):
        power, total, k = Decimal(1) / n, Decimal(0), 0
        while abs(power) > Decimal(10) ** -90:
            total += power / (2 * k + 1)
            power, k = -power / n**2, k + 1
        return total

    return 16 * inverse_tangent(5) - 4 * inverse_tangent(239)


def decimal_ierfc(x, pi):
    """exp(-x^2) / sqrt(pi) - x erfc(x), by the series of the error function."""
    if x > 12:
        return Decimal(0)
    term, total, k = x, Decimal(0), 0
    while abs(term) > Decimal(10) ** -90:
        total += term / (2 * k + 1)
        term, k = -term * x * x / (k + 1), k + 1
    return (-x * x).exp() / pi.sqrt() - x * (1 - 2 * total / pi.sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("t", [0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-2])
def test_the_spreading_kink_and_its_derivatives(dtype, t):
    """Against central differences with 90 digits; the initial values are the limits."""
    getcontext().prec = 120
    pi, diffusivity, step = decimal_pi(), 1e-4, Decimal(10) ** -30
    with jax.enable_x64(True):
        time = np.asarray(t, dtype)

        def kink(xi, time):
            return repeated_erfc(1, xi, 4 * dtype(diffusivity) * time)

        for xi in np.array([0.0, 1e-7, 1e-4, 1e-3, 0.01, 0.3], dtype):
            value = kink(xi, time)
            slopes = jax.grad(kink, (0, 1))(xi, time)
            second = jax.grad(jax.grad(kink))(xi, time)
            found = np.array([value, *slopes, second], np.float64)
            assert np.all(np.isfinite(found))
            assert {a.dtype for a in (value, *slopes, second)} == {np.dtype(dtype)}
            variance = Decimal(float(4 * dtype(diffusivity))) * Decimal(float(time))
            if t == 0:
                truth = [0, -1 if xi == 0 else 0, 0, 0]
            else:
                spread, place = variance.sqrt(), Decimal(float(xi))

                def exact(place, spread=spread):
                    return spread * decimal_ierfc(place / spread, pi)

                h, scale = spread * step, float(dtype(diffusivity))
                centre, right = place + h, exact(place + 2 * h)  # one-sided at the kink
                middle, left = exact(centre), exact(place)
                curvature = float((right - 2 * middle + left) / h**2)
                truth = [left, (middle - left) / h, scale * curvature, curvature]
            truth = np.array([float(v) for v in truth])
            # Below the unit roundoff the kink has not spread at all.
            if t > 0 and float(variance) < np.finfo(dtype).eps ** 2:
                assert abs(found[0] - truth[0]) <= np.finfo(dtype).eps
                continue
            # Relative perturbations of x / s are amplified by its square in exp(-x^2 / s^2).
            ratio = min(float(xi) / max(float(variance), 1e-300) ** 0.5, 7.0)
            size = np.array([max(float(variance), 0) ** 0.5, 1, 1, 1])
            if t > 0:
                size[2:] = [float(dtype(diffusivity)) / size[0], 1 / size[0]]
            allowed = rounding(dtype, condition=1 + ratio**2, operations=8) * size
            assert np.all(np.abs(found - truth) <= allowed + 1e-20), (xi, found, truth)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_residual_of_the_trial_function_at_early_times(dtype):
    problem = AllenCahn()
    with jax.enable_x64(dtype == jnp.float64):
        network = MLP(2, 1, [6], param_dtype=dtype, rngs=nnx.Rngs(0))
        model = problem.trial_function(network)
        evaluate = jax.jit(lambda x: problem.terms[0].evaluate(model, x)[:, 0])
        place = jnp.array([-1.0, 1.0, 0.3, 0.0, 0.9999, -0.99], dtype)
        # At t = 0: u = u0, u_t = -2 rho (u0 - N), and the kink leaves nothing.
        start = place**2 * jnp.cos(jnp.pi * place)
        curvature = jax.vmap(jax.grad(jax.grad(lambda x: x**2 * jnp.cos(jnp.pi * x))))(place)
        inputs = jnp.stack([jnp.cos(jnp.pi * place), jnp.full_like(place, -1)], axis=1)
        rho = problem.reaction
        limit = -2 * rho * (start - network(inputs)[:, 0]) - problem.diffusivity * curvature
        limit = limit - rho * (start - start**3)
        for t in (0.0, 1e-30, 1e-20, 1e-12, 1e-8, 1e-6, 1e-4):
            found = evaluate(jnp.stack([place, jnp.full_like(place, t)], axis=1))
            # Slopes of the residual in time, of the order of rho^2, and the two terms that cancel
            # at the kink: sqrt(epsilon / pi t) each.
            singular = np.sqrt(problem.diffusivity / max(t, float(jnp.finfo(dtype).eps) ** 2))
            allowed = rounding(dtype, condition=20 + min(singular, 1e4), operations=20)
            assert distance(found, limit) <= allowed + 20 * rho**2 * (t + np.sqrt(1e-4 * t))


@pytest.mark.slow
def test_a_widely_spread_kink_keeps_the_conditions():
    with jax.enable_x64(True):
        problem = AllenCahn(diffusivity=0.05)
        model = problem.trial_function(MLP(2, 1, [4], param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
        sides = problem.condition_points(20)[1]
        jumps = problem.terms[2].evaluate(model, sides)
        assert np.max(np.abs(jumps)) <= rounding(np.float64, condition=10, operations=40)
        slopes = jax.vmap(jax.grad(lambda x: model(x)[0]))(jnp.array([[0.0, 0.5], [1e-9, 0.5]]))
        assert np.max(np.abs(slopes[:, 0])) < 1e-7  # no kink at x = 0, where the images meet
