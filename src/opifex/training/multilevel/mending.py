"""What is done about a fault in the middle of a level: go back, pass a batch by, or end well."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from opifex.training.errors import LossExplosionError, NonFiniteLossError
from opifex.training.loop import CompiledLoop, owned, rows_of_a_step
from opifex.training.multilevel.programs import Programs
from opifex.training.multilevel.run import Run
from opifex.training.multilevel.stay import Stay
from opifex.training.objective import Objective, kept_program

__all__ = ["Mending"]


class Mending:
    """Carries out the fault policy of a run.

    Args:
        run: the run.
        programs: its programs.
    """

    def __init__(self, run: Run, programs: Programs) -> None:
        self._run, self._programs = run, programs
        self._policy = run.task.config.faults

    def action(self, stay: Stay) -> str:
        """What is done about a fault now: an error is raised where tries are used up."""
        return self._policy.action if stay.faults < self._policy.tries else "raise"

    def is_good(self, stay: Stay, interval: int) -> bool:
        """Whether the loss of the present place, which no step has seen yet, is no fault.

        Args:
            stay: the present visit.
            interval: steps of an evaluation interval.
        """
        objective, current = stay.place.objective, stay.place.loop
        sampling = self._run.task.sampling[stay.key[1]]

        def first_batch(leaf: Any) -> Any:
            rows = rows_of_a_step(leaf, sampling.batch_size, sampling.window)
            return leaf if rows is None else leaf[:rows]

        data = jax.tree.map(first_batch, objective.data)
        now = objective.at(data=data, rest=current.rest, key=current.key)
        program = kept_program(Objective.value, objective.structure)
        loss = float(program(now, current.params))
        return self._policy.first_fault([loss], stay.reference(stay.losses, interval)) is None

    def roll_back(self, stay: Stay, wasted: int) -> None:
        """Go back to the last end of an interval, and on from there with smaller steps.

        Args:
            stay: the present visit.
            wasted: steps of the last call, which are not recorded.
        """
        run, level = self._run, stay.key[0]
        place, done, count = stay.anchor
        forgotten = len(stay.losses) - count
        run.history.forget_steps(forgotten)
        price = self._programs.operations(*stay.key)
        run.history.record_extra_operations((forgotten + wasted) * price)
        if not run.state.visits:
            run.taken[level] -= stay.done - done
        stay.place, stay.done, stay.losses = place, done, stay.losses[:count]
        stay.previous, stay.faults = None, stay.faults + 1
        factor = run.damping.get(level, 1.0) * self._policy.step_factor
        run.damping[level] = factor
        self._programs.forget(level)
        warnings.warn(
            f"the loss of level {level} was not finite or exploded: back to step {done} of this visit, "
            f"and on with {factor:g} of each step ({stay.faults} of at most {self._policy.tries} times)",
            stacklevel=2,
        )

    def skip(self, stay: Stay, loop: CompiledLoop, good: np.ndarray) -> np.ndarray:
        """Leave out the batch whose loss is bad, or whose gradient made the parameters bad.

        Args:
            stay: the present visit.
            loop: its program.
            good: losses before the bad one.

        Returns:
            The losses of the steps that were taken.
        """
        place = stay.place.after(loop, len(good))
        if not place.finite:
            good = good[:-1]
            place = stay.place.after(loop, len(good))
        skipper = self._programs.skipper(*stay.key)
        passed, _, _ = skipper.run(owned(place.loop), place.objective, 1)
        stay.place, stay.faults = place._replace(loop=passed), stay.faults + 1
        return good

    def end(self, stay: Stay, loop: CompiledLoop, good: np.ndarray) -> np.ndarray:
        """Go to the last place whose loss was good.

        Args:
            stay: the present visit.
            loop: its program.
            good: losses before the bad one.

        Returns:
            The losses of the steps to that place.
        """
        steps = len(good) - 1
        if len(good) == 0 and stay.previous is not None:
            # The first loss of this call is already bad: the last good state lies one step before the
            # end of the call before it.
            stay.place, taken = stay.previous
            steps = taken - 1
            self._run.history.forget_steps(1)
        stay.place = stay.place.after(loop, max(0, steps))
        return good[:-1]

    def error(self, stay: Stay, values: np.ndarray, fault: int, reference: float) -> Exception:
        """The error that ends a run.

        Args:
            stay: the present visit, before the last call.
            values: losses of the last call.
            fault: number of the bad one.
            reference: what an explosion is measured by.
        """
        level, good = stay.key[0], np.concatenate([stay.losses, values[:fault]])
        if fault < len(values) and np.isfinite(values[fault]):
            allowed = (self._policy.explosion or np.inf) * abs(reference)
            return LossExplosionError(level, len(good), float(values[fault]), allowed)
        return NonFiniteLossError(level, len(good), float(good[-1]) if len(good) else float("nan"))
