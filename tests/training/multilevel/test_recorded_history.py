"""A history that was written says the same as the one that it was made of."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.training.multilevel import CascadeTrainer, History, VCycle, create_network_hierarchy


def loss(model, x):
    return jnp.mean((model(x) - x**2) ** 2)


def trained(cycle, epochs):
    models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer(models)
    data = (jnp.linspace(-1, 1, 8)[:, None],)
    trainer.fit(
        loss,
        data,
        epochs=epochs,
        cycle=cycle,
        evaluate=lambda model: {"error": model(jnp.ones(1))[0] ** 2},
    )
    trainer.fit(loss, data, epochs=epochs if cycle != "cascade" else [3], cycle=cycle)
    return trainer


def again(history):
    record, losses = history.to_record()
    found = History()
    found.restore(json.loads(json.dumps(record)), losses)
    return found


@pytest.mark.parametrize(("cycle", "epochs"), [("cascade", [4, 6]), (VCycle(cycles=2), [4, 8])])
def test_a_history_comes_back(cycle, epochs):
    history = trained(cycle, epochs).history
    found = again(history)
    for name, column in history.table().items():
        if column.dtype.kind in "fi":
            np.testing.assert_allclose(found.table()[name], column, rtol=1e-12, err_msg=name)
        else:
            assert found.table()[name].tolist() == column.tolist()
    assert found.evaluations
    for new, old in zip(found.evaluations, history.evaluations, strict=True):
        assert (new.step, new.level, new.epoch, new.metrics) == (
            old.step,
            old.level,
            old.epoch,
            old.metrics,
        )
        assert [new.work, new.seconds, new.elapsed_seconds] == pytest.approx(
            [old.work, old.seconds, old.elapsed_seconds]
        )
    assert [(t.step, t.from_level, t.to_level) for t in found.transitions] == [
        (t.step, t.from_level, t.to_level) for t in history.transitions
    ]
    assert found.stopwatch.seconds == pytest.approx(history.stopwatch.seconds)
    assert [i.account for i in found.stopwatch.intervals] == [
        i.account for i in history.stopwatch.intervals
    ]
    assert found.num_calls == history.num_calls
    assert found.step_work == pytest.approx(history.step_work)


def test_a_trainer_goes_on_with_it():
    trainer = trained("cascade", [4, 6])
    trainer.history = again(trainer.history)
    before = trainer.history.wall_seconds
    steps = trainer.history.num_steps
    trainer.fit(loss, (jnp.linspace(-1, 1, 8)[:, None],), epochs=[2])
    assert trainer.history.num_steps == steps + 2
    assert trainer.history.wall_seconds > before


def test_weights_of_terms_come_back():
    history = History()
    history.begin()
    history.set_unit(2.0)
    history.record_weights(np.array([1.0, 10.0]))
    history.record_steps(0, np.array([2.0, 1.0]), 0.5, 1.0)
    history.record_extra_operations(3.0)
    history.record_steps(1, np.array([0.5]), 0.25, 2.0)
    found = again(history)
    np.testing.assert_array_equal(found.weights, history.weights)
    np.testing.assert_allclose(found.table()["work"], [0.5, 1.0, 3.5])


def test_an_empty_history_comes_back():
    assert again(History()).num_steps == 0
