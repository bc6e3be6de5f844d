"""Integers as inputs of every model: the numbers that they stand for, in the parameters' dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import (
    FNO,
    MLP,
    CorrectedModel,
    MultiscaleMLP,
    SpectralConv,
    SymmetricModel,
    TrialFunction,
)


def network(**options):
    return MLP(2, 1, [4, 4], rngs=nnx.Rngs(1), **options)


def halves(x):
    return 0.5 * x[..., :1]


POINTS = np.arange(8).reshape(4, 2) % 3
FIELDS = np.arange(32).reshape(2, 16, 1) % 3
MODELS = {
    "MLP": (network, POINTS),
    "MLP with gates": (lambda: network(depth_gates=True), POINTS),
    "MLP in bfloat16": (lambda: network(param_dtype=jnp.bfloat16), POINTS),
    "MultiscaleMLP": (lambda: MultiscaleMLP(2, 1, [4], rngs=nnx.Rngs(0)), POINTS),
    "random waves": (
        lambda: MultiscaleMLP(2, 1, [4], fourier_features=3, rngs=nnx.Rngs(0)),
        POINTS,
    ),
    "CorrectedModel": (lambda: CorrectedModel(network(), network(), 0.5, input_scale=0.1), POINTS),
    "TrialFunction": (
        lambda: TrialFunction(network(), offset=lambda x: x[..., :1] ** -1, factor=halves),
        POINTS + 1,
    ),
    "SymmetricModel": (lambda: SymmetricModel(network(), lambda x: 1 - x, odd=True), POINTS),
    "SpectralConv": (lambda: SpectralConv(1, 1, 4, rngs=nnx.Rngs(0)), FIELDS),
    "FNO": (lambda: FNO(4, 4, num_layers=1, rngs=nnx.Rngs(0)), FIELDS),
    "periodic FNO": (
        lambda: FNO(4, 4, num_layers=1, grid_kind="periodic", rngs=nnx.Rngs(0)),
        FIELDS,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_integers_are_numbers(name):
    build, inputs = MODELS[name]
    model = build()
    dtype = jax.tree.leaves(nnx.state(model, nnx.Param))[0].dtype
    expected = model(jnp.asarray(inputs, dtype))
    for given in (inputs, jnp.asarray(inputs, jnp.int8)):
        found = model(given)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
