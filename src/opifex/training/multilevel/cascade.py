"""`CascadeTrainer`: the face of the library. It holds the state; everything else is a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PRNGKeyArray

from opifex.core.checks import (
    check_callable,
    check_choice,
    check_key,
    check_positive_int,
    check_sequence,
)
from opifex.core.residuals import ResidualTerm
from opifex.models.mlp import Activation
from opifex.training.loop import check_data, enable_compilation_cache
from opifex.training.multilevel.advance import AdvanceRule
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.multilevel.cycles import FullMultigrid, VCycle, WCycle
from opifex.training.multilevel.hierarchy import create_network_hierarchy
from opifex.training.multilevel.history import History
from opifex.training.multilevel.optimizer import (
    MultilevelAdam,
    MultilevelOptimizer,
)
from opifex.training.multilevel.residual_correction import ResidualCorrection
from opifex.training.multilevel.run import Callback, Metrics, MultilevelRun, Resample
from opifex.training.multilevel.state_transfer import transfer_optimizer_state
from opifex.training.multilevel.strategies import Cascade, Strategy
from opifex.training.multilevel.transfer import Transfer, prolongate_preserving
from opifex.training.progress import ProgressBar
from opifex.training.smoothers import (
    GradientSmoother,
    LeastSquaresSmoother,
    Smoother,
    as_smoother,
    initial_state,
)

__all__ = ["CascadeTrainer", "LevelFlag"]

STRATEGIES: dict[str, Strategy] = {
    "cascade": Cascade(),
    "v-cycle": VCycle(),
    "w-cycle": WCycle(),
    "full-multigrid": FullMultigrid(),
    "residual-correction": ResidualCorrection(),
}

LevelData = tuple[Any, ...] | list[tuple[Any, ...]] | Callable[[int], tuple[Any, ...]]


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

    Args:
        hierarchy: models, coarsest first.
        optimizer: a `MultilevelOptimizer`, or any Optax transformation, which is wrapped in one.
            The default is ``MultilevelAdam(1e-3)``.
        prolongate_fn: the transfer ``(coarse_model, fine_model) -> fine_model``. The default
            preserves the function (`prolongate_preserving`).
        config: levels and epochs. The default fits the hierarchy.
        input_dim: number of input coordinates (second form).
        output_dim: number of output components (second form).
        base_hidden_dims: hidden widths of the finest level (second form).
        activation: elementwise function of the hidden layers (second form; default ``tanh``).
        rngs: random streams (second form).

    Attributes:
        hierarchy: the models as given, coarsest first.
        optimizer: the optimizer with its state.
        config: levels and epochs.
        history: record of all calls of `fit`.

    Raises:
        TypeError: if an argument has the wrong type, or both forms are mixed, or neither is complete.
        ValueError: if a value is out of range or ``config.num_levels`` is not the number of models.
    """

    def __init__(
        self,
        hierarchy: Sequence[nnx.Module] | None = None,
        optimizer: MultilevelOptimizer | optax.GradientTransformation | None = None,
        prolongate_fn: Transfer | None = None,
        *,
        config: MultilevelConfig | None = None,
        input_dim: int | None = None,
        output_dim: int | None = None,
        base_hidden_dims: Sequence[int] | None = None,
        activation: Activation | None = None,
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
            surplus = [n for n, v in {**sizes, "activation": activation}.items() if v is not None]
            if surplus:
                raise TypeError(
                    f"{surplus[0]} belongs to the form without hierarchy; give one or the other"
                )
            models = _check_hierarchy(hierarchy)
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
                    activation=activation or jnp.tanh,
                )
            )
        if config.num_levels != len(models):
            raise ValueError(
                f"config.num_levels is {config.num_levels}, but hierarchy has {len(models)} models"
            )
        if prolongate_fn is not None:
            check_callable("prolongate_fn", prolongate_fn)
        self.hierarchy = models
        self.config = config
        self.prolongate_fn: Transfer = prolongate_fn or prolongate_preserving
        self.optimizer = _as_multilevel_optimizer(optimizer)
        self.history = History()
        self._models = list(models)
        self._level = 0
        self.optimizer.init(self.model)

    # -- where the trainer stands ------------------------------------------------------------

    @property
    def model(self) -> nnx.Module:
        """The model of the current level, the very object that training changes."""
        return self._models[self._level]

    def get_current_model(self) -> nnx.Module:
        """The same as `model`."""
        return self.model

    @property
    def current_level(self) -> int:
        """Number of the current level, 0 the coarsest."""
        return self._level

    @property
    def current_level_index(self) -> int:
        """The same as `current_level`."""
        return self._level

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self._models)

    @property
    def is_at_finest(self) -> LevelFlag:
        """Whether the current level is the finest; can be read or called."""
        return LevelFlag(self._level == self.num_levels - 1)

    def get_epochs_for_current_level(self) -> int:
        """Planned epochs of the current level, with the extra ones of the finest."""
        return self.config.epochs(self._level)

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

        Returns:
            Whether there was a finer level to go to.
        """
        if self.is_at_finest:
            return False
        coarse, fine = self._models[self._level], self._models[self._level + 1]
        new = self.prolongate_fn(coarse, fine)
        self.optimizer.resize_state(new, self.prolongate_fn)
        self._models[self._level + 1] = new
        self._level += 1
        return True

    # -- in one call -------------------------------------------------------------------------

    def fit(
        self,
        loss_fn: Callable[..., Any] | None = None,
        data: LevelData = (),
        *,
        terms: Sequence[ResidualTerm] | None = None,
        epochs: Sequence[int] | None = None,
        batch_size: int | None = None,
        key: PRNGKeyArray | None = None,
        strategy: str | Strategy = "cascade",
        smoothers: Sequence[Any] | None = None,
        advance: AdvanceRule | None = None,
        evaluate: Metrics | None = None,
        report_every: int | None = None,
        callbacks: Sequence[Callback] = (),
        resample: Resample | None = None,
        progress: bool = False,
        compile_ahead: bool = True,
        compilation_cache: str | PathLike[str] | None = None,
    ) -> History:
        """Train every level from the current one on, the finest included, in compiled loops.

        Args:
            loss_fn: ``loss_fn(model, *data)`` returning a scalar; with an argument named ``key``
                it gets a fresh random key at every step. May be left out if ``terms`` are given:
                the loss is then their weighted mean square.
            data: a tuple of arrays for all levels; or a list with one tuple per level, or a
                function from the level to its tuple, for coarser data on coarser levels.
            terms: residual terms, one per entry of ``data``; least-squares smoothers need them.
            epochs: epochs per level; the default comes from ``config``.
            batch_size: samples per step, drawn in a fresh random order each epoch. ``None`` uses
                all data at every step, so that an epoch is one step.
            key: random key for shuffling and for the loss; the default is ``jax.random.key(0)``.
            strategy: order of the levels: ``"cascade"``, ``"v-cycle"``, ``"w-cycle"``,
                ``"full-multigrid"``, ``"residual-correction"``, or a `Strategy` such as
                ``VCycle(cycles=10)``. Cycles take all data at every step, and Optax smoothers only
                unless they are cycles over blocks.
            smoothers: one per level, instead of ``optimizer``: Optax transformations or
                least-squares solvers. State is carried to the next level where its structure is
                the same, and starts afresh where it is not.
            advance: rule that may end a level before its epochs are done.
            evaluate: ``evaluate(model)`` returning a scalar or a dictionary of scalars; compiled.
            report_every: epochs between evaluations and callbacks; by default a twentieth of the
                level.
            callbacks: called with a `LevelProgress`; a true return value ends the run.
            resample: ``resample(model, data, key)`` returning new data of the same shapes, such as
                a `ResidualResampler`; compiled, and called between the stretches that
                ``report_every`` cuts a level into. Not with cycles.
            progress: show a progress bar.
            compile_ahead: compile the next level in a thread while the current one trains.
            compilation_cache: folder that keeps compiled programs from one process to the next.

        Returns:
            The history of this and all earlier calls.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if a value is out of range.
            NonFiniteLossError: if training diverges; the trainer then holds the last good state.
        """
        order = _as_strategy(strategy)
        if order.coarse_objective != "own":
            _check_for_cycles(batch_size, advance, resample)
        for name, optional in (
            ("loss_fn", loss_fn),
            ("evaluate", evaluate),
            ("resample", resample),
        ):
            if optional is not None:
                check_callable(name, optional)
        check_sequence("callbacks", callbacks)
        for i, callback in enumerate(callbacks):
            check_callable(f"callbacks[{i}]", callback)
        if advance is not None and not callable(getattr(advance, "should_advance", None)):
            raise TypeError(f"advance must have a should_advance method, got {advance!r}")
        if report_every is not None:
            check_positive_int("report_every", report_every)
        if key is not None:
            check_key("key", key)
        if compilation_cache is not None:
            if not isinstance(compilation_cache, str | PathLike):
                raise TypeError(f"compilation_cache must be a folder, got {compilation_cache!r}")
            enable_compilation_cache(str(compilation_cache))
        planned = self._plan_epochs(epochs)
        per_level_data = [check_data(d, batch_size)[0] for d in self._level_data(data)]
        chosen, state, move = self._choose_smoothers(smoothers)
        bar = ProgressBar(self.num_levels) if progress else None
        run = MultilevelRun(
            models=order.prepare(self._models, self._level),
            level=self._level,
            smoothers=chosen,
            smoother_state=state,
            loss_fn=loss_fn,
            terms=terms,
            data=per_level_data,
            epochs=planned,
            batch_size=batch_size,
            key=jax.random.key(0) if key is None else key,
            prolongate=self.prolongate_fn,
            move_smoother_state=move,
            advance=advance,
            evaluate=evaluate,
            report_every=report_every,
            callbacks=[*callbacks, bar.update] if bar else callbacks,
            resample=resample,
            compile_ahead=compile_ahead,
            history=self.history,
            coarse_objective=order.coarse_objective,
        )
        try:
            if bar:
                bar.start()
            order(run)
        finally:
            if bar:
                bar.stop()
            self._models, self._level = run.models, run.level
            if smoothers is None:
                self.optimizer.restore(self.model, run.smoother_state, run.level)
            else:
                self.optimizer.restore(self.model, None, run.level)
            run.finish()
            if any(isinstance(smoother, LeastSquaresSmoother) for smoother in chosen):
                # XLA does not count the operations of matrix factorisations.
                self.history.measure_work_by_time(run.finest)
        return self.history

    def _plan_epochs(self, epochs: Sequence[int] | None) -> list[int]:
        if epochs is None:
            return [self.config.epochs(level) for level in range(self.num_levels)]
        check_sequence("epochs", epochs)
        if len(epochs) != self.num_levels:
            raise ValueError(
                f"epochs must have one entry per level ({self.num_levels}), got {list(epochs)}"
            )
        return [check_positive_int(f"epochs[{i}]", n) for i, n in enumerate(epochs)]

    def _level_data(self, data: LevelData) -> list[tuple[Any, ...]]:
        if callable(data):
            return [data(level) for level in range(self.num_levels)]
        if isinstance(data, list):
            if len(data) != self.num_levels:
                raise ValueError(
                    f"data must have one tuple per level ({self.num_levels}) when it is a list, "
                    f"got {len(data)}"
                )
            return data
        return [data] * self.num_levels

    def _choose_smoothers(
        self, smoothers: Sequence[Any] | None
    ) -> tuple[list[Smoother], Any, Callable[[int, Any, nnx.Module, nnx.Module], Any]]:
        """Smoothers of all levels, the state of the current one, and how states move."""
        if smoothers is None:
            optimizer = self.optimizer
            chosen: list[Smoother] = [
                GradientSmoother(optimizer.transformation_at(level))
                for level in range(self.num_levels)
            ]

            def move_optimizer(level: int, state: Any, coarse: Any, fine: Any) -> Any:
                return optimizer.moved_state(level, state, coarse, fine, self.prolongate_fn)

            return chosen, optimizer.state, move_optimizer
        check_sequence("smoothers", smoothers)
        if len(smoothers) != self.num_levels:
            raise ValueError(
                f"smoothers must have one entry per level ({self.num_levels}), got {len(smoothers)}"
            )
        chosen = [as_smoother(smoother) for smoother in smoothers]

        def move_or_restart(level: int, state: Any, coarse: Any, fine: Any) -> Any:
            try:
                return transfer_optimizer_state(
                    chosen[level + 1], state, coarse, fine, self.prolongate_fn
                )
            except ValueError:  # another method on the next level: nothing to carry
                return initial_state(chosen[level + 1], fine)

        return chosen, initial_state(chosen[self._level], self.model), move_or_restart


def _as_strategy(strategy: Any) -> Strategy:
    if isinstance(strategy, str):
        return STRATEGIES[check_choice("strategy", strategy, list(STRATEGIES))]
    if callable(strategy) and all(hasattr(strategy, n) for n in ("coarse_objective", "prepare")):
        return strategy
    raise TypeError(
        f"strategy must be one of {list(STRATEGIES)} or a Strategy, got {strategy!r} of type "
        f"{type(strategy).__name__}"
    )


def _check_for_cycles(batch_size: int | None, advance: Any, resample: Any) -> None:
    if batch_size is not None:
        raise ValueError(
            f"batch_size must be None with cycles, got {batch_size}: the levels' objectives agree "
            "to first order on the same data only"
        )
    if resample is not None:
        raise ValueError(
            "resample must be None with cycles: the levels' objectives agree to first order on the "
            "same data only"
        )
    if advance is not None:
        raise ValueError("advance must be None with cycles, which fix the order of the levels")


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


def _as_multilevel_optimizer(optimizer: Any) -> MultilevelOptimizer:
    if optimizer is None:
        return MultilevelAdam(1e-3)
    if isinstance(optimizer, MultilevelOptimizer):
        return optimizer
    if isinstance(optimizer, optax.GradientTransformation):
        return MultilevelOptimizer(optimizer)
    raise TypeError(
        "optimizer must be a MultilevelOptimizer or an optax.GradientTransformation, got "
        f"{optimizer!r} of type {type(optimizer).__name__}"
    )
