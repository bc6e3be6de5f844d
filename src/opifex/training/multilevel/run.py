"""One multilevel run: the levels with their compiled loops, and where the run stands.

A strategy moves a `MultilevelRun` about: `smooth` on the present level, `prolongate` to the next.
Everything that a strategy should not have to think of happens here: compilation ahead of need,
history, evaluation, callbacks, and recovery of the last good state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from opifex.training.errors import NonFiniteLossError
from opifex.training.loop import CompiledLoop, LoopState
from opifex.training.multilevel.advance import AdvanceRule, LevelProgress
from opifex.training.multilevel.history import History
from opifex.training.multilevel.transfer import (
    block_embedding,
    plan_transfer,
    prolongate,
    prolongate_fno_modes,
    prolongate_preserving,
)
from opifex.training.objective import Objective, split_model
from opifex.training.smoothers import Smoother, initial_state

Callback = Callable[[LevelProgress], Any]
"""Called between compiled stretches; a true return value ends the run."""

Metrics = Callable[[Any], Any]
"""``evaluate(model)``: a scalar, or a dictionary of scalars. It is compiled."""

Resample = Callable[[Any, tuple[Any, ...], PRNGKeyArray], tuple[Any, ...]]
"""``resample(model, data, key)``: new data of the same shapes. It is compiled."""

MoveSmootherState = Callable[[int, Any, nnx.Module, nnx.Module], Any]
"""``move(level, state, coarse_model, fine_model)``: smoother state for level ``level + 1``."""

CoarseObjective = Literal["own", "tilted", "block"]
"""What coarse levels minimise: their own loss; their own loss with a linear term; or the finest
level's loss as a function of those of its parameters that they have too."""

__all__ = [
    "Callback",
    "CoarseObjective",
    "Metrics",
    "MoveSmootherState",
    "MultilevelRun",
    "Resample",
]

_PLANNED_TRANSFERS = (prolongate, prolongate_preserving, prolongate_fno_modes)


class MultilevelRun:
    """The state of a run and the moves a strategy can make.

    Args:
        models: one model per level, coarsest first; the present level's holds the start.
        level: level to start on.
        smoothers: one per level.
        smoother_state: state of the present level's smoother.
        loss_fn: the loss, or ``None`` for the mean square of ``terms``.
        terms: residual terms, or ``None``.
        data: one tuple of arrays per level.
        epochs: planned epochs per level.
        batch_size: samples per step, or ``None``.
        key: random key.
        prolongate: transfer of the model to the next level.
        move_smoother_state: transfer of the smoother's state.
        advance: rule for leaving a level before its planned epochs are done, or ``None``.
        evaluate: metric, or ``None``.
        report_every: epochs between looks of the host, or ``None`` for a twentieth of a level.
        callbacks: called at each look.
        resample: draws new data for the present level between looks, or ``None``.
        compile_ahead: compile the next level in a thread while the present one trains.
        history: record to append to.
        coarse_objective: what coarse levels minimise; see `set_tilt` and `set_whole`.
    """

    def __init__(
        self,
        *,
        models: Sequence[nnx.Module],
        level: int,
        smoothers: Sequence[Smoother],
        smoother_state: Any,
        loss_fn: Any,
        terms: Any,
        data: Sequence[tuple[Any, ...]],
        epochs: Sequence[int],
        batch_size: int | None,
        key: PRNGKeyArray,
        prolongate: Callable[[Any, Any], Any],
        move_smoother_state: MoveSmootherState,
        advance: AdvanceRule | None,
        evaluate: Metrics | None,
        report_every: int | None,
        callbacks: Sequence[Callback],
        resample: Resample | None,
        compile_ahead: bool,
        history: History,
        coarse_objective: CoarseObjective = "own",
    ) -> None:
        self.models = list(models)
        self.level = level
        self.first_level = level
        self._smoothers = tuple(smoothers)
        self._states: dict[int, Any] = {level: smoother_state}
        self.epochs = tuple(epochs)
        self.history = history
        self.cycle = 0
        self.stopped = False
        self._key = key
        self._prolongate = prolongate
        self._move_smoother_state = move_smoother_state
        self._advance = advance
        self._evaluate = evaluate
        self._callbacks = tuple(callbacks)
        self._resample = resample
        self._resample_programs: dict[int, Any] = {}
        self._executor = ThreadPoolExecutor(max_workers=1) if compile_ahead else None
        self._looks = [report_every or max(1, n // 20) for n in self.epochs]
        self._metrics: dict[str, float] = {}
        self._metric_programs: dict[int, Any] = {}
        self._costs: dict[int, Future[float | None]] = {}
        self._loops: list[CompiledLoop] = []
        for index, (model, smoother, arrays) in enumerate(
            zip(self.models, smoothers, data, strict=True)
        ):
            if coarse_objective == "block" and index < self.finest:
                whole, *variables = split_model(self.models[-1])
                embed = block_embedding(model, self.models[-1])
                objective = Objective(whole, loss_fn, terms, embed=embed)
                arrays = (tuple(variables), *arrays)
            else:
                tilted = coarse_objective == "tilted"
                objective = Objective(nnx.graphdef(model), loss_fn, terms, tilted=tilted)
                if tilted:
                    zero = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
                    arrays = (zero, *arrays)
            loop = CompiledLoop(objective, smoother, arrays, batch_size=batch_size, capacity=1)
            loop.capacity = self._looks[index] * loop.steps_per_epoch
            self._loops.append(loop)

    # -- where the run stands ----------------------------------------------------------------

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self.models)

    @property
    def finest(self) -> int:
        """Number of the finest level."""
        return self.num_levels - 1

    @property
    def model(self) -> nnx.Module:
        """The present model."""
        return self.models[self.level]

    def step_work(self, level: int) -> float:
        """Cost of one step of a level in steps of the finest, by XLA's count of operations."""
        costs = [self._step_cost(index) for index in (level, self.finest)]
        if costs[0] is None or costs[1] is None:
            sizes = [
                sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.models[i], nnx.Param)))
                for i in (level, self.finest)
            ]
            return sizes[0] / sizes[1]
        return costs[0] / costs[1]

    def _abstract_state(self, level: int) -> Any:
        loop, model = self._loops[level], self.models[level]

        def build(params: Any) -> LoopState:
            return loop.initial_state(model, loop.smoother.init(params), jax.random.key(0))

        return jax.eval_shape(build, nnx.state(model, nnx.Param))

    def _step_cost(self, level: int) -> float | None:
        if level not in self._costs:
            self._prepare_cost(level)
        return self._costs[level].result()

    def _prepare_cost(self, level: int) -> None:
        if level in self._costs:
            return
        state = self._abstract_state(level)
        if self._executor is not None:
            self._costs[level] = self._executor.submit(self._loops[level].step_cost, state)
        else:
            # Kept only once it is there: after an error nobody may wait for a result.
            cost = self._loops[level].step_cost(state)
            self._costs[level] = Future()
            self._costs[level].set_result(cost)

    def compile_level(self, level: int) -> None:
        """Compile the program of a level now, or ahead in a thread if that is enabled."""
        self._loops[level].compile(self._abstract_state(level), self._executor)

    @property
    def smoother_state(self) -> Any:
        """State of the present level's smoother; a fresh one on the first visit of a level."""
        if self.level not in self._states:
            self._states[self.level] = initial_state(self._smoothers[self.level], self.model)
        return self._states[self.level]

    @smoother_state.setter
    def smoother_state(self, state: Any) -> None:
        self._states[self.level] = state

    @property
    def objective(self) -> Objective:
        """What the present level minimises."""
        return self._loops[self.level].objective

    @property
    def data(self) -> tuple[Any, ...]:
        """The present level's data, first the tilt or the whole model's variables if it has them."""
        return self._loops[self.level].data

    def set_tilt(self, tilt: Any) -> None:
        """Replace the linear term of the present level's objective; compiled programs stay."""
        loop = self._loops[self.level]
        loop.data = (tilt, *loop.data[1:])

    def set_whole(self, model: nnx.Module) -> None:
        """Replace the finest model around the present level's block; compiled programs stay."""
        loop = self._loops[self.level]
        loop.data = (tuple(split_model(model)[1:]), *loop.data[1:])

    def whole_model(self) -> nnx.Module:
        """What the present objective evaluates: the level's model, or the finest with its block."""
        embed = self.objective.embed
        if embed is None:
            return self.model
        params, rest = self.data[0]
        block = split_model(self.model)[1]
        return nnx.merge(self.objective.structure, embed(block, params), rest, copy=True)

    # -- moves -------------------------------------------------------------------------------

    def check_transfers(self) -> None:
        """Find levels that do not fit together now, not after the coarse ones have been trained.

        A transfer that is not one of this library's is left to raise its own errors.

        Raises:
            TypeError: if neighbouring models are of different classes.
            ValueError: if their layers do not match; the message names the levels and the layer.
        """
        if self._prolongate not in _PLANNED_TRANSFERS:
            return
        for level in range(self.level, self.finest):
            try:
                plan_transfer(self.models[level], self.models[level + 1])
            except (TypeError, ValueError) as error:
                raise type(error)(
                    f"hierarchy[{level}] cannot be prolongated to hierarchy[{level + 1}]: {error}"
                ) from error

    def smooth(self, epochs: int | None = None) -> None:
        """Train the present level for some epochs, or until the rule, a callback or an error ends it.

        Raises:
            NonFiniteLossError: if the loss or the parameters stop being finite. The model and the
                smoother state are then the last good ones.
        """
        planned = self.epochs[self.level] if epochs is None else epochs
        loop = self._loops[self.level]
        clock = time.perf_counter()
        loop.compile(self._abstract_state(self.level))
        loop.wait()
        self.history.compile_seconds += time.perf_counter() - clock
        if self._executor is not None and self.level < self.finest:
            self.compile_level(self.level + 1)
        self._key, key = jax.random.split(self._key)
        state = loop.initial_state(self.model, self.smoother_state, key)
        previous: tuple[LoopState, int, tuple[Any, ...]] | None = None
        losses: list[np.ndarray] = []
        done = 0
        while done < planned and not self.stopped:
            epochs_now = min(self._looks[self.level], planned - done)
            steps = epochs_now * loop.steps_per_epoch
            if done:
                self._draw_points(loop)
            snapshot = jax.tree.map(jnp.copy, state)
            clock = time.perf_counter()
            state, new, healthy = loop.run(state, steps)
            seconds = time.perf_counter() - clock
            if not healthy:
                self._recover(loop, snapshot, previous, new, losses)
            self.history.record_steps(
                self.level,
                new,
                seconds,
                first_epoch=done,
                steps_per_epoch=loop.steps_per_epoch,
                cycle=self.cycle,
            )
            losses.append(new)
            previous = (snapshot, steps, loop.data)
            done += epochs_now
            self._keep(state)
            if self._look(done, planned, np.concatenate(losses)):
                break

    def prolongate(self) -> None:
        """Go to the next finer level, with the model and the smoother's state.

        Raises:
            TypeError: if the transfer returns no model.
            ValueError: if it returns a model of another structure than the fine level's.
        """
        clock = time.perf_counter()
        coarse, fine = self.models[self.level], self.models[self.level + 1]
        new = self._prolongate(coarse, fine)
        _check_prolongated(new, fine)
        state = self._move_smoother_state(self.level, self.smoother_state, coarse, new)
        self.move_to(self.level + 1, new)
        self.smoother_state = state
        self.history.transfer_seconds += time.perf_counter() - clock

    def move_to(self, level: int, model: nnx.Module | None = None) -> None:
        """Make another level the present one, with a new model if one is given.

        The smoother's state of that level is the one it was left with.
        """
        if model is not None:
            self.models[level] = model
        if level != self.level:
            self.history.record_transition(self.level, level)
        self.level = level

    def evaluate(self, epoch: float = 0.0) -> dict[str, float]:
        """Compute and record the metrics of the present model; empty without a metric."""
        if self._evaluate is None:
            return {}
        structure, variables = nnx.split(self.whole_model())
        if self.level not in self._metric_programs:
            metric = self._evaluate
            self._metric_programs[self.level] = jax.jit(
                lambda values: metric(nnx.merge(structure, values))
            )
        found = self._metric_programs[self.level](variables)
        named = found if isinstance(found, dict) else {"metric": found}
        for name, value in named.items():
            if value is None:
                raise TypeError(
                    "evaluate must return a scalar or a dictionary of scalars, got None for "
                    f"{name!r}"
                )
            if jnp.ndim(value) != 0:
                raise ValueError(
                    f"evaluate must return a scalar or a dictionary of scalars, got shape "
                    f"{jnp.shape(value)} for {name!r}"
                )
        self._metrics = {name: float(value) for name, value in named.items()}
        self.history.record_evaluation(self.level, epoch, self._metrics, cycle=self.cycle)
        return self._metrics

    def finish(self) -> None:
        """Fill in the work of every level that was visited, and release the thread."""
        for level in {int(level) for level in self.history.table()["level"]}:
            self.history.step_work.setdefault(level, self.step_work(level))
        self.close()

    def close(self) -> None:
        """Release the thread."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    # -- details -----------------------------------------------------------------------------

    def _keep(self, state: LoopState) -> None:
        """Make a copy of a loop state the present one; the loop will consume the original."""
        params, rest, self.smoother_state = jax.tree.map(
            jnp.copy, (state.params, state.rest, state.smoother)
        )
        nnx.update(self.model, params, rest)

    def _draw_points(self, loop: CompiledLoop) -> None:
        """Replace the present level's data by what the user's function makes of it."""
        if self._resample is None:
            return
        clock = time.perf_counter()
        structure, variables = nnx.split(self.model)
        if self.level not in self._resample_programs:
            draw = self._resample
            program = jax.jit(
                lambda values, data, key: draw(nnx.merge(structure, values), data, key)
            )
            found = jax.eval_shape(program, variables, loop.data, self._key)
            _check_resampled(found, loop.data)
            self._resample_programs[self.level] = program
        self._key, key = jax.random.split(self._key)
        loop.data = jax.block_until_ready(
            self._resample_programs[self.level](variables, loop.data, key)
        )
        self.history.resample_seconds += time.perf_counter() - clock

    def _look(self, done: int, planned: int, losses: np.ndarray) -> bool:
        """Evaluate, tell the callbacks, ask the rule; whether to leave the level."""
        self.evaluate(done)
        progress = LevelProgress(
            level=self.level,
            num_levels=self.num_levels,
            cycle=self.cycle,
            epoch=done,
            max_epochs=planned,
            losses=losses,
            steps_per_epoch=self._loops[self.level].steps_per_epoch,
            metrics=self._metrics,
            get_model=lambda: nnx.clone(self.whole_model()),
            step_work=self.step_work,
        )
        for callback in self._callbacks:
            if callback(progress):
                self.stopped = True
        return self.stopped or (
            self._advance is not None and self._advance.should_advance(progress)
        )

    def _recover(
        self,
        loop: CompiledLoop,
        snapshot: LoopState,
        previous: tuple[LoopState, int, tuple[Any, ...]] | None,
        new: np.ndarray,
        earlier: list[np.ndarray],
    ) -> None:
        """Return to the last state whose loss was finite, then raise."""
        good = new[np.isfinite(new)]
        failed_at = int(sum(len(part) for part in earlier)) + len(good)
        known = np.concatenate([*earlier, good]) if earlier or len(good) else np.zeros(0)
        if len(good) == 0 and previous is not None:
            # The first loss of this stretch is already bad: the last good state lies one step
            # before the end of the stretch before it.
            snapshot, steps, loop.data = previous
            replay = steps - 1
        else:
            replay = max(len(good) - 1, 0)
        state = loop.run(snapshot, replay)[0] if replay else snapshot
        self._keep(state)
        raise NonFiniteLossError(
            self.level, failed_at, float(known[-1]) if len(known) else float("nan")
        )


def _check_resampled(new: Any, old: tuple[Any, ...]) -> None:
    """Raise unless new data fit the compiled program of the level."""

    def shapes(data: Any) -> Any:
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", data)

    if shapes(new) != shapes(old):
        raise ValueError(
            f"resample must return data like that of the level, {shapes(old)}, got {shapes(new)}"
        )


def _check_prolongated(new: Any, fine: nnx.Module) -> None:
    """Raise unless a transfer returned a model for which the fine level's program is right."""
    if not isinstance(new, nnx.Module):
        raise TypeError(
            f"prolongate_fn must return the new fine model, got {new!r} of type "
            f"{type(new).__name__}"
        )
    shapes, wanted = (
        {
            jax.tree_util.keystr(path): getattr(leaf, "shape", ())
            for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model))
        }
        for model in (new, fine)
    )
    if shapes != wanted:
        name = next(n for n in [*wanted, *shapes] if shapes.get(n) != wanted.get(n))
        raise ValueError(
            "prolongate_fn must return a model like the fine one, which has "
            f"{name}: {wanted.get(name, 'nothing')}, got {shapes.get(name, 'nothing')}"
        )
