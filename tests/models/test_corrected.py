"""Sums of a frozen model and a scaled correction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import MLP, CorrectedModel, FrozenVariable, freeze
from tolerances import distance, rounding

X = jnp.linspace(-1.0, 1.0, 20)[:, None]


class Keeps(nnx.Module):
    """Parameters in lists, tuples, dictionaries and lists in them; two layers share one kernel."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(1, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.layers[1].kernel = self.layers[0].kernel
        self.factors = nnx.List([nnx.Param(jnp.ones(4)), nnx.Param(jnp.full(4, 0.5))])
        self.named = nnx.Dict(
            {"last": nnx.Linear(4, 1, rngs=rngs), "offset": nnx.Param(jnp.ones(1))}
        )
        self.same_layer = self.layers[0]
        self.pair = nnx.data((nnx.Param(jnp.ones(1)), [self.factors[0], nnx.Param(jnp.ones(1))]))

    def __call__(self, x):
        x = jnp.tanh(self.first(x))
        for layer, factor in zip(self.layers, self.factors, strict=True):
            x = jnp.tanh(factor[...] * layer(x))
        x = self.pair[0][...] * self.pair[1][0][...] * self.same_layer(x) + self.pair[1][1][...]
        return self.named["last"](x) + self.named["offset"][...]


def leaves(model, kind):
    return jax.tree.leaves(nnx.state(model, kind))


@pytest.mark.parametrize(
    "model",
    [MLP(1, 1, [4], depth_gates=False, rngs=nnx.Rngs(0)), Keeps()],
    ids=["mlp", "lists, tuples, dictionaries, ties"],
)
def test_frozen_copies_compute_the_same_and_have_no_parameters(model):
    trainable = len(leaves(model, nnx.Param))
    frozen = freeze(model)
    np.testing.assert_array_equal(frozen(X), model(X))
    assert not leaves(frozen, nnx.Param)
    # What was tied is tied still, and nothing is lost.
    assert len(leaves(frozen, FrozenVariable)) == trainable
    assert len(leaves(model, nnx.Param)) == trainable


def test_ties_of_a_frozen_copy_hold():
    model = Keeps()
    frozen = freeze(model)
    assert frozen.layers[1].kernel is frozen.layers[0].kernel
    assert frozen.same_layer is frozen.layers[0]
    assert frozen.pair[1][0] is frozen.factors[0]
    assert frozen.layers[0].kernel is not model.layers[0].kernel


def test_a_frozen_copy_does_not_follow_its_model():
    model = Keeps()
    frozen = freeze(model)
    before = frozen(X)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 1, nnx.state(model, nnx.Param)))
    np.testing.assert_array_equal(frozen(X), before)
    assert np.any(model(X) != before)


def test_a_frozen_copy_evaluates():
    """Batch statistics stay, and dropout drops nothing."""

    class Normalised(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(1, momentum=0.5, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.norm(x))

    model = Normalised(nnx.Rngs(0))
    model(X + 3.0)  # moves the running mean half way to three
    frozen = freeze(model)
    np.testing.assert_allclose(frozen.norm.mean[...], 1.5, rtol=rounding(np.float32, operations=20))
    first = frozen(X)
    np.testing.assert_array_equal(frozen(X), first)
    np.testing.assert_array_equal(frozen.norm.mean[...], model.norm.mean[...])
    # The model itself still trains.
    model(X + 3.0)
    assert float(model.norm.mean[0]) > float(frozen.norm.mean[0])


def test_corrected_model_is_the_scaled_sum():
    base, correction = (MLP(1, 1, [w], rngs=nnx.Rngs(w)) for w in (3, 4))
    model = CorrectedModel(base, correction, 0.25, input_scale=2.0)
    expected = base(X) + 0.25 * correction(2.0 * X)
    assert distance(model(X), expected) <= rounding(np.float32)
    assert len(leaves(model, nnx.Param)) == len(leaves(correction, nnx.Param))


def test_wrong_arguments_are_named():
    base, correction = (MLP(1, 1, [w], rngs=nnx.Rngs(w)) for w in (3, 4))
    with pytest.raises(TypeError, match="base"):
        CorrectedModel(jnp.sin, correction)
    with pytest.raises(TypeError, match="correction"):
        CorrectedModel(base, jnp.sin)
    with pytest.raises(ValueError, match="scale"):
        CorrectedModel(base, correction, 0.0)
    with pytest.raises(ValueError, match="input_scale"):
        CorrectedModel(base, correction, input_scale=-1.0)
