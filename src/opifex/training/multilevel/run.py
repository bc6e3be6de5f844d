"""A run while it goes on: what is trained, where it stands, which moves are to come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from opifex.training.balancing import Balanced
from opifex.training.interrupt import Interruptible
from opifex.training.multilevel.checkpointing import Point, Recorder, Within, versions
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.multilevel.cycle import Correct, Cycle, Enter, Interpolate, Move, Smooth
from opifex.training.multilevel.data import Resampled, Sampling, few_rows
from opifex.training.multilevel.history import History
from opifex.training.multilevel.monitor import Metrics, Monitor
from opifex.training.multilevel.state import LevelState, RunState
from opifex.training.multilevel.streaming import Stream
from opifex.training.multilevel.transfer import (
    Transfer,
    TransferPlan,
    plan_transfer,
    traced_with,
)
from opifex.training.multilevel.weights import Weights
from opifex.training.objective import Objective, kept_program
from opifex.training.placement import LevelPlacement
from opifex.training.processes import Processes
from opifex.training.smoother import DampedSmoother, Smoother

__all__ = ["Run", "Task"]

MoveState = Callable[[int, Any, nnx.Module, nnx.Module], Any]
"""``move(level, state, coarse_model, fine_model)``: smoother state for level ``level + 1``."""


@dataclass(frozen=True)
class Task:
    """What is trained, and how, on all levels: what does not change during a run.

    Attributes:
        loss: loss function, or tuple of residual terms.
        smoothers: one per level.
        sampling: how batches are taken from the data, for each level.
        streams: what is read while a level trains.
        transfer: the transfer ``(coarse_model, fine_model) -> fine_model``.
        move_state: transfer of the smoother's state.
        resampled: how data are drawn anew, or ``None``.
        balanced: how weights of residual terms are computed, or ``None``.
        evaluate: metric, or ``None``.
        monitor: evaluation interval, callbacks.
        config: what is checked, compiled ahead and kept.
        places: where the arrays of each level lie, ``None`` where there is one device.
    """

    loss: Any
    smoothers: tuple[Smoother, ...]
    sampling: tuple[Sampling, ...]
    streams: tuple[Stream, ...]
    transfer: Transfer
    move_state: MoveState
    resampled: Resampled | None
    balanced: Balanced | None
    evaluate: Metrics | None
    monitor: Monitor
    config: MultilevelConfig
    places: tuple[LevelPlacement | None, ...]


@dataclass(eq=False)
class Run:
    """One call of ``fit``.

    Attributes:
        state: where it stands.
        cycle: the cycle, for what its coarse levels minimise.
        moves: its moves.
        task: what is trained.
        history: record to append to.
        keep_state: called with every new state. Whatever ends the run, the last one it got is good.
        interruptible: knows whether Ctrl-C was pressed, in one of the processes.
        recorder: keeps the run on disk, or ``None``.
        processes: that carry it out together.
        identity: what a run must have in common with this one to take up its checkpoints.
        stopped: whether a callback has ended the run.
        last_loss: of the last step, ``None`` before the first one.
    """

    state: RunState
    cycle: Cycle
    moves: Sequence[Move]
    task: Task
    history: History
    keep_state: Callable[[RunState], None]
    recorder: Recorder | None = None
    processes: Processes = field(default_factory=Processes)
    identity: Mapping[str, Any] | None = None
    stopped: bool = False
    last_loss: float | None = None

    def __post_init__(self) -> None:
        self.weights = Weights(self.task.balanced, self.history)
        # What the transfers will make of the levels: found before any work, and compiled ahead.
        self.predicted = list(self.state.levels)
        # Steps of this run on each level that the user stood on.
        self.taken: Counter[int] = Counter()
        # The last place from which the run can be taken up, if it is not on disk.
        self._unsaved: Point | None = None
        # Factors of the steps on levels where there was a fault.
        self.damping: dict[int, float] = {}
        self._plans: dict[tuple[int, int], TransferPlan] = {}
        # Where nothing is kept on disk, a request to terminate is none of ours.
        self.interruptible = Interruptible(
            terminable=self.recorder is not None, decide=self.processes.any
        )

    @property
    def finest(self) -> int:
        """Number of the finest level."""
        return len(self.state.levels) - 1

    def keep(self, state: RunState) -> None:
        """Go on from a new state."""
        self.state = state
        self.keep_state(state)

    def remembering(self) -> list[Any]:
        """Those beside the run whose memory belongs to it: callbacks, then the criterion."""
        return [*self.task.monitor.callbacks, getattr(self.cycle, "stop", None)]

    def smoother(self, level: int) -> Smoother:
        """The smoother of a level, with the smaller steps that faults there have led to."""
        smoother, factor = self.task.smoothers[level], self.damping.get(level, 1.0)
        return smoother if factor == 1.0 else DampedSmoother(smoother, factor)

    def reached(self, move: int, within: Within | None = None) -> None:
        """The run can be taken up from here.

        Args:
            move: number of the move to carry out next.
            within: where it is in the middle of that; by default it begins.
        """
        if self.recorder is None:
            return
        memories = [
            one.saved_state() if hasattr(one, "saved_state") else None for one in self.remembering()
        ]
        point = Point(
            self.state,
            move,
            within,
            dict(self.taken),
            dict(self.damping),
            self.last_loss,
            memories,
            self.history.mark(),
            [
                {"batches": batches, **stream.position(batches)}
                for stream, batches in zip(self.task.streams, self.state.batches, strict=True)
            ],
        )
        with self.history.stopwatch.charge("other"):
            saved = self.recorder.offer(partial(self._content, point))
        self._unsaved = None if saved else point

    def close(self, *, alone: bool = False) -> None:
        """Keep the last place on disk, if that is not done yet, and wait for it.

        Args:
            alone: whether other processes may be elsewhere. They cannot help to save then: what was
                saved last stays.
        """
        recorder, self.recorder = self.recorder, None
        point, self._unsaved = self._unsaved, None
        if recorder is None:
            return
        if alone and self.processes.several:
            recorder.leave()
        else:
            recorder.close(None if point is None else partial(self._content, point))

    def _content(self, point: Point) -> tuple[dict[str, Any], dict[str, Any]]:
        record, losses = self.history.to_record(point.mark)
        leaves = point.leaves(with_data=self.task.resampled is not None) | {"losses": losses}
        more = {"record": record, "identity": self.identity, "versions": versions()}
        return leaves, point.document() | more

    def check_interrupt(self, *, alone: bool = False) -> None:
        """Raise ``KeyboardInterrupt`` if Ctrl-C was pressed; all is kept.

        Args:
            alone: whether other processes may be elsewhere: they are not left then.
        """
        if (alone and self.processes.several) or not self.interruptible.asked():
            return
        self.close()
        level, steps = self.state.level, self.history.num_steps
        raise KeyboardInterrupt(
            f"training interrupted; level {level} and all {steps} steps are kept"
        )

    def owner(self, level: int, user_level: int | None = None) -> int:
        """The level whose loss is minimised where ``level`` is smoothed.

        Args:
            level: the level that is smoothed.
            user_level: where the user stands then; by default where he stands now.
        """
        user_level = self.state.level if user_level is None else user_level
        return user_level if self.cycle.coarse == "galerkin" and level < user_level else level

    def objective(self, levels: Sequence[LevelState], level: int, owner: int) -> Objective:
        """The objective of a level before the first transfer to it; the leaves fix shapes only."""
        model = levels[owner]
        objective = Objective(
            self.task.loss,
            model.graphdef,
            self.state.data[owner],
            precision=self.task.config.precision,
            placement=self.task.places[owner],
        )
        if self.task.balanced is not None:
            objective = objective.at(weights=self.weights.of(model).weights)
        if owner != level:
            return objective.at(frame=model.params, layout=self.plan(level, owner))
        if self.cycle.coarse == "rediscretised" and level < self.finest:
            # The finest level never gets a linear term, so that every smoother may work there.
            zero = jax.tree.map(jnp.zeros_like, levels[level].params)
            return objective.at(shift=zero)
        return objective

    def position(self) -> tuple[Objective, Any, Any]:
        """Objective, parameters and other variables of the level that is smoothed."""
        state = self.state
        if state.visits:
            visit = state.visits[-1]
            return visit.objective, visit.params, visit.rest
        level = state.levels[state.level]
        return self.objective(state.levels, state.level, state.level), level.params, level.rest

    def moved(self, params: Any, rest: Any, **smoother: Any) -> RunState:
        """The state with other variables where the run works."""
        state = self.state
        if not state.visits:
            return state.with_level(state.level, params=params, rest=rest, **smoother)
        visit = state.visits[-1]._replace(params=params, rest=rest)
        state = replace(state, visits=(*state.visits[:-1], visit))
        return state.with_level(visit.level, **smoother) if smoother else state

    def objective_of(self, level: LevelState, data: tuple[Any, ...]) -> Objective:
        """The loss of the task for some state of a level and some data."""
        return Objective(self.task.loss, level.graphdef, data, level.rest, jax.random.key(0))

    def traced(self, level: int) -> AbstractContextManager[None]:
        """Within this, transfers to a level are inferred from its data, or else from its loss."""

        def loss(model: nnx.Module, *data: Any) -> Any:
            state = LevelState.of(model, None)
            return self.objective_of(state, data).value(state.params)

        return traced_with(few_rows(self.state.data[level]), loss)

    def plan(self, coarse: int, fine: int) -> TransferPlan:
        """How parameters of a coarse level sit in those of a finer one."""
        if (coarse, fine) not in self._plans:
            models = (self.predicted[level].model for level in (coarse, fine))
            with self.traced(fine):
                self._plans[coarse, fine] = plan_transfer(*models)
        return self._plans[coarse, fine]

    def compiled(self, function: Callable[..., Any], objective: Objective, *arrays: Any) -> Any:
        """A function of an objective and arrays, compiled in the account where that belongs."""
        with self.history.stopwatch.charge("compilation"):
            program = kept_program(function, objective.structure)
            return program.trace(objective, *arrays).lower().compile()

    def coming(self, index: int) -> Iterator[tuple[Move, int]]:
        """The moves from one on, each with the level that the user stands on after it."""
        user_level = self.state.level
        for move in self.moves[index:]:
            if isinstance(move, Enter | Interpolate):
                user_level = move.level
            yield move, user_level

    def is_last_stay(self, index: int) -> bool:
        """Whether no move after one changes the model of the level that the user stands on."""
        if self.state.visits:
            return False
        for move in self.moves[index + 1 :]:
            if isinstance(move, Enter | Interpolate):
                return True
            if isinstance(move, Correct) or (isinstance(move, Smooth) and move.epochs):
                return False
        return True
