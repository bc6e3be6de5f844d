"""Sums of networks: frozen bases, the strategy, and fits in stages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import MLP, CorrectedModel, FrozenVariable, freeze
from opifex.training.multilevel import CascadeTrainer, fit_in_stages, sine_network

X = np.linspace(-1.0, 1.0, 20)[:, None]


def loss(model, x):
    return jnp.mean((model(x) - jnp.sin(3 * x)) ** 2)


def networks():
    return [MLP(1, 1, [w], rngs=nnx.Rngs(w)) for w in (3, 4, 5)]


def test_frozen_copies_compute_the_same_and_have_no_parameters():
    model = MLP(1, 1, [4], depth_gates=False, rngs=nnx.Rngs(0))
    frozen = freeze(model)
    np.testing.assert_array_equal(frozen(X), model(X))
    assert not jax.tree.leaves(nnx.state(frozen, nnx.Param))
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 4


def test_corrected_model_is_the_scaled_sum():
    base, correction, _ = networks()
    model = CorrectedModel(base, correction, 0.25, input_scale=2.0)
    np.testing.assert_allclose(model(X), base(X) + 0.25 * correction(2.0 * X), rtol=1e-6)
    trained = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert len(trained) == len(jax.tree.leaves(nnx.state(correction, nnx.Param)))


def test_strategy_trains_each_network_on_the_remainder_and_keeps_the_others():
    trainer = CascadeTrainer(networks(), optax.adam(1e-2))
    history = trainer.fit(loss, (X,), epochs=[60, 60, 60], strategy="residual-correction")
    model = trainer.model
    assert isinstance(model, CorrectedModel)
    assert isinstance(model.base, CorrectedModel)
    ends = history.losses[[59, 119, 179]]
    # Each scale is the root of the loss that the level before ended with.
    np.testing.assert_allclose(
        [float(model.base.scale[...]), float(model.scale[...])], np.sqrt(ends[:2]), rtol=1e-6
    )
    assert ends[2] < ends[0]
    assert [t.to_level for t in history.transitions] == [1, 2]
    first = nnx.state(model.base.base, FrozenVariable)
    for frozen, own in zip(
        jax.tree.leaves(first),
        jax.tree.leaves(nnx.state(trainer._models[0], nnx.Param)),
        strict=True,
    ):
        np.testing.assert_array_equal(frozen, own)


def test_two_stages_go_far_below_one():
    with jax.enable_x64(True):
        points = -jnp.cos(jnp.pi * (jnp.arange(80) + 0.5) / 80)[:, None]

        def target(x):
            return jnp.sin(2 * x + 1) + 0.2 * jnp.exp(1.3 * x)

        model, stages = fit_in_stages(
            target,
            points,
            lambda stage: sine_network([8, 8], param_dtype=jnp.float64, rngs=nnx.Rngs(stage)),
            steps=[40, 60],
        )
        assert stages[0].relative_error < 1e-4
        assert stages[1].relative_error < 1e-2 * stages[0].relative_error
        assert stages[1].input_scale > stages[0].input_scale
        size = float(jnp.linalg.norm(target(points)))
        error = jnp.linalg.norm(nnx.jit(lambda m, x: m(x))(model, points) - target(points))
        assert float(error) / size == pytest.approx(stages[1].relative_error, rel=1e-3)
        rms = size / np.sqrt(len(points))
        assert stages[1].scale == pytest.approx(stages[0].relative_error * rms, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_two_stages_reach_machine_precision_between_the_points(seed):
    with jax.enable_x64(True):
        points = -jnp.cos(jnp.pi * (jnp.arange(600) + 0.5) / 600)[:, None]
        held_out = jnp.linspace(-1, 1, 1777)[:, None]

        def target(x):
            return jnp.sin(2 * x + 1) + 0.2 * jnp.exp(1.3 * x)

        model, _ = fit_in_stages(
            target,
            points,
            lambda stage: sine_network(
                param_dtype=jnp.float64, rngs=nnx.Rngs(params=jax.random.key(10 * seed + stage))
            ),
        )
        error = jnp.linalg.norm(nnx.jit(lambda m, x: m(x))(model, held_out) - target(held_out))
        assert float(error / jnp.linalg.norm(target(held_out))) <= 1e-12


def test_sine_networks_are_not_odd():
    model = sine_network([5], rngs=nnx.Rngs(0))
    phases = np.asarray(model.hidden[0].dense.bias[...])
    assert np.all(np.abs(phases) <= np.pi)
    assert len(set(phases.tolist())) == 5
    assert model(jnp.zeros((1,))).shape == (1,)


@pytest.mark.parametrize(
    ("widths", "error", "message"),
    [
        ([0], ValueError, r"hidden_dims\[0\]"),
        ([], ValueError, "hidden_dims"),
        ([2.5], TypeError, "hidden_dims"),
    ],
)
def test_wrong_widths_of_a_sine_network_are_named(widths, error, message):
    with pytest.raises(error, match=message):
        sine_network(widths, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"function": 1}, TypeError, "function must be callable"),
        ({"make_model": 1}, TypeError, "make_model must be callable"),
        ({"num_stages": 0}, ValueError, "num_stages"),
        ({"steps": [1]}, ValueError, "steps must have num_stages=2"),
        ({"steps": [1, 0]}, ValueError, r"steps\[1\]"),
        ({"points": X[:, 0]}, ValueError, "points must have shape"),
        ({"function": lambda x: x[:, 0]}, ValueError, "function must return shape"),
        ({"function": lambda x: 0.0 * x}, ValueError, "not zero everywhere"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    given = {
        "function": jnp.sin,
        "points": X,
        "make_model": lambda stage: MLP(1, 1, [2], rngs=nnx.Rngs(0)),
        "num_stages": 2,
        **options,
    }
    with pytest.raises(error, match=message):
        fit_in_stages(**given)


def test_wrong_arguments_of_a_corrected_model_are_named():
    base, correction, _ = networks()
    with pytest.raises(TypeError, match="base"):
        CorrectedModel(jnp.sin, correction)
    with pytest.raises(TypeError, match="correction"):
        CorrectedModel(base, jnp.sin)
    with pytest.raises(ValueError, match="scale"):
        CorrectedModel(base, correction, 0.0)
    with pytest.raises(ValueError, match="input_scale"):
        CorrectedModel(base, correction, input_scale=-1.0)
