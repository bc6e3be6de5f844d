"""Smoothing a level: calls of the compiled loop, and what is due between them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opifex.training.loop import CAPACITY, CompiledLoop, LoopState, owned
from opifex.training.multilevel.checkpointing import Within
from opifex.training.multilevel.cycle import Smooth
from opifex.training.multilevel.data import redrawn
from opifex.training.multilevel.mending import Mending
from opifex.training.multilevel.observation import Observation
from opifex.training.multilevel.programs import Programs
from opifex.training.multilevel.run import Run
from opifex.training.multilevel.stay import Anchor, Dues, Place, Stay
from opifex.training.smoother import initial_state, moves_nothing

__all__ = ["Smoothing"]

# Seconds of one call of the compiled loop: Ctrl-C waits for one call at most.
_CALL_SECONDS = 1.0
# Steps for which an optimizer that moved nothing is asked whether it will move something.
_LOOK_AHEAD = 10_000


class _Outcome(NamedTuple):
    """What of a call of the compiled loop counts.

    Attributes:
        values: losses of the steps that were taken.
        skipped: batches that were passed by.
        error: what ends the run, if anything.
    """

    values: np.ndarray
    skipped: int = 0
    error: Exception | None = None


class Smoothing:
    """Carries out the moves of a run that take steps.

    Args:
        run: the run.
        programs: its programs.
        observation: who looks in.
    """

    def __init__(self, run: Run, programs: Programs, observation: Observation) -> None:
        self._run, self._programs, self._observation = run, programs, observation
        self._mending = Mending(run, programs)
        self._idle: set[int] = set()

    def smooth(self, move: Smooth, index: int, within: Within | None = None) -> None:
        """Take the steps of a move, given with its place among the moves.

        Args:
            move: the move.
            index: its number.
            within: where an earlier process was in it; by default it begins.

        Raises:
            NonFiniteLossError: if the loss or the parameters stop being finite.
            LossExplosionError: if the loss grows beyond what is allowed.
        """
        if move.epochs == 0:
            return
        run, level = self._run, move.level
        key = level, run.owner(level)
        loop, stay = self._program(key), self._begin(key, within)
        dues = self._dues(move, key[1])
        while stay.done < dues.total and not run.stopped:
            steps = self._renew(stay, dues)
            self._observation.phase("training", level)
            before = run.history.seconds
            with run.history.stopwatch.charge("training"):
                new, values, healthy = loop.run(owned(stay.place.loop), stay.place.objective, steps)
            self._programs.seconds[key] = (run.history.seconds - before) / max(1, len(values))
            first = stay.done
            outcome = self._judged(stay, loop, new, values, healthy, dues)
            if outcome is None:
                loop = self._back(stay, len(values))
                continue
            self._record(move, stay, outcome, first, run.history.seconds - before, dues)
            if outcome.error is not None:
                raise outcome.error
            ended, looked = False, dues.looks_in(stay.done)
            if looked:
                if self._mending.action(stay) == "rollback" and not self._mending.is_good(
                    stay, dues.look_in
                ):
                    loop = self._back(stay, 0)
                    continue
                ended = self._look_in(index, stay, dues)
            if ended or stay.done == dues.total:
                run.reached(index + 1)
            elif looked or run.task.config.faults.action != "rollback":
                # Else a run that is taken up would have another place to go back to.
                order = stay.place.loop.order
                run.reached(index, Within(stay.done, len(stay.losses), stay.faults, order))
            run.check_interrupt()
            if ended:
                return

    def _dues(self, move: Smooth, owner: int) -> Dues:
        """When what is due in a visit."""
        run, task, visiting = self._run, self._run.task, bool(self._run.state.visits)
        per_epoch, interval = (
            task.sampling[owner].steps_per_epoch,
            task.monitor.interval(move.epochs),
        )
        redraw = 0
        if task.resampled is not None and not visiting:
            redraw = task.resampled.every or interval
        epochs = move.epochs, interval, redraw, run.weights.interval(visiting)
        return Dues(per_epoch, *(per_epoch * count for count in epochs))

    def _renew(self, stay: Stay, dues: Dues) -> int:
        """Draw, weigh and read what is due before the next step, and say how many steps may be taken."""
        run, charge = self._run, self._run.history.stopwatch.charge
        level, owner = stay.key
        if dues.redraws(stay.done):
            with charge("resampling"):
                stay.place = self._redraw(stay.place)
        if dues.rebalances(run.taken[level]):
            with charge("balancing"):
                stay.place = self._rebalance(stay.place)
        steps = min(dues.steps(stay.done, run.taken[level]), self._steps_per_call(stay.key))
        stream = run.task.sampling[owner].stream
        if stream is None:
            return steps
        with charge("reading"):
            stay.place, there = self._read(stay.place, stream)
        return min(steps, there)

    def _judged(
        self,
        stay: Stay,
        loop: CompiledLoop,
        new: LoopState,
        values: np.ndarray,
        healthy: bool,
        dues: Dues,
    ) -> _Outcome | None:
        """What of the steps of a call counts, with the visit taken there; ``None`` to go back."""
        policy, mending, start = self._run.task.config.faults, self._mending, stay.place
        reference = stay.reference(values, dues.look_in)
        fault = policy.first_fault(values, reference)
        if fault is None and not healthy:
            fault = len(values)
        action = mending.action(stay)
        outcome = _Outcome(values)
        if fault is None:
            left = dues.total - stay.done - len(values)
            self._warn_if_idle(stay.key[0], start.loop, new, left)
            stay.place = start._replace(loop=new)
        elif action == "rollback" and stay.done + fault > stay.anchor.done:
            return None
        elif action == "skip":
            outcome = _Outcome(mending.skip(stay, loop, values[:fault]), skipped=1)
        else:
            error = mending.error(stay, values, fault, reference)
            outcome = _Outcome(mending.end(stay, loop, values[:fault]), error=error)
        counted = outcome.values
        stay.losses = np.concatenate([stay.losses, counted]) if len(stay.losses) else counted
        stay.previous = None if outcome.skipped else (start, len(values))
        stay.done += len(counted) + outcome.skipped
        return outcome

    def _record(
        self,
        move: Smooth,
        stay: Stay,
        outcome: _Outcome,
        first: int,
        seconds: float,
        dues: Dues,
    ) -> None:
        """Put the steps of a call on record, the ``first`` by its number, and keep their result."""
        run, visiting = self._run, bool(self._run.state.visits)
        if stay.place.objective.weights is not None:
            run.history.record_weights(np.asarray(stay.place.objective.weights))
        run.history.record_steps(
            move.level,
            outcome.values,
            seconds,
            self._programs.operations(*stay.key),
            objective=run.cycle.coarse if visiting and run.cycle.coarse else "own",
            first_epoch=first / dues.per_epoch,
            steps_per_epoch=dues.per_epoch,
            cycle=move.cycle,
        )
        self._keep(stay.key, stay.place, len(outcome.values) + outcome.skipped)
        if len(outcome.values) and outcome.error is None:
            run.last_loss = float(outcome.values[-1])

    def _look_in(self, index: int, stay: Stay, dues: Dues) -> bool:
        """Let others look in at the end of an interval; whether the level ends."""
        epoch = stay.done // dues.per_epoch
        asked = self._observation.observe(index, epoch, stay.losses, dues.per_epoch)
        if asked.restored is not None:
            restored = stay.place.loop._replace(**asked.restored._asdict())
            stay.place = stay.place._replace(loop=restored)
            stay.previous = None  # the next step does not follow the one before
        stay.anchor = Anchor(stay.place, stay.done, len(stay.losses))
        return asked.end_level

    def _begin(self, key: tuple[int, int], within: Within | None) -> Stay:
        place = self._start(*key)
        if within is None:
            return Stay(key, place, Anchor(place, 0, 0), 0, np.zeros(0))
        history = self._run.history
        losses = history.losses[history.num_steps - within.losses :]
        current = place.loop._replace(order=jnp.asarray(within.order))
        if self._run.task.sampling[key[1]].stream is None:
            current = current._replace(step=jnp.asarray(np.int32(within.steps)))
        place = place._replace(loop=current)
        anchor = Anchor(place, within.steps, within.losses)
        return Stay(key, place, anchor, within.steps, losses, within.faults)

    def _back(self, stay: Stay, wasted: int) -> CompiledLoop:
        """Go back after a fault; the program of the smaller steps."""
        self._mending.roll_back(stay, wasted)
        self._keep(stay.key, stay.place, 0)
        return self._program(stay.key)

    def _program(self, key: tuple[int, int]) -> CompiledLoop:
        """The compiled program of a level, and the next one traced meanwhile."""
        if key not in self._programs.seconds:
            self._observation.phase("compiling", key[0])
        with self._run.history.stopwatch.charge("compilation"):
            loop = self._programs.loop(*key)
            if self._run.task.config.compile_ahead:
                self._programs.trace_ahead()  # while the thread compiles the present one
            loop.wait(partial(self._run.check_interrupt, alone=True))
        return loop

    def _start(self, level: int, owner: int) -> Place:
        run, values = self._run, self._run.state.levels[level]
        sampling = run.task.sampling[owner]
        objective, params, rest = run.position()
        smoother = values.smoother
        if smoother is None:
            smoother = initial_state(run.task.smoothers[level], params)
        current = LoopState.start(
            params,
            rest,
            smoother,
            run.state.key,
            objective.data,
            sampling.batch_size,
            parts=objective.parts,
        )
        if sampling.stream is not None:  # steps are counted by the batches of the stream
            step = np.int32(run.state.batches[sampling.stream])
            current = current._replace(step=jnp.asarray(step))
        return Place(current, objective, values.balance)

    def _steps_per_call(self, key: tuple[int, int]) -> int:
        # One step tells how long steps take; it is one until then.
        known = self._programs.seconds.get(key, _CALL_SECONDS)
        steps = min(CAPACITY, max(1, int(_CALL_SECONDS / max(known, 1e-9))))
        return self._run.processes.number(lambda: steps)

    def _read(self, place: Place, stream: int) -> tuple[Place, int]:
        """The same place with the batches that come next, and how many they are."""
        reader, objective = self._run.task.streams[stream], place.objective
        check = partial(self._run.check_interrupt, alone=True)
        data, there = reader.at(int(place.loop.step), objective.placement, check)
        return place._replace(objective=objective.at(data=data)), there

    def _redraw(self, place: Place) -> Place:
        """The same place with what the user's function makes of the data."""
        assert self._run.task.resampled is not None
        objective, current = place.objective, place.loop
        key, now = jax.random.split(current.key)
        whole = objective.at(rest=current.rest, weights=None)
        new = redrawn(self._run.task.resampled.draw, whole, current.params, now)
        return place._replace(objective=objective.at(data=new), loop=current._replace(key=key))

    def _rebalance(self, place: Place) -> Place:
        """The same place with new weights."""
        run, objective, current = self._run, place.objective, place.loop
        level, own = run.state.level, objective.at(rest=current.rest)
        balance, key = run.weights.new(
            level, run.state.levels[level], own, current.params, current.key
        )
        return Place(current._replace(key=key), objective.at(weights=balance.weights), balance)

    def _keep(self, key: tuple[int, int], place: Place, steps: int) -> None:
        """Keep what the last steps have reached."""
        run, current, level = self._run, place.loop, key[0]
        state = run.moved(current.params, current.rest, smoother=current.smoother)
        state = replace(state, key=current.key)
        if not state.visits:
            state = state.with_data(level, place.objective.data)
            state = state.with_level(level, balance=place.balance)
            run.taken[level] += steps
        stream = run.task.sampling[key[1]].stream
        if stream is not None:
            state = state.with_batches(stream, int(current.step))
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
