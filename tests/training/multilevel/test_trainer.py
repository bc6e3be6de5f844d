"""`CascadeTrainer`: what it trains, what it hands out, and what it does when things go wrong.

Most models here have one parameter whose value after n steps is known in closed form, so that the
loop can be checked exactly: with loss ``-w`` and plain gradient descent at rate one, ``w`` counts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core import ResidualTerm
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.multilevel import (
    CascadeTrainer,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    NonFiniteLossError,
    create_network_hierarchy,
    prolongate,
)
from tolerances import rounding


class Counter(nnx.Module):
    """One number per sample; plain gradient descent makes them count."""

    def __init__(self, size: int = 1) -> None:
        self.count = nnx.Param(jnp.zeros(size))


def count_up(model: Counter) -> jax.Array:
    """A loss whose descent at rate one adds one per step."""
    return -jnp.sum(model.count[...])


def fails_from(limit: float) -> Any:
    """`count_up` that is NaN once the count has reached ``limit``."""

    def loss(model: Counter) -> jax.Array:
        value = jnp.sum(model.count[...])
        return jnp.where(value >= limit, jnp.nan, -value)

    return loss


def counting_trainer(*epochs: int, size: int = 1) -> CascadeTrainer:
    config = MultilevelConfig(num_levels=len(epochs), level_epochs=epochs)
    return CascadeTrainer([Counter(size) for _ in epochs], optax.sgd(1.0), config=config)


def every(epochs: int, *callbacks: Any) -> Monitor:
    return Monitor(every=epochs, callbacks=callbacks)


def value_of(trainer: CascadeTrainer) -> float:
    return float(jnp.sum(trainer.model.count[...]))


POINTS = jnp.linspace(-1, 1, 12)[:, None]
TARGETS = jnp.sin(3 * POINTS)


def regression(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((model(x) - y) ** 2)


LEARNING_RATE = 1e-2


def two_networks() -> Any:
    return create_network_hierarchy(1, 1, [8, 8], num_levels=2, rngs=nnx.Rngs(0))


def network_trainer(**options: Any) -> CascadeTrainer:
    config = MultilevelConfig(num_levels=2, level_epochs=[6, 8])
    options = {"optimizer": MultilevelAdam(LEARNING_RATE), "config": config, **options}
    return CascadeTrainer(two_networks(), **options)


def one_level_trainer() -> CascadeTrainer:
    hierarchy = create_network_hierarchy(1, 1, [8], num_levels=1, rngs=nnx.Rngs(0))
    return CascadeTrainer(hierarchy, optax.adam(LEARNING_RATE))


def params_of(trainer: CascadeTrainer) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(trainer.model, nnx.Param))]


def assert_same_params(one: CascadeTrainer, other: CascadeTrainer) -> None:
    for a, b in zip(params_of(one), params_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close_after(steps: int, found: Any, wanted: Any) -> None:
    """Equal but for the rounding of some steps of Adam.

    A step is about a learning rate long whatever the size of the gradient, a mean over a dozen
    points, some of whose summands cancel.
    """
    rtol = rounding(np.float32, condition=10, operations=steps)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=LEARNING_RATE * rtol)


# -- who owns what ---------------------------------------------------------------------------


def test_model_is_the_very_object_that_training_changes() -> None:
    trainer = counting_trainer(2, 3)
    model = trainer.model
    assert model is trainer.hierarchy[0]
    assert model is trainer.get_current_model()
    model.count[...] = jnp.array([7.0])
    trainer.fit(count_up, monitor=every(1, lambda progress: progress.epoch == 2))
    assert trainer.model is model
    assert float(model.count[0]) == 9
    assert trainer.advance_level()
    assert trainer.model is trainer.hierarchy[1]


def test_optimizer_may_be_one_method_per_level() -> None:
    config = MultilevelConfig(num_levels=2, level_epochs=[2, 3])
    trainer = CascadeTrainer(
        [Counter(), Counter()], [optax.sgd(1.0), optax.sgd(10.0)], config=config
    )
    trainer.fit(count_up)
    assert value_of(trainer) == 2 + 30


def test_optimizer_may_be_a_least_squares_solver_and_the_loss_residual_terms() -> None:
    term = ResidualTerm("fit", lambda u, x: u(x) - jnp.sin(3 * x), weight=2.0)
    trainer = CascadeTrainer(two_networks(), LevenbergMarquardt())
    before = 2 * float(regression(trainer.model, POINTS, TARGETS))
    losses = trainer.fit([term], (POINTS,), epochs=[4, 4]).losses
    assert losses[0] == pytest.approx(before, rel=rounding(np.float32, operations=len(POINTS) + 8))
    assert losses[-1] < 0.1 * losses[0]


# -- every level is trained ------------------------------------------------------------------


def test_fit_trains_every_level_for_its_epochs() -> None:
    trainer = counting_trainer(2, 3, 5)
    history = trainer.fit(count_up)
    assert trainer.is_at_finest
    assert value_of(trainer) == 10
    levels = history.table()["level"]
    assert [int(np.sum(levels == level)) for level in range(3)] == [2, 3, 5]
    np.testing.assert_array_equal(history.losses, -np.arange(10.0))


def test_extra_epochs_are_spent_on_the_finest_level() -> None:
    config = MultilevelConfig(num_levels=2, level_epochs=[2, 3], warmup_epochs=4)
    trainer = CascadeTrainer([Counter(), Counter()], optax.sgd(1.0), config=config)
    levels = trainer.fit(count_up).table()["level"]
    assert [int(np.sum(levels == level)) for level in range(2)] == [2, 7]


def test_epochs_argument_overrules_the_config() -> None:
    trainer = counting_trainer(2, 3)
    trainer.fit(count_up, epochs=[1, 4])
    assert value_of(trainer) == 5


def test_fit_starts_from_the_current_level_and_continues() -> None:
    trainer = counting_trainer(2, 3)
    trainer.advance_level()
    trainer.fit(count_up)
    assert value_of(trainer) == 3
    history = trainer.fit(count_up, epochs=[3])
    assert value_of(trainer) == 6
    assert history is trainer.history
    np.testing.assert_array_equal(history.table()["level"], [1] * 6)


def test_loss_is_continuous_across_the_default_transition_and_ends_lower() -> None:
    trainer = network_trainer()
    losses = trainer.fit(regression, (POINTS, TARGETS), epochs=[30, 30]).losses
    # One Adam step lies between the two values; the transfer itself adds nothing.
    assert losses[30] < 1.05 * losses[29]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.model.hidden_dims == (8, 8)


# -- the loop is the textbook's --------------------------------------------------------------


def hand_written_scan(model: Any, transformation: Any, batches: Any) -> tuple[Any, np.ndarray]:
    """The same training in a dozen lines of plain JAX."""
    graph, params = nnx.split(model)

    def body(carry: Any, batch: Any) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: regression(nnx.merge(graph, p), *batch))(params)
        updates, state = transformation.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def run(params: Any) -> Any:
        return jax.lax.scan(body, (params, transformation.init(params)), batches)

    (params, _), losses = run(params)
    return params, np.asarray(losses)


def assert_equals_hand_written(trainer: CascadeTrainer, losses: np.ndarray, batches: Any) -> None:
    adam = optax.adam(LEARNING_RATE)
    params, expected = hand_written_scan(one_level_trainer().model, adam, batches)
    assert_close_after(len(losses), losses, expected)
    assert_close_after(len(losses), params_of(trainer), params)


def test_full_batch_equals_a_hand_written_scan() -> None:
    trainer = one_level_trainer()
    losses = trainer.fit(regression, (POINTS, TARGETS), epochs=[25]).losses
    batches = tuple(jnp.broadcast_to(a, (25, *a.shape)) for a in (POINTS, TARGETS))
    assert_equals_hand_written(trainer, losses, batches)


def record_batch(model: Counter, index: jax.Array) -> jax.Array:
    """A loss whose value tells which samples were in the batch."""
    return jnp.sum(2.0**index) + 0 * jnp.sum(model.count[...])


def batches_drawn(epochs: int, samples: int, batch_size: int, key: Any = None) -> np.ndarray:
    """Sample numbers of each batch, shape (steps, batch_size), ascending in each row."""
    trainer = counting_trainer(epochs)
    losses = trainer.fit(
        record_batch, (jnp.arange(samples),), batch_size=batch_size, key=key
    ).losses
    bits = (losses.astype(int)[:, None] >> np.arange(samples)) & 1
    assert np.all(bits.sum(axis=1) == batch_size)
    return np.stack([np.flatnonzero(row) for row in bits])


def test_mini_batches_equal_a_hand_written_scan_over_the_same_batches() -> None:
    key = jax.random.key(7)
    drawn = batches_drawn(3, 12, 4, key)
    trainer = one_level_trainer()
    losses = trainer.fit(
        regression, (POINTS, TARGETS), epochs=[3], batch_size=4, key=key, monitor=every(2)
    ).losses
    assert_equals_hand_written(trainer, losses, (POINTS[drawn], TARGETS[drawn]))


def test_every_epoch_visits_every_sample_once_in_a_new_order() -> None:
    drawn = batches_drawn(4, 12, 3).reshape(4, 12)
    for epoch in drawn:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in drawn}) == 4


def test_visits_are_counted_by_the_gradient_too() -> None:
    trainer = counting_trainer(5, 3, size=10)
    trainer.fit(lambda model, index: -jnp.sum(model.count[index]), (jnp.arange(10),), batch_size=5)
    np.testing.assert_array_equal(trainer.model.count[...], np.full(10, 8.0))


def test_the_remainder_of_an_epoch_is_another_one_each_time() -> None:
    drawn = batches_drawn(6, 10, 3).reshape(6, 9)
    left_out = [set(range(10)) - set(epoch) for epoch in drawn]
    assert all(len(rest) == 1 for rest in left_out)
    assert len({tuple(rest) for rest in left_out}) > 1


def test_the_key_decides_the_order() -> None:
    first = batches_drawn(2, 12, 3, jax.random.key(1))
    np.testing.assert_array_equal(first, batches_drawn(2, 12, 3, jax.random.key(1)))
    assert np.any(first != batches_drawn(2, 12, 3, jax.random.key(2)))


def test_a_loss_with_a_key_argument_gets_a_fresh_key_every_step() -> None:
    def noise(model: Counter, *, key: Any) -> jax.Array:
        return jax.random.uniform(key) + 0 * jnp.sum(model.count[...])

    def losses(seed: int) -> np.ndarray:
        return counting_trainer(3, 4).fit(noise, key=jax.random.key(seed), monitor=every(2)).losses

    first = losses(0)
    assert len(np.unique(first)) == 7
    np.testing.assert_array_equal(first, losses(0))
    assert np.all(first != losses(1))


@pytest.mark.parametrize("transfer", [None, prolongate])
def test_fit_equals_the_loop_by_hand(transfer: Any) -> None:
    fitted = network_trainer(prolongate_fn=transfer)
    fitted.fit(regression, (POINTS, TARGETS))
    by_hand = network_trainer(prolongate_fn=transfer)
    gradient = nnx.jit(nnx.grad(regression))
    while True:
        for _ in range(by_hand.get_epochs_for_current_level()):
            by_hand.step(gradient(by_hand.model, POINTS, TARGETS))
        if not by_hand.advance_level():
            break
    steps = fitted.history.num_steps
    assert_close_after(steps, params_of(fitted), params_of(by_hand))
    assert_close_after(steps, fitted.optimizer.state, by_hand.optimizer.state)


def test_steps_by_hand_and_fit_can_alternate() -> None:
    trainer = counting_trainer(2, 2)
    gradient = nnx.grad(count_up)
    trainer.step(gradient(trainer.model))
    trainer.fit(count_up)
    trainer.step(gradient(trainer.model))
    assert value_of(trainer) == 6


@pytest.mark.parametrize("interval", [1, 3, 100])
def test_result_does_not_depend_on_how_often_the_host_looks(interval: int) -> None:
    reference, trainer = counting_trainer(7, 5), counting_trainer(7, 5)
    expected = reference.fit(count_up).losses
    np.testing.assert_array_equal(trainer.fit(count_up, monitor=every(interval)).losses, expected)
    assert_same_params(trainer, reference)


def test_compilation_ahead_changes_nothing_but_the_moment() -> None:
    def run(ahead: bool) -> tuple[CascadeTrainer, list[Any]]:
        events: list[Any] = []

        def loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            events.append(("traced", model.hidden_dims))
            return regression(model, x, y)

        config = MultilevelConfig(2, level_epochs=[4, 4], compile_ahead=ahead)
        trainer = network_trainer(config=config)
        look = every(1, lambda progress: events.append(("level", progress.level)))
        trainer.fit(loss, (POINTS, TARGETS), monitor=look)
        return trainer, events

    (ahead, while_training), (not_ahead, afterwards) = run(True), run(False)
    fine = "traced", (8, 8)
    for events, is_ahead in ((while_training, True), (afterwards, False)):
        last_on_coarse = max(i for i, event in enumerate(events) if event == ("level", 0))
        assert (events.index(fine) < last_on_coarse) == is_ahead
    assert_same_params(ahead, not_ahead)
    np.testing.assert_array_equal(ahead.history.losses, not_ahead.history.losses)


# -- data ------------------------------------------------------------------------------------


def level_mean(model: Counter, values: jax.Array) -> jax.Array:
    return jnp.mean(values) + 0 * jnp.sum(model.count[...])


@pytest.mark.parametrize(
    "data",
    [
        [(jnp.ones(4),), (jnp.full(9, 2.0),)],
        lambda level: (jnp.full(4 + level, level + 1.0),),
    ],
    ids=["list", "function"],
)
def test_each_level_can_have_its_own_data(data: Any) -> None:
    losses = counting_trainer(2, 3).fit(level_mean, data).losses
    np.testing.assert_array_equal(losses, [1, 1, 2, 2, 2])


def test_variables_that_are_not_parameters_are_carried() -> None:
    class WithTotal(Counter):
        def __init__(self) -> None:
            super().__init__()
            self.calls = nnx.BatchStat(jnp.zeros(()))

    def loss(model: WithTotal) -> jax.Array:
        model.calls[...] = model.calls[...] + 1
        return count_up(model)

    config = MultilevelConfig(2, level_epochs=[3, 4])
    trainer = CascadeTrainer([WithTotal(), WithTotal()], optax.sgd(1.0), config=config)
    trainer.fit(loss)
    assert float(trainer.model.calls[...]) == 7


# -- looking in ------------------------------------------------------------------------------


def total(model: Counter) -> jax.Array:
    return jnp.sum(model.count[...])


def test_a_scalar_metric_has_the_name_of_its_function() -> None:
    class Total:
        def __call__(self, model: Counter) -> jax.Array:
            return total(model)

    named = {total: "total", jax.jit(total): "total", lambda model: total(model): "metric"}
    for evaluate, name in {**named, Total(): "metric", partial(total): "metric"}.items():
        history = counting_trainer(1).fit(count_up, evaluate=evaluate)
        assert history.evaluations[-1].metrics == {name: 1.0}


def test_scalar_metric_is_evaluated_at_every_look() -> None:
    history = counting_trainer(4, 6).fit(
        count_up, evaluate=lambda model: jnp.sum(model.count[...]), monitor=every(2)
    )
    found = [(e.level, e.epoch, e.step, e.metrics["metric"]) for e in history.evaluations]
    assert found == [
        (0, 0, 0, 0.0),
        (0, 2, 2, 2.0),
        (0, 4, 4, 4.0),
        (1, 0, 4, 4.0),
        (1, 2, 6, 6.0),
        (1, 4, 8, 8.0),
        (1, 6, 10, 10.0),
    ]


def test_named_metrics_and_the_first_evaluation_below_a_threshold() -> None:
    trainer = one_level_trainer()
    history = trainer.fit(
        regression,
        (POINTS, TARGETS),
        epochs=[4],
        evaluate=lambda m: {
            "largest": jnp.max(jnp.abs(m(POINTS) - TARGETS)),
            "loss": regression(m, POINTS, TARGETS),
        },
    )
    last = history.evaluations[-1].metrics
    # The difference of numbers around one, from sums of eight products after sums of eight.
    error = rounding(np.float32, operations=16)
    assert last["loss"] == pytest.approx(
        float(regression(trainer.model, POINTS, TARGETS)), rel=1e-2, abs=error
    )
    assert last["largest"] == pytest.approx(
        float(jnp.max(jnp.abs(trainer.model(POINTS) - TARGETS))), abs=error
    )
    found = history.first_below("loss", last["loss"])
    assert found is not None
    assert found.metrics["loss"] <= last["loss"]
    assert history.first_below("loss", 0.0) is None


def test_callbacks_see_the_progress_and_can_stop_the_run() -> None:
    seen = []

    def stop_at_three(progress: Any) -> bool:
        seen.append((progress.level, progress.epoch, float(progress.losses[-1])))
        progress.model.count[...] = jnp.array([99.0])  # a copy: the run does not notice
        return progress.level == 1 and progress.epoch >= 3

    trainer = counting_trainer(2, 6, 6)
    trainer.fit(count_up, monitor=every(1, stop_at_three))
    assert seen == [(0, 1, 0.0), (0, 2, -1.0), (1, 1, -2.0), (1, 2, -3.0), (1, 3, -4.0)]
    assert trainer.current_level == 1
    assert value_of(trainer) == 5


def test_a_run_that_was_stopped_goes_on_where_it_stopped() -> None:
    trainer = counting_trainer(2, 2)
    trainer.fit(count_up, monitor=every(1, lambda progress: True))
    assert (trainer.current_level, value_of(trainer)) == (0, 1)
    trainer.fit(count_up)  # what is left of the planned epochs
    assert (trainer.current_level, value_of(trainer)) == (1, 4)


def test_progress_shows_levels_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    counting_trainer(2, 2).fit(count_up, monitor=Monitor(progress=True))
    shown = capsys.readouterr().out
    assert "level 0 of 0..1" in shown
    assert "level 1 of 0..1" in shown
    assert "loss -3.000e+00" in shown


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_ends_with_an_error_keeps_what_was_reached(error: type[BaseException]) -> None:
    def fail(progress: Any) -> None:
        if (progress.level, progress.epoch) == (1, 2):
            raise error

    trainer = counting_trainer(3, 4, 5)
    with pytest.raises(error):
        trainer.fit(count_up, monitor=every(1, fail))
    assert (trainer.current_level, value_of(trainer), trainer.history.num_steps) == (1, 5, 5)
    trainer.fit(count_up)
    assert (trainer.current_level, value_of(trainer)) == (2, 3 + 4 + 5)


# -- divergence ------------------------------------------------------------------------------


@pytest.mark.parametrize("failing_step", [0, 1, 2, 4, 5, 8, 11])
def test_divergence_names_the_step_and_keeps_the_last_good_state(failing_step: int) -> None:
    """Calls of up to four steps: fails at the start, inside a call, and between two calls."""
    trainer = counting_trainer(12)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(fails_from(failing_step), monitor=every(4))
    assert (caught.value.level, caught.value.step) == (0, failing_step)
    kept = max(failing_step - 1, 0)
    assert value_of(trainer) == kept
    np.testing.assert_array_equal(trainer.history.losses, -np.arange(float(kept)))
    if failing_step == 0:
        assert np.isnan(caught.value.last_loss)
    else:
        assert caught.value.last_loss == -kept
        assert np.isfinite(float(fails_from(failing_step)(trainer.model)))


def test_divergence_on_a_finer_level() -> None:
    trainer = counting_trainer(3, 9)
    with pytest.raises(NonFiniteLossError, match="level 1 at step 4"):
        trainer.fit(fails_from(7), monitor=every(3))
    assert trainer.current_level == 1
    assert value_of(trainer) == 6


def test_parameters_that_stop_being_finite_are_noticed_before_the_loss_is() -> None:
    def bad_gradient_at_two(model: Counter) -> jax.Array:
        value = jnp.sum(model.count[...])
        # The last summand is zero everywhere, but its derivative at two is zero times infinity.
        return -value + 0 * jnp.sqrt(jnp.abs(value - 2))

    trainer = counting_trainer(3)
    with pytest.raises(NonFiniteLossError):
        trainer.fit(bad_gradient_at_two, monitor=every(3))
    assert value_of(trainer) == 2


def test_optimizer_state_of_the_last_good_step_is_kept_too() -> None:
    config = MultilevelConfig(1, level_epochs=[9])
    trainer = CascadeTrainer([Counter()], optax.adam(1.0), config=config)
    with pytest.raises(NonFiniteLossError):
        trainer.fit(fails_from(4.5), monitor=every(3))  # one per step here, too: fails at step 5
    assert int(trainer.optimizer.state[0].count) == 4
    # Optax's 1 - b**t carries the rounding error of b**t.
    assert value_of(trainer) == pytest.approx(
        4, rel=rounding(np.float32, condition=1 / (1 - 0.999))
    )


def test_training_can_go_on_after_divergence() -> None:
    trainer = counting_trainer(6)
    with pytest.raises(NonFiniteLossError):
        trainer.fit(fails_from(3), monitor=every(2))
    trainer.fit(count_up)
    assert value_of(trainer) == 6


def test_double_precision_of_a_context_reaches_the_compiling_thread() -> None:
    with jax.enable_x64(True):
        models = [MLP(1, 1, [w], param_dtype=jnp.float64, rngs=nnx.Rngs(w)) for w in (2, 3)]
        x = jnp.linspace(0.0, 1.0, 7)[:, None]
        trainer = CascadeTrainer(models)
        history = trainer.fit(
            lambda model, x: jnp.mean((model(x) - x) ** 2),
            (x,),
            epochs=[3, 2],
            monitor=every(1),
        )
        assert history.losses.dtype == np.float64
        assert trainer.model.output.kernel[...].dtype == jnp.float64


@pytest.mark.parametrize("compile_ahead", [True, False])
def test_an_error_inside_the_loss_of_a_finer_level_surfaces(compile_ahead: bool) -> None:
    """As itself, once, and without a thread that waits for ever; the coarse level is kept."""

    def loss(model: Counter) -> jax.Array:
        if model.count.shape == (2,):
            raise RuntimeError("no loss for two")
        return count_up(model)

    config = MultilevelConfig(2, level_epochs=[4, 4], compile_ahead=compile_ahead)
    trainer = CascadeTrainer(
        [Counter(1), Counter(2)], optax.sgd(1.0), lambda coarse, fine: fine, config=config
    )
    asked = []

    def ask_for_work(progress: Any) -> None:
        asked.append(progress.step_work(0))

    with pytest.raises(RuntimeError, match="no loss for two"):
        trainer.fit(loss, monitor=every(1, ask_for_work))
    assert asked == [0.5] * 4  # an estimate by the numbers of parameters
    assert float(trainer.hierarchy[0].count[0]) == 4.0
    assert trainer.history.num_steps == 4
