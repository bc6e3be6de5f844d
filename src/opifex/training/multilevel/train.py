r"""Carrying out a cycle: one interpreter for all moves, from one immutable `RunState` to the next.

Between neighbouring levels, $P$ pads a coarse parameter tree with zeros and $R = P^T$ truncates a
fine one, so that $R P = I$. At a fine point $x_h$ with gradient $g_h$ of the present fine objective,
a rediscretised coarse level minimises (Nash 2000; Lewis and Nash 2005, section 2)

$$F_H(x_H) - \langle \tau, x_H \rangle, \qquad \tau = \nabla F_H(R x_h) - c\, P^T g_h,$$

whose gradient at $R x_h$ is $c\, P^T g_h$: the coarse level sees the fine descent directions to first
order. This is the full approximation scheme written for optimisation. Its result comes back as
$x_h + \alpha P (x_H - R x_h)$ with a step length that never increases the fine objective. A Galerkin
coarse level minimises $F_h$ itself over the entries that $P$ fills.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from opifex.training.balancing import Balance, Balanced
from opifex.training.errors import NonFiniteLossError
from opifex.training.interrupt import Interruptible
from opifex.training.loop import (
    CAPACITY,
    CompiledLoop,
    LoopState,
    check_smoother,
    owned,
    steps_per_epoch,
)
from opifex.training.multilevel.cycle import (
    Correct,
    Cycle,
    Enter,
    Interpolate,
    Move,
    Restrict,
    Smooth,
)
from opifex.training.multilevel.data import Resampled
from opifex.training.multilevel.history import History
from opifex.training.multilevel.interpolation import interpolated
from opifex.training.multilevel.monitor import LevelProgress, Metrics, Monitor
from opifex.training.multilevel.observation import Announcer, metric_values
from opifex.training.multilevel.state import CoarseVisit, LevelState, RunState
from opifex.training.multilevel.transfer import (
    Transfer,
    TransferError,
    TransferPlan,
    function_difference,
    inputs_for,
    plan_transfer,
    verify_transfer,
)
from opifex.training.multilevel.weights import Weights
from opifex.training.objective import Objective, hashable, plain
from opifex.training.smoother import Smoother, initial_state, moves_nothing

__all__ = ["Task", "train"]

# A loss evaluation costs about a third of a step, whose gradient takes a forward and a backward pass.
_LOSS_COST = 1 / 3
# Seconds of one call of the compiled loop: Ctrl-C waits for one call at most.
_CALL_SECONDS = 1.0
_CHECKED_ROWS = 4
# Steps for which an optimizer that moved nothing is asked whether it will move something.
_LOOK_AHEAD = 10_000

MoveState = Callable[[int, Any, nnx.Module, nnx.Module], Any]
"""``move(level, state, coarse_model, fine_model)``: smoother state for level ``level + 1``."""


@dataclass(frozen=True)
class Task:
    """What is trained, and how, on all levels: what does not change during a run.

    Attributes:
        loss: loss function, or tuple of residual terms.
        smoothers: one per level.
        batch_size: samples per step, or ``None``.
        transfer: the transfer ``(coarse_model, fine_model) -> fine_model``.
        move_state: transfer of the smoother's state.
        resampled: how data are drawn anew, or ``None``.
        balanced: how weights of residual terms are computed, or ``None``.
        evaluate: metric, or ``None``.
        monitor: evaluation interval, callbacks.
        verify: check at each transition that a transfer keeps the function if it promises to.
        compile_ahead: compile the next level's program while the present one trains.
    """

    loss: Any
    smoothers: tuple[Smoother, ...]
    batch_size: int | None
    transfer: Transfer
    move_state: MoveState
    resampled: Resampled | None
    balanced: Balanced | None
    evaluate: Metrics | None
    monitor: Monitor
    verify: bool
    compile_ahead: bool


def train(
    state: RunState,
    cycle: Cycle,
    moves: Sequence[Move],
    task: Task,
    history: History,
    keep: Callable[[RunState], None],
) -> None:
    """Carry out the moves of a cycle.

    Args:
        state: where to start.
        cycle: the cycle, for what its coarse levels minimise.
        moves: its moves.
        task: what to train.
        history: record to append to.
        keep: called with every new state. Whatever ends the run, the last one it got is good.

    Raises:
        NonFiniteLossError: if the loss or the parameters stop being finite.
        TransferError: if a transfer does not keep the function that it promises to keep.
    """
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        with Interruptible() as interruptible:
            _Interpreter(state, cycle, moves, task, history, keep, executor, interruptible).run()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


@lru_cache(maxsize=64)
def _gradient_program(structure: Any) -> Any:
    del structure  # bounds the life of the program, as in the compiled loop
    return jax.jit(lambda objective, params: objective.value_and_gradient(params)[1])


@lru_cache(maxsize=64)
def _trial_program(structure: Any) -> Any:
    """The loss after a multiple of a correction, and the parameters there."""
    del structure

    def trial(objective: Objective, params: Any, correction: Any, length: Any) -> Any:
        moved = optax.tree.add_scale(params, length, correction)
        return objective.value(moved), moved

    return jax.jit(trial)


@lru_cache(maxsize=64)
def _draw_program(draw: Any, structure: Any) -> Any:
    del structure
    return jax.jit(
        lambda objective, params, key: plain(draw)(objective.model(params), objective.data, key)
    )


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
class _Requests:
    """What callbacks ask for while they are called.

    Attributes:
        restored: where the level is to be set back to, or ``None``.
        end_level: whether the level is to end.
    """

    restored: Snapshot | None = None
    end_level: bool = False

    def restore(self, snapshot: Any) -> None:
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"snapshot must come from progress.snapshot(), got {snapshot!r}")
        self.restored = snapshot

    def leave(self) -> None:
        self.end_level = True


class _Observed(NamedTuple):
    """What came of looking in.

    Attributes:
        leave: whether to leave the level.
        restored: where the level was set back to, or ``None``.
    """

    leave: bool
    restored: Snapshot | None


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


@dataclass(eq=False)
class _Interpreter:
    """The moves of one run, with the programs that it has compiled."""

    state: RunState
    cycle: Cycle
    moves: Sequence[Move]
    task: Task
    history: History
    keep_state: Callable[[RunState], None]
    executor: ThreadPoolExecutor
    interruptible: Interruptible
    stopped: bool = False

    def __post_init__(self) -> None:
        self._announcer = Announcer(self.task.monitor, self.history)
        self._loops: dict[tuple[int, int], CompiledLoop] = {}
        self._idle: set[int] = set()
        self._entered: set[tuple[int, int]] = set()
        self._not_ahead: set[tuple[int, int]] = set()
        self._all_traced = False
        self._seconds_per_step: dict[tuple[int, int], float] = {}
        self._metrics: dict[str, float] = {}
        self._last_loss: float | None = None
        self._plans: dict[tuple[int, int], TransferPlan] = {}
        # Steps of this run on each level that the user stood on.
        self._taken: Counter[int] = Counter()
        self._weights = Weights(self.task.balanced, self.history)
        # What the transfers will make of the levels: found before any work, and compiled ahead.
        self._predicted = list(self.state.levels)

    @property
    def num_levels(self) -> int:
        return len(self.state.levels)

    @property
    def finest(self) -> int:
        return self.num_levels - 1

    def keep(self, state: RunState) -> None:
        self.state = state
        self.keep_state(state)

    # -- the run -----------------------------------------------------------------------------

    def run(self) -> None:
        """All moves in order."""
        self._announcer.phase("compiling", self.state.level)
        with self.history.stopwatch.charge("transfer"):
            self._rehearse()
        if self.moves and not isinstance(self.moves[0], Enter):
            self._evaluate(0)
        for index, move in enumerate(self.moves):
            self.interruptible.check(self._kept())
            if not isinstance(move, Smooth):
                self._announcer.phase("transferring", move.level)
            match move:
                case Smooth():
                    self._smooth(move, index)
                case Enter():
                    self.history.record_transition(self.state.level, move.level)
                    self.keep(replace(self.state, level=move.level))
                    self._evaluate(0)
                case Interpolate():
                    with self.history.stopwatch.charge("transfer"):
                        self._interpolate(move.level)
                    self._evaluate(0)
                case Restrict():
                    with self.history.stopwatch.charge("transfer"):
                        self._restrict(move.level)
                case Correct():
                    with self.history.stopwatch.charge("transfer"):
                        self._correct(move.level)
            if self.stopped:
                return

    def _rehearse(self) -> None:
        """Make all transfers once, so that what does not fit is found before any work."""
        levels, user_level = self._predicted, self.state.level
        checked = set()
        for move in self.moves:
            if isinstance(move, Enter | Interpolate):
                user_level = move.level
            if isinstance(move, Smooth) and (move.level, user_level) not in checked:
                checked.add((move.level, user_level))
                owner = self._owner(move.level, user_level)
                objective = self._objective(levels, move.level, owner)
                check_smoother(
                    self.task.smoothers[move.level],
                    objective,
                    levels[move.level].params,
                    levels[owner].rest,
                    self.task.batch_size,
                )
                if self.task.balanced is not None and owner == user_level:
                    values = levels[owner]
                    own = Objective(
                        self.task.loss, values.graphdef, self.state.data[owner], values.rest
                    )
                    self._weights.price(owner, values, own, self.state.key)
            if not isinstance(move, Interpolate | Restrict):
                continue
            coarse = move.level - 1 if isinstance(move, Interpolate) else move.level
            try:
                if isinstance(move, Restrict):
                    self._plan(coarse, coarse + 1)
                elif levels[move.level] is self.state.levels[move.level]:
                    pair = levels[coarse].model, levels[move.level].model
                    model = interpolated(self.task.transfer, *pair, loss=1.0)
                    levels[move.level] = LevelState.of(model)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(
                    f"hierarchy[{coarse}] cannot be transferred to hierarchy[{coarse + 1}]: {error}"
                ) from error

    def _kept(self) -> str:
        steps = self.history.num_steps
        return f"training interrupted; level {self.state.level} and all {steps} steps are kept"

    # -- where the run stands ----------------------------------------------------------------

    def _owner(self, level: int, user_level: int) -> int:
        """The level whose loss is minimised where ``level`` is smoothed."""
        galerkin = self.cycle.coarse == "galerkin" and level < user_level
        return user_level if galerkin else level

    def _objective(self, levels: Sequence[LevelState], level: int, owner: int) -> Objective:
        """The objective of a level before the first transfer to it; the leaves fix shapes only."""
        model = levels[owner]
        objective = Objective(self.task.loss, model.graphdef, self.state.data[owner])
        if self.task.balanced is not None:
            objective = objective.at(weights=self._weights.of(model).weights)
        if owner != level:
            return objective.at(frame=model.params, layout=self._plan(level, owner))
        if self.cycle.coarse == "rediscretised" and level < self.finest:
            # The finest level never gets a linear term, so that every smoother may work there.
            zero = jax.tree.map(jnp.zeros_like, levels[level].params)
            return objective.at(shift=zero)
        return objective

    def _position(self) -> tuple[Objective, Any, Any]:
        """Objective, parameters and other variables of the level that is smoothed."""
        state = self.state
        if state.visits:
            visit = state.visits[-1]
            return visit.objective, visit.params, visit.rest
        level = state.levels[state.level]
        return self._objective(state.levels, state.level, state.level), level.params, level.rest

    def _moved(self, params: Any, rest: Any, **smoother: Any) -> RunState:
        """The state with other variables where the run works."""
        state = self.state
        if not state.visits:
            return state.with_level(state.level, params=params, rest=rest, **smoother)
        visit = state.visits[-1]._replace(params=params, rest=rest)
        state = replace(state, visits=(*state.visits[:-1], visit))
        return state.with_level(visit.level, **smoother) if smoother else state

    def _plan(self, coarse: int, fine: int) -> TransferPlan:
        if (coarse, fine) not in self._plans:
            models = (self._predicted[level].model for level in (coarse, fine))
            self._plans[coarse, fine] = plan_transfer(*models)
        return self._plans[coarse, fine]

    # -- programs ----------------------------------------------------------------------------

    def _loop(self, level: int, owner: int, levels: Sequence[LevelState]) -> CompiledLoop:
        """The traced program of a level, compiling in the thread."""
        if (level, owner) not in self._loops:
            task, data = self.task, self.state.data[owner]
            smoother, values = task.smoothers[level], levels[level]
            rest = values.rest if owner == level else levels[owner].rest
            shapes = jax.eval_shape(
                lambda params, rest, key: LoopState.start(
                    params, rest, smoother.init(params), key, data, task.batch_size
                ),
                values.params,
                rest,
                self.state.key,
            )
            objective = self._objective(levels, level, owner)
            loop = CompiledLoop(objective, smoother, shapes, batch_size=task.batch_size)
            loop.compile(self.executor)
            self._loops[level, owner] = loop
            self._price_finest_step(level, owner)
        return self._loops[level, owner]

    def _price_finest_step(self, level: int, owner: int) -> None:
        """The unit of work: estimated from another level until the finest has been traced."""
        if (self.finest, self.finest) in self._loops:
            self.history.set_unit(self._operations(self.finest, self.finest))
        else:
            ratio = self._size(self.finest) / self._size(level)
            self.history.set_unit(ratio * self._operations(level, owner))

    def _size(self, level: int) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.levels[level].params))

    def _operations(self, level: int, owner: int) -> float:
        """Price of a step; by the number of parameters where operations cannot be counted."""
        loop = self._loops.get((level, owner))
        count = loop.operations if loop is not None else None
        return float(self._size(level)) if count is None else count

    def step_work(self, level: int) -> float:
        """Cost of one step of a level in steps of the finest, by the count of operations."""
        try:
            with self.history.stopwatch.charge("compilation"):
                for wanted in (level, self.finest):
                    self._loop(wanted, wanted, self._predicted)
        except Exception:  # an estimate must not end a run: the level itself will raise
            return self._size(level) / self._size(self.finest)
        return self._operations(level, level) / self._operations(self.finest, self.finest)

    def _ahead(self, index: int) -> None:
        """Trace the next program that the coming moves need, and compile it in the thread."""
        if self._all_traced:
            return
        user_level = self.state.level
        for move in self.moves[index + 1 :]:
            if isinstance(move, Enter | Interpolate):
                user_level = move.level
            if isinstance(move, Smooth) and move.epochs:
                key = (move.level, self._owner(move.level, user_level))
                if key not in self._loops and key not in self._not_ahead:
                    try:
                        self._loop(*key, self._predicted)
                    except Exception:  # raised again, as itself, when the level is entered
                        self._not_ahead.add(key)
                    return
        self._all_traced = True

    def _ready(self, program: Any, *arguments: Any) -> Any:
        """A jitted function compiled for its arguments, in the account where that belongs."""
        with self.history.stopwatch.charge("compilation"):
            return program.trace(*arguments).lower().compile()

    # -- moves -------------------------------------------------------------------------------

    def _smooth(self, move: Smooth, index: int) -> None:
        if move.epochs == 0:
            return
        level, task, stopwatch = move.level, self.task, self.history.stopwatch
        owner = self._owner(level, self.state.level)
        if (level, owner) not in self._entered:
            self._entered.add((level, owner))
            self._announcer.phase("compiling", level)
        with stopwatch.charge("compilation"):
            loop = self._loop(level, owner, self.state.levels)
            if task.compile_ahead:
                self._ahead(index)  # traced here while the thread compiles the present one
            loop.wait(lambda: self.interruptible.check(self._kept()))
        objective, params, rest = self._position()
        per_epoch = steps_per_epoch(objective.data, task.batch_size)
        smoother_state = self.state.levels[level].smoother
        if smoother_state is None:
            smoother_state = initial_state(task.smoothers[level], params)
        current = LoopState.start(
            params, rest, smoother_state, self.state.key, objective.data, task.batch_size
        )
        place = _Place(current, objective, self.state.levels[level].balance)
        total = move.epochs * per_epoch
        interval = task.monitor.interval(move.epochs) * per_epoch
        redraw = total
        if task.resampled is not None and not self.state.visits:
            redraw = task.resampled.every * per_epoch if task.resampled.every else interval
        renew = self._weights.interval(visiting=bool(self.state.visits)) * per_epoch
        losses: list[np.ndarray] = []
        previous: tuple[_Place, int] | None = None
        done = 0
        while done < total and not self.stopped:
            if done and done % redraw == 0:
                with stopwatch.charge("resampling"):
                    place = self._redraw(place)
            if renew and self._taken[level] % renew == 0:
                with stopwatch.charge("balancing"):
                    place = self._rebalance(place)
            ends = [total, done + interval - done % interval, done + redraw - done % redraw]
            if renew:
                ends.append(done + renew - self._taken[level] % renew)
            steps = min(*ends, done + self._steps_per_call(level, owner)) - done
            self._announcer.phase("training", level)
            before = stopwatch.read("training")
            with stopwatch.charge("training"):
                new, values, healthy = loop.run(owned(place.loop), place.objective, steps)
            seconds = stopwatch.read("training") - before
            good = values[np.isfinite(values)]
            start, place = place, place._replace(loop=new)
            self._warn_if_idle(level, start.loop, new, total - done - steps)
            if not healthy:
                place, values = self._last_good(loop, start, previous, good)
            if place.objective.weights is not None:
                self.history.record_weights(np.asarray(place.objective.weights))
            self.history.record_steps(
                level,
                values,
                seconds,
                self._operations(level, owner),
                objective=self.cycle.coarse if self.state.visits and self.cycle.coarse else "own",
                first_epoch=done / per_epoch,
                steps_per_epoch=per_epoch,
                cycle=move.cycle,
            )
            losses.append(values)
            previous, current = (start, steps), place.loop
            state = self._moved(current.params, current.rest, smoother=current.smoother)
            state = replace(state, key=current.key)
            if not state.visits:
                state = state.with_data(level, place.objective.data)
                state = state.with_level(level, balance=place.balance)
                self._taken[level] += steps
            self.keep(state)
            if not healthy:
                finite = np.concatenate([*losses[:-1], good])
                last = float(finite[-1]) if len(finite) else float("nan")
                raise NonFiniteLossError(level, len(finite), last)
            self._last_loss = float(values[-1])
            done += steps
            self._seconds_per_step[level, owner] = seconds / steps
            if done % interval == 0 or done == total:
                seen = self._observe(index, done // per_epoch, np.concatenate(losses), per_epoch)
                if seen.restored is not None:
                    place = place._replace(loop=current._replace(**seen.restored._asdict()))
                    previous = None  # the next step does not follow the one before
                if seen.leave:
                    self.interruptible.check(self._kept())
                    return
            self.interruptible.check(self._kept())

    def _warn_if_idle(self, level: int, before: LoopState, after: LoopState, left: int) -> None:
        """Warn where the optimizer moves nothing in the rest of a level: a schedule has ended."""
        pairs = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
        if level in self._idle or left == 0 or not all(np.array_equal(*pair) for pair in pairs):
            return
        self._idle.add(level)  # asked once per level
        ahead = min(left, _LOOK_AHEAD)
        with self.history.stopwatch.charge("other"):
            if moves_nothing(self.task.smoothers[level], after.params, after.smoother, ahead):
                warnings.warn(
                    f"the optimizer leaves all parameters of level {level} as they are in the next "
                    f"{ahead} of the {left} steps that are left: its learning rate is zero. Has a "
                    "schedule ended? One transformation per level starts it anew on each level",
                    stacklevel=2,
                )

    def _steps_per_call(self, level: int, owner: int) -> int:
        # One step tells how long steps take; it is one until then.
        known = self._seconds_per_step.get((level, owner), _CALL_SECONDS)
        return min(CAPACITY, max(1, int(_CALL_SECONDS / max(known, 1e-9))))

    def _last_good(
        self,
        loop: CompiledLoop,
        start: _Place,
        previous: tuple[_Place, int] | None,
        good: np.ndarray,
    ) -> tuple[_Place, np.ndarray]:
        """The last place whose loss was finite, and the losses of the steps to it."""
        steps = len(good) - 1
        if len(good) == 0 and previous is not None:
            # The first loss of this call is already bad: the last good state lies one step before
            # the end of the call before it.
            start, taken = previous
            steps = taken - 1
            self.history.forget_last_step()
        if steps > 0:
            new = loop.run(owned(start.loop), start.objective, steps)[0]
            start = start._replace(loop=new)
        return start, good[:-1]

    def _interpolate(self, level: int) -> None:
        coarse, fine = (self.state.levels[i] for i in (level - 1, level))
        coarse_model = coarse.model
        new_model = interpolated(self.task.transfer, coarse_model, fine.model, loss=self._last_loss)
        moved = None
        if coarse.smoother is not None:
            moved = self.task.move_state(level - 1, coarse.smoother, coarse_model, new_model)
        new = LevelState.of(new_model, moved)
        if self.task.verify and getattr(self.task.transfer, "preserves_function", False):
            self._verify(coarse, new, self.state.data[level])
        if _signature(new) != _signature(self._predicted[level]):
            # What was compiled ahead is for another model.
            self._loops = {key: loop for key, loop in self._loops.items() if level not in key}
            self._all_traced = False
        self.history.record_transition(level - 1, level)
        levels = list(self.state.levels)
        levels[level] = self._predicted[level] = new
        self.keep(replace(self.state, level=level, levels=tuple(levels)))

    def _verify(self, coarse: LevelState, fine: LevelState, data: tuple[Any, ...]) -> None:
        """Check on a few rows of the data that both models compute the same.

        Models that cannot be called with the data are compared by their losses, to half of the
        digits only, since nobody knows how a loss amplifies rounding.
        """
        rows = jax.tree.map(lambda leaf: leaf[:_CHECKED_ROWS] if leaf.ndim else leaf, data)
        models = coarse.model, fine.model
        inputs = inputs_for(*models, rows)
        if inputs is None:
            before, after = (self._loss_of(level, data) for level in (coarse, fine))
            if not abs(after - before) <= abs(before) * float(jnp.finfo(jnp.float32).eps) ** 0.5:
                raise TransferError(
                    f"the transfer does not preserve the function: the loss is {before} on the "
                    f"coarse level and {after} on the fine one"
                )
            return
        difference, allowed = function_difference(
            *nnx.split(models[0]), *nnx.split(models[1]), inputs
        )
        if not float(difference) <= float(allowed):
            verify_transfer(*models, *inputs)

    def _loss_of(self, level: LevelState, data: tuple[Any, ...]) -> float:
        objective = Objective(self.task.loss, level.graphdef, data, level.rest, jax.random.key(0))
        arguments = objective, level.params, level.params, 0.0
        return float(self._ready(_trial_program(objective.structure), *arguments)(*arguments)[0])

    def _restrict(self, level: int) -> None:
        objective, params, rest = self._position()
        here = self.state.level
        visiting = bool(self.state.visits)
        if self._weights.interval(visiting) and not self._taken[here]:  # no smoothing has done it
            with self.history.stopwatch.charge("balancing"):
                balance, key = self._weights.new(
                    here, self.state.levels[here], objective.at(rest=rest), params, self.state.key
                )
            self.keep(replace(self.state.with_level(here, balance=balance), key=key))
            objective = objective.at(weights=balance.weights)
        fine_level, owner = self.state.working_level, self._owner(level, self.state.level)
        plan, coarse = self._plan(level, level + 1), self.state.levels[level]
        start = plan.restrict(params, coarse.params)
        key, now = jax.random.split(self.state.key)
        objective = objective.at(rest=rest, key=now)
        # The levels agree to first order on the same weights only.
        new = self._objective(self.state.levels, level, owner).at(weights=objective.weights)
        if owner != level:
            layout = objective.layout
            new = new.at(
                frame=params if layout is None else layout.prolong(params, objective.frame)
            )
            coarse_rest = rest
        else:
            coarse_rest = plan.restrict(rest, coarse.rest)
            wanted = plan.restrict(self._gradient(objective, params), coarse.params)
            found = self._gradient(new.at(rest=coarse_rest, key=now), start)
            scale: float = getattr(self.cycle, "gradient_scale", 1.0)
            new = new.at(shift=jax.tree.map(lambda f, w: f - scale * w, found, wanted))
            for where in (fine_level, level):
                self.history.record_extra_operations(self._operations(where, where))
        self.history.record_transition(fine_level, level)
        jax.block_until_ready((new, start))  # else their time falls into the next account
        visit = CoarseVisit(level, new, start, start, coarse_rest)
        self.keep(replace(self.state, key=key, visits=(*self.state.visits, visit)))

    def _gradient(self, objective: Objective, params: Any) -> Any:
        program = self._ready(_gradient_program(objective.structure), objective, params)
        return program(objective, params)

    def _correct(self, level: int) -> None:
        visit = self.state.visits[-1]
        self.keep(replace(self.state, visits=self.state.visits[:-1]))
        objective, params, rest = self._position()
        plan = self._plan(level - 1, level)
        zeros = jax.tree.map(jnp.zeros_like, params)
        correction = plan.prolong(jax.tree.map(jnp.subtract, visit.params, visit.start), zeros)
        key, now = jax.random.split(self.state.key)
        objective = objective.at(rest=rest, key=now)
        trial = self._ready(_trial_program(objective.structure), objective, params, correction, 1.0)
        price = _LOSS_COST * self._operations(level, self._owner(level, self.state.level))
        before = float(trial(objective, params, correction, 0.0)[0])
        self.history.record_extra_operations(price)
        length = 1.0
        for _ in range(getattr(self.cycle, "backtracking_steps", 8)):
            value, moved = trial(objective, params, correction, length)
            self.history.record_extra_operations(price)
            if float(value) < before:
                params = moved
                break
            length /= 2
        self.history.record_transition(level - 1, level)
        self.keep(replace(self._moved(params, rest), key=key))

    # -- observing ---------------------------------------------------------------------------

    def _whole(self) -> tuple[Objective, Any]:
        """What the present objective evaluates: objective with all variables, and parameters."""
        objective, params, rest = self._position()
        return objective.at(data=(), shift=None, weights=None, rest=rest), params

    def _evaluate(self, epoch: int, cycle: int = 0) -> None:
        """Compute and record the metrics of the present model."""
        if self.task.evaluate is None:
            return
        level = self.state.working_level
        self._announcer.phase("evaluating", level)
        with self.history.stopwatch.charge("evaluation"):
            self._metrics = metric_values(self.task.evaluate, *self._whole())
            self.history.record_evaluation(level, epoch, self._metrics, cycle=cycle)

    def _observe(self, index: int, epoch: int, losses: np.ndarray, per_epoch: int) -> _Observed:
        """Evaluate, ask the criterion, tell callbacks and observers."""
        move = self.moves[index]
        assert isinstance(move, Smooth)
        self._evaluate(epoch, move.cycle)

        requests = _Requests()
        with self.history.stopwatch.charge("evaluation"):
            progress = self._progress(index, epoch, losses, per_epoch, requests)
            stop = getattr(self.cycle, "stop", None)
            if stop is not None and stop.should_stop(progress):
                requests.end_level = True
                progress = replace(progress, last=self._is_last_stay(index))
            for callback in self.task.monitor.callbacks:
                if callback(progress):
                    self.stopped = True
            self._announcer.progress(progress)
        if requests.restored is not None:
            self.keep(self._moved(**requests.restored._asdict()))
            self._evaluate(epoch, move.cycle)
        return _Observed(self.stopped or requests.end_level, requests.restored)

    def _progress(
        self, index: int, epoch: int, losses: np.ndarray, per_epoch: int, requests: _Requests
    ) -> LevelProgress:
        """Where the run stands, with what callbacks may do about it."""
        move = self.moves[index]
        assert isinstance(move, Smooth)
        level, owner = move.level, self._owner(move.level, self.state.level)
        seconds = self._seconds_per_step[level, owner]

        def model() -> nnx.Module:
            objective, params = self._whole()
            return objective.model(params)

        def snapshot() -> Snapshot:
            _, params, rest = self._position()
            return Snapshot(params, rest, self.state.levels[level].smoother)

        return LevelProgress(
            level=level,
            num_levels=self.num_levels,
            cycle=move.cycle,
            epoch=epoch,
            max_epochs=move.epochs,
            losses=losses,
            steps_per_epoch=per_epoch,
            metrics=self._metrics,
            get_model=model,
            step_work=self.step_work,
            step=self.history.num_steps,
            work=self.history.work,
            seconds=self.history.wall_seconds,
            call=self.history.num_calls,
            steps_per_second=1 / seconds if seconds > 0 else None,
            seconds_left=self._seconds_left(index, move.epochs - epoch),
            correcting=bool(self.state.visits),
            last=epoch == move.epochs and self._is_last_stay(index),
            snapshot=snapshot,
            restore=requests.restore,
            end_level=requests.leave,
        )

    def _is_last_stay(self, index: int) -> bool:
        """Whether no later move changes the model of the level that the user stands on."""
        if self.state.visits:
            return False
        for move in self.moves[index + 1 :]:
            if isinstance(move, Enter | Interpolate):
                return True
            if isinstance(move, Correct) or (isinstance(move, Smooth) and move.epochs):
                return False
        return True

    def _seconds_left(self, index: int, epochs: int) -> float:
        """Seconds of the planned steps, from those of the present level and the price of a step."""
        here = self.moves[index].level
        user_level = self.state.level
        known = here, self._owner(here, user_level)
        left = 0.0
        for number, move in enumerate(self.moves[index:]):
            if isinstance(move, Enter | Interpolate):
                user_level = move.level
            if not isinstance(move, Smooth):
                continue
            key = move.level, self._owner(move.level, user_level)
            seconds = self._seconds_per_step.get(key)
            if seconds is None:
                counted = key in self._loops
                prices = [
                    self._operations(*pair) if counted else self._size(pair[0])
                    for pair in (key, known)
                ]
                seconds = self._seconds_per_step[known] * prices[0] / prices[1]
            steps = steps_per_epoch(self.state.data[key[1]], self.task.batch_size)
            left += seconds * steps * (move.epochs if number else epochs)
        return left

    # -- new points, new weights -------------------------------------------------------------

    def _redraw(self, place: _Place) -> _Place:
        """The same place with what the user's function makes of the data."""
        assert self.task.resampled is not None
        objective, current = place.objective, place.loop
        key, now = jax.random.split(current.key)
        program = _draw_program(hashable(self.task.resampled.draw), objective.structure)
        whole = objective.at(rest=current.rest, weights=None)
        new = program(whole, current.params, now)
        _check_resampled(new, objective.data)
        return place._replace(
            objective=objective.at(data=jax.block_until_ready(new)),
            loop=current._replace(key=key),
        )

    def _rebalance(self, place: _Place) -> _Place:
        """The same place with new weights."""
        objective, current = place.objective, place.loop
        balance, key = self._weights.new(
            self.state.level,
            self.state.levels[self.state.level],
            objective.at(rest=current.rest),
            current.params,
            current.key,
        )
        return _Place(current._replace(key=key), objective.at(weights=balance.weights), balance)


def _signature(level: LevelState) -> Any:
    """What decides the program of a level."""
    leaves = (level.params, level.rest)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(leaves)]
    return hashable(level.graphdef), jax.tree.structure(leaves), shapes


def _check_resampled(new: Any, old: tuple[Any, ...]) -> None:
    """Raise unless new data fit the compiled program of the level."""

    def shapes(data: Any) -> Any:
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", data)

    if shapes(new) != shapes(old):
        raise ValueError(
            f"draw must return data like that of the level, {shapes(old)}, got {shapes(new)}"
        )
