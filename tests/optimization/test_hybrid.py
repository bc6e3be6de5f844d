"""Adam followed by L-BFGS as one Optax transformation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.optimization.second_order import HybridOptimizer, HybridOptimizerConfig
from opifex.training.multilevel import CascadeTrainer, create_network_hierarchy
from tolerances import distance, rounding

# In the basin of the global minimum: in four dimensions Rosenbrock's function has a second one.
START = {"x": jnp.array([1.2, 1.0, 0.5]), "y": jnp.array(2.0)}


def rosenbrock(params):
    z = jnp.append(params["x"], params["y"])
    return jnp.sum(100.0 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2)


def quadratic(params):
    scales = jnp.array([1.0, 10.0, 100.0])
    return 0.5 * jnp.sum(scales * params["x"] ** 2) + params["y"] ** 2


def train(optimizer, loss, params, steps):
    """All steps inside one compiled scan."""

    def body(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda p: jax.lax.scan(body, (p, optimizer.init(p)), length=steps))
    (params, state), losses = run(params)
    return params, state, np.asarray(losses)


def updates_on_the_same_path(optimizer, reference, loss, params, steps):
    """Updates of two transformations that see the same parameters, which follow the first one."""

    def body(carry, _):
        params, states = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, states = zip(
            *(
                method.update(grads, state, params, value=value, grad=grads, value_fn=loss)
                for method, state in zip((optimizer, reference), states, strict=True)
            ),
            strict=True,
        )
        return (optax.apply_updates(params, updates[0]), states), updates

    start = (params, (optimizer.init(params), reference.init(params)))
    _, updates = jax.jit(lambda c: jax.lax.scan(body, c, length=steps))(start)
    return [jnp.column_stack(jax.tree.leaves(update)) for update in updates]


def test_is_an_optax_transformation():
    optimizer = HybridOptimizer(HybridOptimizerConfig())
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    chained = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
    params, _, losses = train(chained, quadratic, START, 20)
    assert jax.tree.structure(params) == jax.tree.structure(START)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("loss", [rosenbrock, quadratic])
@pytest.mark.parametrize("x64", [False, True])
def test_reaches_a_lower_loss_than_adam(loss, x64):
    with jax.enable_x64(x64):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), START)
        config = HybridOptimizerConfig(learning_rate=1e-2, criterion="step", switch_step=50)
        _, state, losses = train(HybridOptimizer(config), loss, params, 150)
        _, _, adam_losses = train(
            optax.with_extra_args_support(optax.adam(1e-2)), loss, params, 150
        )
        assert state.switched
        assert state.switch_step == 50
        assert losses[-1] < 1e-6 * adam_losses[-1]


def test_first_phase_is_adam():
    config = HybridOptimizerConfig(learning_rate=1e-2, criterion="step", switch_step=50)
    adam = optax.with_extra_args_support(optax.adam(1e-2))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), START)
        ours, expected = updates_on_the_same_path(
            HybridOptimizer(config), adam, rosenbrock, params, 51
        )
        # The moments are sums of up to 50 terms.
        assert distance(ours[:50], expected[:50]) <= rounding(np.float64, operations=50)
        assert distance(ours[50], expected[50]) > 0.1


def test_second_phase_is_that_of_optax():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), START)
        config = HybridOptimizerConfig(criterion="step", switch_step=0, memory_size=5)
        reference = optax.lbfgs(
            memory_size=5,
            linesearch=optax.scale_by_zoom_linesearch(
                max_linesearch_steps=20, initial_guess_strategy="one"
            ),
        )
        # Few enough steps that no line search decides by rounding errors.
        ours, expected = updates_on_the_same_path(
            HybridOptimizer(config), reference, rosenbrock, params, 12
        )
        # The Hessian at the solution has the condition number 2500.
        allowed = rounding(np.float64, condition=2500, operations=10)
        assert all(distance(*pair) <= allowed for pair in zip(ours, expected, strict=True))


@functools.cache
def compiled_scan(config):
    """Steps with prescribed losses and norms of the gradient: last state, and whether it switched."""
    optimizer, params = HybridOptimizer(config), jnp.ones(2)

    def body(state, seen):
        value, norm = seen
        gradient = norm * jnp.array([0.6, 0.8])
        _, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=lambda p: jnp.sum(p**2)
        )
        return state, state.switched

    return jax.jit(lambda seen: jax.lax.scan(body, optimizer.init(params), seen))


def switch_step(config, loss_values=None, gradients=None, steps=40):
    """How many steps Adam takes with prescribed losses and norms of the gradient."""
    values, norms = (
        jnp.asarray(np.ones(steps) if given is None else given, jnp.float32)
        for given in (loss_values, gradients)
    )
    state, switched = compiled_scan(config)((values, norms))
    assert int(state.switch_step) == int(np.sum(~np.asarray(switched)))
    assert np.all(np.diff(np.asarray(switched).astype(int)) >= 0)  # it never switches back
    return int(state.switch_step)


def test_switches_by_loss_variance():
    config = HybridOptimizerConfig(criterion="loss-variance", window=5, variance_tolerance=1e-4)
    noisy_then_flat = np.where(np.arange(40) < 20, 1.0 + 0.5 * (-1.0) ** np.arange(40), 1.0)
    # Step 24 is the first whose last five losses (20..24) are all flat.
    assert switch_step(config, noisy_then_flat) == 24
    assert switch_step(config, 1e6 * noisy_then_flat) == 24
    assert switch_step(config, 2.0 ** -np.arange(40.0)) == 40


def test_switches_by_relative_improvement():
    config = HybridOptimizerConfig(
        criterion="relative-improvement", window=4, improvement_tolerance=0.05
    )
    falling_then_flat = 0.5 ** np.minimum(np.arange(40.0), 20)
    # Window (19, 20, 21, 22) at step 22 still contains the drop at 20, the next one does not.
    assert switch_step(config, falling_then_flat) == 23
    assert switch_step(config, 0.5 ** np.arange(40.0)) == 40
    assert switch_step(config, np.arange(1.0, 41.0)) == 3


def test_switches_by_gradient_norm():
    config = HybridOptimizerConfig(criterion="gradient-norm", gradient_tolerance=1e-3)
    assert switch_step(config, gradients=10.0 ** -(np.arange(40) / 4 + 0.1)) == 12
    assert switch_step(config) == 40


def test_switches_by_step_and_respects_the_bounds():
    assert switch_step(HybridOptimizerConfig(criterion="step", switch_step=7)) == 7
    flat = {"criterion": "loss-variance", "window": 3}
    assert switch_step(HybridOptimizerConfig(**flat)) == 2
    assert switch_step(HybridOptimizerConfig(**flat, min_adam_steps=9)) == 9
    never = {"criterion": "gradient-norm", "gradient_tolerance": 1e-9}
    assert switch_step(HybridOptimizerConfig(**never, max_adam_steps=11)) == 11


def test_adam_phase_works_without_value_fn_outside_jit():
    config = HybridOptimizerConfig(criterion="step", switch_step=2)
    optimizer, params = HybridOptimizer(config), jnp.ones(2)
    state, adam = optimizer.init(params), optax.adam(1e-3)
    adam_state = adam.init(params)
    for _ in range(2):
        updates, state = optimizer.update(params, state, params)
        expected, adam_state = adam.update(params, adam_state, params)
        np.testing.assert_array_equal(updates, expected)
    with pytest.raises(ValueError, match="value_fn"):
        optimizer.update(params, state, params)
    with pytest.raises(ValueError, match="value_fn"):
        jax.jit(optimizer.update)(params, optimizer.init(params), params)


def test_value_is_computed_from_value_fn_or_asked_for():
    optimizer, params = HybridOptimizer(), jnp.ones(2)
    state = optimizer.init(params)
    _, new = optimizer.update(params, state, params, value_fn=lambda p: jnp.sum(p**2))
    assert new.losses[-1] == 2.0
    with pytest.raises(ValueError, match="value must be given"):
        optimizer.update(params, state, params)


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate"),
        ({"criterion": "mood"}, ValueError, "criterion.*loss-variance"),
        ({"window": 1}, ValueError, "window"),
        ({"window": 2.5}, TypeError, "window"),
        ({"variance_tolerance": 0.0}, ValueError, "variance_tolerance"),
        ({"improvement_tolerance": -1.0}, ValueError, "improvement_tolerance"),
        ({"gradient_tolerance": 0}, ValueError, "gradient_tolerance"),
        ({"switch_step": -1}, ValueError, "switch_step"),
        ({"min_adam_steps": -1}, ValueError, "min_adam_steps"),
        ({"max_adam_steps": 1.5}, TypeError, "max_adam_steps"),
        ({"min_adam_steps": 5, "max_adam_steps": 4}, ValueError, "max_adam_steps"),
        ({"memory_size": 0}, ValueError, "memory_size"),
        ({"max_line_search_steps": 0}, ValueError, "max_line_search_steps"),
    ],
)
def test_bad_settings_are_named(settings, error, name):
    with pytest.raises(error, match=name):
        HybridOptimizerConfig(**settings)


def test_bad_config_is_named():
    with pytest.raises(TypeError, match="config"):
        HybridOptimizer({"learning_rate": 1e-3})


@pytest.mark.slow
def test_works_inside_a_cascade_and_its_memory_follows_the_parameters():
    x = jnp.linspace(-1.0, 1.0, 16)[:, None]
    targets = jnp.sin(3 * x)
    trainer = CascadeTrainer(
        create_network_hierarchy(1, 1, [6], num_levels=2, rngs=nnx.Rngs(0)),
        HybridOptimizer(HybridOptimizerConfig(criterion="step", switch_step=3)),
    )
    losses = trainer.fit(lambda model: jnp.mean((model(x) - targets) ** 2), epochs=[8, 8]).losses
    state = trainer.optimizer.state
    assert bool(state.switched)
    assert int(state.switch_step) == 3
    assert int(state.step) == 16
    # A line search never goes up, nor does the transition.
    assert np.all(np.diff(losses) <= rounding(np.float32, operations=16) * losses[0])
    assert losses[3] - losses[4] > 5 * (losses[2] - losses[3])  # L-BFGS starts after three steps
    assert losses[-1] < 0.5 * losses[8]
