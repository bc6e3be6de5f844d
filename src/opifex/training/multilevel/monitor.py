"""Observing a run: what callbacks, observers and stopping criteria are given, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from flax import nnx

from opifex.core.checks import check_callable, check_positive_int, check_sequence

__all__ = ["Callback", "LevelProgress", "Metrics", "Monitor", "Phase", "RunObserver"]

Phase = Literal["compiling", "training", "transferring", "evaluating"]
"""What a run is doing."""


def _nothing(*_: Any) -> None:
    """In the place of what only a run can do."""


@dataclass(frozen=True)
class LevelProgress:
    """What a stopping criterion, callback or observer is given.

    Attributes:
        level: present level; 0 is the coarsest.
        num_levels: number of levels.
        cycle: number of the cycle, zero for a cascade.
        epoch: epochs done during this visit of the level.
        max_epochs: epochs planned for it.
        losses: the losses of this visit, one per step: shape (steps,).
        steps_per_epoch: steps of one epoch.
        metrics: latest evaluation by name, empty if there was none.
        get_model: returns the present model (a copy).
        step_work: returns the cost of one step of a level in steps of the finest level.
        step: steps taken by the trainer so far, on all levels and in all calls of ``fit``.
        work: work units spent on them (steps of the finest level).
        seconds: seconds spent in ``fit`` so far, all accounts of the history together.
        call: number of the present call of ``fit``, from one on.
        steps_per_second: how fast the latest steps were, ``None`` where that is not known.
        seconds_left: estimate of the training seconds that the planned epochs of this and of all
            later levels still take, ``None`` where there is no ground for one.
        correcting: whether a cycle is visiting this level to correct a finer one, so that losses
            and metrics are those of the visit's own objective.
        last: whether no further evaluation of this level is planned in this run.
        snapshot: returns where the level stands (parameters, other variables, optimizer state), to
            be handed to ``restore``; nothing is copied.
        restore: ``restore(snapshot)`` sets the level back, after all callbacks were called.
        end_level: ends the level, as a stopping criterion does.
    """

    level: int
    num_levels: int
    cycle: int
    epoch: int
    max_epochs: int
    losses: np.ndarray
    steps_per_epoch: int
    metrics: dict[str, float]
    get_model: Callable[[], nnx.Module]
    step_work: Callable[[int], float]
    step: int = 0
    work: float = 0.0
    seconds: float = 0.0
    call: int = 1
    steps_per_second: float | None = None
    seconds_left: float | None = None
    correcting: bool = False
    last: bool = False
    snapshot: Callable[[], Any] = _nothing
    restore: Callable[[Any], None] = _nothing
    end_level: Callable[[], None] = _nothing

    @property
    def model(self) -> nnx.Module:
        """The present model, as a copy: changing it does not touch the run."""
        return self.get_model()

    @property
    def is_finest(self) -> bool:
        """Whether there is no finer level."""
        return self.level == self.num_levels - 1


Callback = Callable[[LevelProgress], Any]
"""Called at the end of every evaluation interval; a true return value ends the run."""

Metrics = Callable[[Any], Any]
"""``evaluate(model)``: a scalar, or a dictionary of scalars. It is compiled. A scalar is recorded under
the name of the function, ``"metric"`` where it has none."""


class RunObserver(Protocol):
    """What is told how a run goes on: a display, a logger, a command line.

    Observers cannot change the run. An exception that one of them raises ends it, like one in a
    callback. Their time is charged to ``History.evaluation_seconds``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import CascadeTrainer, Monitor, create_network_hierarchy
        >>> class Log:
        ...     def __init__(self):
        ...         self.lines = []
        ...     def on_phase(self, phase, level):
        ...         self.lines.append(f"{phase} {level}")
        ...     def on_progress(self, progress):
        ...         self.lines.append(f"{progress.step} steps")
        >>> models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
        >>> monitor = Monitor(every=2, observers=[log := Log()])
        >>> history = CascadeTrainer(models).fit(
        ...     lambda model: model(jnp.ones(1))[0] ** 2, epochs=[4, 2], monitor=monitor
        ... )
        >>> log.lines[:4]
        ['compiling 0', 'training 0', '2 steps', '4 steps']
        >>> log.lines[4:]
        ['transferring 1', 'compiling 1', 'training 1', '6 steps']
    """

    def on_phase(self, phase: Phase, level: int) -> None:
        """The run begins to do something else, or the same on another level.

        Args:
            phase: what it does from now on: ``"compiling"`` (tracing, or waiting for the compiler),
                ``"training"``, ``"transferring"`` to another level, ``"evaluating"`` metrics,
                callbacks and criteria.
            level: where; for a transfer, the level that it leads to.
        """
        ...

    def on_progress(self, progress: LevelProgress) -> None:
        """The end of an evaluation interval, after metrics and callbacks.

        Args:
            progress: where the run stands.
        """
        ...


@dataclass(frozen=True)
class Monitor:
    """The evaluation interval, and what is done at its end.

    Attributes:
        every: the evaluation interval in epochs: how often the metrics are computed, the callbacks
            called and the stopping criterion asked; by default a twentieth of what is planned for the
            visit of a level.
        callbacks: called with a `LevelProgress`; a true return value ends the *run*, where a
            stopping criterion ends the *level*.
        progress: show level, epoch, loss, metrics, speed and time left while the run goes on: as a
            bar on a terminal, as plain lines elsewhere.
        observers: told how the run goes on, see `RunObserver`.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if ``every`` is not positive.

    Example:
        >>> from opifex.training.multilevel import Monitor
        >>> monitor = Monitor(every=50, callbacks=[lambda progress: progress.losses[-1] < 1e-6])
        >>> monitor.interval(400), Monitor().interval(400)
        (50, 20)
    """

    every: int | None = None
    callbacks: Sequence[Callback] = ()
    progress: bool = False
    observers: Sequence[RunObserver] = ()

    def __post_init__(self) -> None:
        if self.every is not None:
            check_positive_int("every", self.every)
        check_sequence("callbacks", self.callbacks)
        for i, callback in enumerate(self.callbacks):
            check_callable(f"callbacks[{i}]", callback)
        if not isinstance(self.progress, bool):
            raise TypeError(f"progress must be a bool, got {self.progress!r}")
        check_sequence("observers", self.observers)
        for i, observer in enumerate(self.observers):
            for method in ("on_phase", "on_progress"):
                if not callable(getattr(observer, method, None)):
                    raise TypeError(f"observers[{i}] must have a method {method}, got {observer!r}")

    def interval(self, epochs: int) -> int:
        """The evaluation interval of a visit that is planned to last so many epochs."""
        return self.every or max(1, epochs // 20)
