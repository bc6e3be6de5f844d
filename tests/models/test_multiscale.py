"""Frequency-aware networks: what they compute, what their bands are for, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import FourierFeatures, FrequencyBand, FrozenVariable, MultiscaleMLP
from tolerances import distance, rounding


def network(frequencies=(1.0, 3.0), seed=0, **options):
    return MultiscaleMLP(2, 3, [6, 5], frequencies=frequencies, rngs=nnx.Rngs(seed), **options)


def by_hand(model, x):
    """The definition, in NumPy and double precision."""
    total = np.asarray(model.bias[...], float)
    for band, omega in zip(model.bands, model.frequencies, strict=True):
        features = omega * np.asarray(x, float)
        if band.features is not None:
            directions, phases = band.features.directions[...], band.features.phases[...]
            features = np.sqrt(2) * np.cos(features @ np.asarray(directions) + np.asarray(phases))
        for layer in band.hidden:
            kernel, bias = layer.dense.kernel[...], layer.dense.bias[...]
            features = np.sin(features @ np.asarray(kernel) + np.asarray(bias))
        total = total + features @ np.asarray(band.amplitudes[...])
    return total


@pytest.mark.parametrize("fourier_features", [None, 7])
def test_it_is_the_sum_of_its_scaled_bands(fourier_features):
    model = network(fourier_features=fourier_features)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(9, 2)), jnp.float32)
    # Two bands with layers of up to seven, and arguments of sines of up to ten.
    allowed = rounding(np.float32, condition=10, operations=2)
    assert distance(model(x), by_hand(model, x)) <= allowed
    assert distance(model(x[4]), model(x)[4]) <= allowed
    assert model(x[4]).shape == (3,)


def test_parameters_have_the_dtype_that_was_asked_for():
    with jax.enable_x64(True):
        model = network(param_dtype=jnp.float64, fourier_features=4)
        kinds = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngState)))}
        assert kinds == {jnp.dtype("float64")}
        assert model(jnp.ones((2, 2), jnp.float64)).dtype == jnp.float64


def test_frequencies_and_waves_are_not_trained():
    model = network(fourier_features=4)
    trained = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    fixed = [path for path, _ in nnx.to_flat_state(nnx.state(model, FrozenVariable))]
    assert {path[-1] for path in fixed} == {"frequency", "directions", "phases"}
    assert not set(trained) & set(fixed)
    assert model.frequencies == (1.0, 3.0)


def test_first_features_are_spread_only_if_asked_for():
    spread = network().bands[0].hidden[0].dense.bias[...]
    assert float(jnp.std(spread)) > 0.5
    assert not np.any(network(spread_phases=False).bands[0].hidden[0].dense.bias[...])


def test_random_waves_have_unit_mean_square_and_the_gaussian_kernel():
    """Their products estimate exp(-|x - y|^2 / 2) (Rahimi and Recht, 2007).

    Products have a standard deviation below one, their mean over the waves one below 0.01.
    """
    features = FourierFeatures(2, 20000, rngs=nnx.Rngs(0))
    x, y = jnp.array([0.2, -0.4]), jnp.array([0.9, 0.3])
    kernel = jnp.mean(features(x) * features(y))
    assert float(kernel) == pytest.approx(float(jnp.exp(-jnp.sum((x - y) ** 2) / 2)), abs=0.03)
    assert float(jnp.mean(features(x) ** 2)) == pytest.approx(1.0, abs=0.03)


def test_a_high_band_learns_a_wave_that_a_low_one_does_not():
    x = jnp.linspace(0, 1, 64)[:, None]
    target = jnp.sin(12 * jnp.pi * x)

    def fitted_error(frequencies):
        model = MultiscaleMLP(1, 1, [32], frequencies=frequencies, rngs=nnx.Rngs(0))
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        adam = optax.adam(1e-2)

        def loss(p):
            return jnp.mean((nnx.merge(graph, p, rest)(x) - target) ** 2)

        @jax.jit
        def train(p):
            def step(carry, _):
                p, state = carry
                updates, state = adam.update(jax.grad(loss)(p), state)
                return (optax.apply_updates(p, updates), state), None

            return jax.lax.scan(step, (p, adam.init(p)), length=600)[0][0]

        return float(loss(train(params)))

    assert fitted_error((1.0, 32.0)) < 0.05
    assert fitted_error((1.0, 2.0)) > 0.3


def test_points_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match="input_dim=2"):
        network()(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="input_dim=2"):
        network()(jnp.float32(1.0))


BAD = {
    "input_dim": (0, ValueError),
    "output_dim": (1.5, TypeError),
    "hidden_dims": ([], ValueError),
    "hidden_dims[1]": ([4, -1], ValueError),
    "frequencies": ([2.0, 1.0], ValueError),
    "frequencies[0]": ([0.0, 1.0], ValueError),
    "activation": ("tanh", TypeError),
    "fourier_features": (0, ValueError),
}
GOOD = {"input_dim": 2, "output_dim": 1, "hidden_dims": [4], "frequencies": [1.0, 2.0]}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    value, error = BAD[name]
    with pytest.raises(error, match=name.replace("[", r"\[").replace("]", r"\]")):
        MultiscaleMLP(**(GOOD | {name.split("[")[0]: value}), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("value", [3, "12"])
@pytest.mark.parametrize("name", ["hidden_dims", "frequencies"])
def test_what_is_no_sequence_is_refused(name, value):
    with pytest.raises(TypeError, match=name):
        MultiscaleMLP(**(GOOD | {name: value}), rngs=nnx.Rngs(0))


def test_no_band_at_all_is_refused():
    with pytest.raises(ValueError, match="frequencies must not be empty"):
        MultiscaleMLP(**(GOOD | {"frequencies": []}), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"input_dim": 0}, ValueError),
        ({"output_dim": 0}, ValueError),
        ({"hidden_dims": []}, ValueError),
        ({"frequency": -1.0}, ValueError),
        ({"activation": None}, TypeError),
        ({"fourier_features": 2.5}, TypeError),
    ],
)
def test_bad_arguments_of_a_band_are_named(change, error):
    good = {"input_dim": 2, "output_dim": 1, "hidden_dims": [4], "frequency": 1.0}
    with pytest.raises(error, match=next(iter(change))):
        FrequencyBand(**(good | change), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("change", [{"input_dim": 0}, {"num_features": 0}])
def test_bad_arguments_of_waves_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        FourierFeatures(**({"input_dim": 2, "num_features": 3} | change), rngs=nnx.Rngs(0))
