"""Observers of a run: which phases they are told, when, and with what."""

import jax.numpy as jnp
import pytest
from flax import nnx

from opifex.training.multilevel import CascadeTrainer, Monitor, VCycle, create_network_hierarchy


class Record:
    def __init__(self):
        self.phases = []
        self.progress = []

    def on_phase(self, phase, level):
        self.phases.append((phase, level))

    def on_progress(self, progress):
        self.progress.append(progress)


def loss(model):
    return jnp.mean((model(jnp.ones((3, 1))) - 1.0) ** 2)


def trainer(num_levels=2):
    return CascadeTrainer(
        create_network_hierarchy(1, 1, [4], num_levels=num_levels, rngs=nnx.Rngs(0))
    )


def test_observers_hear_every_phase_in_order():
    record = Record()
    monitor = Monitor(every=2, observers=[record])
    trainer().fit(loss, epochs=[4, 2], monitor=monitor, evaluate=lambda model: loss(model))
    start = [("compiling", 0), ("evaluating", 0), ("compiling", 0)]
    interval = [("training", 0), ("evaluating", 0)]
    upwards = [("transferring", 1), ("evaluating", 1), ("compiling", 1)]
    assert record.phases == [
        *start,
        *interval,
        *interval,
        *upwards,
        ("training", 1),
        ("evaluating", 1),
    ]


def test_observers_hear_the_end_of_every_interval_with_what_was_spent():
    record = Record()
    history = trainer().fit(loss, epochs=[4, 3], monitor=Monitor(every=2, observers=[record]))
    assert [(p.level, p.epoch, p.step) for p in record.progress] == [
        (0, 2, 2),
        (0, 4, 4),
        (1, 2, 6),
        (1, 3, 7),
    ]
    assert record.progress[-1].work == pytest.approx(history.work)
    seconds = [p.seconds for p in record.progress]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] <= history.wall_seconds


def test_a_level_compiles_once_however_often_a_cycle_visits_it():
    record = Record()
    cycle = VCycle(cycles=3, pre=1, post=1, coarsest=1)
    trainer().fit(loss, cycle=cycle, monitor=Monitor(observers=[record]))
    assert record.phases.count(("compiling", 1)) == 1
    assert record.phases.count(("transferring", 0)) == 3


def test_time_of_observers_is_no_training_time():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()

    class Slow(Record):
        def on_phase(self, phase, level):
            clock.now += 10.0

    trained = trainer()
    trained.history.stopwatch._now = clock
    history = trained.fit(loss, epochs=[2, 2], monitor=Monitor(observers=[Slow()]))
    assert history.evaluation_seconds == history.wall_seconds > 0


@pytest.mark.parametrize("missing", ["on_phase", "on_progress"])
def test_what_cannot_observe_is_refused(missing):
    methods = {name: lambda *_: None for name in ("on_phase", "on_progress") if name != missing}
    with pytest.raises(TypeError, match=rf"observers\[0\] must have a method {missing}"):
        Monitor(observers=[type("Half", (), methods)()])
