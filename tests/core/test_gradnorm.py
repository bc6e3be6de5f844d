"""GradNorm against an independent computation of its formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.core.physics import GradNormBalancer, gradient_norms
from opifex.core.physics.gradnorm import gradnorm_objective, updated_weights
from tolerances import distance, rounding


def by_hand(weights, norms, ratios, alpha, rate):
    """Distance and new weights by the formulas: d|w g - t| / dw = g sign(w g - t)."""
    rates = ratios / ratios.mean()
    gaps = weights * norms - (weights * norms).mean() * rates**alpha
    moved = weights - rate * norms * np.sign(gaps)
    return np.abs(gaps).sum(), moved * len(weights) / moved.sum()


def test_weight_update_formula():
    weights, norms = np.array([1.0, 0.5, 1.5]), np.array([2.0, 0.3, 1.0])
    ratios = np.array([0.5, 0.9, 0.2])
    arrays = [jnp.asarray(values) for values in (weights, norms, ratios)]
    objective, expected = by_hand(weights, norms, ratios, 1.5, 0.05)
    found = gradnorm_objective(*arrays, 1.5)
    assert distance(found, objective) <= rounding(np.float32, operations=4)
    found = updated_weights(*arrays, alpha=1.5, learning_rate=0.05)
    assert distance(found, expected) <= rounding(np.float32, operations=4)


def test_balanced_losses_keep_their_weights():
    got = updated_weights(
        jnp.ones(3), jnp.full(3, 2.0), jnp.full(3, 0.4), alpha=1.5, learning_rate=0.1
    )
    assert distance(got, 1.0) <= rounding(np.float32)


def test_a_loss_with_small_gradients_gains_weight():
    balancer = GradNormBalancer(2, rngs=nnx.Rngs(0))
    balancer.set_initial_losses([1.0, 1.0])
    for _ in range(20):
        balancer.update_weights([0.5, 0.5], [10.0, 0.1])
    assert balancer.weights[...][1] > balancer.weights[...][0]
    assert distance(jnp.sum(balancer.weights[...]), 2.0) <= rounding(np.float32)


def test_gradient_norms():
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}

    def losses(p):
        return [jnp.sum(p["a"] ** 2), p["a"][0] * p["b"]]

    expected = [np.sqrt(4 + 16), np.sqrt(9 + 1)]
    assert distance(gradient_norms(losses, params), expected) <= rounding(np.float32)


def test_page_usage_and_reset():
    balancer = GradNormBalancer(num_losses=3, rngs=nnx.Rngs(0))
    balancer._initial_losses = None
    losses = jnp.array([1.0, 2.0, 3.0])
    balancer.set_initial_losses(losses)
    assert float(balancer.compute_weighted_loss(losses)) == 6.0
    balancer.update_weights(losses, jnp.array([1.0, 5.0, 2.0]))
    balancer.reset()
    assert balancer.initial_losses is None
    assert np.array_equal(balancer.weights[...], np.ones(3))
    slope = jax.grad(lambda v: balancer.compute_weighted_loss(v))(losses)
    assert np.array_equal(slope, np.ones(3))


def test_losses_that_have_all_become_zero_leave_the_weights_finite():
    balancer = GradNormBalancer(num_losses=2)
    balancer.set_initial_losses([1.0, 2.0])
    weights = balancer.update_weights([0.0, 0.0], [0.0, 0.0])
    assert np.array_equal(weights, np.ones(2))


def test_wrong_arguments_are_named():
    for bad, error, name in (
        ({"num_losses": 0}, ValueError, "num_losses"),
        ({"num_losses": 2.5}, TypeError, "num_losses"),
        ({"num_losses": 2, "alpha": -1}, ValueError, "alpha"),
        ({"num_losses": 2, "learning_rate": 0}, ValueError, "learning_rate"),
        ({"num_losses": 2, "rngs": 0}, TypeError, "rngs"),
    ):
        with pytest.raises(error, match=name):
            GradNormBalancer(**bad)
    balancer = GradNormBalancer(2)
    with pytest.raises(ValueError, match="losses"):
        balancer.compute_weighted_loss([1.0])
    with pytest.raises(TypeError, match=r"losses must be a sequence or an array .*got float"):
        balancer.compute_weighted_loss(1.0)
    with pytest.raises(ValueError, match=r"losses must hold num_losses=2 .*shape"):
        balancer.compute_weighted_loss(jnp.ones(()))
    with pytest.raises(ValueError, match="losses"):
        balancer.set_initial_losses(jnp.ones(3))
    with pytest.raises(RuntimeError, match="set_initial_losses"):
        balancer.update_weights([1.0, 1.0], [1.0, 1.0])
    balancer.set_initial_losses([1.0, 1.0])
    with pytest.raises(ValueError, match="norms"):
        balancer.update_weights([1.0, 1.0], [1.0])
