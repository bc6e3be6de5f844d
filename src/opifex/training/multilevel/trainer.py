"""`CascadeTrainer`, the class that users call: models, optimizer, and the call that trains them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from opifex.core.checks import check_callable, check_choice, check_key
from opifex.training.balancing import Balanced
from opifex.training.multilevel.checkpointing import Checkpoints, Recorder, Resume
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.multilevel.cycle import Cycle, as_cycle, check_moves
from opifex.training.multilevel.data import (
    LevelData,
    Prepared,
    Resampled,
    check_arity,
    level_placements,
    prepared_data,
    spread_data,
)
from opifex.training.multilevel.hierarchy import create_network_hierarchy
from opifex.training.multilevel.history import History
from opifex.training.multilevel.interpolation import interpolated
from opifex.training.multilevel.metrics import check_evaluate
from opifex.training.multilevel.monitor import Metrics, Monitor
from opifex.training.multilevel.optimizer import MultilevelAdam, MultilevelOptimizer
from opifex.training.multilevel.plan import planned_epochs
from opifex.training.multilevel.progress import progress_display
from opifex.training.multilevel.run import Run, Task
from opifex.training.multilevel.state import LevelState, RunState
from opifex.training.multilevel.train import train
from opifex.training.multilevel.transfer import Transfer, prolongate_preserving
from opifex.training.objective import LossFunction, check_loss, count_parameters
from opifex.training.placement import LevelPlacement, Placement
from opifex.training.processes import Processes

__all__ = ["CascadeTrainer", "LevelFlag"]


class LevelFlag(int):
    """A truth value that can also be called: ``flag`` and ``flag()`` mean the same."""

    def __call__(self) -> bool:
        """The truth value."""
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))


class CascadeTrainer:
    """Trains a hierarchy of models from coarse to fine.

    Give either a ``hierarchy``, or the sizes of a multilayer perceptron from which one is built::

        CascadeTrainer(hierarchy=models, optimizer=MultilevelAdam(1e-3), prolongate_fn=prolongate)
        CascadeTrainer(input_dim=2, output_dim=1, base_hidden_dims=[64, 64], config=config, rngs=rngs)

    The trainer owns copies of the models: those that were given never change, and can serve another
    trainer. It owns the optimizer itself, whose state changes with every step. Between calls
    `model` is the very object that training changes, and may be changed by hand.

    Args:
        hierarchy: models, coarsest first.
        optimizer: a `MultilevelOptimizer`; or an Optax transformation, a least-squares solver such as
            `LevenbergMarquardt`, or a sequence with one of these per level, which are wrapped in
            one. The default is ``MultilevelAdam(1e-3)``.
        prolongate_fn: the transfer ``(coarse_model, fine_model) -> fine_model``. The default
            preserves the function (`prolongate_preserving`).
        config: levels, epochs, and what is checked on the way. The default fits the hierarchy.
        input_dim: number of input coordinates (second form).
        output_dim: number of output components (second form).
        base_hidden_dims: hidden widths of the finest level (second form).
        rngs: random streams (second form).

    Attributes:
        optimizer: the optimizer with its state.
        prolongate_fn: the transfer.
        config: levels and epochs.
        history: record of all calls of `fit`.

    Raises:
        TypeError: if an argument has the wrong type, or both forms are mixed, or neither is complete.
        ValueError: if a value is out of range, ``config.num_levels`` is not the number of models, or
            ``optimizer`` already belongs to another trainer.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import CascadeTrainer, create_network_hierarchy
        >>> models = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> trainer = CascadeTrainer(models)
        >>> trainer.current_level, bool(trainer.is_at_finest)
        (0, False)
        >>> trainer.advance_level()
        True
    """

    def __init__(
        self,
        hierarchy: Sequence[nnx.Module] | None = None,
        optimizer: Any = None,
        prolongate_fn: Transfer | None = None,
        *,
        config: MultilevelConfig | None = None,
        input_dim: int | None = None,
        output_dim: int | None = None,
        base_hidden_dims: Sequence[int] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        sizes: dict[str, Any] = {
            "input_dim": input_dim,
            "output_dim": output_dim,
            "base_hidden_dims": base_hidden_dims,
            "rngs": rngs,
        }
        if config is not None and not isinstance(config, MultilevelConfig):
            raise TypeError(f"config must be a MultilevelConfig, got {type(config).__name__}")
        if hierarchy is not None:
            surplus = [name for name, value in sizes.items() if value is not None]
            if surplus:
                raise TypeError(
                    f"{surplus[0]} belongs to the form without hierarchy; give one or the other"
                )
            models = [nnx.clone(model) for model in _check_hierarchy(hierarchy)]
            config = config or MultilevelConfig(num_levels=len(models))
        else:
            missing = [name for name, value in sizes.items() if value is None]
            if missing:
                raise TypeError(
                    f"{missing[0]} is missing: give hierarchy, or input_dim, output_dim, "
                    "base_hidden_dims and rngs"
                )
            config = config or MultilevelConfig()
            models = list(
                create_network_hierarchy(
                    **sizes,
                    num_levels=config.num_levels,
                    coarsening_factor=config.coarsening_factor,
                )
            )
        if config.num_levels != len(models):
            raise ValueError(
                f"config.num_levels is {config.num_levels}, but hierarchy has {len(models)} models"
            )
        if prolongate_fn is not None:
            check_callable("prolongate_fn", prolongate_fn)
        self.config = config
        self.prolongate_fn: Transfer = prolongate_fn or prolongate_preserving
        self.optimizer = _as_multilevel_optimizer(optimizer, len(models))
        self.history = History()
        self._models = models
        self._level = 0
        self._key = jax.random.key(0)
        # States of levels that cycles visit; the current level's is the optimizer's.
        self._smoothers: list[Any] = [None] * len(models)
        # States of the balancing of residual terms, and what they belong to.
        self._balances: list[Any] = [None] * len(models)
        self._balanced_by: Any = None
        # How devices shared the last run.
        self._placement: Placement | None = None
        # What a run has reached and the models do not hold yet.
        self._pending: RunState | None = None
        self.optimizer.claim()
        self.optimizer.init(self.model)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{count_parameters(model)}" for model in self.hierarchy)
        return (
            f"CascadeTrainer(level {self.current_level} of 0..{self.num_levels - 1}, parameters per "
            f"level: {sizes}; {self.history!r})"
        )

    # -- where the trainer stands ------------------------------------------------------------

    @property
    def hierarchy(self) -> tuple[nnx.Module, ...]:
        """The trainer's own models, coarsest first, as they are now."""
        self._settle()
        return tuple(self._models)

    @property
    def model(self) -> nnx.Module:
        """The model of the current level, the very object that training changes."""
        self._settle()
        return self._models[self._level]

    def get_current_model(self) -> nnx.Module:
        """The same as `model`."""
        return self.model

    @property
    def current_level(self) -> int:
        """Number of the current level; 0 is the coarsest."""
        self._settle()
        return self._level

    @property
    def current_level_index(self) -> int:
        """The same as `current_level`."""
        return self.current_level

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self._models)

    @property
    def is_at_finest(self) -> LevelFlag:
        """Whether the current level is the finest; can be read or called."""
        return LevelFlag(self.current_level == self.num_levels - 1)

    def get_epochs_for_current_level(self) -> int:
        """Planned epochs of the current level, with the extra ones of the finest."""
        return self.config.epochs(self.current_level)

    # -- by hand -----------------------------------------------------------------------------

    def step(self, grads: Any, **extra: Any) -> None:
        """Update the current model, in place, and the optimizer's state with a gradient.

        Args:
            grads: gradient with respect to the model's parameters, as ``nnx.grad`` returns it.
            **extra: extra arguments of the transformation (``value=loss``), see
                `MultilevelOptimizer.update`.

        Raises:
            ValueError: if ``grads`` does not have the structure of the parameters.
        """
        self.optimizer.update(self.model, grads, **extra)

    def advance_level(self) -> bool:
        """Go to the next finer level with model and optimizer state.

        Whether the transfer kept the function is checked in `fit`, which has data to check it on;
        by hand, use `verify_transfer`.

        Returns:
            Whether there was a finer level to go to.
        """
        if self.is_at_finest:
            return False
        coarse, fine = self._models[self._level], self._models[self._level + 1]
        new = interpolated(self.prolongate_fn, coarse, fine)
        self.optimizer.resize_state(new, self.prolongate_fn)
        self._models[self._level + 1] = new
        self._level += 1
        self._balances[self._level] = None
        return True

    # -- in one call -------------------------------------------------------------------------

    def fit(
        self,
        loss_fn: LossFunction | Sequence[Any] | Balanced,
        data: LevelData | Resampled = (),
        *,
        epochs: Sequence[int] | None = None,
        batch_size: int | None = None,
        cycle: str | Cycle = "cascade",
        key: PRNGKeyArray | None = None,
        evaluate: Metrics | None = None,
        monitor: Monitor | None = None,
        checkpoint: Checkpoints | None = None,
        resume: Resume = None,
    ) -> History:
        """Train every level from the current one on, the finest included, in compiled loops.

        Args:
            loss_fn: ``loss_fn(model, *data)`` returning a scalar; with an argument named ``key``
                it gets a fresh random key at every step. Or a sequence of `ResidualTerm`, one per
                entry of ``data``: the loss is then their weighted mean square, and least-squares
                solvers see the residuals. Or such terms in a `Balanced`, which computes their weights.
            data: a tuple of arrays for all levels; or a list with one tuple per level, or a
                function from the level to its tuple, for coarser data on coarser levels; or any of
                these in a `Resampled`, which draws them anew. In the place of a tuple there may be
                anything that yields batches, such as a Grain dataset: they are read while the level
                trains, in the order in which they come, see `Streamed`. Levels with the same source
                go on where the level before them stopped reading; each call begins to read anew.
            epochs: epochs per level, coarsest first, or from the present level on; zero skips a
                level. By default what is left of the epochs that ``config`` plans: all of them in a
                first call, the rest after an interrupt. A cycle that visits coarser levels to
                correct finer ones needs an entry for every level, and by default does its whole
                plan in every call.
            batch_size: samples per step, drawn in a fresh random order each epoch. What does not
                fill a batch is left out of that epoch. ``None`` uses all data at every step, so that
                an epoch is one step. It must be ``None`` where the data yield batches.
            cycle: order of the levels: ``"cascade"``, ``"v-cycle"``, ``"w-cycle"``,
                ``"full-multigrid"``, or a `Cycle` such as ``VCycle(cycles=10)`` or
                ``Cascade(stop=LossPlateau())``.
            key: random key for shuffling, resampling and the loss. By default the trainer goes on
                with its own stream, which starts from ``jax.random.key(0)``, so that two calls equal
                one of their joint length.
            evaluate: ``evaluate(model)`` returning a scalar or a dictionary of scalars; compiled. A
                scalar gets the name of the function, ``"metric"`` if that is a ``lambda``.
            monitor: when to evaluate, callbacks, observers, progress on the screen.
            checkpoint: where and how often the run is kept on disk; see `Checkpoints`. SIGTERM then
                ends the run like Ctrl-C, in all processes where several share it.
            resume: ``"auto"`` goes on from the newest good checkpoint of ``checkpoint``, and starts
                where there is none. The trainer must be a new one, made and called like the first;
                after a run that had come to its end, nothing is left to do. By default a folder that
                holds checkpoints is refused.

        Returns:
            The history of this and all earlier calls.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if a value is out of range, by default nothing is left to train, or the folder
                of ``checkpoint`` holds those of another run, only damaged ones, or any while ``resume``
                is ``None``; or there are several processes, and the run is one of this process alone
                or of some of them.
            NonFiniteLossError: if training diverges.
            LossExplosionError: if the loss grows beyond what ``config.faults`` allows.
            TransferError: if a transfer does not keep the function that it promises to keep.

        However a call ends, by an error of any kind or by Ctrl-C, the trainer holds the last good
        state of the level that it stood on, and can go on from there.

        Example:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> from opifex.training.multilevel import CascadeTrainer, create_network_hierarchy
            >>> models = create_network_hierarchy(1, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
            >>> trainer, x = CascadeTrainer(models), jnp.linspace(-1.0, 1.0, 16)[:, None]
            >>> def loss_fn(model, x):
            ...     return jnp.mean((model(x) - x**2) ** 2)
            >>> trainer.fit(loss_fn, (x,), epochs=[5, 10]).num_steps, trainer.current_level
            (15, 1)
        """
        balanced = loss_fn if isinstance(loss_fn, Balanced) else None
        loss = check_loss(balanced.terms if balanced else loss_fn)
        order = as_cycle(cycle)
        if evaluate is not None:
            check_evaluate(evaluate)
        if monitor is not None and not isinstance(monitor, Monitor):
            raise TypeError(f"monitor must be a Monitor, got {monitor!r}")
        if key is not None:
            check_key("key", key)
        _check_checkpoint(checkpoint, resume)
        resampled = data if isinstance(data, Resampled) else None
        start = self.current_level
        planned = planned_epochs(epochs, order, start, self.config, self.history)
        moves = list(order.moves(self.num_levels, start, planned))
        check_moves(moves, self.num_levels, start)
        other = self.history.stopwatch.charge("other")
        with other, progress_display(monitor or Monitor(), self.num_levels) as watched:
            given: Any = resampled.data if resampled else data
            placement = self.config.placement or Placement.found(given)
            spread = placement is not None
            processes = Processes.of(placement.mesh) if placement else Processes()
            prepared = prepared_data(given, self.num_levels, batch_size, spread=spread)
            batches = (0,) * len(prepared.streams)
            run: Run | None = None
            try:
                check_arity(loss, prepared.arrays)
                _check_sampling(prepared, order, resampled, batch_size)
                _check_reading(prepared, checkpoint, self.config)
                places: tuple[LevelPlacement | None, ...] = (None,) * self.num_levels
                if placement is not None:
                    sizes = [count_parameters(model) for model in self._models]
                    placed = level_placements(placement, prepared, sizes)
                    prepared, places = spread_data(prepared, placed), placed
                task = Task(
                    loss=loss,
                    smoothers=tuple(map(self.optimizer.smoother_at, range(self.num_levels))),
                    sampling=prepared.sampling,
                    streams=prepared.streams,
                    transfer=self.prolongate_fn,
                    move_state=self._move_state,
                    resampled=resampled,
                    balanced=balanced,
                    evaluate=evaluate,
                    monitor=watched,
                    config=self.config,
                    places=places,
                )
                smoothers = [*self._smoothers]
                smoothers[start] = self.optimizer.state
                by = (balanced.method, len(balanced.terms)) if balanced else None
                if by != self._balanced_by:
                    self._balances, self._balanced_by = [None] * self.num_levels, by
                levels = (
                    LevelState.of(model, smoother)._replace(balance=balance).placed(place)
                    for model, smoother, balance, place in zip(
                        self._models, smoothers, self._balances, places, strict=True
                    )
                )
                now = self._key if key is None else key
                if places[0] is not None:
                    now = places[0].whole(now)
                state = RunState(start, tuple(levels), prepared.arrays, now, batches=batches)
                recorder = _recorder(checkpoint, resume, processes)
                self.history.begin()
                self._placement = placement
                run = Run(state, order, moves, task, self.history, self._keep, recorder, processes)
                with placement.active() if placement else nullcontext():
                    train(run)
            except ValueError as error:
                if placement is not None and "should match the aval mesh" in str(error):
                    error.add_note(
                        "A function has closed over an array that lies on a mesh with explicit axes: "
                        "give it as data, or make it with NumPy."
                    )
                raise
            finally:
                self._settle()
                prepared.close(batches if run is None else run.state.batches)
        return self.history

    def _move_state(self, level: int, state: Any, coarse: nnx.Module, fine: nnx.Module) -> Any:
        return self.optimizer.moved_state(level, state, coarse, fine, self.prolongate_fn)

    def _keep(self, state: RunState) -> None:
        self._pending = state

    def _settle(self) -> None:
        """Write what a run has reached into models and optimizer."""
        state, self._pending = self._pending, None
        if state is None:
            return
        levels, key, placement = state.levels, state.key, self._placement
        if placement is not None:
            levels = tuple(reached.placed(placement.outside) for reached in levels)
            key = placement.outside.whole(key)
        for level, reached in enumerate(levels[: state.level + 1]):
            model = self._models[level]
            if nnx.graphdef(model) == reached.graphdef:
                nnx.update(model, reached.params, reached.rest)
            else:  # a transfer has made another model
                self._models[level] = reached.model
        self._level, self._key = state.level, key
        self._smoothers = [reached.smoother for reached in levels]
        self._balances = [reached.balance for reached in levels]
        self.optimizer.restore(self.model, self._smoothers[self._level], self._level)


def _check_checkpoint(checkpoint: Checkpoints | None, resume: Resume) -> None:
    if resume is not None:
        check_choice("resume", resume, ("auto",))
        if checkpoint is None:
            raise ValueError(f"resume={resume!r} needs a checkpoint to go on from, got none")
    if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
        raise TypeError(f"checkpoint must be a Checkpoints, got {checkpoint!r}")


def _recorder(
    checkpoint: Checkpoints | None, resume: Resume, processes: Processes
) -> Recorder | None:
    """What keeps a run on disk, if it is to be kept."""
    if checkpoint is None:
        return None
    if jax.process_count() > 1 and not processes.several:
        raise ValueError(
            f"checkpoint is for a run that all {jax.process_count()} processes share: give a placement "
            "with the devices of all of them"
        )
    recorder = Recorder(checkpoint, processes)
    if resume is None and not recorder.empty:
        recorder.close(None)
        raise ValueError(
            f"checkpoint.folder must be empty unless resume='auto', {recorder.folder} holds checkpoints"
        )
    return recorder


def _check_sampling(
    data: Prepared, cycle: Cycle, resampled: Resampled | None, batch_size: int | None
) -> None:
    """Raise where the way of taking batches does not go with the cycle, or with new data."""
    streamed = bool(data.streams)
    if resampled is not None and streamed:
        raise ValueError(
            "data of a Resampled must be arrays, got a source of batches: make it yield new ones"
        )
    if cycle.coarse != "rediscretised":
        return
    reason = (
        "the linear term of a rediscretised coarse objective makes the levels agree to first order "
        'on the same data only (coarse="galerkin" needs no such term)'
    )
    if streamed:
        raise ValueError(f"data must be arrays with this cycle, got a source of batches: {reason}")
    if batch_size is not None:
        raise ValueError(f"batch_size must be None with this cycle, got {batch_size}: {reason}")
    if resampled is not None:
        raise ValueError(f"data must not be Resampled with this cycle: {reason}")


def _check_reading(
    data: Prepared, checkpoint: Checkpoints | None, config: MultilevelConfig
) -> None:
    """Raise where batches may have to be read again, and cannot."""
    wanted = None if checkpoint is None else "a checkpoint"
    if config.faults.action == "rollback":
        wanted = "rollback after faults"
    if wanted and not all(stream.returns for stream in data.streams):
        raise ValueError(
            f"data must be a source that can be read again for {wanted}, such as a Grain dataset, got "
            "an iterator that cannot say where it is"
        )


def _check_hierarchy(hierarchy: Any) -> list[nnx.Module]:
    if isinstance(hierarchy, nnx.Module) or not isinstance(hierarchy, Sequence):
        raise TypeError(
            f"hierarchy must be a sequence of nnx.Module, got {type(hierarchy).__name__}"
        )
    if len(hierarchy) == 0:
        raise ValueError("hierarchy must not be empty")
    for i, model in enumerate(hierarchy):
        if not isinstance(model, nnx.Module):
            raise TypeError(f"hierarchy[{i}] must be an nnx.Module, got {type(model).__name__}")
    return list(hierarchy)


def _as_multilevel_optimizer(optimizer: Any, num_levels: int) -> MultilevelOptimizer:
    if optimizer is None:
        return MultilevelAdam(1e-3)
    if isinstance(optimizer, MultilevelOptimizer):
        return optimizer
    wrapped = MultilevelOptimizer(optimizer)
    if wrapped.num_methods not in (None, num_levels):
        raise ValueError(
            f"optimizer must have one entry per level ({num_levels}) when it is a sequence, got "
            f"{wrapped.num_methods}"
        )
    return wrapped
