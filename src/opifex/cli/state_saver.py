"""Saving where a run stands, and taking a trainer there again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from opifex.cli.display import RunDisplay
from opifex.cli.saved_state import (
    Position,
    Variables,
    has_state,
    read_position,
    restore,
    save_state,
)
from opifex.cli.settings import RunSettings
from opifex.training.multilevel import CascadeTrainer, LevelProgress

__all__ = ["StateSaver", "cycles_left", "epochs_left", "go_on"]

SAVING_SHARE = 0.1
"""Share of the time that saving may take, where evaluations follow each other closely."""


class StateSaver:
    """A callback that saves the state at the end of every evaluation interval.

    Args:
        folder: of the state.
        trainer: what is saved; its record says where it stands.
        cycles_before: multigrid cycles of earlier parts of the run.
    """

    def __init__(self, folder: Path, trainer: CascadeTrainer, cycles_before: int) -> None:
        self._folder, self._trainer, self._cycles_before = folder, trainer, cycles_before
        self._calls_before = trainer.history.num_calls
        self._saved_at = self._cost = 0.0

    def __call__(self, progress: LevelProgress) -> None:
        """Save, unless that was done a moment ago."""
        # In the middle of a correction there is nothing whole to go on from.
        if progress.correcting:
            return
        started = time.monotonic()
        if not progress.last and started - self._saved_at < self._cost / SAVING_SHARE:
            return
        snapshot = progress.snapshot()
        variables = Variables(snapshot.params, snapshot.rest, snapshot.smoother)
        position = self._position(progress.level)
        save_state(self._folder, variables, position, self._trainer.history)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started

    def save(self, *, complete: bool = False) -> None:
        """Save the state of the trainer, outside of ``fit``.

        Args:
            complete: the last multigrid cycle was ended, too.
        """
        trainer = self._trainer
        position = self._position(trainer.current_level, complete=complete)
        save_state(self._folder, Variables.of(trainer), position, trainer.history)

    def _position(self, level: int, *, complete: bool = False) -> Position:
        """Where the run stands, by its record."""
        history = self._trainer.history
        done = np.zeros(self._trainer.num_levels)
        for stretch in history.stretches:
            done[stretch.level] += len(stretch.losses) / stretch.steps_per_epoch
        ours = [s.cycle for s in history.stretches if s.call >= self._calls_before]
        present = ours[-1] if ours else 0
        return Position(
            level=level,
            # A part of an epoch is done again.
            epochs_done=[int(epochs + 1e-9) for epochs in done],
            cycles_done=self._cycles_before + max(0, present - (0 if complete else 1)),
            step=history.num_steps,
        )


def go_on(
    folder: Path, trainer: CascadeTrainer, planned: Sequence[int], display: RunDisplay
) -> Position:
    """Take a new trainer to where the run stands.

    Args:
        folder: of the state; without one the run begins.
        trainer: a new trainer of the same configuration.
        planned: epochs of every level.
        display: where to say what was restored.
    """
    if not has_state(folder):
        return Position(0, [0] * len(planned), 0, 0)
    position = read_position(folder)
    with_optimizer = restore(folder, trainer)
    optimizer = "restored" if with_optimizer else "not saved: it starts afresh"
    display.say(
        f"going on at level {position.level} after {position.step} steps; the optimizer's state is "
        f"{optimizer}; epochs left per level: {_left(planned, position)[position.level :]}; batches "
        "are drawn anew"
    )
    return position


def _left(planned: Sequence[int], position: Position) -> list[int]:
    return [max(0, n - done) for n, done in zip(planned, position.epochs_done, strict=True)]


def epochs_left(settings: RunSettings, position: Position) -> list[int]:
    """Epochs for the rest of a run: from the present level on, or of all levels for cycles.

    Args:
        settings: the configuration.
        position: where the run stands.
    """
    left = _left(settings.level_epochs, position)
    if settings.strategy.name in ("cascade", "finest"):
        return left[position.level :]
    return [max(1, n) for n in left]


def cycles_left(settings: RunSettings, position: Position) -> int:
    """Multigrid cycles for the rest of a run; zero if all are done.

    Args:
        settings: the configuration.
        position: where the run stands.
    """
    cycles, levels = settings.strategy.cycles, settings.num_levels
    if settings.strategy.name in ("v-cycle", "w-cycle"):
        return max(0, cycles - position.cycles_done)
    if settings.strategy.name == "full-multigrid":
        # Every level gets the same number, so that the present one gets its cycles again, shorter.
        return cycles if position.cycles_done < cycles * (levels - 1) or levels == 1 else 0
    return cycles
