"""Rules for leaving a level, on made-up losses and inside a cascade."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.training.multilevel import (
    CascadeTrainer,
    FixedEpochs,
    LevelProgress,
    MultilevelConfig,
    PlateauAdvance,
    ResidualSpectrumAdvance,
    WorkOptimalAdvance,
)


def progress(
    losses: Any,
    *,
    level: int = 0,
    epoch: int | None = None,
    max_epochs: int = 1000,
    steps_per_epoch: int = 1,
    step_work: Callable[[int], float] = lambda level: 4.0 ** (level - 1),
    model: Any = None,
) -> LevelProgress:
    values = np.asarray(losses, dtype=np.float32)
    return LevelProgress(
        level=level,
        num_levels=2,
        cycle=0,
        epoch=len(values) // steps_per_epoch if epoch is None else epoch,
        max_epochs=max_epochs,
        losses=values,
        steps_per_epoch=steps_per_epoch,
        metrics={},
        get_model=lambda: model,
        step_work=step_work,
    )


def decaying(steps: int, rate: float = 0.05) -> np.ndarray:
    return np.exp(-rate * np.arange(steps))


def test_progress_knows_the_finest_level() -> None:
    assert not progress([1.0], level=0).is_finest
    assert progress([1.0], level=1).is_finest


def test_fixed_epochs() -> None:
    rule = FixedEpochs()
    assert not rule.should_advance(progress([1.0] * 9, max_epochs=10))
    assert rule.should_advance(progress([1.0] * 10, max_epochs=10))


# -- plateau ---------------------------------------------------------------------------------


def test_plateau_stays_while_the_loss_falls_and_leaves_when_it_does_not() -> None:
    rule = PlateauAdvance(window=10, relative_improvement=0.05)
    assert not rule.should_advance(progress(decaying(40)))
    assert rule.should_advance(progress(np.ones(40)))
    assert rule.should_advance(progress(np.concatenate([decaying(40), np.full(20, 0.1)])))
    assert rule.should_advance(progress(1 / decaying(40)))


def test_plateau_threshold_is_the_improvement_of_one_window_on_the_one_before() -> None:
    step = np.concatenate([np.full(10, 1.0), np.full(10, 0.9)])
    assert not PlateauAdvance(10, 0.09).should_advance(progress(step))
    assert PlateauAdvance(10, 0.11).should_advance(progress(step))


def test_plateau_needs_two_windows_and_the_smallest_number_of_epochs() -> None:
    rule = PlateauAdvance(window=10, relative_improvement=0.05, min_epochs=30)
    assert not PlateauAdvance(window=10).should_advance(progress(np.ones(19)))
    assert PlateauAdvance(window=10).should_advance(progress(np.ones(20)))
    assert not rule.should_advance(progress(np.ones(29)))
    assert rule.should_advance(progress(np.ones(30)))


def test_plateau_window_counts_epochs_not_steps() -> None:
    rule = PlateauAdvance(window=10)
    assert not rule.should_advance(progress(np.ones(20), steps_per_epoch=4))
    assert rule.should_advance(progress(np.ones(80), steps_per_epoch=4))


def test_plateau_copes_with_a_loss_of_zero() -> None:
    assert PlateauAdvance(window=2).should_advance(progress(np.zeros(8)))


# -- spectrum --------------------------------------------------------------------------------


def waves(*amplitudes: tuple[int, float], n: int = 64) -> np.ndarray:
    x = np.arange(n) / n
    return sum(a * np.sin(2 * np.pi * k * x) for k, a in amplitudes)


def spectrum_rule(residual: np.ndarray, **options: Any) -> ResidualSpectrumAdvance:
    return ResidualSpectrumAdvance(lambda model: residual, modes=(8, 16), **options)


def test_share_of_low_frequencies_is_exact_for_waves() -> None:
    residual = waves((3, 1.0), (20, 2.0))
    rule = spectrum_rule(residual)
    assert rule.low_energy_share(residual, 0) == pytest.approx(0.2)
    assert rule.low_energy_share(waves((7, 1.0)), 0) == pytest.approx(1.0)
    assert rule.low_energy_share(waves((8, 1.0)), 0) == pytest.approx(0.0, abs=1e-12)
    assert rule.low_energy_share(waves((8, 1.0)), 1) == pytest.approx(1.0)
    assert rule.low_energy_share(np.zeros(64), 0) == 0


@pytest.mark.parametrize(("fraction", "leaves"), [(0.1, False), (0.3, True)])
def test_spectrum_rule_compares_the_share_with_the_fraction(fraction: float, leaves: bool) -> None:
    rule = spectrum_rule(waves((3, 1.0), (20, 2.0)), energy_fraction=fraction)
    assert rule.should_advance(progress([1.0])) is leaves


def test_spectrum_rule_looks_at_the_present_model_and_level() -> None:
    rule = ResidualSpectrumAdvance(lambda model: model * waves((10, 1.0)), modes=(8, 16))
    assert rule.should_advance(progress([1.0], model=2.0, level=0))
    assert not rule.should_advance(progress([1.0], model=2.0, level=1))


def test_spectrum_rule_in_two_dimensions_with_a_batch() -> None:
    low, high = waves((3, 1.0)), waves((20, 1.0))
    product = np.stack([np.outer(low, low), np.outer(low, high), np.outer(high, high)])
    rule = spectrum_rule(product, spatial_dims=2)
    assert rule.low_energy_share(product, 0) == pytest.approx(1 / 3)


# -- work ------------------------------------------------------------------------------------


def test_work_rule_stays_while_a_cheap_step_gains_as_much() -> None:
    assert not WorkOptimalAdvance(window=10, min_epochs=20).should_advance(progress(decaying(60)))


def test_work_rule_leaves_when_the_gain_has_died_down() -> None:
    flat = np.concatenate([decaying(40), np.full(40, decaying(40)[-1])])
    assert WorkOptimalAdvance(window=10, min_epochs=20).should_advance(progress(flat))


def test_work_rule_weighs_gain_against_cost() -> None:
    """A level that slowed down to a tenth is left if the next costs the same, not if it costs 99 x."""
    slowing = np.concatenate([decaying(40, 0.1), decaying(40, 0.1)[-1] * decaying(40, 0.01)])
    rule = WorkOptimalAdvance(window=10, optimism=0.5, min_epochs=20)
    assert rule.should_advance(progress(slowing, step_work=lambda level: 1.0))
    assert not rule.should_advance(progress(slowing, step_work=lambda level: 99.0**level))


def test_work_rule_waits_for_enough_losses() -> None:
    rule = WorkOptimalAdvance(window=10, min_epochs=5)
    assert not rule.should_advance(progress(np.ones(19)))
    assert not WorkOptimalAdvance(window=10, min_epochs=50).should_advance(progress(np.ones(49)))


def test_work_rule_never_leaves_the_finest_level() -> None:
    assert not WorkOptimalAdvance(window=5, min_epochs=5).should_advance(
        progress(np.ones(50), level=1)
    )


# -- inside a cascade ------------------------------------------------------------------------


class Scalar(nnx.Module):
    def __init__(self) -> None:
        self.value = nnx.Param(jnp.ones(()))


def run(advance: Any, epochs: int = 60) -> np.ndarray:
    config = MultilevelConfig(2, level_epochs=[epochs, 5])
    trainer = CascadeTrainer([Scalar(), Scalar()], optax.sgd(0.25), config=config)
    history = trainer.fit(
        lambda model: 1.0 + model.value[...] ** 2, advance=advance, report_every=2
    )
    assert trainer.is_at_finest
    return np.bincount(history.table()["level"].astype(int))


def test_plateau_ends_a_level_early() -> None:
    steps = run(PlateauAdvance(window=4, relative_improvement=0.01))
    assert 8 <= steps[0] < 30
    assert run(None)[0] == 60


def test_a_rule_of_ones_own_needs_one_method() -> None:
    class BelowThreshold:
        def should_advance(self, progress: LevelProgress) -> bool:
            return progress.losses[-1] < 1 + 1e-3

    # The parameter is halved by every step: (1/2)^(2 n) < 1e-3 from n = 5 on.
    assert run(BelowThreshold())[0] == 6
