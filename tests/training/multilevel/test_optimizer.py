"""Optimizers that follow a model: steps by hand, and what is chosen at a transition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import MLP
from opifex.training.multilevel import (
    MultilevelAdam,
    MultilevelOptimizer,
    prolongate,
    prolongate_preserving,
)
from tolerances import rounding

X = jax.random.normal(jax.random.key(0), (32, 2))


def loss(model):
    return jnp.mean((model(X) - jnp.sin(X[:, :1])) ** 2)


loss_and_gradient = nnx.jit(nnx.value_and_grad(loss))


def pair(widths=(4, 7)):
    return tuple(MLP(2, 1, [w, w], rngs=nnx.Rngs(w)) for w in widths)


def trained(transformation, model, **options):
    optimizer = MultilevelOptimizer(transformation, **options)
    optimizer.init(model)
    for _ in range(3):
        optimizer.update(model, loss_and_gradient(model)[1])
    return optimizer


@pytest.mark.parametrize("start", ["mean", "max", "fresh"])
def test_second_moments_of_new_entries(start):
    coarse, fine = pair()
    optimizer = trained(optax.adam(1e-2), coarse, second_moment_start=start)
    old = np.asarray(optimizer.state[0].nu.hidden[1].dense.kernel[...])
    new_model = prolongate_preserving(coarse, fine)
    state = optimizer.resize_state(new_model, prolongate_preserving)
    nu = np.asarray(state[0].nu.hidden[1].dense.kernel[...])
    expected = {"mean": old.mean(), "max": old.max(), "fresh": 0.0}[start]
    fresh = np.ones(nu.shape, bool)
    fresh[:4, :4] = False
    np.testing.assert_allclose(nu[fresh], expected, rtol=rounding(np.float32))
    mu = np.asarray(state[0].mu.hidden[1].dense.kernel[...])
    assert np.all(mu[fresh] == 0)
    assert int(state[0].count) == 3


def test_optimizers_per_level_restart_their_schedules_but_not_their_moments():
    schedules = [optax.linear_schedule(1e-2, 0.0, 10), optax.linear_schedule(5e-3, 0.0, 10)]
    coarse, fine = pair()
    optimizer = trained([optax.adam(s) for s in schedules], coarse)
    state = optimizer.resize_state(prolongate_preserving(coarse, fine), prolongate_preserving)
    assert int(state[0].count) == 3
    assert int(state[1].count) == 0


def test_optimizers_per_level_bring_their_own_injected_hyperparameters():
    """Moments are carried; the rate, and the count of its schedule, are those of the new level."""
    injected = optax.inject_hyperparams(optax.adam)
    coarse, fine = pair()
    optimizer = trained(
        [injected(optax.linear_schedule(rate, 0.0, 10)) for rate in (1e-1, 1e-3)], coarse
    )
    state = optimizer.resize_state(prolongate_preserving(coarse, fine), prolongate_preserving)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(1e-3)
    assert int(state.count) == 0
    assert int(state.inner_state[0].count) == 3
    assert np.any(np.asarray(state.inner_state[0].mu.hidden[1].dense.kernel[...]) != 0)


def test_a_hyperparameter_changed_by_hand_is_carried_on():
    coarse, fine = pair()
    optimizer = MultilevelOptimizer(optax.inject_hyperparams(optax.adam)(1e-2))
    optimizer.init(coarse)
    optimizer.state.hyperparams["learning_rate"] = jnp.asarray(5e-3)
    state = optimizer.resize_state(prolongate_preserving(coarse, fine), prolongate_preserving)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(5e-3)


def test_an_optimizer_that_is_used_again_starts_on_the_coarsest_level():
    coarse, fine = pair()
    optimizer = MultilevelOptimizer([optax.sgd(1.0), optax.sgd(0.0)])
    optimizer.init(coarse)
    optimizer.resize_state(prolongate(coarse, fine), prolongate)
    assert optimizer.level == 1
    optimizer.init(coarse)
    assert optimizer.level == 0
    before = np.asarray(coarse.output.bias[...])
    optimizer.update(coarse, loss_and_gradient(coarse)[1])
    assert np.any(np.asarray(coarse.output.bias[...]) != before)


def test_update_matches_plain_optax():
    model, other = MLP(2, 1, [5], rngs=nnx.Rngs(0)), MLP(2, 1, [5], rngs=nnx.Rngs(0))
    rate = 1e-2
    transformation = optax.adamw(rate, weight_decay=0.1)
    trained(transformation, model)
    update = jax.jit(transformation.update)
    params, state = nnx.state(other, nnx.Param), transformation.init(nnx.state(other, nnx.Param))
    for _ in range(3):
        updates, state = update(loss_and_gradient(other)[1], state, params)
        params = optax.apply_updates(params, updates)
        nnx.update(other, params)
    # A step is about a rate long; a gradient is a mean over as many points.
    rtol = rounding(np.float32, operations=len(X))
    for a, b in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(other)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rate * rtol)


def test_a_line_search_can_be_stepped_by_hand():
    """`value_fn` cannot go into a compiled step, so that step is not compiled."""
    model = MLP(2, 1, [4], rngs=nnx.Rngs(0))
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)
    optimizer = MultilevelOptimizer(optax.lbfgs(linesearch=search))
    before = float(loss(model))
    for _ in range(2):
        value, grads = loss_and_gradient(model)
        optimizer.update(
            model,
            grads,
            value=value,
            grad=grads,
            value_fn=lambda params: loss(nnx.merge(nnx.graphdef(model), params)),
        )
    assert float(loss(model)) < 0.9 * before


def test_a_restarted_state_is_a_fresh_one():
    coarse, fine = pair()
    optimizer = trained(optax.adam(1e-2), coarse, on_transition="restart")
    state = optimizer.resize_state(prolongate(coarse, fine), prolongate)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))
    assert optimizer.level == 1


def test_a_state_can_be_moved_without_touching_the_optimizer():
    coarse, fine = pair()
    optimizer = trained(optax.adam(1e-2), coarse)
    kept, model = optimizer.state, prolongate(coarse, fine)
    moved = optimizer.moved_state(0, kept, coarse, model, prolongate)
    assert optimizer.state is kept
    assert optimizer.level == 0
    resized = optimizer.resize_state(model, prolongate)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(resized), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_of_another_structure_are_named():
    model = MLP(2, 1, [4], rngs=nnx.Rngs(0))
    optimizer = MultilevelAdam(1e-3)
    grads = nnx.state(model, nnx.Param)
    with pytest.raises(ValueError, match=r"grads.*shape"):
        optimizer.update(model, nnx.state(MLP(2, 1, [5], rngs=nnx.Rngs(0)), nnx.Param))
    with pytest.raises(ValueError, match="grads lacks"):
        optimizer.update(model, {})
    with pytest.raises(ValueError, match=r"grads has an unknown entry .*more"):
        optimizer.update(model, {**grads, "more": jnp.ones(2)})


def test_a_name_is_no_optimizer():
    with pytest.raises(TypeError, match="got 'adam' of type str"):
        MultilevelOptimizer("adam")
