"""From training to loggers: a callback that makes a row of every evaluation interval."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from opifex.loggers.protocol import Logger, Outcome, Row, RunInfo
from opifex.training.multilevel import History, LevelProgress

__all__ = ["Reporter"]


class Reporter:
    """Opens loggers, gives them a row at the end of every evaluation interval, and closes them.

    It is a callback for `Monitor`, and a context that says how the run ended.

    Args:
        loggers: where the rows go.
        history: the record that the run writes, ``trainer.history``.
        info: what the loggers are told first.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.loggers import ConsoleLogger, Reporter, RunInfo
        >>> from opifex.training.multilevel import (
        ...     CascadeTrainer, Monitor, create_network_hierarchy
        ... )
        >>> models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
        >>> trainer = CascadeTrainer(models)
        >>> with Reporter([ConsoleLogger()], trainer.history, RunInfo("example")) as report:
        ...     history = trainer.fit(
        ...         lambda model: model(jnp.ones(1))[0] ** 2,
        ...         epochs=[2, 3],
        ...         monitor=Monitor(every=3, callbacks=[report]),
        ...     )
        run example
        step 2  level 0  cycle 0  epoch 2  loss ...
        step 5  level 1  cycle 0  epoch 3  loss ...
        finished
    """

    def __init__(self, loggers: Sequence[Logger], history: History, info: RunInfo) -> None:
        self._loggers = tuple(loggers)
        self._history = history
        self._info = info
        self._opened: list[Logger] = []

    def __enter__(self) -> Reporter:
        """Open all loggers."""
        for logger in self._loggers:
            logger.open(self._info)
            self._opened.append(logger)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all loggers with the outcome."""
        outcome: Outcome = "finished"
        if kind is not None:
            outcome = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        for logger in self._opened:
            logger.close(outcome)

    def __call__(self, progress: LevelProgress) -> None:
        """Make a row and hand it on; the run goes on in any case."""
        row = self.row(progress)
        for logger in self._loggers:
            logger.log(self._history.num_steps, row)

    def row(self, progress: LevelProgress) -> Row:
        """The numbers of this moment.

        Args:
            progress: where the run stands.

        Returns:
            Step, level, cycle, epoch, loss, all metrics, work units, seconds of training, seconds
            without evaluations, and seconds waited for compilation.
        """
        history = self._history
        return {
            "step": history.num_steps,
            "level": progress.level,
            "cycle": progress.cycle,
            "epoch": progress.epoch,
            "loss": float(progress.losses[-1]),
            **progress.metrics,
            "work": history.work,
            "seconds": history.seconds,
            "elapsed_seconds": history.elapsed_seconds,
            "compile_seconds": history.compile_seconds,
        }
