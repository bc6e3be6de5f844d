"""Starts that give new units a gradient: how much of the function is kept, and what the ascent finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import MLP
from opifex.training.multilevel import CascadeTrainer, MultilevelAdam, PlasticProlongation
from opifex.training.multilevel.transfer import (
    function_difference,
    plan_transfer,
    prolongate,
    prolongate_preserving,
    restrict,
)
from random_models import random_model

X = np.random.default_rng(0).standard_normal((64, 2)).astype("float32")
Y = np.sin(X[:, :1] * X[:, 1:])


def mlps(coarse, fine, **options):
    return [
        random_model(lambda rngs, d=d: MLP(2, 1, d, rngs=rngs, **options), i)
        for i, d in enumerate((coarse, fine))
    ]


def loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def gradient(model):
    graphdef, params = nnx.split(model)
    return jax.grad(lambda p: loss(nnx.merge(graphdef, p), X, Y))(params)


def arrays(tree):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(tree)}


@pytest.mark.parametrize(
    ("sizes", "options"), [(([4, 4], [8, 8]), {}), (([4, 4], [4, 4, 4]), {"depth_gates": True})]
)
def test_emptied_entries_get_their_share_and_nothing_else_changes(sizes, options):
    coarse, fine = mlps(*sizes, **options)
    preserved, given = (arrays(nnx.state(m)) for m in (prolongate_preserving(coarse, fine), fine))
    for share in (0.0, 0.25):
        transfer = PlasticProlongation(share)
        new = transfer(coarse, fine)
        assert transfer.preserves_function == (share == 0)
        found = arrays(nnx.state(new))
        for path, array in found.items():
            changed = array != preserved[path]
            assert np.array_equal(array[changed], share * given[path][changed])
        assert any(np.any(found[p] != preserved[p]) for p in found) == (share > 0)
        back = arrays(nnx.state(restrict(new, coarse)))
        assert all(np.array_equal(back[p], a) for p, a in arrays(nnx.state(coarse)).items())


def test_the_whole_share_is_copy_and_pad():
    coarse, fine = mlps([4, 4], [8, 8])
    found, padded = (
        arrays(nnx.state(transfer(coarse, fine)))
        for transfer in (PlasticProlongation(1.0), prolongate)
    )
    assert all(np.array_equal(found[path], array) for path, array in padded.items())


def test_the_ascent_keeps_the_function_and_enlarges_the_gradient_of_what_was_emptied():
    coarse, fine = mlps([4], [12])
    transfer = PlasticProlongation(outgoing=0.0, ascent_steps=20)
    start, better = transfer(coarse, fine), transfer(coarse, fine, gradient=gradient)
    difference, allowed = function_difference(*nnx.split(coarse), *nnx.split(better), (X,))
    assert float(difference) <= float(allowed)
    mask = plan_transfer(coarse, fine)["output", "kernel"].zeros.array
    slopes = [
        np.linalg.norm(arrays(gradient(m))["output", "kernel"] * mask) for m in (start, better)
    ]
    assert slopes[1] > 1.2 * slopes[0]
    # At equal size: larger weights alone would saturate the units, or grow without end.
    for name in ("kernel", "bias"):
        before, after = (arrays(nnx.state(m))["hidden", 0, "dense", name] for m in (start, better))
        assert np.array_equal(before[..., :4], after[..., :4])
        sizes = [np.linalg.norm(a[..., 4:]) for a in (before, after)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)


def test_a_trainer_gives_the_gradient_and_checks_what_is_promised():
    seen = []

    class Watching(PlasticProlongation):
        def __call__(self, coarse_model, fine_model, *inputs, gradient=None):
            new = super().__call__(coarse_model, fine_model, *inputs, gradient=gradient)
            if gradient is not None:
                seen.append([arrays(gradient(m))["output", "kernel"] for m in (fine_model, new)])
            return new

    models = [MLP(2, 1, [width], rngs=nnx.Rngs(width)) for width in (4, 8)]
    trainer = CascadeTrainer(models, MultilevelAdam(1e-3), prolongate_fn=Watching(0.0, 5))
    history = trainer.fit(loss, (X, Y), epochs=[3, 3])
    assert len(seen) >= 1
    assert all(np.all(np.isfinite(slope)) for slope in seen[-1])
    assert np.all(np.isfinite(history.losses))


def test_moments_follow():
    models = [MLP(2, 1, [width], rngs=nnx.Rngs(width)) for width in (4, 8)]
    trainer = CascadeTrainer(models, optax.adam(1e-3), prolongate_fn=PlasticProlongation(0.5))
    trainer.fit(loss, (X, Y), epochs=[4, 0])
    before = arrays(trainer.optimizer.state[0].mu)
    trainer.advance_level()
    after = arrays(trainer.optimizer.state[0].mu)
    for path, moment in before.items():
        block = tuple(slice(n) for n in moment.shape)
        assert np.array_equal(after[path][block], moment)
        assert np.count_nonzero(after[path]) == np.count_nonzero(moment)


@pytest.mark.parametrize("name", ["outgoing", "ascent_steps"])
def test_shares_and_steps_are_not_negative(name):
    with pytest.raises(ValueError, match=f"{name} must"):
        PlasticProlongation(**{name: -1})
    with pytest.raises(TypeError, match=f"{name} must"):
        PlasticProlongation(**{name: "many"})
