"""Going on: what the epochs of a further call of ``fit`` mean."""

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from opifex.training.multilevel import (
    CascadeTrainer,
    FullMultigrid,
    Monitor,
    MultilevelConfig,
    VCycle,
    create_network_hierarchy,
)


class Counter(nnx.Module):
    """One parameter, which every step raises by one."""

    def __init__(self):
        self.value = nnx.Param(jnp.zeros(()))


def count(model, *data):
    return -model.value[...]


def trainer_at(level, *epochs):
    """A trainer that stands on a level without having trained."""
    config = MultilevelConfig(num_levels=len(epochs), level_epochs=epochs)
    trainer = CascadeTrainer([Counter() for _ in epochs], optax.sgd(1.0), config=config)
    for _ in range(level):
        trainer.advance_level()
    return trainer


def steps(trainer):
    levels = trainer.history.table()["level"].astype(int).tolist()
    return [levels.count(level) for level in range(trainer.num_levels)]


@pytest.mark.parametrize("epochs", [[7], [0, 7]])
def test_epochs_for_what_is_left(epochs):
    trainer = trainer_at(1, 2, 4)
    trainer.fit(count, epochs=epochs)
    assert steps(trainer) == [0, 7]


def test_one_entry_per_level_from_the_present_one_on():
    trainer = trainer_at(1, 2, 4, 5)
    trainer.fit(count, epochs=[3, 6])
    assert steps(trainer) == [0, 3, 6]


def test_zero_skips_a_level():
    trainer = trainer_at(0, 2, 4)
    trainer.fit(count, epochs=[0, 3])
    assert (steps(trainer), trainer.current_level) == ([0, 3], 1)


def test_epochs_of_a_level_that_was_passed_are_not_dropped_in_silence():
    trainer = trainer_at(1, 2, 4)
    with pytest.warns(UserWarning, match=r"stands on level 1 .*epochs=\[7\] and epochs=\[0, 7\]"):
        trainer.fit(count, epochs=[10, 7])
    assert steps(trainer) == [0, 7]


def test_the_default_is_what_is_left_of_the_plan():
    trainer = trainer_at(0, 3, 5)
    monitor = Monitor(every=1, callbacks=[lambda now: (now.level, now.epoch) == (1, 2)])
    trainer.fit(count, monitor=monitor)
    assert steps(trainer) == [3, 2]
    trainer.fit(count)
    assert steps(trainer) == [3, 5]
    with pytest.raises(
        ValueError, match=r"all 5 epochs planned for level 1 are done; epochs=\[5\]"
    ):
        trainer.fit(count)
    assert steps(trainer) == [3, 5]


def test_epochs_of_batches_are_counted_as_epochs():
    trainer = trainer_at(0, 3)
    data = (jnp.zeros((6, 1)),)
    monitor = Monitor(every=1, callbacks=[lambda now: True])
    trainer.fit(count, data, batch_size=2, monitor=monitor)
    assert steps(trainer) == [3]
    trainer.fit(count, data, batch_size=2)
    assert steps(trainer) == [9]
    assert trainer.history.epochs(0) == pytest.approx(3.0)


def test_a_cycle_that_visits_coarser_levels_needs_all_entries():
    trainer = CascadeTrainer(
        create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0)), optax.sgd(1e-2)
    )
    trainer.advance_level()
    x = jnp.linspace(-1, 1, 5)[:, None]

    def loss(model, x):
        return jnp.mean((model(x) - x) ** 2)

    for cycle in (VCycle(cycles=1), FullMultigrid(cycles=1)):
        with pytest.raises(ValueError, match=r"one entry per level \(2\), got \[4\]"):
            trainer.fit(loss, (x,), epochs=[4], cycle=cycle)
    trainer.fit(loss, (x,), epochs=[4, 2], cycle=VCycle(cycles=1))
    assert steps(trainer) == [4, 2]


def test_a_wrong_number_of_entries_names_both_forms():
    with pytest.raises(
        ValueError, match=r"one entry per level \(3\), or one per level from 1 on \(2\), got \[4\]"
    ):
        trainer_at(1, 1, 1, 1).fit(count, epochs=[4])


@pytest.mark.parametrize("epochs", [[0], [0, 0], [5, 0]])
def test_nothing_to_train_is_refused(epochs):
    with pytest.raises(ValueError, match="positive number for a level from 1 on"):
        trainer_at(1, 2, 2).fit(count, epochs=epochs)
