"""Stopping criteria that look at the losses, on made-up losses and inside a cascade."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.training.multilevel import CascadeTrainer, LevelProgress, MultilevelConfig
from opifex.training.multilevel.cycle import Cascade
from opifex.training.multilevel.monitor import Monitor
from opifex.training.multilevel.stopping import (
    FixedEpochs,
    LossPlateau,
    StoppingCriterion,
    WorkOptimal,
)

pytestmark = pytest.mark.filterwarnings("error")


def progress(
    losses: Any,
    *,
    level: int = 0,
    max_epochs: int = 1000,
    steps_per_epoch: int = 1,
    step_work: Callable[[int], float] = lambda level: 4.0 ** (level - 1),
) -> LevelProgress:
    values = np.asarray(losses, dtype=np.float32)
    return LevelProgress(
        level=level,
        num_levels=2,
        cycle=0,
        epoch=len(values) // steps_per_epoch,
        max_epochs=max_epochs,
        losses=values,
        steps_per_epoch=steps_per_epoch,
        metrics={},
        get_model=nnx.Module,
        step_work=step_work,
    )


def decaying(steps: int, rate: float = 0.05) -> np.ndarray:
    return np.exp(-rate * np.arange(steps))


FALLING_ENERGY = -np.linspace(1, 100, 60)


def test_progress_knows_the_finest_level() -> None:
    assert not progress([1.0], level=0).is_finest
    assert progress([1.0], level=1).is_finest


def test_fixed_epochs() -> None:
    criterion = FixedEpochs()
    assert not criterion.should_stop(progress([1.0] * 9, max_epochs=10))
    assert criterion.should_stop(progress([1.0] * 10, max_epochs=10))


# -- plateau ---------------------------------------------------------------------------------


def test_plateau_stays_while_the_loss_falls_and_stops_when_it_does_not() -> None:
    criterion = LossPlateau(window=10, relative_improvement=0.05)
    assert not criterion.should_stop(progress(decaying(40)))
    assert criterion.should_stop(progress(np.ones(40)))
    assert criterion.should_stop(progress(np.concatenate([decaying(40), np.full(20, 0.1)])))
    assert criterion.should_stop(progress(1 / decaying(40)))


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.9), (-1.0, -1.1)])
def test_plateau_threshold_is_the_improvement_of_one_window_on_the_one_before(
    before: float, after: float
) -> None:
    losses = progress([before] * 10 + [after] * 10)
    assert not LossPlateau(10, 0.09).should_stop(losses)
    assert LossPlateau(10, 0.11).should_stop(losses)


def test_plateau_needs_two_windows_and_the_smallest_number_of_epochs() -> None:
    criterion = LossPlateau(window=10, relative_improvement=0.05, min_epochs=30)
    assert not LossPlateau(window=10).should_stop(progress(np.ones(19)))
    assert LossPlateau(window=10).should_stop(progress(np.ones(20)))
    assert not criterion.should_stop(progress(np.ones(29)))
    assert criterion.should_stop(progress(np.ones(30)))


def test_plateau_window_counts_epochs_not_steps() -> None:
    criterion = LossPlateau(window=10)
    assert not criterion.should_stop(progress(np.ones(20), steps_per_epoch=4))
    assert criterion.should_stop(progress(np.ones(80), steps_per_epoch=4))


def test_plateau_on_an_energy_that_falls_below_zero() -> None:
    assert not LossPlateau(window=20).should_stop(progress(FALLING_ENERGY))
    assert LossPlateau(window=20).should_stop(progress(FALLING_ENERGY[::-1]))
    assert LossPlateau(window=20).should_stop(progress(np.full(60, -100.0)))
    assert not LossPlateau(10, 0.99).should_stop(progress([0.5] * 10 + [-0.1] * 10))


def test_plateau_on_a_loss_that_reaches_zero() -> None:
    assert LossPlateau(window=2).should_stop(progress(np.zeros(8)))
    assert not LossPlateau(window=2).should_stop(progress([1, 1, 0, 0]))


def test_plateau_on_the_smallest_losses_single_precision_holds() -> None:
    smallest = np.finfo(np.float32).smallest_subnormal
    assert not LossPlateau(window=2).should_stop(progress(smallest * np.array([8, 8, 1, 1])))


# -- work ------------------------------------------------------------------------------------


def test_work_stays_while_a_cheap_step_gains_as_much() -> None:
    assert not WorkOptimal(window=10, min_epochs=20).should_stop(progress(decaying(60)))


@pytest.mark.parametrize("shift", [0.0, -0.5, -1.0, -100.0])
def test_work_stops_when_the_gain_has_died_down(shift: float) -> None:
    flat = np.concatenate([decaying(40), np.full(40, decaying(40)[-1])])
    assert WorkOptimal(window=10, min_epochs=20).should_stop(progress(flat + shift))


def test_work_weighs_gain_against_cost() -> None:
    """A level that slowed down to a tenth is left if the next costs the same, not if it costs 99 x."""
    slowing = np.concatenate([decaying(40, 0.1), decaying(40, 0.1)[-1] * decaying(40, 0.01)])
    criterion = WorkOptimal(window=10, optimism=0.5, min_epochs=20)
    for losses in (slowing, np.log(slowing)):
        assert criterion.should_stop(progress(losses, step_work=lambda level: 1.0))
        assert not criterion.should_stop(progress(losses, step_work=lambda level: 99.0**level))


def test_work_on_an_energy_that_falls_below_zero() -> None:
    assert not WorkOptimal().should_stop(progress(FALLING_ENERGY))


def test_work_on_a_loss_that_reaches_zero() -> None:
    assert WorkOptimal().should_stop(progress(np.r_[np.ones(20), np.zeros(60)]))


def test_work_waits_for_enough_losses() -> None:
    criterion = WorkOptimal(window=10, min_epochs=5)
    falling = np.r_[np.ones(10), np.full(20, 0.1)]
    assert not criterion.should_stop(progress(falling[:19]))
    assert criterion.should_stop(progress(falling))
    assert not WorkOptimal(window=10, min_epochs=31).should_stop(progress(falling))


def test_work_never_stops_on_the_finest_level() -> None:
    falling = np.r_[np.ones(10), np.full(20, 0.1)]
    assert not WorkOptimal(window=10, min_epochs=5).should_stop(progress(falling, level=1))


# -- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "options", "error", "message"),
    [
        (LossPlateau, {"window": 0}, ValueError, "window must be at least 1"),
        (LossPlateau, {"relative_improvement": 1.0}, ValueError, "relative_improvement must lie"),
        (LossPlateau, {"relative_improvement": None}, TypeError, "relative_improvement must be"),
        (LossPlateau, {"min_epochs": 0}, ValueError, "min_epochs must be at least 1"),
        (WorkOptimal, {"window": 1.5}, TypeError, "window must be an integer"),
        (WorkOptimal, {"optimism": 0.0}, ValueError, "optimism must be positive"),
        (WorkOptimal, {"min_epochs": -3}, ValueError, "min_epochs must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(
    criterion: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        criterion(**options)


# -- inside a cascade ------------------------------------------------------------------------


class Scalar(nnx.Module):
    def __init__(self) -> None:
        self.value = nnx.Param(jnp.ones(()))


def steps_on_the_coarse_level(criterion: StoppingCriterion | None) -> int:
    config = MultilevelConfig(2, level_epochs=[60, 5])
    trainer = CascadeTrainer([Scalar(), Scalar()], optax.sgd(0.25), config=config)
    history = trainer.fit(
        lambda model: 1.0 + model.value[...] ** 2,
        (),
        cycle=Cascade(stop=criterion),
        monitor=Monitor(every=2),
    )
    return int(np.sum(history.table()["level"] == 0))


def test_plateau_ends_a_level_early() -> None:
    assert 8 <= steps_on_the_coarse_level(LossPlateau(window=4, relative_improvement=0.01)) < 30
    assert steps_on_the_coarse_level(None) == 60


def test_a_criterion_of_ones_own_needs_one_method() -> None:
    class BelowThreshold:
        def should_stop(self, progress: LevelProgress) -> bool:
            return bool(progress.losses[-1] < 1 + 1e-3)

    # The parameter is halved by every step: (1/2)^(2 n) < 1e-3 from n = 5 on.
    assert steps_on_the_coarse_level(BelowThreshold()) == 6
