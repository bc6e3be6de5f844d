"""Losses that stop being finite, or explode: raise, roll back, skip, inside every strategy."""

from __future__ import annotations

import warnings
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core import ResidualTerm
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.multilevel import (
    CascadeTrainer,
    Checkpoints,
    FaultPolicy,
    FullMultigrid,
    LossExplosionError,
    Monitor,
    MultilevelConfig,
    NonFiniteLossError,
    ResidualCorrection,
    VCycle,
)
from reliability.strategies import (
    STRATEGIES,
    X,
    differences,
    networks,
    pinns,
    record,
    square_loss,
)

ROLLBACK = FaultPolicy("rollback", tries=8, step_factor=0.25)
SKIP = FaultPolicy("skip", tries=30)


def configured(policy, levels=3):
    return MultilevelConfig(num_levels=levels, faults=policy)


def steep_loss(model, x):
    """A loss that is infinite a little way off: long steps of plain descent leave its domain."""
    gap = jnp.mean((model(x) - jnp.sin(3 * x)) ** 2)
    return jnp.where(gap < 1.5, gap, jnp.inf)


def bad_sample_loss(model, x):
    """Some samples give no finite loss, whatever the parameters."""
    return square_loss(model, x) + jnp.where(jnp.any(x > 5), jnp.nan, 0.0)


BAD = np.concatenate([X, [[9.0]]]).astype(np.float32)


def descend(policy, *, cycle="cascade", prolongation=None, epochs=(12, 12, 12), rate=5.0, **more):
    trainer = CascadeTrainer(networks(), optax.sgd(rate), prolongation, config=configured(policy))
    given = {} if epochs is None else {"epochs": list(epochs)}
    trainer.fit(steep_loss, (X,), cycle=cycle, monitor=Monitor(every=4), **given, **more)
    return trainer


STEEP = {
    "cascade": {},
    "v-cycle": {"cycle": VCycle(cycles=1, coarse="galerkin")},
    "full multigrid": {
        "cycle": FullMultigrid(cycles=1, pre=3, post=2, coarsest=5, coarse="galerkin"),
        "epochs": None,
    },
    "residual correction": {"prolongation": ResidualCorrection(scale=0.3)},
}


def finite(trainer):
    return all(np.all(np.isfinite(part)) for part in record(trainer)["parameters"])


@pytest.mark.parametrize("name", STEEP)
def test_a_rollback_finishes_what_raises_otherwise(name):
    with pytest.raises(NonFiniteLossError):
        descend(FaultPolicy(), **STEEP[name])
    with pytest.warns(UserWarning, match="back to step"):
        trainer = descend(ROLLBACK, **STEEP[name])
    history = trainer.history
    assert finite(trainer)
    assert np.all(np.isfinite(history.losses))
    assert bool(trainer.is_at_finest)
    # Steps that were thrown away are no steps, but work.
    planned = sum(move.epochs for move in moves_of(name))
    assert history.num_steps == planned
    steps = sum(s.operations * len(s.losses) for s in history.stretches)
    assert sum(s.extra_operations for s in history.stretches) > 0
    assert steps > 0


def moves_of(name):
    from opifex.training.multilevel import Cascade, Smooth

    cycle = STEEP[name].get("cycle", Cascade())
    epochs = None if STEEP[name].get("epochs", 1) is None else [12, 12, 12]
    return [move for move in cycle.moves(3, 0, epochs) if isinstance(move, Smooth)]


def test_a_rollback_of_least_squares():
    """A wall around the start, that full steps of Levenberg-Marquardt cross and short ones do not."""

    def walled(model, x):
        value = model(x)
        return jnp.where(jnp.abs(value) < 0.5, value - 2.0, jnp.inf)

    terms = (ResidualTerm("wall", walled),)

    def fit(policy):
        trainer = CascadeTrainer(
            pinns(), LevenbergMarquardt(initial_damping=1e-8), config=configured(policy, 2)
        )
        points = jnp.asarray(np.random.default_rng(0).uniform(size=(12, 2)), jnp.float32)
        trainer.fit(terms, (points,), epochs=[3, 0], monitor=Monitor(every=1))
        return trainer

    policy = FaultPolicy("rollback", tries=20, step_factor=0.1)
    try:
        fit(FaultPolicy())
        raised = False
    except NonFiniteLossError:
        raised = True
    if raised:
        with pytest.warns(UserWarning, match="back to step"):
            assert np.all(np.isfinite(fit(policy).history.losses))
    else:  # the solver itself has refused the long steps
        assert np.all(np.isfinite(fit(policy).history.losses))


def test_tries_are_bounded():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(NonFiniteLossError):
            descend(FaultPolicy("rollback", tries=1, step_factor=0.9))


@pytest.mark.parametrize(
    "cycle",
    [
        "cascade",
        pytest.param(FullMultigrid(cycles=1, coarse="galerkin"), marks=pytest.mark.slow),
    ],
)
def test_bad_samples_are_skipped(cycle):
    def fit(policy):
        trainer = CascadeTrainer(networks(), optax.adam(1e-2), config=configured(policy))
        trainer.fit(bad_sample_loss, (BAD,), epochs=[6, 6, 6], batch_size=8, cycle=cycle)
        return trainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(NonFiniteLossError):
            fit(FaultPolicy())
        trainer = fit(SKIP)
    losses = trainer.history.losses
    assert finite(trainer)
    assert np.all(np.isfinite(losses))
    # One batch of four holds the bad sample, or none if it is left out of an epoch.
    assert 3 * 6 * 4 - 20 <= len(losses) < 3 * 6 * 4


def test_without_a_fault_the_policies_are_the_same():
    runs = []
    for policy in (FaultPolicy(), ROLLBACK, SKIP, FaultPolicy("rollback", explosion=1e6)):
        trainer = CascadeTrainer(networks(), config=configured(policy))
        trainer.fit(square_loss, (X,), epochs=[6, 6, 6])
        runs.append(record(trainer))
    for run in runs[1:]:
        assert differences(runs[0], run) == []


def exploding(policy):
    trainer = CascadeTrainer(networks(), optax.sgd(3.0), config=configured(policy))
    trainer.fit(square_loss, (X,), epochs=[20, 0, 0], monitor=Monitor(every=4))
    return trainer


def test_an_explosion_raises_with_the_last_good_state():
    trainer = CascadeTrainer(
        networks(), optax.sgd(3.0), config=configured(FaultPolicy(explosion=1.5))
    )
    with pytest.raises(LossExplosionError, match="exploded on level 0") as caught:
        trainer.fit(square_loss, (X,), epochs=[40, 0, 0], monitor=Monitor(every=4))
    error = caught.value
    assert error.loss > error.allowed
    assert np.max(trainer.history.losses, initial=0.0) <= error.allowed
    assert len(trainer.history.losses) == error.step - 1
    assert float(square_loss(trainer.model, jnp.asarray(X))) <= error.allowed * (1 + 1e-5)


def test_an_explosion_is_rolled_back():
    policy = FaultPolicy("rollback", explosion=1.5, tries=10)
    with pytest.warns(UserWarning, match="exploded"):
        trainer = exploding(policy)
    losses = trainer.history.losses
    assert len(losses) == 20
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("policy", [ROLLBACK, pytest.param(SKIP, marks=pytest.mark.slow)])
def test_a_run_with_faults_is_taken_up(policy, tmp_path):
    class Stop(Exception):  # noqa: N818
        pass

    def fit(folder=None, after=0):
        calls = []

        def watch(progress):
            calls.append(progress)
            if len(calls) == after:
                raise Stop

        trainer = CascadeTrainer(networks(), optax.sgd(0.1), config=configured(policy))
        if policy is ROLLBACK:
            trainer = CascadeTrainer(networks(), optax.sgd(5.0), config=configured(policy))
        keeping = {}
        if folder is not None:
            keeping = {"checkpoint": Checkpoints(folder, every=0.0), "resume": "auto"}
        trainer.fit(
            steep_loss if policy is ROLLBACK else bad_sample_loss,
            (X,) if policy is ROLLBACK else (BAD,),
            epochs=[8, 8, 8],
            batch_size=None if policy is ROLLBACK else 8,
            monitor=Monitor(every=2, callbacks=[watch]),
            **keeping,
        )
        return trainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = record(fit())
        for after in (3, 5):
            with pytest.raises(Stop):
                fit(tmp_path, after)
        assert differences(expected, record(fit(tmp_path))) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"action": "ignore"}, ValueError),
        ({"explosion": 1.0}, ValueError),
        ({"explosion": "large"}, TypeError),
        ({"tries": 0}, ValueError),
        ({"step_factor": 1.0}, ValueError),
    ],
)
def test_bad_policies_are_refused(arguments, error):
    with pytest.raises(error):
        FaultPolicy(**arguments)
    with pytest.raises(TypeError, match="faults"):
        MultilevelConfig(faults="skip")


def test_the_policy_is_part_of_every_strategy():
    """All strategies run with a policy that never acts, and end as without one."""
    strategy = STRATEGIES["cascade"]
    plain = record(strategy.run())
    armed = replace(
        strategy, trainer=lambda: CascadeTrainer(networks(), config=configured(ROLLBACK))
    )
    assert differences(plain, record(armed.run())) == []
    assert nnx.state(armed.trainer().model)
