"""Levenberg-Marquardt against dense linear algebra and SciPy."""

from __future__ import annotations

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from opifex.core.residuals import ResidualTerm, mean_square_loss, residual_vector
from opifex.models.mlp import MLP
from opifex.optimization.second_order import LevenbergMarquardt, LevenbergMarquardtState
from opifex.optimization.second_order.damped_least_squares import factorize
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from tolerances import distance, rounding

# A row of data is (features..., target); the "function of a point" is the linear model itself.
LINEAR = ResidualTerm("fit", lambda u, row: u(row[:-1])[0] - row[-1])


def bind_linear(params):
    return lambda x: jnp.atleast_1d(x @ params["w"])


def rosenbrock_term() -> ResidualTerm:
    def residual(u, row):
        x, y = u(row)
        return jnp.stack([10.0 * (y - x**2), 1.0 - x])

    return ResidualTerm("rosenbrock", residual)


def bind_vector(params):
    return lambda _: params


def network(seed: int, hidden=(5, 4), output_dim: int = 1):
    model = MLP(2, output_dim, hidden, param_dtype=jnp.float64, rngs=nnx.Rngs(seed))
    structure, params = nnx.split(model)
    return (lambda p: nnx.merge(structure, p)), params


def laplace(u, x):
    return jnp.trace(jax.hessian(lambda y: u(y)[0])(x)) + jnp.sin(x[0]) * x[1]


def transport(u, x):
    value, slope = jax.jvp(lambda y: u(y)[0], (x,), (jnp.ones_like(x),))
    return slope * value - x[0]


TERMS = (ResidualTerm("interior", transport), ResidualTerm("edge", lambda u, x: u(x)[0], 10.0))

# Can be met by a network, and compiles fast.
FIT = tuple(
    ResidualTerm(name, lambda u, x: u(x)[0] - jnp.sin(3.0 * x[0]) * x[1], weight)
    for name, weight in (("many points", 1.0), ("few points", 10.0))
)


def cloud(seed: int, count: int):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(count, 2)))


def one_step(solver, term, bind, params, data):
    """A first step, compiled."""
    return jax.jit(lambda p: solver.step((term,), bind, p, solver.init(p), (data,)))(params)


def damped_error(gram, damping: float) -> float:
    """What the damping, relative to the trace, and rounding change in an undamped solution."""
    bias = damping * np.trace(gram) / np.linalg.eigvalsh(gram)[0]
    return bias + rounding(np.float64, condition=np.linalg.cond(gram), operations=30)


def test_linear_problem_is_solved_in_one_step():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        features, target = rng.normal(size=(30, 7)), rng.normal(size=30)
        data = jnp.asarray(np.column_stack([features, target]))
        solver = LevenbergMarquardt(initial_damping=1e-14)
        params = {"w": jnp.ones(7)}
        params, _, _ = one_step(solver, LINEAR, bind_linear, params, data)
        expected = np.linalg.lstsq(features, target)[0]
        # The largest damping tried; it shortens the way from the start.
        allowed = damped_error(features.T @ features, 1e-13)
        assert distance(params["w"] - 1.0, expected - 1.0) <= allowed


def test_underdetermined_problem_takes_the_least_change():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        features, target = rng.normal(size=(4, 9)), rng.normal(size=4)
        data = jnp.asarray(np.column_stack([features, target]))
        solver = LevenbergMarquardt(initial_damping=1e-14)
        params = {"w": jnp.zeros(9)}
        params, _, _ = one_step(solver, LINEAR, bind_linear, params, data)
        expected = np.linalg.lstsq(features, target)[0]
        assert distance(params["w"], expected) <= damped_error(features @ features.T, 1e-13)


@pytest.mark.parametrize("geodesic", [False, True])
def test_rosenbrock_agrees_with_scipy(geodesic):
    with jax.enable_x64(True):
        start = np.array([-1.2, 1.0])
        solver = LevenbergMarquardt(geodesic_acceleration=geodesic)
        term, data = rosenbrock_term(), (jnp.zeros((1, 1)),)
        params, state = jnp.asarray(start), solver.init(jnp.asarray(start))
        step = jax.jit(lambda p, s: solver.step((term,), bind_vector, p, s, data))
        for _ in range(40):
            params, state, loss = step(params, state)
        expected = least_squares(
            lambda p: [10 * (p[1] - p[0] ** 2), 1 - p[0]], start, xtol=1e-15, ftol=1e-15, gtol=1e-15
        ).x
        # The condition number of the Jacobian at the solution (1, 1) is 50.
        assert distance(params, expected) <= rounding(np.float64, condition=50, operations=10)
        assert np.sqrt(loss) <= rounding(np.float64, operations=100)


def test_jacobian_is_that_of_the_residual_vector():
    with jax.enable_x64(True):
        bind, params = network(0, output_dim=2)
        vector_term = ResidualTerm("vector", lambda u, x: u(x) ** 2 - x, 3.0)
        terms = (ResidualTerm("interior", laplace), TERMS[1], vector_term)
        points = (cloud(0, 6), cloud(1, 3), cloud(2, 4))
        problem = FlatResiduals(terms, bind, params, points)
        residuals, jacobian = jax.jit(problem.jacobian)(problem.start)

        def all_residuals(flat):
            return residual_vector(terms, bind(problem.unravel(flat)), *points)

        expected = jax.jit(lambda flat: (all_residuals(flat), jax.jacrev(all_residuals)(flat)))
        assert jacobian.shape == (6 + 3 + 8, problem.start.size)
        # Second derivatives of a network with 50 weights take a few hundred operations.
        for found, value in zip((residuals, jacobian), expected(problem.start), strict=True):
            assert distance(found, value) <= rounding(np.float64, operations=500)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
def test_primal_and_dual_solve_the_damped_normal_equations(shape, damping):
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        jacobian, residuals = rng.normal(size=shape), rng.normal(size=shape[0])
        primal, rows = shape[0] >= shape[1], jnp.asarray(jacobian)
        system = factorize(rows.T @ rows) if primal else factorize(rows @ rows.T, rows)
        assert system.eigenvalues.shape == (min(shape),)
        right_hand_side = jacobian.T @ residuals if primal else residuals
        step = system.solve(jnp.asarray(right_hand_side), jnp.asarray(damping))
        # The stacked system has the root of the condition of the normal equations, so that its QR
        # solution is the more exact side.
        stacked = np.vstack([jacobian, np.sqrt(damping) * np.eye(shape[1])])
        expected = np.linalg.lstsq(stacked, -np.r_[residuals, np.zeros(shape[1])])[0]
        gram = jacobian.T @ jacobian if primal else jacobian @ jacobian.T
        condition = np.linalg.cond(gram + damping * np.eye(min(shape)))
        allowed = rounding(np.float64, condition=condition, operations=max(shape))
        error = np.linalg.norm(step - expected) / np.linalg.norm(expected)
        assert error <= allowed


@functools.cache
def compiled_steps(geodesic: bool):
    """Losses of four steps as the solver reports them and recomputed, for one architecture."""
    bind, _ = network(0)
    solver = LevenbergMarquardt(geodesic_acceleration=geodesic)

    @jax.jit
    def run(params, damping, points):
        def body(carry, _):
            params, state, loss = solver.step(TERMS, bind, *carry, points)
            return (params, state), (loss, mean_square_loss(TERMS, bind(carry[0]), *points))

        start = (params, LevenbergMarquardtState(damping))
        return jax.lax.scan(body, start, length=4)[1]

    return run


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 100),
    damping=st.sampled_from([1e-12, 1e-4, 1e2]),
    shape=st.sampled_from([(10, False), (80, True)]),  # dual and primal, straight and curved
)
def test_loss_never_increases_and_is_that_of_the_old_parameters(seed, damping, shape):
    interior, geodesic = shape
    with jax.enable_x64(True):
        _, params = network(seed)
        points = (cloud(seed, interior), cloud(seed + 1, 8))
        reported, recomputed = compiled_steps(geodesic)(params, jnp.asarray(damping), points)
        # The root of the loss is the norm of residuals whose terms have size one to sqrt(10).
        allowed = np.sqrt(10.0) * rounding(np.float64, operations=200)
        np.testing.assert_allclose(np.sqrt(reported), np.sqrt(recomputed), rtol=0, atol=allowed)
        assert np.all(np.diff(np.sqrt(reported)) <= allowed)


def test_damping_rises_and_parameters_stay_when_no_step_helps():
    with jax.enable_x64(True):
        # At a minimiser with a residual left over no step lowers the loss.
        data = jnp.asarray([[1.0, 0.0], [1.0, 2.0]])
        solver = LevenbergMarquardt(initial_damping=1.0, damping_factors=(0.1, 10.0))
        params = {"w": jnp.ones(1)}
        new, state, loss = one_step(solver, LINEAR, bind_linear, params, data)
        assert new["w"] == params["w"]
        assert distance(loss, 1.0) <= rounding(np.float64, operations=4)
        assert state.damping == 10.0


def test_nan_candidates_are_not_taken():
    with jax.enable_x64(True):
        # The full step to the root of log(w) - 5 from w = 3 overshoots to a negative w, from w
        # small it does not; only damped steps stay where the logarithm is defined.
        term = ResidualTerm("log", lambda u, x: jnp.log(u(x)[0]) + 5.0)
        solver = LevenbergMarquardt(initial_damping=1e-6)
        params, data, losses = jnp.asarray([3.0]), (jnp.zeros((1, 1)),), []
        state = solver.init(params)
        step = jax.jit(lambda p, s: solver.step((term,), bind_vector, p, s, data))
        for _ in range(60):
            params, state, loss = step(params, state)
            losses.append(float(loss))
        assert np.all(np.isfinite(losses))
        # The residual is the logarithm of w / exp(-5): the relative error of w.
        error = distance(params[0], np.exp(-5.0))
        assert error <= np.sqrt(losses[-1]) + rounding(np.float64, condition=5, operations=2)
        assert losses[-1] < 1e-16


def test_steps_do_not_depend_on_the_scale_of_the_loss():
    with jax.enable_x64(True):
        bind, params = network(1)
        points = (cloud(0, 60), cloud(1, 8))
        solver = LevenbergMarquardt()
        scaled = tuple(ResidualTerm(t.name, t.residual, 1e6 * t.weight) for t in FIT)
        start, steps, dampings = jax.flatten_util.ravel_pytree(params)[0], [], []
        for terms in (FIT, scaled):
            new, state, _ = jax.jit(
                lambda p, terms=terms: solver.step(terms, bind, p, solver.init(p), points)
            )(params)
            steps.append(jax.flatten_util.ravel_pytree(new)[0] - start)
            dampings.append(state.damping)
        # The smallest damping tried, a tenth of the initial one, bounds the condition number.
        allowed = rounding(np.float64, condition=10 / solver.initial_damping, operations=100)
        assert distance(*steps) <= allowed
        assert dampings[0] == dampings[1]


def test_short_steps_are_tried():
    with jax.enable_x64(True):
        # The Newton step for arctan from w = 2 overshoots to -3.5; damping is excluded here.
        term = ResidualTerm("arctan", lambda u, x: jnp.arctan(u(x)[0]))
        params = jnp.asarray([2.0])
        for lengths, moved in (((1.0,), False), ((1.0, 0.5), True)):
            solver = LevenbergMarquardt(
                initial_damping=1e-14,
                min_damping=1e-14,
                max_damping=1e-14,
                step_lengths=lengths,
                geodesic_acceleration=False,
            )
            new, _, _ = one_step(solver, term, bind_vector, params, jnp.zeros((1, 1)))
            assert (float(new[0]) != 2.0) == moved
        # The damping of 1e-14 shortens the step, which is subtracted from a 2 of its own size.
        allowed = rounding(np.float64, condition=4, operations=10) + 4 * 1.1e-14
        assert distance(new[0], 2.0 - 0.5 * 5.0 * np.arctan(2.0)) <= allowed


def test_dampings_stay_above_the_machine_precision():
    with jax.enable_x64(True):
        bind, params = network(3)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    points = (cloud(0, 40).astype(jnp.float32), cloud(1, 8).astype(jnp.float32))
    solver = LevenbergMarquardt(initial_damping=1e-12, damping_factors=(0.1, 1.0, 1.5))
    _, state, _ = jax.jit(lambda p: solver.step(FIT, bind, p, solver.init(p), points))(params)
    assert state.damping >= jnp.finfo(jnp.float32).eps


def test_state_does_not_depend_on_the_number_of_parameters():
    with jax.enable_x64(True):
        solver = LevenbergMarquardt()
        data = jnp.asarray([[1.0, 2.0], [2.0, 5.0], [3.0, 5.0]])
        small, large = {"w": jnp.zeros(1)}, {"w": jnp.zeros((2, 1))}
        _, state, _ = one_step(solver, LINEAR, bind_linear, small, data)

        @jax.jit
        def step(params, state):
            bind = lambda p: bind_linear({"w": p["w"].sum(0)})  # noqa: E731
            return solver.step((LINEAR,), bind, params, state, (data,))

        _, new_state, loss = step(large, state)
        assert jax.tree.structure(new_state) == jax.tree.structure(solver.init(small))
        assert [leaf.shape for leaf in jax.tree.leaves(new_state)] == [()]
        assert jnp.isfinite(loss)


def test_steps_run_inside_scan_in_single_precision():
    with jax.enable_x64(True):
        bind, params = network(3)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    points = (cloud(0, 40).astype(jnp.float32), cloud(1, 8).astype(jnp.float32))
    solver = LevenbergMarquardt()

    def body(carry, _):
        params, state, loss = solver.step(FIT, bind, *carry, points)
        return (params, state), loss

    (new, state), losses = jax.jit(lambda p: jax.lax.scan(body, (p, solver.init(p)), length=20))(
        params
    )
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert state.damping.dtype == jnp.float32
    assert losses[-1] < 0.1 * losses[0]


def test_acceleration_reduces_the_error_of_the_step():
    with jax.enable_x64(True):
        # The residual exp(w) - 2 is curved; from w = 0 the accelerated Newton step is nearer.
        term = ResidualTerm("exp", lambda u, x: jnp.exp(u(x)[0]) - 2.0)
        params = jnp.asarray([0.0])
        errors = []
        for geodesic in (False, True):
            solver = LevenbergMarquardt(
                initial_damping=1e-10,
                min_damping=1e-10,
                max_damping=1e-10,
                step_lengths=(1.0,),
                geodesic_acceleration=geodesic,
            )
            new, _, _ = one_step(solver, term, bind_vector, params, jnp.zeros((1, 1)))
            errors.append(abs(float(new[0]) - np.log(2.0)))
        # Newton: w = 1, then a = -1/2: w = 1/2.
        # The damping of 1e-10 shortens both parts of the step in proportion.
        assert distance(errors, [1 - np.log(2), np.log(2) - 0.5]) <= 1e-9


@pytest.mark.parametrize(
    ("settings_", "error", "name"),
    [
        ({"initial_damping": 0.0}, ValueError, "initial_damping"),
        ({"initial_damping": "small"}, TypeError, "initial_damping"),
        ({"damping_factors": ()}, ValueError, "damping_factors"),
        ({"damping_factors": (0.1, 1.0)}, ValueError, "damping_factors"),
        ({"damping_factors": (10.0,)}, ValueError, "damping_factors.*below 1"),
        ({"damping_factors": (1.0, 10.0)}, ValueError, "damping_factors.*below 1"),
        ({"block_bytes": 0}, ValueError, "block_bytes"),
        ({"damping_factors": (-1.0, 2.0)}, ValueError, r"damping_factors\[0\]"),
        ({"min_damping": -1.0}, ValueError, "min_damping"),
        ({"max_damping": float("inf")}, ValueError, "max_damping"),
        ({"min_damping": 1.0, "max_damping": 0.1}, ValueError, "max_damping"),
        ({"geodesic_acceleration": 1}, TypeError, "geodesic_acceleration"),
        ({"step_lengths": ()}, ValueError, "step_lengths"),
        ({"step_lengths": (1.0, -0.5)}, ValueError, r"step_lengths\[1\]"),
    ],
)
def test_bad_settings_are_named(settings_, error, name):
    with pytest.raises(error, match=name):
        LevenbergMarquardt(**settings_)


def test_lists_of_settings_become_tuples():
    solver = LevenbergMarquardt(damping_factors=[0.1, 10.0], step_lengths=[1.0])
    assert solver == LevenbergMarquardt(damping_factors=(0.1, 10.0), step_lengths=(1.0,))
    assert hash(solver) == hash(
        LevenbergMarquardt(damping_factors=(0.1, 10.0), step_lengths=(1.0,))
    )


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"terms": ()}, ValueError, "terms"),
        ({"terms": (lambda u, x: u(x),)}, TypeError, "terms"),
        ({"bind": 3}, TypeError, "bind"),
        ({"params": {}}, ValueError, "params"),
        ({"params": {"w": jnp.arange(3)}}, TypeError, "params.*'w'"),
        ({"points": ()}, ValueError, "points"),
        ({"points": (jnp.ones((0, 2)),)}, ValueError, "points of the term 'fit'.*0, 2"),
        ({"terms": (ResidualTerm("odd", lambda u, x: 1j * u(x[:-1])),)}, TypeError, "c64|complex"),
    ],
)
def test_bad_step_arguments_are_named(change, error, name):
    arguments = {
        "terms": (LINEAR,),
        "bind": bind_linear,
        "params": {"w": jnp.ones(1)},
        "state": LevenbergMarquardtState(jnp.asarray(1.0)),
        "points": (jnp.ones((2, 2)),),
    }
    with pytest.raises(error, match=name):
        LevenbergMarquardt().step(**(arguments | change))
