"""Fits of a known function by a sum of networks, one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import MLP
from opifex.training.multilevel import fit_in_stages, sine_network

X = np.linspace(-1.0, 1.0, 20)[:, None]


def target(x):
    return jnp.sin(2 * x + 1) + 0.2 * jnp.exp(1.3 * x)


def chebyshev(count):
    return -jnp.cos(jnp.pi * (jnp.arange(count) + 0.5) / count)[:, None]


def relative_error(model, points):
    difference = nnx.jit(lambda m, x: m(x))(model, points) - target(points)
    return float(jnp.linalg.norm(difference) / jnp.linalg.norm(target(points)))


@pytest.mark.slow
def test_two_stages_go_far_below_one():
    with jax.enable_x64(True):
        points = chebyshev(80)
        model, stages = fit_in_stages(
            target,
            points,
            lambda stage: sine_network([8, 8], param_dtype=jnp.float64, rngs=nnx.Rngs(stage)),
            steps=[40, 60],
        )
        assert stages[0].relative_error < 1e-4
        assert stages[1].relative_error < 1e-2 * stages[0].relative_error
        assert stages[1].input_scale > stages[0].input_scale
        assert [len(stage.losses) for stage in stages] == [40, 60]
        assert relative_error(model, points) == pytest.approx(stages[1].relative_error, rel=1e-3)
        rms = float(jnp.sqrt(jnp.mean(target(points) ** 2)))
        assert stages[1].scale == pytest.approx(stages[0].relative_error * rms, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_two_stages_reach_machine_precision_between_the_points(seed):
    with jax.enable_x64(True):
        model, _ = fit_in_stages(
            target,
            chebyshev(600),
            lambda stage: sine_network(
                param_dtype=jnp.float64, rngs=nnx.Rngs(params=jax.random.key(10 * seed + stage))
            ),
        )
        assert relative_error(model, jnp.linspace(-1, 1, 1777)[:, None]) <= 1e-12


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
