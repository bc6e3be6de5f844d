"""Residual correction as a transfer: frozen bases, scales from the loss, levels that learn the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import MLP, CorrectedModel, FrozenVariable
from opifex.training.multilevel import CascadeTrainer, Monitor, ResidualCorrection
from tolerances import rounding

X = np.linspace(-1.0, 1.0, 20, dtype=np.float32)[:, None]


def loss(model, x):
    return jnp.mean((model(x) - jnp.sin(3 * x)) ** 2)


def energy(model, x):
    """Falls below zero, as a Ritz energy does."""
    return loss(model, x) - 5.0


def networks(widths=(3, 4, 5)):
    return [MLP(1, 1, [w], rngs=nnx.Rngs(w)) for w in widths]


def trainer_of(models, rate=1e-2, **options):
    return CascadeTrainer(models, optax.adam(rate), ResidualCorrection(**options))


def assert_same(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_level_learns_the_remainder_and_keeps_the_coarser_ones():
    trainer = trainer_of(networks())
    history = trainer.fit(loss, (X,), epochs=[60, 60, 60])
    model = trainer.model
    assert isinstance(model, CorrectedModel)
    assert isinstance(model.base, CorrectedModel)
    ends = history.losses[[59, 119, 179]]
    # Each scale is the root of the loss that the level before ended with.
    np.testing.assert_allclose(
        [float(model.base.scale[...]), float(model.scale[...])],
        np.sqrt(ends[:2]),
        rtol=rounding(np.float32),
    )
    assert ends[2] < ends[0]
    assert [t.to_level for t in history.transitions] == [1, 2]
    first, second = trainer.hierarchy[:2]
    assert_same(nnx.state(model.base.base, FrozenVariable), nnx.state(first, nnx.Param))
    assert_same(
        nnx.state(model.base.correction, FrozenVariable), nnx.state(second.correction, nnx.Param)
    )


def test_the_optimizer_starts_afresh_on_every_level():
    trainer = trainer_of(networks())
    trainer.fit(loss, (X,), epochs=[7, 5, 3])
    assert int(trainer.optimizer.state[0].count) == 3


def test_a_second_run_does_not_stack_the_sums():
    trainer = trainer_of(networks((3, 4)))
    trainer.fit(loss, (X,), epochs=[5, 5])
    before = float(loss(trainer.model, X))
    trainer.fit(loss, (X,), epochs=[5])  # goes on with the sum on the finest level
    assert isinstance(trainer.model.base, MLP)
    assert float(loss(trainer.model, X)) < before


@pytest.mark.parametrize("function", [energy, lambda model, x: 0.0 * loss(model, x)])
def test_a_loss_without_a_root_is_refused_and_the_coarse_level_kept(function):
    trainer = trainer_of(networks((3, 4)))
    with pytest.raises(ValueError, match=r"needs a positive loss.*give scale="):
        trainer.fit(function, (X,), epochs=[20, 40])
    assert trainer.current_level == 0
    assert trainer.history.num_steps == 20


def test_a_given_scale_is_taken_whatever_the_loss():
    trainer = trainer_of(networks((3, 4)), scale=0.5)
    history = trainer.fit(energy, (X,), epochs=[20, 40])
    assert float(trainer.model.scale[...]) == 0.5
    assert np.all(history.losses < 0)
    assert history.losses[-1] < history.losses[20]  # the finer level learns


def test_levels_can_be_changed_by_hand_where_a_scale_is_given():
    trainer = trainer_of(networks((3, 4)), scale=0.5)
    coarse = trainer.model
    assert trainer.advance_level()
    assert_same(nnx.state(trainer.model.base, FrozenVariable), nnx.state(coarse, nnx.Param))
    with pytest.raises(ValueError, match=r"needs a positive loss.*got None; give scale="):
        trainer_of(networks((3, 4))).advance_level()


class Normalised(nnx.Module):
    """A network with batch statistics."""

    def __init__(self, width, rngs):
        self.first = nnx.Linear(1, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
        self.last = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.norm(self.first(x))))


def test_batch_statistics_of_the_base_are_those_that_were_trained_and_stay():
    trainer = trainer_of([Normalised(4, nnx.Rngs(seed)) for seed in (0, 1)])
    bases = []

    def keep(progress):
        if progress.level:
            bases.append(progress.model.base)

    trainer.fit(loss, (X + 3.0,), epochs=[30, 5], monitor=Monitor(every=1, callbacks=[keep]))
    trained = nnx.state(trainer.hierarchy[0], nnx.BatchStat)
    assert float(jnp.max(jnp.abs(trained["norm"]["mean"][...]))) > 0.1
    assert len(bases) == 5
    for base in (*bases, trainer.model.base):
        assert_same(nnx.state(base, nnx.BatchStat), trained)
    # Those of the correction move: it is what trains.
    moved = nnx.state(trainer.model.correction, nnx.BatchStat)
    assert float(jnp.max(jnp.abs(moved["norm"]["mean"][...]))) > 0.1


def test_a_loss_that_switches_to_training_leaves_the_base_frozen():
    trainer = trainer_of([Normalised(4, nnx.Rngs(seed)) for seed in (0, 1)])

    def training_loss(model, x):
        model.train()
        return loss(model, x)

    trainer.fit(training_loss, (X + 3.0,), epochs=[30, 5])
    assert_same(
        nnx.state(trainer.model.base, nnx.BatchStat),
        nnx.state(trainer.hierarchy[0], nnx.BatchStat),
    )


class Tied(nnx.Module):
    """A list of layers with one kernel, and a parameter in a dictionary."""

    def __init__(self, width, rngs):
        self.first = nnx.Linear(1, width, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(2)])
        self.layers[1].kernel = self.layers[0].kernel
        self.named = nnx.Dict(
            {"last": nnx.Linear(width, 1, rngs=rngs), "offset": nnx.Param(jnp.zeros(1))}
        )

    def __call__(self, x):
        x = jnp.tanh(self.first(x))
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.named["last"](x) + self.named["offset"][...]


def test_parameters_in_lists_and_dictionaries_and_tied_ones_are_frozen():
    trainer = trainer_of([Tied(4, nnx.Rngs(seed)) for seed in (0, 1)])
    history = trainer.fit(loss, (X,), epochs=[20, 20])
    base, trained = trainer.model.base, trainer.hierarchy[0]
    assert not jax.tree.leaves(nnx.state(base, nnx.Param))
    assert_same(nnx.state(base, FrozenVariable), nnx.state(trained, nnx.Param))
    assert base.layers[1].kernel is base.layers[0].kernel
    assert history.losses[-1] < history.losses[20]


@pytest.mark.parametrize(
    ("scale", "error"), [(0.0, ValueError), (-1.0, ValueError), ("1", TypeError)]
)
def test_wrong_scales_are_named(scale, error):
    with pytest.raises(error, match="scale must be"):
        ResidualCorrection(scale=scale)
