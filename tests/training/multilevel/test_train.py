"""What the shape of the training core rules out: wrong numbers of steps, lost weights, wrong prices."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import signal
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core.residuals import ResidualTerm
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.loop import CAPACITY, CompiledLoop
from opifex.training.multilevel import (
    Cascade,
    CascadeTrainer,
    Correct,
    Enter,
    FullMultigrid,
    History,
    Interpolate,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    NonFiniteLossError,
    ResidualCorrection,
    Restrict,
    Smooth,
    TransferError,
    VCycle,
    WCycle,
    create_network_hierarchy,
    prolongate,
    prolongate_preserving,
)
from opifex.training.stopwatch import Stopwatch
from tolerances import rounding

X = jnp.linspace(-1, 1, 32)[:, None]
Y = jnp.sin(3 * X)
CORRECTING = [
    VCycle(cycles=2),
    WCycle(cycles=1),
    FullMultigrid(cycles=1),
    VCycle(cycles=2, coarse="galerkin"),
]


def loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((model(x) - y) ** 2)


def networks(levels: int = 2, width: int = 8) -> list[MLP]:
    return create_network_hierarchy(1, 1, [width], num_levels=levels, rngs=nnx.Rngs(0))


def trainer(
    levels: int = 2, optimizer: Any = None, models: Any = None, **options: Any
) -> CascadeTrainer:
    settings = {
        name: options.pop(name) for name in ("verify_transfers", "compile_ahead") if name in options
    }
    models = networks(levels) if models is None else models
    config = MultilevelConfig(len(models), level_epochs=[2] * len(models), **settings)
    return CascadeTrainer(models, optimizer or optax.sgd(1e-2), config=config, **options)


def steps_per_level(history: History, levels: int) -> list[int]:
    return np.bincount(history.table()["level"].astype(int), minlength=levels).tolist()


def params_of(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


class Counter(nnx.Module):
    """Plain gradient descent at rate one makes it count."""

    def __init__(self) -> None:
        self.count = nnx.Param(jnp.zeros(()))


def count_up(model: Counter) -> jax.Array:
    return -model.count[...]


# -- steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cycle", "epochs"),
    [
        (VCycle(cycles=10), [5, 5]),
        (VCycle(cycles=40), [100, 100]),
        (WCycle(cycles=4), [10, 10, 10]),
        (FullMultigrid(cycles=2), [9, 7]),
    ],
    ids=["more cycles than epochs", "many", "w", "full"],
)
def test_cycles_take_the_steps_that_were_planned(cycle: Any, epochs: list[int]) -> None:
    history = trainer(len(epochs)).fit(loss, (X, Y), epochs=epochs, cycle=cycle)
    assert steps_per_level(history, len(epochs)) == epochs


def test_v_2_1_takes_two_steps_before_and_one_after() -> None:
    history = trainer().fit(loss, (X, Y), cycle=VCycle(cycles=3, pre=2, post=1, coarsest=4))
    assert history.table()["level"].tolist() == [1, 1, 0, 0, 0, 0, 1] * 3


def test_full_multigrid_called_again_does_its_cycles_on_the_finest_level() -> None:
    run = trainer()
    for call in (1, 2):
        history = run.fit(loss, (X, Y), epochs=[20, 20], cycle="full-multigrid")
        assert steps_per_level(history, 2) == [20 * call, 20 * call]
    again = history.table()["cycle"][40:]
    assert set(again) == {1, 2, 3, 4, 5}


# -- exits -----------------------------------------------------------------------------------


class OwnError(Exception):
    """A user's own error."""


@pytest.mark.parametrize(
    ("cycle", "error"),
    list(zip(CORRECTING, [KeyboardInterrupt, OwnError, SystemExit, OwnError], strict=True)),
    ids=lambda c: getattr(c, "coarse", None) and f"{type(c).__name__}-{c.coarse}",
)
def test_an_error_on_a_coarse_level_of_a_cycle_keeps_the_finest(cycle: Any, error: Any) -> None:
    kept: list[Any] = []

    def fail(progress: Any) -> None:
        if progress.level == 1 and not kept:
            kept.extend(params_of(progress.model))
        if progress.level == 0 and kept:
            raise error

    run = trainer()
    with pytest.raises(error):
        run.fit(loss, (X, Y), epochs=[12, 12], cycle=cycle, monitor=Monitor(9, [fail]))
    assert run.is_at_finest
    if not isinstance(cycle, WCycle):  # whose next smoothing of the finest level comes later
        assert_same(params_of(run.model), kept)
    before = params_of(run.model)
    assert not run.advance_level()
    assert_same(params_of(run.model), before)
    # The objective is the user's again: the recorded loss is the loss.
    expected = float(loss(run.model, X, Y))
    new = run.fit(loss, (X, Y), epochs=[1])
    assert new.losses[-1] == pytest.approx(expected, rel=rounding(np.float32, operations=64))


def test_an_interrupt_waits_for_the_steps_under_way_and_says_what_is_kept() -> None:
    def press_ctrl_c(progress: Any) -> None:
        if progress.level == 1 and progress.epoch == 4:
            os.kill(os.getpid(), signal.SIGINT)

    # A shell that runs the tests in the background ignores the signal for them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = trainer(models=[Counter(), Counter()], optimizer=optax.sgd(1.0))
    with pytest.raises(KeyboardInterrupt, match="level 1 and all 9 steps are kept"):
        run.fit(count_up, epochs=[5, 100], monitor=Monitor(2, [press_ctrl_c]))
    assert float(run.model.count[...]) == 9.0 == run.history.num_steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run.fit(count_up, epochs=[3])
    assert float(run.model.count[...]) == 12.0


def test_an_error_before_the_first_step_leaves_the_trainer_as_it_was() -> None:
    run = trainer(optimizer=optax.adam(1e-2))
    run.fit(loss, (X, Y), epochs=[3, 3])
    before = params_of(run.model), jax.tree.leaves(run.optimizer.state)

    def broken(model: Any, x: Any, y: Any) -> Any:
        raise OwnError

    with pytest.raises(OwnError):
        run.fit(broken, (X, Y), epochs=[1])
    assert_same(params_of(run.model), before[0])
    assert_same(jax.tree.leaves(run.optimizer.state), before[1])


def fails_from(limit: float) -> Any:
    def partial_loss(model: Counter) -> jax.Array:
        return jnp.where(model.count[...] >= limit, jnp.nan, -model.count[...])

    return partial_loss


@pytest.mark.parametrize("limit", [1, 16, 17, 18, 40, 51])
def test_model_and_history_agree_after_a_loss_that_is_not_finite(limit: int) -> None:
    run = trainer(models=[Counter()], optimizer=optax.sgd(1.0))
    with pytest.raises(NonFiniteLossError) as caught:
        run.fit(fails_from(limit), epochs=[100], monitor=Monitor(25))
    # The state whose loss was the last finite one, and the losses of the steps up to it.
    assert float(run.model.count[...]) == limit - 1
    np.testing.assert_array_equal(run.history.losses, -np.arange(limit - 1, dtype=float))
    assert (caught.value.step, caught.value.last_loss) == (limit, -(limit - 1))


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteLossError(1, 7, 0.5)))
    assert (error.level, error.step, error.last_loss) == (1, 7, 0.5)
    assert "level 1 at step 7" in str(error)


# -- prices and times ------------------------------------------------------------------------


def test_every_call_of_fit_is_charged_at_its_own_prices() -> None:
    epochs = [4, 4]
    both, alone = trainer(), trainer()
    both.fit(loss, (X, Y), epochs=epochs)
    own = both.history.step_work[0]
    cycle = VCycle(cycles=1, coarse="galerkin")
    before = both.history.work
    second = both.fit(loss, (X, Y), epochs=epochs, cycle=cycle).work - before
    assert second == pytest.approx(alone.fit(loss, (X, Y), epochs=epochs, cycle=cycle).work)
    assert before == pytest.approx(4 * own + 4)
    # A Galerkin step evaluates the finest network.
    assert both.history.step_work[0] > 1.5 * own


def test_first_and_second_order_steps_have_their_own_prices() -> None:
    term = ResidualTerm("fit", lambda u, row: u(row[:1]) - row[1:])
    rows = (jnp.concatenate([X, Y], axis=1),)
    run = trainer(1, [LevenbergMarquardt()])
    run.fit([term], rows, epochs=[3])
    other = trainer(1)
    other.fit(loss, (X, Y), epochs=[50])
    prices = {s.operations for r in (run, other) for s in r.history.stretches}
    assert len(prices) == 2
    assert max(prices) > 5 * min(prices)
    assert run.history.work == pytest.approx(3)
    assert other.history.work == pytest.approx(50)


def test_a_rollout_is_charged_for_all_its_steps() -> None:
    def rollout(model: Any, times: jax.Array) -> jax.Array:
        def body(h: jax.Array, _: Any) -> Any:
            return h + 0.1 * model(h), None

        return jnp.mean((jax.lax.scan(body, X, None, length=len(times))[0] - Y) ** 2)

    models = [MLP(1, 1, [16], rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    data = [(jnp.zeros(2),), (jnp.zeros(20),)]
    history = trainer(models=models).fit(rollout, data, epochs=[2, 2])
    assert history.step_work[0] == pytest.approx(0.1, rel=0.1)


class Ticks:
    """A clock that advances at every look, and by more where the test says so."""

    def __init__(self, step: float = 1.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.mark.parametrize("cycle", ["cascade", *CORRECTING[2:]], ids=str)
def test_the_accounts_add_up_to_the_time_on_the_clock(cycle: Any) -> None:
    clock = Ticks()
    run = trainer(optimizer=optax.adam(1e-2))
    run.history = History(Stopwatch(clock))

    def slow(progress: Any) -> None:
        clock.now += 1000.0

    before = clock()
    history = run.fit(
        loss,
        (X, Y),
        epochs=[6, 6],
        cycle=cycle,
        evaluate=lambda model: jnp.mean(model(X)),
        monitor=Monitor(3, [slow]),
    )
    wall = clock() - before
    accounts = (
        history.seconds,
        history.compile_seconds,
        history.transfer_seconds,
        history.resample_seconds,
        history.read_seconds,
        history.evaluation_seconds,
        history.other_seconds,
    )
    assert sum(accounts) == pytest.approx(history.wall_seconds, rel=0.05)
    assert history.wall_seconds == pytest.approx(wall, rel=0.05)
    assert history.evaluation_seconds >= 1000.0
    assert history.elapsed_seconds < 1000.0
    assert history.seconds == pytest.approx(sum(s.seconds for s in history.stretches), rel=0.5)
    assert all(second > 0 for second in accounts[:3])


def test_a_stretch_is_cut_by_time() -> None:
    run = trainer(models=[Counter()], optimizer=optax.sgd(1.0))
    run.history = History(Stopwatch(Ticks(step=0.125)))
    history = run.fit(count_up, epochs=[100], monitor=Monitor(every=100))
    # By this clock every call takes an eighth of a second, and may take eight times as long.
    lengths = [len(stretch.losses) for stretch in history.stretches]
    assert lengths == [1, 8, 64, 27]
    np.testing.assert_array_equal(history.losses, -np.arange(100.0))


def only_for_width(width: int) -> Any:
    def picky(model: MLP, x: jax.Array, y: jax.Array) -> jax.Array:
        if model.hidden_dims[0] != width:
            raise ValueError("this loss is for another level")
        return loss(model, x, y)

    return picky


def test_pricing_never_turns_a_good_run_into_an_error() -> None:
    run = trainer()
    run.fit(loss, (X, Y), monitor=Monitor(callbacks=[lambda progress: True]))
    run.advance_level()
    run.fit(only_for_width(8), (X, Y))  # the coarse level was visited before, with another loss
    stopped = trainer()
    callbacks = [lambda progress: progress.step_work(1) > 0]
    stopped.fit(only_for_width(4), (X, Y), monitor=Monitor(callbacks=callbacks))
    assert stopped.current_level == 0
    assert np.isfinite(stopped.history.work)


def test_a_callback_s_own_error_is_the_one_that_is_seen() -> None:
    def fail(progress: Any) -> None:
        raise OwnError

    with pytest.raises(OwnError):
        trainer().fit(only_for_width(4), (X, Y), monitor=Monitor(callbacks=[fail]))


def test_stopping_early_does_not_wait_for_a_compilation(monkeypatch: Any) -> None:
    """The thread may go on compiling the next level; nobody waits for it."""
    waited = []
    original = CompiledLoop.wait
    monkeypatch.setattr(
        CompiledLoop, "wait", lambda self, check: (waited.append(self), original(self, check))
    )
    run = trainer()
    stop = Monitor(every=40, callbacks=[lambda progress: True])
    run.fit(loss, (X, Y), epochs=[100, 100], monitor=stop)
    assert len(waited) == 1


# -- keys ------------------------------------------------------------------------------------


def noisy(model: Any, x: jax.Array, y: jax.Array, key: Any) -> jax.Array:
    return jnp.mean((model(x + 0.01 * jax.random.normal(key, x.shape)) - y) ** 2)


@pytest.mark.parametrize("loss_fn", [loss, noisy], ids=["batches", "key"])
def test_two_calls_equal_one_of_their_joint_length(loss_fn: Any) -> None:
    once, twice = trainer(1, optax.adam(1e-2)), trainer(1, optax.adam(1e-2))
    once.fit(loss_fn, (X, Y), epochs=[5], batch_size=10)
    for epochs in (2, 3):
        twice.fit(loss_fn, (X, Y), epochs=[epochs], batch_size=10)
    np.testing.assert_array_equal(once.history.losses, twice.history.losses)
    assert_same(params_of(once.model), params_of(twice.model))


@pytest.mark.parametrize("coarse", ["rediscretised", "galerkin"])
def test_two_calls_of_a_cycle_equal_one_of_twice_as_many(coarse: Any) -> None:
    """The states of coarse levels' smoothers are kept between calls, too."""

    def cycles(number: int) -> VCycle:
        return VCycle(number, coarse=coarse, pre=2, post=1, coarsest=3)

    once, twice = trainer(2, optax.adam(1e-2)), trainer(2, optax.adam(1e-2))
    once.fit(loss, (X, Y), cycle=cycles(2))
    for _ in range(2):
        twice.fit(loss, (X, Y), cycle=cycles(1))
    np.testing.assert_array_equal(once.history.losses, twice.history.losses)
    assert_same(params_of(once.model), params_of(twice.model))


def test_calls_of_one_epoch_see_every_sample() -> None:
    index = jnp.arange(10)
    run = trainer(models=[Counter()])
    for _ in range(8):
        run.fit(
            lambda model, i: jnp.sum(2.0**i) + 0 * model.count[...],
            (index,),
            epochs=[1],
            batch_size=3,
        )
    seen = functools.reduce(np.bitwise_or, run.history.losses.astype(int))
    assert seen == 2**10 - 1


@pytest.mark.parametrize("cycle", CORRECTING[2:], ids=lambda c: f"{type(c).__name__}-{c.coarse}")
def test_a_loss_with_a_key_runs_in_every_cycle(cycle: Any) -> None:
    history = trainer(optimizer=optax.adam(1e-2)).fit(noisy, (X, Y), epochs=[30, 30], cycle=cycle)
    assert history.losses[-1] < history.losses[0]


def test_a_key_that_the_user_has_bound_stays() -> None:
    mine = jax.random.key(99)

    def reveal(model: Counter, key: Any) -> jax.Array:
        return jax.random.uniform(key) + 0 * model.count[...]

    history = trainer(models=[Counter()]).fit(functools.partial(reveal, key=mine), epochs=[3])
    np.testing.assert_array_equal(history.losses, [jax.random.uniform(mine)] * 3)


def test_galerkin_cycles_take_mini_batches() -> None:
    run = trainer(optimizer=optax.adam(1e-2))
    cycle = VCycle(cycles=3, coarse="galerkin")
    history = run.fit(loss, (X, Y), epochs=[9, 9], batch_size=8, cycle=cycle)
    assert steps_per_level(history, 2) == [36, 36]
    assert history.losses[-1] < history.losses[0]


# -- contexts --------------------------------------------------------------------------------


def test_every_level_is_traced_in_the_context_of_the_caller() -> None:
    seen: dict[int, set[Any]] = {}

    def contextual(model: MLP, x: jax.Array, y: jax.Array) -> jax.Array:
        config = jax.config
        context = (
            config.jax_default_matmul_precision,
            str(config.jax_default_device),
            config.jax_numpy_dtype_promotion,
        )
        seen.setdefault(model.hidden_dims[0], set()).add(context)
        return loss(model, x, y)

    run = trainer()
    device = jax.devices()[0]
    with (
        jax.default_matmul_precision("highest"),
        jax.default_device(device),
        jax.numpy_dtype_promotion("strict"),
    ):
        run.fit(contextual, (X, Y), epochs=[40, 40])
    assert seen == {width: {("highest", str(device), "strict")} for width in (4, 8)}


# -- ownership -------------------------------------------------------------------------------


def test_given_models_are_never_changed() -> None:
    models = networks()
    before = [params_of(model) for model in models]
    run = trainer(models=models, optimizer=optax.adam(1e-2))
    run.fit(loss, (X, Y), epochs=[5, 5])
    run.step(nnx.grad(loss)(run.model, X, Y))
    for model, params in zip(models, before, strict=True):
        assert_same(params_of(model), params)
    assert all(np.any(a != b) for a, b in zip(params_of(run.hierarchy[0]), before[0], strict=True))


def test_an_optimizer_serves_one_trainer() -> None:
    optimizer = MultilevelAdam(1e-2)
    first = trainer(optimizer=optimizer)
    first.fit(loss, (X, Y), epochs=[3, 3])
    state = jax.tree.leaves(optimizer.state)
    with pytest.raises(ValueError, match="optimizer already belongs to another trainer"):
        trainer(optimizer=optimizer)
    assert_same(jax.tree.leaves(optimizer.state), state)


def test_one_state_of_the_optimizer_through_steps_and_fits() -> None:
    """There is one owner of smoother states, so that no call can start them afresh."""
    run = trainer(1, [optax.adam(1e-2)])
    run.step(nnx.grad(loss)(run.model, X, Y))
    run.fit(loss, (X, Y), epochs=[4])
    run.fit(loss, (X, Y), epochs=[5], cycle=Cascade())
    assert int(run.optimizer.state[0].count) == 10


# -- what a transfer makes -------------------------------------------------------------------


class Wave(nnx.Module):
    def __init__(self, width: int, seed: int) -> None:
        self.a = nnx.Linear(1, width, rngs=nnx.Rngs(seed))
        self.o = nnx.Linear(width, 1, rngs=nnx.Rngs(seed))
        self.frequency = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.o(jnp.sin(self.frequency * self.a(x)))


@pytest.mark.parametrize("compile_ahead", [True, False])
def test_attributes_that_a_transfer_changes_are_used_everywhere(compile_ahead: bool) -> None:
    def faster(coarse: Wave, fine: Wave) -> Wave:
        new = prolongate_preserving(coarse, fine)
        new.frequency = 5.0
        return new

    seen: set[Any] = set()

    def spy(what: str, model: Wave) -> jax.Array:
        seen.add((what, model.a.out_features, model.frequency))
        return jnp.mean((model(X) - Y) ** 2)

    run = trainer(
        models=[Wave(4, 0), Wave(8, 1)], prolongate_fn=faster, compile_ahead=compile_ahead
    )
    run.fit(
        functools.partial(spy, "train"),
        epochs=[20, 20],
        evaluate=functools.partial(spy, "evaluate"),
    )
    assert seen == {(what, w, f) for what in ("train", "evaluate") for w, f in ((4, 1.0), (8, 5.0))}
    assert run.model.frequency == 5.0


@pytest.mark.parametrize("compile_ahead", [True, False])
def test_dtypes_that_a_transfer_changes_are_those_of_training(compile_ahead: bool) -> None:
    def to_half(coarse: MLP, fine: MLP) -> MLP:
        new = prolongate_preserving(coarse, fine)
        params = nnx.state(new, nnx.Param)
        nnx.update(new, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
        return new

    run = trainer(prolongate_fn=to_half, compile_ahead=compile_ahead)
    run.fit(loss, (X, Y))
    assert {leaf.dtype for leaf in params_of(run.model)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("optimizer", [MultilevelAdam, optax.adam])
def test_a_transfer_with_noise_moves_moments_by_its_linear_part(optimizer: Any) -> None:
    def with_noise(coarse: MLP, fine: MLP) -> MLP:
        new = prolongate_preserving(coarse, fine)
        leaves, structure = jax.tree.flatten(nnx.state(new, nnx.Param))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noisy = [
            leaf + 1e-2 * jax.random.normal(key, leaf.shape, leaf.dtype)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        nnx.update(new, jax.tree.unflatten(structure, noisy))
        return new

    run = trainer(prolongate_fn=with_noise, optimizer=optimizer(1e-3))
    run.fit(loss, (X, Y), epochs=[20, 20])
    assert all(np.all(leaf >= 0) for leaf in jax.tree.leaves(run.optimizer.state[0].nu))


def test_a_state_starts_afresh_where_no_transfer_can_move_it() -> None:
    def squared(coarse: MLP, fine: MLP) -> MLP:
        new = prolongate_preserving(coarse, fine)
        params = nnx.state(new, nnx.Param)
        nnx.update(new, jax.tree.map(lambda leaf: leaf**2, params))
        return new

    run = trainer(prolongate_fn=squared, optimizer=optax.adam(1e-3))
    with pytest.warns(UserWarning, match="starts afresh on level 1"):
        run.fit(loss, (X, Y), epochs=[5, 3])
    assert int(run.optimizer.state[0].count) == 3


def test_another_method_starts_with_its_own_state() -> None:
    run = trainer(optimizer=[optax.adam(1e-3), optax.rmsprop(1e-3)])
    run.fit(loss, (X, Y), epochs=[50, 1])
    start = prolongate_preserving(run.hierarchy[0], networks()[1])
    grads = nnx.grad(loss)(start, X, Y)
    for found, grad in zip(
        jax.tree.leaves(run.optimizer.state[0].nu), jax.tree.leaves(grads), strict=True
    ):
        np.testing.assert_allclose(
            found, 0.1 * grad**2, rtol=rounding(np.float32, operations=256), atol=1e-9
        )


def promising(coarse: nnx.Module, fine: nnx.Module) -> nnx.Module:
    """Says that it preserves the function, and does not."""
    return prolongate(coarse, fine)


promising.preserves_function = True  # type: ignore[attr-defined]


def test_a_transfer_that_breaks_its_promise_is_an_error_where_it_is_used() -> None:
    run = trainer(prolongate_fn=promising)
    with pytest.raises(TransferError, match="first layer whose output differs"):
        run.fit(loss, (X, Y), epochs=[4, 4])
    assert run.current_level == 0
    assert run.history.num_steps == 4
    unchecked = trainer(prolongate_fn=promising, verify_transfers=False)
    unchecked.fit(loss, (X, Y), epochs=[4, 4])
    assert unchecked.is_at_finest


@dataclass(frozen=True)
class Given:
    """A cycle of given moves."""

    order: tuple[Any, ...]
    coarse: str = "galerkin"

    def moves(self, num_levels: int, start: int, epochs: Any) -> Any:
        return iter(self.order)


def test_data_may_hold_single_numbers() -> None:
    def weighted(model: Any, weight: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return weight * loss(model, x, y)

    history = trainer().fit(weighted, (jnp.asarray(0.5), X, Y), epochs=[2, 2])
    assert history.num_steps == 4


class Encoder(nnx.Module):
    """Has no ``__call__``; old features stand behind those that grow."""

    def __init__(self, width: int) -> None:
        rngs = nnx.Rngs(width)
        self.hidden = nnx.Linear(X.shape[-1], width, rngs=rngs)
        self.output = nnx.Linear(width + X.shape[-1], 1, rngs=rngs)

    def encode(self, x: jax.Array) -> jax.Array:
        return self.output(jnp.concatenate([jnp.tanh(self.hidden(x)), x], axis=-1))


def test_of_models_that_cannot_be_called_the_loss_is_traced() -> None:
    def encoded(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((model.encode(x) - y) ** 2)

    models = [Encoder(4), Encoder(8)]
    run = trainer(models=models)
    history = run.fit(encoded, (X, Y), epochs=[3, 2])
    assert history.losses[3] == pytest.approx(float(encoded(run.hierarchy[0], X, Y)), rel=1e-5)
    with pytest.raises(ValueError, match="Encoder cannot be called"):
        prolongate_preserving(*models)


@pytest.mark.parametrize("broken", [False, True])
def test_models_that_cannot_be_called_with_the_data_are_compared_by_their_loss(
    broken: bool,
) -> None:
    def encoded(model: Any, pairs: dict[str, jax.Array]) -> jax.Array:
        return loss(model, pairs["x"], pairs["y"])

    run = trainer(prolongate_fn=promising if broken else None)
    if broken:
        with pytest.raises(TransferError, match="the loss is"):
            run.fit(encoded, ({"x": X, "y": Y},))
    else:
        run.fit(encoded, ({"x": X, "y": Y},))
    assert run.is_at_finest == (not broken)


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ([Smooth(1, 2)], "move 0 .* cannot be made on level 0"),
        ([Smooth(0, 1), Correct(1)], "move 1 .* cannot be made"),
        ([Restrict(-1)], "cannot be made"),
        ([Interpolate(2)], "cannot be made"),
        ([Smooth(0, -1)], "cannot be made"),
        ([Enter(1), Restrict(0), Interpolate(1)], "1 visits"),
        ([Enter(1), Restrict(0)], "in the middle of a visit"),
        ([3], "must be one of"),
    ],
)
def test_moves_that_cannot_be_made_are_named_before_any_work(moves: Any, message: str) -> None:
    run = trainer()
    with pytest.raises((ValueError, TypeError), match=message):
        run.fit(loss, (X, Y), cycle=Given(tuple(moves)))
    assert run.history.num_steps == 0


def test_levels_that_do_not_fit_are_found_before_any_work() -> None:
    bad = [MLP(1, 1, [4, 4], rngs=nnx.Rngs(0)), MLP(1, 1, [8], rngs=nnx.Rngs(1))]
    for cycle in ("cascade", VCycle(cycles=1)):
        run = trainer(models=bad)
        with pytest.raises(ValueError, match=r"hierarchy\[0\] cannot be transferred"):
            run.fit(loss, (X, Y), cycle=cycle)
        assert run.history.num_steps == 0


def test_a_method_that_cannot_smooth_a_level_is_refused_before_any_work() -> None:
    term = ResidualTerm("fit", lambda u, x: u(x) - jnp.sin(3 * x))
    run = trainer(optimizer=LevenbergMarquardt())
    with pytest.raises(ValueError, match="has a linear term"):
        run.fit([term], (X,), epochs=[4, 4], cycle="v-cycle")
    with pytest.raises(ValueError, match="must be a sequence of ResidualTerm"):
        run.fit(loss, (X, Y), epochs=[4, 4])
    assert run.history.num_steps == 0


def test_sums_of_residual_correction_are_no_levels_of_a_cycle() -> None:
    run = trainer(prolongate_fn=ResidualCorrection())
    with pytest.raises(TypeError, match="same class"):
        run.fit(loss, (X, Y), epochs=[4, 4], cycle="full-multigrid")
    assert run.history.num_steps == 0


# -- programs --------------------------------------------------------------------------------


def traced_sizes() -> tuple[Any, list[int]]:
    """A loss that notes the width of the model at every trace."""
    traces: list[int] = []

    def counted(model: MLP, x: jax.Array, y: jax.Array) -> jax.Array:
        traces.append(model.hidden_dims[0])
        return loss(model, x, y)

    return counted, traces


def test_a_second_call_traces_nothing() -> None:
    counted, traces = traced_sizes()
    metric_traces: list[int] = []

    def metric(model: MLP) -> jax.Array:
        metric_traces.append(1)
        return jnp.mean(model(X))

    run = trainer()
    for cycle in ("cascade", VCycle(cycles=2), FullMultigrid(cycles=1)):
        run.fit(counted, (X, Y), epochs=[20, 20], cycle=cycle, evaluate=metric)
    found = len(traces), len(metric_traces)
    for cycle in ("cascade", VCycle(cycles=2), FullMultigrid(cycles=1)):
        epochs = [30] if cycle == "cascade" else [30, 30]
        run.fit(counted, (X, Y), epochs=epochs, cycle=cycle, evaluate=metric)
    assert (len(traces), len(metric_traces)) == found


def test_many_visits_trace_as_much_as_few() -> None:
    few, many = traced_sizes(), traced_sizes()
    for (counted, _), cycles in ((few, 2), (many, 20)):
        trainer(optimizer=optax.adam(1e-3)).fit(
            counted, (X, Y), epochs=[40, 40], cycle=VCycle(cycles=cycles)
        )
    # Value, value with gradient in the loop and alone, per level; not once per visit.
    assert len(many[1]) == len(few[1]) <= 10


def test_the_buffer_of_losses_does_not_grow_with_the_interval() -> None:
    history = trainer(models=[Counter()], optimizer=optax.sgd(1.0)).fit(
        count_up, epochs=[3], monitor=Monitor(every=50_000_000)
    )
    assert history.num_steps == 3
    gc.collect()
    assert all(array.size < 1_000_000 for array in jax.live_arrays())


def test_more_steps_than_one_call_holds() -> None:
    history = trainer(models=[Counter()], optimizer=optax.sgd(1.0)).fit(
        count_up, epochs=[CAPACITY + 10], monitor=Monitor(every=CAPACITY + 10)
    )
    np.testing.assert_array_equal(history.losses, -np.arange(CAPACITY + 10.0))


def test_levels_share_the_arrays_of_shared_data() -> None:
    from opifex.training.multilevel.data import prepared_data

    shared = prepared_data((np.ones((100, 1), np.float32),), 3, None).arrays
    assert len({id(level[0]) for level in shared}) == 1


def test_programs_are_freed_with_time() -> None:
    """A bounded number of programs is kept, so that many trainers do not fill the memory."""
    from opifex.training import loop

    gc.collect()
    assert loop._program.cache_info().maxsize is not None


def test_complex_parameters_go_down() -> None:
    class Plane(nnx.Module):
        def __init__(self) -> None:
            self.z = nnx.Param(jnp.asarray(1 + 1j, jnp.complex64))

    def distance(model: Plane) -> jax.Array:
        return jnp.abs(model.z[...] - (2 + 3j)) ** 2

    run = trainer(models=[Plane()], optimizer=optax.sgd(0.1))
    history = run.fit(distance, epochs=[60])
    assert abs(complex(run.model.z[...]) - (2 + 3j)) < 1e-4
    assert np.all(np.diff(history.losses) <= 0)
    run.step(nnx.grad(distance)(run.model))
    assert abs(complex(run.model.z[...]) - (2 + 3j)) < 1e-4


def test_residual_correction_is_a_transfer_of_any_cascade() -> None:
    models = [MLP(1, 1, [8], rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    run = trainer(models=models, optimizer=MultilevelAdam(1e-2), prolongate_fn=ResidualCorrection())
    history = run.fit(loss, (X, Y), epochs=[200, 200])
    assert history.losses[-1] < history.losses[199]
    np.testing.assert_allclose(
        float(run.model.scale[...]) ** 2, history.losses[199], rtol=rounding(np.float32) * 4
    )


def test_what_is_printed_says_sizes_levels_and_losses() -> None:
    run = trainer()
    assert "level 0 of 0..1" in repr(run)
    assert "no steps yet" in repr(run)
    run.fit(loss, (X, Y))
    assert "level 1 of 0..1" in repr(run)
    assert "2 on level 0, 2 on level 1" in repr(run.history)
    assert "level 1: MLP, 25 parameters" in repr(networks())
