"""Time slabs of random features against analytic solutions."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.core.physics import directional_derivatives, gradient
from opifex.models import RandomFeatures
from opifex.problems import Box, Burgers
from opifex.training import TimeMarching, TimeSlab
from tolerances import distance

ACROSS, ALONG = np.array([1.0, 0.0]), np.array([0.0, 1.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def features(count=60, outputs=1, **how):
    how = {"slope": (3.0, 1.0), "param_dtype": jnp.float64} | how
    return RandomFeatures(2, outputs, count, rngs=nnx.Rngs(0), **how)


def marching(elements=4, count=60, outputs=1, **how):
    return TimeMarching(features(count, outputs), elements, **({"tolerance": 1e-4} | how))


def grid(domain, count=31):
    axes = [np.linspace(a, b, count) for a, b in zip(domain.lower, domain.upper, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def heat(u, x):
    _, _, u_xx = directional_derivatives(u, ACROSS, 2)(x)
    _, u_t = directional_derivatives(u, ALONG, 1)(x)
    return u_t - 0.1 * u_xx


def decaying(x):
    return jnp.exp(-0.1 * x[..., 1:]) * jnp.sin(x[..., :1])


def at_start(function):
    return lambda x: function(jnp.concatenate([x, jnp.zeros_like(x)], axis=1))


@pytest.mark.parametrize(
    "boundary",
    [
        pytest.param("values", marks=pytest.mark.slow),
        pytest.param("slopes", marks=pytest.mark.slow),
        "periodic",
    ],
)
def test_heat_equation(boundary):
    domain = Box((0.0, 0.0), (2 * np.pi, 1.0))
    conditions = {
        "values": lambda u, x: u(x),
        "slopes": lambda u, x: gradient(u)(x)[0] - jnp.exp(-0.1 * x[1]),
        "periodic": "periodic",
    }
    solution = marching().solve(heat, at_start(decaying), domain, conditions[boundary])
    points = grid(domain)
    assert distance(solution(points), decaying(points)) < 1e-5


@pytest.mark.slow
def test_second_order_in_time():
    domain = Box((0.0, 0.0), (1.0, 1.0))

    def wave(u, x):
        _, _, u_xx = directional_derivatives(u, ACROSS, 2)(x)
        _, _, u_tt = directional_derivatives(u, ALONG, 2)(x)
        return u_tt - u_xx

    def exact(x):
        return jnp.sin(np.pi * x[..., :1]) * jnp.cos(np.pi * x[..., 1:] + 0.3)

    speed = lambda x: -np.pi * np.sin(0.3) * jnp.sin(np.pi * x)  # noqa: E731
    solution = marching().solve(wave, (at_start(exact), speed), domain, lambda u, x: u(x))
    points = grid(domain)
    assert distance(solution(points), exact(points)) < 1e-5


@pytest.mark.slow
def test_a_system_of_two_equations():
    domain = Box((0.0, 0.0), (2 * np.pi, 1.0))

    def acoustics(u, x):  # u_t = v_x, v_t = u_x, as travelling waves
        slopes = jax.jacfwd(u)(x)
        return slopes[:, 1] - slopes[::-1, 0]

    def exact(x):
        right, left = jnp.sin(x[..., 0] - x[..., 1]), jnp.cos(2 * (x[..., 0] + x[..., 1]))
        return jnp.stack([left + right, left - right], axis=-1)

    solution = marching(elements=6, outputs=2, space_order=1).solve(
        acoustics, at_start(exact), domain, "periodic"
    )
    points = grid(domain)
    assert distance(solution(points), exact(points)) < 1e-5


@pytest.mark.slow
def test_a_front_that_forms_by_itself():
    problem = Burgers(viscosity=0.05)
    method = TimeMarching(features(80), 8, tolerance=1e-2)
    solution = method.solve(
        problem.terms[0].residual,
        lambda x: -jnp.sin(np.pi * x),
        problem.domain,
        lambda u, x: u(x),
    )
    assert problem.relative_l2_error(solution) < 1e-5
    nodes = np.asarray(solution.nodes[...])
    first, last = np.diff(nodes[0]).min(), np.diff(nodes[-1]).min()
    assert last < 0.6 * first


def test_slabs_follow_one_another():
    domain = Box((0.0, 1.0), (2 * np.pi, 3.0))
    method = marching(tolerance=1e-4, first_length=0.3)
    slabs = list(method.slabs(heat, jnp.sin, domain, "periodic"))
    assert slabs[0].start == 1
    assert abs(slabs[-1].end - 3) < 1e-12
    for before, after in itertools.pairwise(slabs):
        assert after.start == before.end
    for slab in slabs:
        assert slab.residual <= 1e-4
        assert list(slab.residuals) == sorted(slab.residuals, reverse=True)


@pytest.mark.slow
def test_a_tighter_tolerance_gives_smaller_errors():
    domain = Box((0.0, 0.0), (2 * np.pi, 1.0))
    points = grid(domain)
    exact = jnp.cos(points[:, :1]) * jnp.exp(-20 * points[:, 1:])

    def solved(tolerance):
        method = marching(space_order=1, tolerance=tolerance, first_length=1.0)
        slabs = list(
            method.slabs(lambda u, x: gradient(u)(x)[1] + 20 * u(x)[0], jnp.cos, domain, "periodic")
        )
        return distance(method.joined(slabs)(points), exact), slabs

    error, slabs = solved(100.0)
    assert len(slabs) == 1
    better, more = solved(slabs[0].residual / 100)
    assert len(more) > 1
    assert better < error / 10


@pytest.mark.slow
def test_too_few_elements_are_told_and_the_solution_goes_on():
    domain = Box((0.0, 0.0), (2 * np.pi, 0.5))
    method = marching(elements=4, count=30)
    waves = lambda x: jnp.sin(x)  # noqa: E731
    with pytest.warns(UserWarning, match="more elements or features are needed"):
        solution = method.solve(heat, waves, domain, "periodic")
    assert np.isfinite(solution(grid(domain))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        marching(elements=4).solve(heat, waves, domain, "periodic")


def test_no_solution_is_an_error():
    blow_up = lambda u, x: gradient(u)(x)[1] - u(x)[0] ** 2  # noqa: E731
    slabs = marching(count=40).slabs(
        blow_up, lambda x: 2 + jnp.sin(x), Box((0.0, 0.0), (2 * np.pi, 1.0)), "periodic"
    )
    solved: list[TimeSlab] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FloatingPointError, match=r"no solution at time 0\.3"):
            solved.extend(slabs)  # keeps what came before the error
    # The exact solution is infinite at t = 1 / (1 + 2) at the latest.
    assert 0.3 < solved[-1].end < 1 / 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"elements": 2}, "elements must be at least 3, got 2"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"first_length": 1.5}, r"first_length must be in \(0, 1\]"),
        ({"max_steps": 0}, "max_steps"),
        ({"space_order": 0}, "space_order"),
        ({"regularization": 2.0}, "regularization"),
        ({"features": RandomFeatures(1, 1, 9, rngs=nnx.Rngs(0))}, "two inputs and one patch"),
        (
            {"features": RandomFeatures(2, 1, 8, patches=(2, 2), rngs=nnx.Rngs(0))},
            "two inputs and one patch",
        ),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        TimeMarching(**({"features": features(9), "elements": 4} | setting))


def test_arguments_are_checked_before_anything_is_compiled():
    method, domain = marching(count=9), Box((0.0, 0.0), (1.0, 1.0))
    with pytest.raises(TypeError, match="features must be RandomFeatures"):
        TimeMarching(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), 4)
    with pytest.raises(TypeError, match="equation"):
        method.slabs(None, jnp.sin, domain, "periodic")
    with pytest.raises(TypeError, match="initial"):
        method.slabs(heat, 1.0, domain, "periodic")
    with pytest.raises(ValueError, match="initial must hold at least the values"):
        method.slabs(heat, (), domain, "periodic")
    with pytest.raises(TypeError, match="boundary"):
        method.slabs(heat, jnp.sin, domain, "open")
    with pytest.raises(ValueError, match="slabs must hold at least one"):
        method.joined([])
    with pytest.raises(ValueError, match="domain must have a place and a time, got 3"):
        method.slabs(heat, jnp.sin, Box((0.0,) * 3, (1.0,) * 3), "periodic")
    with pytest.raises(ValueError, match=r"initial must return shape \(2001, 1\)"):
        next(method.slabs(heat, lambda x: x[:, 0], domain, "periodic"))
    with pytest.raises(ValueError, match="finite"):
        next(method.slabs(heat, lambda x: x / 0, domain, "periodic"))
