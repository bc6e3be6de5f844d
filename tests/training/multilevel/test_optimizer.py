"""The optimizer's state follows its parameters by structure, whatever the transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import FNO, MLP
from opifex.training.multilevel import (
    MultilevelAdam,
    MultilevelOptimizer,
    prolongate,
    prolongate_preserving,
    restrict,
    scale_by_age_corrected_adam,
    transfer_optimizer_state,
)


def weights_only(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


TRANSFORMATIONS = {
    "adam": lambda: optax.adam(1e-2),
    "age-corrected adam": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        scale_by_age_corrected_adam(),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(1e-2, 100)),
    ),
    "adamw with mask": lambda: optax.adamw(1e-2, mask=weights_only),
    "sgd with momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "clipped chain with schedule": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 100))
    ),
    "lion": lambda: optax.lion(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-3, momentum=0.9),
    "amsgrad": lambda: optax.amsgrad(1e-3),
    "adagrad": lambda: optax.adagrad(1e-2),
    "masked": lambda: optax.masked(optax.adam(1e-2), weights_only),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "partition": lambda: optax.partition(
        {"weights": optax.adam(1e-2), "rest": optax.sgd(1e-2, momentum=0.9)},
        lambda params: jax.tree.map(lambda a: "weights" if a.ndim > 1 else "rest", params),
    ),
    "multi-steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "l-bfgs": lambda: optax.lbfgs(memory_size=3, linesearch=None),
}
X = jax.random.normal(jax.random.key(0), (32, 2))


def loss(model):
    return jnp.mean((model(X) - jnp.sin(X[:, :1])) ** 2)


def loss_and_gradient(model):
    return nnx.jit(nnx.value_and_grad(loss))(model)


def pair(widths=(4, 7)):
    return tuple(MLP(2, 1, [w, w], rngs=nnx.Rngs(w)) for w in widths)


def trained(transformation, model, steps=3, **options):
    optimizer = MultilevelOptimizer(transformation, **options)
    optimizer.init(model)
    for _ in range(steps):
        value, grads = loss_and_gradient(model)
        optimizer.update(model, grads, value=value)
    return optimizer


def leaves(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_state_moves_like_its_parameters(name):
    """Each mirrored leaf holds the old block unchanged; everything else is carried on."""
    transformation = TRANSFORMATIONS[name]()
    coarse, fine = pair()
    optimizer = trained(transformation, coarse)
    before = leaves(optimizer.state)
    parameters = leaves(nnx.state(coarse, nnx.Param))
    fine_parameters = leaves(nnx.state(fine, nnx.Param))
    new_model = prolongate_preserving(coarse, fine)
    after = leaves(optimizer.resize_state(new_model, prolongate_preserving))
    mirrored = 0
    for path, old in before.items():
        owner = next((p for p in parameters if path.endswith(p)), None)
        if owner is None:  # counts, hyperparameters, scales
            assert np.array_equal(after[path], old), path
        elif old.shape == parameters[owner].shape:
            assert after[path].shape == fine_parameters[owner].shape
            block = tuple(slice(0, n) for n in old.shape)
            assert np.array_equal(after[path][block], old), path
            mirrored += 1
        elif old.shape[1:] == parameters[owner].shape:
            assert after[path].shape == (old.shape[0], *fine_parameters[owner].shape)
            block = (slice(None), *(slice(0, n) for n in old.shape[1:]))
            assert np.array_equal(after[path][block], old), path
            mirrored += 1
    assert mirrored > 0
    value, grads = loss_and_gradient(new_model)
    optimizer.update(new_model, grads, value=value)  # the state fits the new model
    assert np.isfinite(float(loss(new_model)))


@pytest.mark.parametrize(
    "name", ["adam", "age-corrected adam", "sgd with momentum", "clipped chain with schedule"]
)
def test_fine_training_with_frozen_new_entries_repeats_coarse_training(name):
    """If only carried entries get gradient, the fine run is the coarse run."""
    transformation = TRANSFORMATIONS[name]()
    coarse, fine = pair()
    optimizer = trained(transformation, coarse)
    fine_model = prolongate_preserving(coarse, fine)
    state = transfer_optimizer_state(
        transformation, optimizer.state, coarse, fine_model, prolongate_preserving
    )
    grads = loss_and_gradient(coarse)[1]
    padded = nnx.state(
        prolongate(
            nnx.merge(nnx.graphdef(coarse), grads),
            nnx.merge(
                nnx.graphdef(fine),
                jax.tree.map(jnp.zeros_like, nnx.state(fine_model, nnx.Param)),
            ),
        ),
        nnx.Param,
    )
    fine_updates, _ = transformation.update(padded, state, nnx.state(fine_model, nnx.Param))
    updates, _ = transformation.update(grads, optimizer.state, nnx.state(coarse, nnx.Param))
    back = restrict(nnx.merge(nnx.graphdef(fine), fine_updates), coarse)
    for a, b in zip(jax.tree.leaves(nnx.state(back)), jax.tree.leaves(updates), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("start", ["mean", "max", "fresh"])
def test_second_moments_of_new_entries(start):
    coarse, fine = pair()
    optimizer = MultilevelOptimizer(optax.adam(1e-2), second_moment_start=start)
    optimizer.init(coarse)
    for _ in range(3):
        optimizer.update(coarse, loss_and_gradient(coarse)[1])
    old = np.asarray(optimizer.state[0].nu.hidden[1].dense.kernel[...])
    new_model = prolongate_preserving(coarse, fine)
    state = optimizer.resize_state(new_model, prolongate_preserving)
    nu = np.asarray(state[0].nu.hidden[1].dense.kernel[...])
    expected = {"mean": old.mean(), "max": old.max(), "fresh": 0.0}[start]
    fresh = np.ones(nu.shape, bool)
    fresh[:4, :4] = False
    np.testing.assert_allclose(nu[fresh], expected, rtol=1e-6)
    mu = np.asarray(state[0].mu.hidden[1].dense.kernel[...])
    assert np.all(mu[fresh] == 0)
    assert int(state[0].count) == 3


def test_unfactored_second_moments_of_adafactor_start_like_those_of_adam():
    coarse, fine = pair()
    optimizer = trained(optax.adafactor(1e-2), coarse, second_moment_start="mean")
    old = optimizer.state[0].v.hidden[1].dense.kernel[...]
    new_model = prolongate_preserving(coarse, fine)
    state = optimizer.resize_state(new_model, prolongate_preserving)
    new = state[0].v.hidden[1].dense.kernel[...]
    np.testing.assert_allclose(new[4:], jnp.mean(old), rtol=1e-6)


def test_moments_keep_their_precision_beside_parameters_of_less():
    coarse, fine = (MLP(2, 1, [w], param_dtype=jnp.bfloat16, rngs=nnx.Rngs(w)) for w in (4, 7))
    transformation = optax.adam(1e-2, mu_dtype=jnp.float32)
    state = transformation.init(nnx.state(coarse, nnx.Param))
    mu = jax.tree.map(lambda leaf: leaf + jnp.float32(1.001), state[0].mu)
    moved = transfer_optimizer_state(
        transformation, (state[0]._replace(mu=mu), *state[1:]), coarse, fine, prolongate
    )
    kernel = moved[0].mu.output.kernel[...]
    assert kernel.dtype == jnp.float32
    assert np.all(np.asarray(kernel[:4]) == np.float32(1.001))


def test_square_kernels_of_equal_shape_are_not_confused():
    """Two kernels of one shape keep their own moments: structure decides, not shape."""
    coarse, fine = (MLP(4, 4, [4, 4], rngs=nnx.Rngs(0)), MLP(4, 4, [6, 6], rngs=nnx.Rngs(1)))
    optimizer = MultilevelAdam(1e-2)
    state = optimizer.init(coarse)
    marked = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + (abs(hash(jax.tree_util.keystr(path))) % 997), state
    )
    optimizer.state = marked
    moved = leaves(optimizer.resize_state(prolongate(coarse, fine), prolongate))
    for path, leaf in leaves(marked).items():
        block = tuple(slice(0, n) for n in leaf.shape)
        assert np.array_equal(moved[path][block], leaf)


def test_state_of_added_layers_starts_fresh():
    coarse, fine = (MLP(2, 1, [4] * n, depth_gates=True, rngs=nnx.Rngs(n)) for n in (2, 3))
    optimizer = trained(optax.adam(1e-2), coarse, second_moment_start="mean")
    carried = leaves(optimizer.state[0].nu)
    mean = sum(a.sum() for a in carried.values()) / sum(a.size for a in carried.values())
    state = optimizer.resize_state(prolongate_preserving(coarse, fine), prolongate_preserving)
    assert np.all(np.asarray(state[0].mu.hidden[2].dense.kernel[...]) == 0)
    np.testing.assert_allclose(state[0].nu.hidden[2].dense.kernel[...], mean, rtol=1e-5)


def test_fno_moments_keep_their_frequency():
    coarse, fine = (FNO(m, 2, num_layers=1, spatial_dims=2, rngs=nnx.Rngs(m)) for m in (2, 4))
    optimizer = MultilevelAdam(1e-2)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    optimizer.init(coarse)
    optimizer.update(coarse, nnx.jit(nnx.grad(lambda m: jnp.mean(m(x) ** 2)))(coarse))
    old = optimizer.state[0].mu.blocks[0].spectral.weight_real[...]
    state = optimizer.resize_state(prolongate_preserving(coarse, fine), prolongate_preserving)
    new = state[0].mu.blocks[0].spectral.weight_real[...]
    assert np.array_equal(new[2:5, :2], old)
    assert np.all(np.asarray(new[:2]) == 0)


def test_optimizers_per_level_restart_their_schedules_but_not_their_moments():
    schedules = [optax.linear_schedule(1e-2, 0.0, 10), optax.linear_schedule(5e-3, 0.0, 10)]
    coarse, fine = pair()
    optimizer = MultilevelOptimizer([optax.adam(s) for s in schedules])
    optimizer.init(coarse)
    for _ in range(3):
        optimizer.update(coarse, loss_and_gradient(coarse)[1])
    state = optimizer.resize_state(prolongate_preserving(coarse, fine), prolongate_preserving)
    assert int(state[0].count) == 3
    assert int(state[1].count) == 0


def test_optimizers_per_level_bring_their_own_injected_hyperparameters():
    """Moments are carried; the rate, and the count of its schedule, are those of the new level."""
    injected = optax.inject_hyperparams(optax.adam)
    coarse, fine = pair()
    optimizer = MultilevelOptimizer(
        [injected(optax.linear_schedule(rate, 0.0, 10)) for rate in (1e-1, 1e-3)]
    )
    optimizer.init(coarse)
    for _ in range(3):
        optimizer.update(coarse, loss_and_gradient(coarse)[1])
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
    transformation = optax.adamw(1e-2, weight_decay=0.1)
    optimizer = MultilevelOptimizer(transformation)
    params, state = nnx.state(other, nnx.Param), transformation.init(nnx.state(other, nnx.Param))
    for _ in range(3):
        optimizer.update(model, loss_and_gradient(model)[1])
        grads = loss_and_gradient(other)[1]
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        nnx.update(other, params)
    for a, b in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(other)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_line_search_can_be_stepped_by_hand():
    """`value_fn` cannot go into a compiled step, so that step is not compiled."""
    model = MLP(2, 1, [4], rngs=nnx.Rngs(0))
    optimizer = MultilevelOptimizer(optax.lbfgs())
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


def test_wrong_arguments_are_named():
    model = MLP(2, 1, [4], rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="transformation"):
        MultilevelOptimizer(3)
    with pytest.raises(TypeError, match="transformation"):
        MultilevelOptimizer([3])
    with pytest.raises(ValueError, match="transformation"):
        MultilevelOptimizer([])
    with pytest.raises(ValueError, match="second_moment_start"):
        MultilevelOptimizer(optax.adam(1.0), second_moment_start="median")
    with pytest.raises(ValueError, match="learning_rate"):
        MultilevelAdam(-1.0)
    with pytest.raises(TypeError, match="learning_rate"):
        MultilevelAdam("fast")
    with pytest.raises(ValueError, match="b1"):
        MultilevelAdam(1e-3, b1=1.0)
    with pytest.raises(ValueError, match="b2"):
        MultilevelAdam(1e-3, b2=-0.1)
    with pytest.raises(ValueError, match="eps"):
        MultilevelAdam(1e-3, eps=0)
    optimizer = MultilevelAdam(1e-3)
    with pytest.raises(RuntimeError, match="init"):
        optimizer.resize_state(model, prolongate)
    with pytest.raises(TypeError, match="model"):
        optimizer.init("model")
    optimizer.init(model)
    with pytest.raises(TypeError, match="new_model"):
        optimizer.resize_state("model", prolongate)
    with pytest.raises(TypeError, match="transition_fn"):
        optimizer.resize_state(model, "prolongate")
    other = nnx.grad(loss)(MLP(2, 1, [5], rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"grads.*shape"):
        optimizer.update(model, other)
    with pytest.raises(ValueError, match="grads lacks"):
        optimizer.update(model, {})
