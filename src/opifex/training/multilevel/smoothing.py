"""Smoothing a level: calls of the compiled loop, and what is due between them."""

from __future__ import annotations

import warnings
from dataclasses import replace

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
from opifex.training.multilevel.stay import Anchor, Place, Stay
from opifex.training.placement import agreed
from opifex.training.smoother import initial_state, moves_nothing

__all__ = ["Smoothing"]

# Seconds of one call of the compiled loop: Ctrl-C waits for one call at most.
_CALL_SECONDS = 1.0
# Steps for which an optimizer that moved nothing is asked whether it will move something.
_LOOK_AHEAD = 10_000


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
        run, task, charge = self._run, self._run.task, self._run.history.stopwatch.charge
        level, visiting = move.level, bool(run.state.visits)
        key = level, run.owner(level)
        loop = self._program(key)
        stay = self._begin(key, within)
        sampling = task.sampling[key[1]]
        per_epoch = sampling.steps_per_epoch
        total = move.epochs * per_epoch
        interval = task.monitor.interval(move.epochs)
        look_in, redraw = interval * per_epoch, 0
        rebalance = run.weights.interval(visiting) * per_epoch
        if task.resampled is not None and not visiting:
            redraw = (task.resampled.every or interval) * per_epoch
        policy, mending = task.config.faults, self._mending
        while stay.done < total and not run.stopped:
            if redraw and stay.done and stay.done % redraw == 0:
                with charge("resampling"):
                    stay.place = self._redraw(stay.place)
            if rebalance and run.taken[level] % rebalance == 0:
                with charge("balancing"):
                    stay.place = self._rebalance(stay.place)
            most = total - stay.done
            if sampling.stream is not None:
                with charge("reading"):
                    stay.place, there = self._read(stay.place, sampling.stream)
                most = min(most, there)
            due = (look_in, stay.done), (redraw, stay.done), (rebalance, run.taken[level])
            until_due = (every - count % every for every, count in due if every)
            steps = min(most, self._steps_per_call(key), *until_due)
            self._observation.phase("training", level)
            before = run.history.seconds
            with charge("training"):
                new, values, healthy = loop.run(owned(stay.place.loop), stay.place.objective, steps)
            seconds = run.history.seconds - before
            reference = stay.reference(values, look_in)
            fault = policy.first_fault(values, reference)
            if fault is None and not healthy:
                fault = len(values)
            start, first, action = stay.place, stay.done, mending.action(stay)
            error, skipped = None, 0
            if fault is None:
                self._warn_if_idle(level, start.loop, new, total - first - steps)
                stay.place = start._replace(loop=new)
            elif action == "rollback" and first + fault > stay.anchor.done:
                loop = self._back(stay, len(values))
                continue
            elif action == "skip":
                values, skipped = mending.skip(stay, loop, values[:fault]), 1
            else:
                error = mending.error(stay, values, fault, reference)
                values = mending.end(stay, loop, values[:fault])
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
            self._keep(key, stay.place, len(values) + skipped)
            if error is not None:
                raise error
            if len(values):
                run.last_loss = float(values[-1])
            self._programs.seconds[key] = seconds / max(1, len(values))
            stay.done = first + len(values) + skipped
            ended, looked = False, stay.done % look_in == 0 or stay.done == total
            if looked and action == "rollback" and not mending.is_good(stay, look_in):
                loop = self._back(stay, 0)
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
                stay.anchor = Anchor(stay.place, stay.done, len(stay.losses))
            if ended or stay.done == total:
                run.reached(index + 1)
            elif looked or policy.action != "rollback":
                # Else a run that is taken up would have another place to go back to.
                order = stay.place.loop.order
                run.reached(index, Within(stay.done, len(stay.losses), stay.faults, order))
            run.check_interrupt()
            if ended:
                return

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
            loop.wait(self._run.check_interrupt)
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
        return steps if self._run.task.places[key[1]] is None else agreed(steps)

    def _read(self, place: Place, stream: int) -> tuple[Place, int]:
        """The same place with the batches that come next, and how many they are."""
        reader, objective = self._run.task.streams[stream], place.objective
        data, there = reader.at(
            int(place.loop.step), objective.placement, self._run.check_interrupt
        )
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
