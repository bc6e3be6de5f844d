"""Early stopping on runs whose metric is known beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.training.multilevel import (
    Cascade,
    CascadeTrainer,
    EarlyStopping,
    LossPlateau,
    Monitor,
    MultilevelConfig,
    VCycle,
    create_network_hierarchy,
)


class Counter(nnx.Module):
    """One parameter, which every step raises by one."""

    def __init__(self):
        self.value = nnx.Param(jnp.zeros(()))


def falling(model):
    return -model.value[...]


def keep_value(coarse, fine):
    new = nnx.clone(fine)
    new.value[...] = coarse.value[...]
    return new


def fit(stopping, *, levels=2, epochs=10, best=3.0, cycle="cascade", **options):
    """Steps 1, 2, 3, ... with a metric that is lowest after ``best`` of them."""
    trainer = CascadeTrainer(
        [Counter() for _ in range(levels)], optax.sgd(1.0), prolongate_fn=keep_value
    )

    def distance(model):
        return jnp.abs(model.value[...] - best)

    options = {"evaluate": distance, **options}
    history = trainer.fit(
        falling,
        epochs=[epochs] * levels,
        cycle=cycle,
        monitor=Monitor(every=1, callbacks=[stopping]),
        **options,
    )
    return trainer, history


def test_a_level_ends_with_its_best_model_and_the_next_goes_on_from_there():
    trainer, history = fit(EarlyStopping(2))
    # Level 0: best after 3 steps, two in vain. Level 1 starts there, and every step is in vain
    # after its first.
    assert history.table()["level"].tolist() == [0] * 5 + [1] * 3
    assert float(trainer.hierarchy[0].value[...]) == 3
    assert float(trainer.model.value[...]) == 4
    last = history.evaluations[-1]
    assert (last.step, last.level, last.metrics) == (8, 1, {"distance": 1.0})


def test_scope_run_ends_the_run():
    trainer, history = fit(EarlyStopping(2, scope="run"))
    assert (history.num_steps, trainer.current_level) == (5, 0)
    assert float(trainer.model.value[...]) == 3


def test_without_restore_best_the_latest_model_stays():
    trainer, _ = fit(EarlyStopping(2, restore_best=False, scope="run"))
    assert float(trainer.model.value[...]) == 5


def test_the_best_model_is_restored_where_the_epochs_are_over_first():
    trainer, history = fit(EarlyStopping(50), levels=1, epochs=6)
    assert history.num_steps == 6
    assert float(trainer.model.value[...]) == 3


def test_the_best_model_is_restored_where_a_criterion_ends_the_level():
    plateau = Cascade(stop=LossPlateau(window=1, relative_improvement=0.9))
    trainer, history = fit(EarlyStopping(50), levels=1, best=1.0, cycle=plateau)
    assert 1 < history.num_steps < 10
    assert float(trainer.model.value[...]) == 1


def test_the_optimizer_state_is_restored_too():
    rate = optax.adam(0.1)
    x = jnp.linspace(-1, 1, 8)[:, None]

    def loss(model):
        return jnp.mean((model(x) - x) ** 2)

    def run(epochs, callbacks=()):
        models = create_network_hierarchy(1, 1, [4], num_levels=1, rngs=nnx.Rngs(0))
        trainer = CascadeTrainer(models, rate)
        trainer.fit(loss, epochs=[epochs], monitor=Monitor(every=1, callbacks=callbacks))
        return trainer

    class Known(EarlyStopping):
        """The third evaluation is the best."""

        def _value(self, progress):
            return abs(progress.epoch - 3)

    stopped, plain = run(9, [Known(2, scope="run")]), run(3)
    assert stopped.history.num_steps == 5
    for found, wanted in zip(
        jax.tree.leaves((nnx.state(stopped.model), stopped.optimizer.state)),
        jax.tree.leaves((nnx.state(plain.model), plain.optimizer.state)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def test_min_delta_is_what_counts_as_better():
    _, history = fit(EarlyStopping(2, min_delta=5.0), levels=1, best=9.0)
    assert history.num_steps == 3  # distances 8, 7, 6: none is better by five


def test_a_second_call_of_fit_begins_anew():
    stopping = EarlyStopping(2, scope="run", restore_best=False)
    trainer, history = fit(stopping, levels=1)
    monitor = Monitor(every=1, callbacks=[stopping])
    trainer.fit(falling, epochs=[9], monitor=monitor, evaluate=lambda model: 1.0)
    assert history.num_steps == 5 + 3


def test_the_loss_is_the_metric_where_nothing_is_evaluated():
    _, history = fit(EarlyStopping(1), levels=1, evaluate=None)
    assert history.num_steps == 10  # a loss that falls at every step


def test_the_loss_of_an_interval_is_that_of_its_steps():
    seen = []

    class Spy(EarlyStopping):
        def _value(self, progress):
            seen.append(super()._value(progress))
            return seen[-1]

    trainer = CascadeTrainer([Counter()], optax.sgd(1.0))
    trainer.fit(falling, epochs=[5], monitor=Monitor(every=2, callbacks=[Spy(9)]))
    assert seen == [-0.5, -2.5, -4.0]


def test_a_cycle_compares_the_level_it_works_for_only():
    seen = []

    class Spy(EarlyStopping):
        def _value(self, progress):
            seen.append(progress.level)
            return super()._value(progress)

    models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer(models, config=MultilevelConfig(num_levels=2))
    x = jnp.linspace(-1, 1, 8)[:, None]
    history = trainer.fit(
        lambda model: jnp.mean((model(x) - x) ** 2),
        cycle=VCycle(cycles=2, pre=1, post=1, coarsest=3),
        monitor=Monitor(every=1, callbacks=[Spy(100)]),
    )
    assert seen == [1, 1, 1, 1]
    assert history.num_steps == 2 * (1 + 3 + 1)


def test_a_metric_must_be_there_and_be_named():
    with pytest.raises(ValueError, match=r"metric must be one of \['distance', 'loss'\], got 'err"):
        fit(EarlyStopping(2, metric="error"))
    with pytest.raises(ValueError, match=r"metric must be named .* one of \['a', 'b'\]"):
        fit(EarlyStopping(2), evaluate=lambda model: {"a": 1.0, "b": 2.0})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"patience": 2.5}, TypeError, "patience must be an integer"),
        ({"patience": 1, "metric": 3}, TypeError, "metric must be the name"),
        ({"patience": 1, "min_delta": -1}, ValueError, "min_delta must be at least 0"),
        ({"patience": 1, "restore_best": 1}, TypeError, "restore_best must be a bool"),
        ({"patience": 1, "scope": "all"}, ValueError, r"scope must be one of \['level', 'run'\]"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        EarlyStopping(**arguments)
