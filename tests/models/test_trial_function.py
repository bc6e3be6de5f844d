"""Trial functions meet their conditions for any network, and prolongations preserve them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import MLP, SymmetricModel, TrialFunction
from opifex.problems import AllenCahn, Burgers, Heat, Helmholtz, Poisson
from opifex.training.multilevel import prolongate_preserving
from tolerances import distance, rounding

PROBLEMS = [Poisson(), Helmholtz(), Heat(), Burgers(), AllenCahn()]


def network(seed: int, width: int = 6) -> MLP:
    with jax.enable_x64(True):
        return MLP(2, 1, (width, width), param_dtype=jnp.float64, rngs=nnx.Rngs(seed))


@functools.cache
def condition_residuals(problem):
    """Residuals of all conditions as a compiled function of the network's parameters."""
    graph, _ = nnx.split(problem.trial_function(network(0)))
    points = problem.condition_points(40)

    def residuals(params):
        model = nnx.merge(graph, params)
        return [term.evaluate(model, x) for term, x in zip(problem.terms[1:], points, strict=True)]

    return jax.jit(residuals)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_conditions_hold_for_any_network(problem, seed):
    with jax.enable_x64(True):
        params = nnx.state(problem.trial_function(network(seed)))
        for residual in condition_residuals(problem)(params):
            # Values and slopes of size one to ten that cancel.
            np.testing.assert_allclose(
                residual, 0.0, atol=rounding(np.float64, condition=10, operations=6)
            )


def test_allen_cahn_follows_the_kink_of_its_initial_value():
    with jax.enable_x64(True):
        problem = AllenCahn()
        model = problem.trial_function(network(3))
        x = jnp.linspace(-1.0, -0.996, 9)
        points = jnp.stack([x, jnp.full_like(x, 0.05)], axis=1)
        # A network that stays at -1, the stable value, leaves the linearised equation's solution.
        near = model.offset(points) - model.factor(points)
        # What the linearised equation leaves out, by a factor of ten less than without it below.
        np.testing.assert_allclose(near, problem.exact(points), atol=2e-4)
        without = (
            model.factor(points) * (-1) + jnp.exp(-0.5) * (x**2 * jnp.cos(jnp.pi * x))[:, None]
        )
        assert jnp.max(jnp.abs(without - problem.exact(points))) > 2e-3
        assert jnp.all(jnp.isfinite(model(problem.evaluation_points(11))))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_batches_agree_with_single_points(problem):
    with jax.enable_x64(True):
        model = problem.trial_function(network(0))
        points = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 5, 2)))
        one_by_one = jax.vmap(jax.vmap(model))(points)
        assert model(points).shape == (2, 5, 1)
        assert distance(model(points), one_by_one) <= rounding(np.float64, operations=3 * 6)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_prolongation_preserves_them(problem):
    with jax.enable_x64(True):
        coarse, fine = problem.trial_function(network(0, 4)), problem.trial_function(network(1, 9))
        new = prolongate_preserving(coarse, fine)
        points = problem.evaluation_points(7)
        assert distance(new(points), coarse(points)) <= rounding(np.float64, operations=3 * 9)
        assert np.max(np.abs(np.asarray(fine(points) - coarse(points)))) > 1e-4


@pytest.mark.parametrize("odd", [False, True])
def test_parity(odd):
    with jax.enable_x64(True):
        model = SymmetricModel(network(0), lambda x: x * jnp.asarray([-1.0, 1.0]), odd=odd)
        points = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(9, 2)))
        mirrored = points * jnp.asarray([-1.0, 1.0])
        sign = -1.0 if odd else 1.0
        expected = sign * model(points)
        assert distance(model(mirrored), expected) <= rounding(np.float64, operations=3 * 6)
        assert np.max(np.abs(np.asarray(model(points)))) > 1e-3


@pytest.mark.parametrize("name", ["network", "offset", "factor", "embed"])
def test_a_trial_function_names_what_is_wrong(name):
    arguments = {"network": network(0), "offset": jnp.zeros_like, "factor": jnp.ones_like}
    with pytest.raises(TypeError, match=name):
        TrialFunction(**{**arguments, name: 3})


@pytest.mark.parametrize(("name", "value"), [("network", 3), ("reflection", 3), ("odd", 1)])
def test_a_symmetric_model_names_what_is_wrong(name, value):
    arguments = {"network": network(0), "reflection": jnp.negative, "odd": False}
    with pytest.raises(TypeError, match=name):
        SymmetricModel(**{**arguments, name: value})


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_problems_name_a_network_that_is_none(problem):
    with pytest.raises(TypeError, match="network"):
        problem.trial_function(jnp.tanh)
