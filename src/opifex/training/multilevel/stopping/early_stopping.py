"""Early stopping: a callback that leaves a level, or the run, when a metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from opifex.core.checks import check_choice, check_nonnegative, check_positive_int
from opifex.storage.trees import filled
from opifex.training.multilevel.monitor import LevelProgress

Scope = Literal["level", "run"]
"""What ends when patience does: the present level, or the whole run."""

__all__ = ["EarlyStopping", "Scope"]

# What is remembered beside the best model.
_NUMBERS = ("best", "best_epoch", "_best_step", "_in_vain", "_seen")


class EarlyStopping:
    """A callback that ends a level, or the run, when a metric no longer improves.

    At the end of every evaluation interval the metric is compared with its best value on this level
    so far. Where a cycle visits a coarser level to correct a finer one, nothing is compared: there
    the metric is that of another model.

    With ``restore_best`` a level ends with the parameters, other variables and optimizer state of its
    best evaluation, whether patience or the planned epochs ended it; the next level starts from
    there. The restored model is evaluated once more, so that the last entry of
    ``History.evaluations`` is that of the model which the trainer holds. An exception, Ctrl-C and
    another callback that ends the run leave the latest state instead.

    Args:
        patience: how many evaluations in a row may fail to improve on the best one.
        metric: name of the metric, which is to fall; by default the only one that ``evaluate``
            returns. ``"loss"`` is the mean training loss of the last interval, and the default
            where nothing is evaluated.
        min_delta: how far a value must lie below the best one to count as better.
        restore_best: whether a level ends with its best model.
        scope: ``"level"`` ends the present level, and the run goes on with the next one;
            ``"run"`` ends the run.

    Attributes:
        best: lowest value on the present level, infinite before the first.
        best_epoch: epoch of it.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is out of range or ``scope`` unknown; when it is called, if there is
            no metric of that name, or none is named and there are several.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import CascadeTrainer, EarlyStopping, Monitor
        >>> trainer = CascadeTrainer(input_dim=1, output_dim=1, base_hidden_dims=[8], rngs=nnx.Rngs(0))
        >>> monitor = Monitor(every=2, callbacks=[EarlyStopping(patience=3)])
        >>> history = trainer.fit(lambda model: 1.0, monitor=monitor)
        >>> history.num_steps  # on each of three levels a first evaluation, and three in vain
        24
    """

    def __init__(
        self,
        patience: int,
        *,
        metric: str | None = None,
        min_delta: float = 0.0,
        restore_best: bool = True,
        scope: Scope = "level",
    ) -> None:
        self.patience = check_positive_int("patience", patience)
        if metric is not None and not isinstance(metric, str):
            raise TypeError(f"metric must be the name of a metric, got {metric!r}")
        self.metric = metric
        self.min_delta = check_nonnegative("min_delta", min_delta)
        if not isinstance(restore_best, bool):
            raise TypeError(f"restore_best must be a bool, got {restore_best!r}")
        self.restore_best = restore_best
        check_choice("scope", scope, get_args(Scope))
        self.scope = scope
        self._begin(None)

    def _begin(self, where: tuple[int, int] | None, seen: int = 0) -> None:
        """Forget what was seen on another level or in another call of ``fit``."""
        self._where = where
        self.best = math.inf
        self.best_epoch = 0
        self._best_step = 0
        self._in_vain = 0
        self._seen = seen
        self._snapshot: Any = None
        self._restored: Mapping[str, np.ndarray] = {}

    def saved_state(self) -> dict[str, Any]:
        """What it remembers, for a checkpoint; see `Checkpoints`."""
        state = {name: np.asarray(getattr(self, name)) for name in _NUMBERS}
        where = (-1, -1) if self._where is None else self._where
        # A best model that was restored and not asked for yet is still remembered.
        best = {"snapshot": self._snapshot, **self._restored}
        return {**state, "where": np.asarray(where), **best}

    def restore_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Remember what `saved_state` returned in another process.

        Args:
            state: its arrays by name.
        """
        for name in _NUMBERS:
            setattr(self, name, state[name].item())
        call, level = state["where"].tolist()
        self._where = None if call < 0 else (call, level)
        # A tree again as soon as there is one of the same structure.
        self._restored = {n: value for n, value in state.items() if n.startswith("snapshot")}

    def _value(self, progress: LevelProgress) -> float:
        metrics, name = progress.metrics, self.metric
        if name is None and len(metrics) > 1:
            raise ValueError(
                f"metric must be named where evaluate returns several, one of {list(metrics)}"
            )
        if name is None:
            name = next(iter(metrics), "loss")
        if name in metrics:
            return metrics[name]
        if name != "loss":
            allowed = [*metrics, "loss"]
            raise ValueError(f"metric must be one of {allowed}, got {name!r}")
        new = min(progress.step - self._seen, len(progress.losses))
        return float(np.mean(progress.losses[-new:]))

    def __call__(self, progress: LevelProgress) -> bool:
        """Compare, and end what ``scope`` says; see `Monitor.callbacks`.

        Args:
            progress: where the run stands.

        Returns:
            Whether to end the run.
        """
        if progress.correcting:
            return False
        where = (progress.call, progress.level)
        if where != self._where:
            self._begin(where, seen=progress.step - len(progress.losses))
        if self._restored:
            self._snapshot = filled("snapshot", progress.snapshot(), self._restored)
            self._restored = {}
        value = self._value(progress)
        self._seen = progress.step
        if value < self.best - self.min_delta:
            self.best, self.best_epoch = value, progress.epoch
            self._best_step, self._in_vain = progress.step, 0
            self._snapshot = progress.snapshot() if self.restore_best else None
        else:
            self._in_vain += 1
        over = self._in_vain >= self.patience
        if (over or progress.last) and self._snapshot is not None:
            if self._best_step != progress.step:
                progress.restore(self._snapshot)
            self._snapshot = None  # frees its memory
        if over and self.scope == "level":
            progress.end_level()
        return over and self.scope == "run"
