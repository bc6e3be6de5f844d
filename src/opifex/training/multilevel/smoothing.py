"""Smoothing a level: calls of the compiled loop, and what is due between them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opifex.training.balancing import Balance
from opifex.training.errors import NonFiniteLossError
from opifex.training.loop import CAPACITY, CompiledLoop, LoopState, owned, steps_per_epoch
from opifex.training.multilevel.checkpointing import Point
from opifex.training.multilevel.cycle import Smooth
from opifex.training.multilevel.data import redrawn
from opifex.training.multilevel.history import History
from opifex.training.multilevel.observation import Observation
from opifex.training.multilevel.programs import Programs
from opifex.training.multilevel.run import Run
from opifex.training.objective import Objective
from opifex.training.smoother import initial_state, moves_nothing

__all__ = ["Smoothing"]

# Seconds of one call of the compiled loop: Ctrl-C waits for one call at most.
_CALL_SECONDS = 1.0
# Steps for which an optimizer that moved nothing is asked whether it will move something.
_LOOK_AHEAD = 10_000


class _Place(NamedTuple):
    """Where the smoothing of a level stands.

    Attributes:
        loop: state of the compiled loop.
        objective: what is minimised, with present data and weights.
        balance: state of the balancing that the weights come from.
    """

    loop: LoopState
    objective: Objective
    balance: Balance | None


class Smoothing:
    """Carries out the moves of a run that take steps.

    Args:
        run: the run.
        programs: its programs.
        observation: who looks in.
    """

    def __init__(self, run: Run, programs: Programs, observation: Observation) -> None:
        self._run, self._programs, self._observation = run, programs, observation
        self._idle: set[int] = set()

    def smooth(self, move: Smooth, index: int, point: Point | None = None) -> None:
        """Take the steps of a move, given with its place among the moves.

        Args:
            move: the move.
            index: its number.
            point: where an earlier process was in it; by default it begins.

        Raises:
            NonFiniteLossError: if the loss or the parameters stop being finite.
        """
        if move.epochs == 0:
            return
        run, task, charge = self._run, self._run.task, self._run.history.stopwatch.charge
        level, visiting = move.level, bool(run.state.visits)
        key = level, run.owner(level)
        loop = self._program(key)
        place = self._start(level, point)
        per_epoch = steps_per_epoch(place.objective.data, task.batch_size)
        total = move.epochs * per_epoch
        interval = task.monitor.interval(move.epochs)
        look_in, redraw = interval * per_epoch, 0
        rebalance = run.weights.interval(visiting) * per_epoch
        if task.resampled is not None and not visiting:
            redraw = (task.resampled.every or interval) * per_epoch
        previous: tuple[_Place, int] | None = None
        done = 0 if point is None else point.steps
        losses: list[np.ndarray] = [run.history.losses[run.history.num_steps - done :]]
        while done < total and not run.stopped:
            if redraw and done and done % redraw == 0:
                with charge("resampling"):
                    place = self._redraw(place)
            if rebalance and run.taken[level] % rebalance == 0:
                with charge("balancing"):
                    place = self._rebalance(place)
            due = (look_in, done), (redraw, done), (rebalance, run.taken[level])
            until_due = (every - count % every for every, count in due if every)
            steps = min(total - done, self._steps_per_call(key), *until_due)
            self._observation.phase("training", level)
            before = run.history.seconds
            with charge("training"):
                new, values, healthy = loop.run(owned(place.loop), place.objective, steps)
            seconds = run.history.seconds - before
            good = values[np.isfinite(values)]
            start, place = place, place._replace(loop=new)
            self._warn_if_idle(level, start.loop, new, total - done - steps)
            if not healthy:
                place, values = _last_good(loop, start, previous, good, run.history)
            if place.objective.weights is not None:
                run.history.record_weights(np.asarray(place.objective.weights))
            run.history.record_steps(
                level,
                values,
                seconds,
                self._programs.operations(*key),
                objective=run.cycle.coarse if visiting and run.cycle.coarse else "own",
                first_epoch=done / per_epoch,
                steps_per_epoch=per_epoch,
                cycle=move.cycle,
            )
            losses.append(values)
            previous = start, steps
            self._keep(level, place, steps)
            if not healthy:
                finite = np.concatenate([*losses[:-1], good])
                last = float(finite[-1]) if len(finite) else float("nan")
                raise NonFiniteLossError(level, len(finite), last)
            run.last_loss = float(values[-1])
            done += steps
            self._programs.seconds[key] = seconds / steps
            ended = False
            if done % look_in == 0 or done == total:
                asked = self._observation.observe(
                    index, done // per_epoch, np.concatenate(losses), per_epoch
                )
                ended = asked.end_level
                if asked.restored is not None:
                    place = place._replace(loop=place.loop._replace(**asked.restored._asdict()))
                    previous = None  # the next step does not follow the one before
            if ended or done == total:
                run.reached(index + 1)
            else:
                run.reached(index, done, place.loop.order)
            run.check_interrupt()
            if ended:
                return

    def _program(self, key: tuple[int, int]) -> CompiledLoop:
        """The compiled program of a level, and the next one traced meanwhile."""
        if key not in self._programs.seconds:
            self._observation.phase("compiling", key[0])
        with self._run.history.stopwatch.charge("compilation"):
            loop = self._programs.loop(*key)
            if self._run.task.config.compile_ahead:
                self._programs.trace_ahead()  # while the thread compiles the present one
            loop.wait(self._run.check_interrupt)
        return loop

    def _start(self, level: int, point: Point | None) -> _Place:
        run, values = self._run, self._run.state.levels[level]
        objective, params, rest = run.position()
        smoother = values.smoother
        if smoother is None:
            smoother = initial_state(run.task.smoothers[level], params)
        current = LoopState.start(
            params, rest, smoother, run.state.key, objective.data, run.task.batch_size
        )
        if point is not None and point.order is not None:
            step, order = map(jnp.asarray, (np.int32(point.steps), point.order))
            current = current._replace(step=step, order=order)
        return _Place(current, objective, values.balance)

    def _steps_per_call(self, key: tuple[int, int]) -> int:
        # One step tells how long steps take; it is one until then.
        known = self._programs.seconds.get(key, _CALL_SECONDS)
        return min(CAPACITY, max(1, int(_CALL_SECONDS / max(known, 1e-9))))

    def _redraw(self, place: _Place) -> _Place:
        """The same place with what the user's function makes of the data."""
        assert self._run.task.resampled is not None
        objective, current = place.objective, place.loop
        key, now = jax.random.split(current.key)
        whole = objective.at(rest=current.rest, weights=None)
        new = redrawn(self._run.task.resampled.draw, whole, current.params, now)
        return place._replace(objective=objective.at(data=new), loop=current._replace(key=key))

    def _rebalance(self, place: _Place) -> _Place:
        """The same place with new weights."""
        run, objective, current = self._run, place.objective, place.loop
        level, own = run.state.level, objective.at(rest=current.rest)
        balance, key = run.weights.new(
            level, run.state.levels[level], own, current.params, current.key
        )
        return _Place(current._replace(key=key), objective.at(weights=balance.weights), balance)

    def _keep(self, level: int, place: _Place, steps: int) -> None:
        """Keep what the last steps have reached."""
        run, current = self._run, place.loop
        state = run.moved(current.params, current.rest, smoother=current.smoother)
        state = replace(state, key=current.key)
        if not state.visits:
            state = state.with_data(level, place.objective.data)
            state = state.with_level(level, balance=place.balance)
            run.taken[level] += steps
        run.keep(state)

    def _warn_if_idle(self, level: int, before: LoopState, after: LoopState, left: int) -> None:
        """Warn where the optimizer moves nothing in the rest of a level: a schedule has ended."""
        pairs = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
        if level in self._idle or left == 0 or not all(np.array_equal(*pair) for pair in pairs):
            return
        self._idle.add(level)  # asked once per level
        smoother, ahead = self._run.task.smoothers[level], min(left, _LOOK_AHEAD)
        with self._run.history.stopwatch.charge("other"):
            if moves_nothing(smoother, after.params, after.smoother, ahead):
                warnings.warn(
                    f"the optimizer leaves all parameters of level {level} as they are in the next "
                    f"{ahead} of the {left} steps that are left: its learning rate is zero. Has a "
                    "schedule ended? One transformation per level starts it anew on each level",
                    stacklevel=2,
                )


def _last_good(
    loop: CompiledLoop,
    start: _Place,
    previous: tuple[_Place, int] | None,
    good: np.ndarray,
    history: History,
) -> tuple[_Place, np.ndarray]:
    """The last place whose loss was finite, and the losses of the steps to it."""
    steps = len(good) - 1
    if len(good) == 0 and previous is not None:
        # The first loss of this call is already bad: the last good state lies one step before the
        # end of the call before it.
        start, taken = previous
        steps = taken - 1
        history.forget_last_step()
    if steps > 0:
        start = start._replace(loop=loop.run(owned(start.loop), start.objective, steps)[0])
    return start, good[:-1]
