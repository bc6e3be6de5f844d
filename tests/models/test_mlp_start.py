"""Where a multilayer perceptron starts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import MLP


def network(**options) -> MLP:
    return MLP(2, 1, [50, 40], rngs=nnx.Rngs(0), **options)


def params(model):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def test_the_defaults_are_those_of_flax():
    plain, explicit = params(network()), params(network(input_scale=1.0, bias_scale=0.0))
    reference = nnx.Linear(2, 50, rngs=nnx.Rngs(0))
    assert np.array_equal(plain["hidden", 0, "dense", "kernel"], reference.kernel[...])
    assert all(np.array_equal(plain[path], explicit[path]) for path in plain)
    assert not any(np.any(leaf) for path, leaf in plain.items() if path[-1] == "bias")


def test_only_the_weights_of_the_first_layer_are_scaled():
    plain, scaled = params(network()), params(network(input_scale=3.0))
    for path, leaf in plain.items():
        factor = 3.0 if path == ("hidden", 0, "dense", "kernel") else 1.0
        assert np.array_equal(scaled[path], np.float32(factor) * leaf)


def test_biases_of_hidden_layers_are_spread():
    plain, spread = params(network()), params(network(input_scale=2.0, bias_scale=0.5))
    for layer, half in ((0, 1.0), (1, 0.5)):
        bias = spread["hidden", layer, "dense", "bias"]
        # Uniform numbers: all inside, and their extremes near the ends (missed once in 1e4 draws).
        assert np.all(np.abs(bias) <= half)
        assert np.ptp(bias) > 1.5 * half
    assert not spread["output", "bias"].any()
    for path in plain:  # weights are drawn as before, whatever the biases do
        if path[-1] == "kernel":
            factor = np.float32(2.0 if path[1] == 0 else 1.0)
            assert np.array_equal(spread[path], factor * plain[path])


@pytest.mark.parametrize("name", ["input_scale", "bias_scale"])
@pytest.mark.parametrize(("value", "error"), [(-1.0, ValueError), ("2", TypeError)])
def test_bad_scales_are_named(name, value, error):
    with pytest.raises(error, match=name):
        network(**{name: value})


def test_double_precision_stays():
    with jax.enable_x64(True):
        model = network(input_scale=2.0, bias_scale=1.0, param_dtype=jnp.float64)
        assert {leaf.dtype for leaf in params(model).values()} == {np.dtype("float64")}
