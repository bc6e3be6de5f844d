"""The self-scaled Broyden family: secant equation, definiteness, convergence, use in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import MLP
from opifex.optimization.second_order import scale_by_self_scaled_broyden, self_scaled_broyden
from opifex.problems import Poisson
from opifex.training.multilevel import CascadeTrainer
from tolerances import distance, rounding


def quadratic(n: int, condition: float, seed: int):
    """A convex quadratic with the given condition number, and its Hessian."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    hessian = basis @ np.diag(np.geomspace(1 / condition, 1, n)) @ basis.T
    minimum = rng.normal(size=n)
    matrix = jnp.asarray(hessian)
    return (lambda x: 0.5 * (x - minimum) @ matrix @ (x - minimum)), matrix, jnp.asarray(minimum)


def minimise(loss, start, steps: int, method=None):
    method = method or self_scaled_broyden()

    def step(carry, _):
        x, state = carry
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = method.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(x, updates), state), value

    return jax.jit(lambda x: jax.lax.scan(step, (x, method.init(x)), length=steps))(start)


METHOD = scale_by_self_scaled_broyden()
UPDATE = jax.jit(METHOD.update)  # compiled once for all examples


@given(seed=st.integers(0, 99), steps=st.integers(2, 12), exponent=st.floats(0, 3))
@settings(max_examples=15, deadline=None)
def test_the_secant_equation_and_definiteness(seed, steps, exponent):
    with jax.enable_x64(True):
        loss, _, _ = quadratic(6, 10.0**exponent, seed)
        x = jnp.zeros(6)
        state, length = METHOD.init(x), 0.7 / 10.0**exponent
        for _ in range(steps):
            before = (x, jax.grad(loss)(x))
            direction, state = UPDATE(before[1], state, x)
            assert float(direction @ before[1]) < 0  # a descent direction
            x = x + length * direction
        last = jax.grad(loss)(x)
        _, state = UPDATE(last, state, x)
        s, y = x - before[0], last - before[1]
        eigenvalues = np.linalg.eigvalsh((state.inverse + state.inverse.T) / 2)
        assert eigenvalues[0] > 0
        condition = eigenvalues[-1] / eigenvalues[0]
        bound = rounding(np.float64, condition=condition, operations=100)
        scale = float(np.linalg.norm(state.inverse, 2) * jnp.linalg.norm(y))
        assert distance(state.inverse @ y, s, scale=scale) < bound
        assert distance(state.inverse, state.inverse.T) < bound


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_quadratics_are_minimised(condition):
    with jax.enable_x64(True):
        loss, hessian, minimum = quadratic(20, condition, 1)
        (x, _), losses = minimise(loss, jnp.zeros(20), 400)
        assert np.all(np.diff(losses) <= 0)
        # The loss has as many digits as its terms, which the square of the distance bounds.
        start = float(minimum @ hessian @ minimum)
        assert float(loss(x)) < 1e-12 * start


def test_a_narrow_valley_is_followed_faster_than_by_the_gradient():
    with jax.enable_x64(True):
        rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2  # noqa: E731
        (x, _), losses = minimise(rosenbrock, jnp.array([-1.2, 1.0]), 80)
        assert float(rosenbrock(x)) < 1e-12
        assert np.all(np.diff(losses) <= 0)
        searched = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(30))
        (slow, _), _ = minimise(rosenbrock, jnp.array([-1.2, 1.0]), 80, searched)
        assert float(rosenbrock(slow)) > 1e-3


def test_a_step_without_positive_curvature_keeps_the_matrix():
    method = scale_by_self_scaled_broyden()
    params, gradient = jnp.array([1.0, 2.0]), jnp.array([0.5, -0.25])
    _, first = method.update(gradient, method.init(params), params)
    # The gradient did not change along a step: no information.
    _, second = method.update(gradient, first, params + 1.0)
    assert np.array_equal(first.inverse, second.inverse)
    assert int(second.step) == 2


def test_networks_are_trained_far_below_adam():
    problem = Poisson()
    with jax.enable_x64(True):
        points = problem.sample_points(jax.random.key(0), 200, 40, method="sobol")
        losses = {}
        for name, method in (("broyden", self_scaled_broyden()), ("adam", optax.adam(1e-2))):
            model = MLP(2, 1, [8], param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            trainer = CascadeTrainer([model], method)
            losses[name] = trainer.fit(problem.loss, points, epochs=[300]).losses
        assert np.all(np.diff(losses["broyden"]) <= 0)
        assert losses["broyden"][-1] < 1e-2 * losses["adam"][-1]


def test_it_starts_afresh_on_a_finer_level():
    problem = Poisson()
    with jax.enable_x64(True):
        models = [MLP(2, 1, [n], param_dtype=jnp.float64, rngs=nnx.Rngs(n)) for n in (4, 8)]
        points = problem.sample_points(jax.random.key(0), 100, 20)
        history = CascadeTrainer(models, self_scaled_broyden()).fit(
            problem.loss, points, epochs=[40, 60]
        )
        assert np.all(np.isfinite(history.losses))
        assert history.losses[-1] < history.losses[39]


def test_parameters_are_needed():
    method = scale_by_self_scaled_broyden()
    with pytest.raises(ValueError, match="params must be given"):
        method.update(jnp.ones(2), method.init(jnp.ones(2)))


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.5, TypeError)])
def test_bad_settings_are_named(value, error):
    with pytest.raises(error, match="max_backtracking_steps"):
        self_scaled_broyden(value)
