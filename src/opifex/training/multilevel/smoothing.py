"""Smoothing a level: calls of the compiled loop, and what is due between them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opifex.training.balancing import Balance
from opifex.training.errors import LossExplosionError, NonFiniteLossError
from opifex.training.loop import CAPACITY, CompiledLoop, LoopState, owned, steps_per_epoch
from opifex.training.multilevel.checkpointing import Point, Within
from opifex.training.multilevel.cycle import Smooth
from opifex.training.multilevel.data import redrawn
from opifex.training.multilevel.history import History
from opifex.training.multilevel.observation import Observation
from opifex.training.multilevel.programs import Programs
from opifex.training.multilevel.run import Run
from opifex.training.objective import Objective, kept_program
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

    @property
    def finite(self) -> bool:
        """Whether all parameters are."""
        leaves = jax.tree.leaves(self.loop.params)
        return all(bool(np.all(np.isfinite(np.asarray(leaf)))) for leaf in leaves)


class _Anchor(NamedTuple):
    """Where a rollback leads to: the place, the steps done there, and how many losses it had."""

    place: _Place
    done: int
    losses: int


@dataclass
class _Stay:
    """One visit of a level while it goes on.

    Attributes:
        key: the level, and the one whose loss is minimised.
        place: where it stands.
        anchor: where a rollback leads to.
        done: steps done, those that were skipped among them.
        losses: of the steps.
        faults: that were mended.
        previous: place before the last call of the loop, and the steps of that call.
    """

    key: tuple[int, int]
    place: _Place
    anchor: _Anchor
    done: int
    losses: np.ndarray
    faults: int = 0
    previous: tuple[_Place, int] | None = None


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
            LossExplosionError: if the loss grows beyond what is allowed.
        """
        if move.epochs == 0:
            return
        run, task, charge = self._run, self._run.task, self._run.history.stopwatch.charge
        level, visiting = move.level, bool(run.state.visits)
        key = level, run.owner(level)
        loop = self._program(key)
        stay = self._begin(key, point)
        per_epoch = steps_per_epoch(stay.place.objective.data, task.batch_size)
        total = move.epochs * per_epoch
        interval = task.monitor.interval(move.epochs)
        look_in, redraw = interval * per_epoch, 0
        rebalance = run.weights.interval(visiting) * per_epoch
        if task.resampled is not None and not visiting:
            redraw = (task.resampled.every or interval) * per_epoch
        policy = task.config.faults
        while stay.done < total and not run.stopped:
            if redraw and stay.done and stay.done % redraw == 0:
                with charge("resampling"):
                    stay.place = self._redraw(stay.place)
            if rebalance and run.taken[level] % rebalance == 0:
                with charge("balancing"):
                    stay.place = self._rebalance(stay.place)
            due = (look_in, stay.done), (redraw, stay.done), (rebalance, run.taken[level])
            until_due = (every - count % every for every, count in due if every)
            steps = min(total - stay.done, self._steps_per_call(key), *until_due)
            self._observation.phase("training", level)
            before = run.history.seconds
            with charge("training"):
                new, values, healthy = loop.run(owned(stay.place.loop), stay.place.objective, steps)
            seconds = run.history.seconds - before
            reference = _reference(stay.losses, values, look_in)
            fault = policy.first_fault(values, reference)
            if fault is None and not healthy:
                fault = len(values)
            start, first = stay.place, stay.done
            mending = policy.action if stay.faults < policy.tries else "raise"
            error, skipped = None, 0
            if fault is None:
                self._warn_if_idle(level, start.loop, new, total - first - steps)
                stay.place = start._replace(loop=new)
            elif mending == "rollback" and first + fault > stay.anchor.done:
                with charge("other"):
                    self._roll_back(stay, len(values))
                loop = self._program(key)
                continue
            elif mending == "skip":
                values = self._skip(stay, loop, values[:fault])
                skipped = 1
            else:
                error = self._fault(level, fault, values, stay.losses, reference)
                stay.place, values = _last_good(
                    loop, start, stay.previous, values[:fault], run.history
                )
            if stay.place.objective.weights is not None:
                run.history.record_weights(np.asarray(stay.place.objective.weights))
            run.history.record_steps(
                level,
                values,
                seconds,
                self._programs.operations(*key),
                objective=run.cycle.coarse if visiting and run.cycle.coarse else "own",
                first_epoch=first / per_epoch,
                steps_per_epoch=per_epoch,
                cycle=move.cycle,
            )
            stay.losses = np.concatenate([stay.losses, values]) if len(stay.losses) else values
            stay.previous = None if skipped else (start, steps)
            self._keep(level, stay.place, len(values) + skipped)
            if error is not None:
                raise error
            if len(values):
                run.last_loss = float(values[-1])
            self._programs.seconds[key] = seconds / max(1, len(values))
            stay.done = first + len(values) + skipped
            ended, looked = False, stay.done % look_in == 0 or stay.done == total
            if looked and mending == "rollback" and not self._is_good(stay, look_in):
                with charge("other"):
                    self._roll_back(stay, 0)
                loop = self._program(key)
                continue
            if looked:
                asked = self._observation.observe(
                    index, stay.done // per_epoch, stay.losses, per_epoch
                )
                ended = asked.end_level
                if asked.restored is not None:
                    restored = stay.place.loop._replace(**asked.restored._asdict())
                    stay.place = stay.place._replace(loop=restored)
                    stay.previous = None  # the next step does not follow the one before
                stay.anchor = _Anchor(stay.place, stay.done, len(stay.losses))
            if ended or stay.done == total:
                run.reached(index + 1)
            elif looked or policy.action != "rollback":
                # Else a run that is taken up would have another place to go back to.
                within = Within(stay.done, len(stay.losses), stay.faults, stay.place.loop.order)
                run.reached(index, within)
            run.check_interrupt()
            if ended:
                return

    def _begin(self, key: tuple[int, int], point: Point | None) -> _Stay:
        place, within = self._start(key[0]), None if point is None else point.within
        if within is None:
            return _Stay(key, place, _Anchor(place, 0, 0), 0, np.zeros(0))
        history = self._run.history
        losses = history.losses[history.num_steps - within.losses :]
        step, order = map(jnp.asarray, (np.int32(within.steps), within.order))
        place = place._replace(loop=place.loop._replace(step=step, order=order))
        anchor = _Anchor(place, within.steps, within.losses)
        return _Stay(key, place, anchor, within.steps, losses, within.faults)

    def _fault(
        self, level: int, fault: int, values: np.ndarray, losses: np.ndarray, reference: float
    ) -> Exception:
        """The error that ends a run."""
        good = np.concatenate([losses, values[:fault]])
        if fault < len(values) and np.isfinite(values[fault]):
            allowed = (self._run.task.config.faults.explosion or np.inf) * abs(reference)
            return LossExplosionError(level, len(good), float(values[fault]), allowed)
        return NonFiniteLossError(level, len(good), float(good[-1]) if len(good) else float("nan"))

    def _is_good(self, stay: _Stay, interval: int) -> bool:
        """Whether the loss of the present place, which no step has seen yet, is no fault."""
        objective, current = stay.place.objective, stay.place.loop
        size = self._run.task.batch_size
        data = jax.tree.map(lambda leaf: leaf[:size], objective.data) if size else objective.data
        now = objective.at(data=data, rest=current.rest, key=current.key)
        with self._run.history.stopwatch.charge("other"):
            program = kept_program(Objective.value, objective.structure)
            loss = float(program(now, current.params))
        reference = _reference(stay.losses, stay.losses, interval)
        return self._run.task.config.faults.first_fault([loss], reference) is None

    def _roll_back(self, stay: _Stay, wasted: int) -> None:
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
        factor = run.damping.get(level, 1.0) * run.task.config.faults.step_factor
        run.damping[level] = factor
        self._programs.forget(level)
        self._keep(level, place, 0)
        warnings.warn(
            f"the loss of level {level} was not finite or exploded: back to step {done} of this visit, "
            f"and on with {factor:g} of each step ({stay.faults} of at most "
            f"{run.task.config.faults.tries} times)",
            stacklevel=2,
        )

    def _skip(self, stay: _Stay, loop: CompiledLoop, good: np.ndarray) -> np.ndarray:
        """Leave out the batch whose loss is bad, or whose gradient made the parameters bad.

        Args:
            stay: the present visit.
            loop: its program.
            good: losses before the bad one.

        Returns:
            The losses of the steps that were taken.
        """
        start, objective = stay.place, stay.place.objective
        place = _after(loop, start, len(good))
        if not place.finite:
            good = good[:-1]
            place = _after(loop, start, len(good))
        passed, _, _ = self._programs.skipper(*stay.key).run(owned(place.loop), objective, 1)
        stay.place, stay.faults = place._replace(loop=passed), stay.faults + 1
        return good

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

    def _start(self, level: int) -> _Place:
        run, values = self._run, self._run.state.levels[level]
        objective, params, rest = run.position()
        smoother = values.smoother
        if smoother is None:
            smoother = initial_state(run.task.smoothers[level], params)
        current = LoopState.start(
            params, rest, smoother, run.state.key, objective.data, run.task.batch_size
        )
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


def _reference(losses: np.ndarray, values: np.ndarray, interval: int) -> float:
    """What an explosion is measured by: the mean of the last interval, or the first loss."""
    recent = losses[-interval:]
    if len(recent):
        return float(np.mean(recent))
    return float(values[0]) if len(values) and np.isfinite(values[0]) else float("inf")


def _after(loop: CompiledLoop, start: _Place, steps: int) -> _Place:
    """The place after some steps, once more."""
    if steps == 0:
        return start
    return start._replace(loop=loop.run(owned(start.loop), start.objective, steps)[0])


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
        history.forget_steps(1)
    return _after(loop, start, max(0, steps)), good[:-1]
