"""A model in physical units around a network that works on normalised values."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.data import FieldNormalizer
from opifex.models import FNO, MLP, FrozenVariable, NormalizedModel


def test_it_is_the_network_between_two_normalizers():
    inputs = 300 + 5 * jax.random.normal(jax.random.key(0), (4, 8, 2))
    outputs = 1e5 * jax.random.normal(jax.random.key(1), (4, 8, 1))
    network = FNO(2, 4, input_dim=2, num_layers=1, rngs=nnx.Rngs(0))
    into, out = FieldNormalizer.fit(inputs), FieldNormalizer.fit(outputs)
    model = NormalizedModel(network, into, out)
    expected = out.denormalize(network(into.normalize(inputs)))
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-6)
    assert float(jnp.std(expected)) > 1e3  # else nothing was compared


def test_training_does_not_change_the_statistics():
    scale = FieldNormalizer.fit(np.array([[1.0], [3.0]]))
    model = NormalizedModel(MLP(1, 1, [4], rngs=nnx.Rngs(0)), scale, scale)
    frozen = nnx.state(model, FrozenVariable)
    assert sorted(frozen) == ["input_deviation", "input_mean", "output_deviation", "output_mean"]
    assert set(nnx.state(model, nnx.Param)) == {"network"}


@pytest.mark.parametrize(
    ("mean", "deviation", "message"),
    [
        ([0.0, 1.0], [1.0], r"outputs must have mean and deviation of one shape"),
        ([0.0], [0.0], r"outputs must have finite means and positive deviations"),
        ([np.nan], [1.0], r"outputs must have finite means"),
    ],
)
def test_statistics_are_checked(mean, deviation, message):
    network = MLP(1, 1, [4], rngs=nnx.Rngs(0))
    bad = SimpleNamespace(mean=np.array(mean), deviation=np.array(deviation))
    good = SimpleNamespace(mean=np.zeros(1), deviation=np.ones(1))
    with pytest.raises(ValueError, match=message):
        NormalizedModel(network, good, bad)
    with pytest.raises(TypeError, match=r"network must be an nnx\.Module, got int"):
        NormalizedModel(3, good, good)
