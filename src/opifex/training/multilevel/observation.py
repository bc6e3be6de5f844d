"""Looking in on a run: metrics, criterion and callbacks after an interval, observers on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from opifex.training.multilevel.cycle import Smooth
from opifex.training.multilevel.metrics import metric_values
from opifex.training.multilevel.monitor import LevelProgress, Phase
from opifex.training.multilevel.programs import Programs
from opifex.training.multilevel.run import Run
from opifex.training.objective import Objective

__all__ = ["Observation", "Requests", "Snapshot"]


class Snapshot(NamedTuple):
    """Where a level stands: what a callback may set it back to.

    Attributes:
        params: trainable parameters.
        rest: all other variables.
        smoother: state of the smoother.
    """

    params: Any
    rest: Any
    smoother: Any


@dataclass
class Requests:
    """What callbacks ask for while they are called.

    Attributes:
        restored: where the level is to be set back to, or ``None``.
        end_level: whether the level is to end.
    """

    restored: Snapshot | None = None
    end_level: bool = False

    def restore(self, snapshot: Any) -> None:
        """Set the level back to a snapshot."""
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"snapshot must come from progress.snapshot(), got {snapshot!r}")
        self.restored = snapshot

    def leave(self) -> None:
        """End the level."""
        self.end_level = True


class Observation:
    """Evaluates a run, asks its criterion, and tells callbacks and observers.

    Args:
        run: the run.
        programs: what its steps cost.
    """

    def __init__(self, run: Run, programs: Programs) -> None:
        self._run, self._programs = run, programs
        self._charge = run.history.stopwatch.charge
        self._metrics: dict[str, float] = {}
        self._last_phase: tuple[Phase, int] | None = None

    def phase(self, phase: Phase, level: int) -> None:
        """The run does something else from now on: observers are told each change once."""
        observers = self._run.task.monitor.observers
        if not observers or (phase, level) == self._last_phase:
            return
        self._last_phase = phase, level
        with self._charge("evaluation"):
            for observer in observers:
                observer.on_phase(phase, level)

    def evaluate(self, epoch: int, cycle: int = 0) -> None:
        """Compute and record the metrics of the present model."""
        run = self._run
        if run.task.evaluate is None:
            return
        level = run.state.working_level
        self.phase("evaluating", level)
        with self._charge("evaluation"):
            self._metrics = metric_values(run.task.evaluate, *self._whole())
            run.history.record_evaluation(level, epoch, self._metrics, cycle=cycle)

    def observe(self, index: int, epoch: int, losses: np.ndarray, per_epoch: int) -> Requests:
        """Evaluate, ask the criterion, tell callbacks and observers.

        Args:
            index: of the move that smooths.
            epoch: epochs done of it.
            losses: of its steps, shape (steps,).
            per_epoch: steps of one epoch.

        Returns:
            Whether the level ends, and where it was set back to.
        """
        run, move, requests = self._run, self._run.moves[index], Requests()
        assert isinstance(move, Smooth)
        self.evaluate(epoch, move.cycle)
        with self._charge("evaluation"):
            progress = self._progress(index, move, epoch, losses, per_epoch, requests)
            stop = getattr(run.cycle, "stop", None)
            if stop is not None and stop.should_stop(progress):
                requests.end_level = True
                progress = replace(progress, last=run.is_last_stay(index))
            for callback in run.task.monitor.callbacks:
                if callback(progress):
                    run.stopped = True
            for observer in run.task.monitor.observers:
                observer.on_progress(progress)
        if requests.restored is not None:
            run.keep(run.moved(**requests.restored._asdict()))
            self.evaluate(epoch, move.cycle)
        return requests

    def _whole(self) -> tuple[Objective, Any]:
        """What the present objective evaluates: objective with all variables, and parameters."""
        objective, params, rest = self._run.position()
        return objective.at(data=(), shift=None, weights=None, rest=rest), params

    def _progress(
        self,
        index: int,
        move: Smooth,
        epoch: int,
        losses: np.ndarray,
        per_epoch: int,
        requests: Requests,
    ) -> LevelProgress:
        """Where the run stands, with what callbacks may do about it."""
        run, level = self._run, move.level
        seconds = self._programs.seconds[level, run.owner(level)]

        def model() -> nnx.Module:
            objective, params = self._whole()
            return objective.model(params)

        def snapshot() -> Snapshot:
            _, params, rest = run.position()
            return Snapshot(params, rest, run.state.levels[level].smoother)

        return LevelProgress(
            level=level,
            num_levels=len(run.state.levels),
            cycle=move.cycle,
            epoch=epoch,
            max_epochs=move.epochs,
            losses=losses,
            steps_per_epoch=per_epoch,
            metrics=self._metrics,
            get_model=model,
            step_work=self._programs.step_work,
            step=run.history.num_steps,
            work=run.history.work,
            seconds=run.history.wall_seconds,
            call=run.history.num_calls,
            steps_per_second=1 / seconds if seconds > 0 else None,
            seconds_left=self._programs.seconds_left(index, move.epochs - epoch),
            correcting=bool(run.state.visits),
            last=epoch == move.epochs and run.is_last_stay(index),
            snapshot=snapshot,
            restore=requests.restore,
            end_level=requests.leave,
        )
