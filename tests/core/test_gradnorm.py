"""GradNorm against an independent computation of its formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.core.physics import GradNormBalancer, gradient_norms
from opifex.core.physics.gradnorm import updated_weights
from tolerances import distance, rounding


def by_hand(weights, norms, ratios, alpha, rate):
    """Towards the targets of the paper, in logarithms, by at most the rate and never beyond."""
    targets = (weights * norms).mean() * (ratios / ratios.mean()) ** alpha
    gaps = np.log(targets / (weights * norms))
    moved = [w * np.exp(min(max(gap, -rate), rate)) for w, gap in zip(weights, gaps, strict=True)]
    return np.array(moved) * len(weights) / sum(moved)


@pytest.mark.parametrize("rate", [0.05, 1.0, 10.0])
def test_weight_update_formula(rate):
    weights, norms = np.array([1.0, 0.5, 1.5]), np.array([2.0, 0.3, 1.0])
    ratios = np.array([0.5, 0.9, 0.2])
    arrays = [jnp.asarray(values) for values in (weights, norms, ratios)]
    expected = by_hand(weights, norms, ratios, 1.5, rate)
    found = updated_weights(*arrays, alpha=1.5, learning_rate=rate)
    assert distance(found, expected) <= rounding(np.float32, operations=10)


@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_weights_settle_where_all_gradients_are_equal(ratio, scale):
    """From any scale of the norms, in as many steps as the logarithms need, and then stay there."""
    norms = scale * np.array([ratio, 1.0])
    ideal = norms[::-1] / norms.sum() * 2
    balancer = GradNormBalancer(2, learning_rate=0.1)
    balancer.set_initial_losses([1.0, 1.0])

    @nnx.jit
    def settle(balancer):
        def step(balancer, _):
            balancer.update_weights([0.5, 0.5], jnp.asarray(norms))
            return balancer, balancer.weights[...]

        return nnx.scan(step, length=200)(balancer, None)[1]

    history = np.asarray(settle(balancer), np.float64)
    # The logarithm of the ratio moves by at most 0.2 a step: 14 / 0.2 steps from one to a million.
    ratios = history[:, 0] / history[:, 1]
    assert np.all(np.abs(np.diff(np.log(ratios))) <= 0.2 + rounding(np.float32, operations=20))
    assert np.all(np.diff(ratios) <= rounding(np.float32, operations=20) * ratios[:-1])
    for weights in history[80:]:
        np.testing.assert_allclose(weights, ideal, rtol=rounding(np.float32, operations=20))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["losses", "norms"])
def test_what_is_not_finite_changes_nothing(bad, where):
    balancer = GradNormBalancer(2)
    balancer.set_initial_losses([1.0, 1.0])
    before = np.asarray(balancer.update_weights([1.0, 0.5], [1.0, 2.0]))
    arguments = {"losses": [1.0, 1.0], "norms": [1.0, 1.0]} | {where: [bad, 1.0]}
    np.testing.assert_array_equal(balancer.update_weights(**arguments), before)
    after = balancer.update_weights([1.0, 0.5], [1.0, 5.0])
    assert np.all(np.isfinite(after))
    assert after[1] < before[1]


@pytest.mark.parametrize("initial", [0.0, np.inf])
def test_a_loss_without_an_initial_value_counts_as_an_average_one(initial):
    balancer, other = GradNormBalancer(3), GradNormBalancer(2)
    balancer.set_initial_losses([initial, 1.0, 2.0])
    other.set_initial_losses([1.0, 2.0])
    for loss in (0.0, 0.5, 10.0):
        weights = balancer.update_weights([loss, 0.5, 0.4], [1.0, 1.0, 1.0])
        two = other.update_weights([0.5, 0.4], [1.0, 1.0])
        ratio, expected = float(weights[1] / weights[2]), float(two[0] / two[1])
        assert ratio == pytest.approx(expected, rel=rounding(np.float32, operations=20))
        assert weights[2] < weights[0] < weights[1]


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


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_a_loss_that_has_become_zero_loses_weight(alpha):
    """Its target is zero, but for ``alpha = 0``, where rates do not matter."""
    weights = jnp.ones(2)
    for _ in range(3):
        weights = updated_weights(
            weights, jnp.ones(2), jnp.array([0.0, 1.0]), alpha=alpha, learning_rate=0.1
        )
    assert np.all(weights > 0)
    assert weights[0] < weights[1] if alpha else weights[0] == weights[1]


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
