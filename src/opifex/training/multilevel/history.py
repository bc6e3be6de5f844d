"""What happened during a run: losses, evaluations, transitions, and what the steps cost."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from opifex.training.stopwatch import Interval, Stopwatch

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evaluation", "History", "Mark", "Stretch", "Transition"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the user's metric.

    Attributes:
        step: optimizer steps taken so far in the whole run.
        level: level at which the model was.
        epoch: epochs done on that level.
        cycle: number of the cycle, zero for a cascade.
        work: work units spent so far (steps of the finest level).
        seconds: seconds spent training so far, without compilation, transfers and evaluation.
        elapsed_seconds: seconds of the run so far, without evaluations and callbacks.
        metrics: the values, by name.
    """

    step: int
    level: int
    epoch: float
    cycle: int
    work: float
    seconds: float
    elapsed_seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Transition:
    """A change of level.

    Attributes:
        step: optimizer steps taken so far in the whole run.
        from_level: level left.
        to_level: level entered.
        work: work units spent so far.
        seconds: seconds spent training so far.
    """

    step: int
    from_level: int
    to_level: int
    work: float
    seconds: float


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps on one level, taken in one call of the compiled loop, with their cost.

    Attributes:
        level: where.
        objective: what was minimised: ``"own"``, ``"rediscretised"`` or ``"galerkin"``.
        cycle: number of the cycle.
        first_epoch: epochs of this visit before these steps.
        steps_per_epoch: steps of one epoch.
        losses: the loss before each step, shape (steps,).
        seconds: what all steps took.
        operations: floating-point operations of one step.
        extra_operations: operations beside the steps: gradients for transfers, line searches.
        call: number of the call of ``fit``, whose finest step is the unit of work.
        weights: weights of the residual terms, shape (terms,); ``None`` where they are not balanced.
    """

    level: int
    objective: str
    cycle: int
    first_epoch: float
    steps_per_epoch: int
    losses: np.ndarray
    seconds: float
    operations: float
    extra_operations: float
    call: int
    weights: np.ndarray | None = None


# What of a stretch is no array.
_PLAIN = (
    "level",
    "objective",
    "cycle",
    "first_epoch",
    "steps_per_epoch",
    "seconds",
    "operations",
    "extra_operations",
    "call",
)


class Mark(NamedTuple):
    """How far a record had come at some moment.

    Attributes:
        stretches: number of stretches.
        evaluations: number of evaluations.
        transitions: number of transitions.
        extra: operations beside the steps that are charged to the next one.
        weights: of the residual terms in the next steps, or ``None``.
    """

    stretches: int
    evaluations: int
    transitions: int
    extra: float
    weights: np.ndarray | None


_EVALUATION_COLUMNS = ("step", "level", "epoch", "cycle", "work", "seconds", "elapsed_seconds")
_COLUMNS = ("step", "level", "cycle", "epoch", "objective", "loss", "work", "seconds")


@dataclass
class History:
    """Record of all runs of a trainer, one row per step.

    Every second of a call of ``fit`` is in exactly one account, so that ``seconds``,
    ``compile_seconds``, ``transfer_seconds``, ``resample_seconds``, ``read_seconds``,
    ``balance_seconds``, ``evaluation_seconds`` and ``other_seconds`` add up to ``wall_seconds``.

    Attributes:
        stopwatch: the accounts.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import CascadeTrainer, create_network_hierarchy
        >>> models = create_network_hierarchy(1, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> trainer = CascadeTrainer(models)
        >>> history = trainer.fit(lambda model: model(jnp.ones(1))[0] ** 2, epochs=[2, 3])
        >>> history.table()["level"].tolist()
        [0, 0, 1, 1, 1]
        >>> [(change.from_level, change.to_level) for change in history.transitions]
        [(0, 1)]
    """

    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _stretches: list[Stretch] = field(default_factory=list, init=False)
    _units: list[float] = field(default_factory=list, init=False)
    _evaluations: list[tuple[int, int, float, int, float, float, dict[str, float]]] = field(
        default_factory=list, init=False
    )
    _transitions: list[tuple[int, int, int]] = field(default_factory=list, init=False)
    _extra: float = field(default=0.0, init=False)
    _steps: int = field(default=0, init=False)
    _weights: np.ndarray | None = field(default=None, init=False)

    # -- recording ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the record of another run."""
        self._units.append(float("nan"))
        self._weights = None

    def set_unit(self, operations: float) -> None:
        """Say what one step of the finest level costs in the present run."""
        self._units[-1] = operations

    def record_steps(
        self,
        level: int,
        losses: np.ndarray,
        seconds: float,
        operations: float,
        *,
        objective: str = "own",
        first_epoch: float = 0.0,
        steps_per_epoch: int = 1,
        cycle: int = 0,
    ) -> None:
        """Append the losses of consecutive steps on one level.

        Args:
            level: the level.
            losses: the loss before each step, shape (steps,); nothing is recorded if it is empty.
            seconds: what all these steps took.
            operations: floating-point operations of one step.
            objective: what was minimised, see `Stretch`.
            first_epoch: epochs of this visit before these steps.
            steps_per_epoch: steps of one epoch.
            cycle: number of the cycle, zero for a cascade.
        """
        if not self._units:
            self.begin()
        if len(losses):
            self._stretches.append(
                Stretch(
                    level,
                    objective,
                    cycle,
                    first_epoch,
                    steps_per_epoch,
                    np.asarray(losses),
                    seconds,
                    operations,
                    self._extra,
                    len(self._units) - 1,
                    self._weights,
                )
            )
            self._extra = 0.0
            self._steps += len(losses)

    def forget_steps(self, count: int) -> None:
        """Take back the last steps: they led to a state that was not kept.

        Args:
            count: how many; what else was charged to them is charged to the next step.
        """
        while count > 0:
            last = self._stretches.pop()
            kept = max(0, len(last.losses) - count)
            self._steps -= len(last.losses) - kept
            count -= len(last.losses) - kept
            if kept:
                seconds = last.seconds * kept / len(last.losses)
                self._stretches.append(replace(last, losses=last.losses[:kept], seconds=seconds))
            else:
                self._extra += last.extra_operations

    def record_weights(self, weights: np.ndarray) -> None:
        """Say which weights the residual terms have in the steps from now on.

        Args:
            weights: factor of each term's mean square in the loss, shape (terms,).
        """
        self._weights = np.asarray(weights)

    def record_extra_operations(self, operations: float) -> None:
        """Charge work beside the steps (gradients for transfers, weights) to the next one."""
        self._extra += operations

    def record_evaluation(
        self, level: int, epoch: float, metrics: dict[str, float], *, cycle: int = 0
    ) -> None:
        """Append the metrics of the present model.

        Args:
            level: the level of the model.
            epoch: epochs done in this visit of the level.
            metrics: the values, by name.
            cycle: number of the cycle, zero for a cascade.
        """
        self._evaluations.append(
            (self.num_steps, level, epoch, cycle, self.seconds, self.elapsed_seconds, dict(metrics))
        )

    def record_transition(self, from_level: int, to_level: int) -> None:
        """Note a change of level; 0 is the coarsest."""
        self._transitions.append((self.num_steps, from_level, to_level))

    # -- keeping -----------------------------------------------------------------------------

    def mark(self) -> Mark:
        """How far the record has come."""
        return Mark(
            len(self._stretches),
            len(self._evaluations),
            len(self._transitions),
            self._extra,
            self._weights,
        )

    def to_record(self, until: Mark | None = None) -> tuple[dict[str, Any], np.ndarray]:
        """The record as plain values.

        Args:
            until: what comes after this mark is left out; by default nothing is.

        Returns:
            What `restore` takes: a dictionary that JSON can hold, and the losses, shape (steps,).
        """
        until = until or self.mark()
        stretches = self._stretches[: until.stretches]
        record = {
            "stretches": [
                {
                    **{name: getattr(stretch, name) for name in _PLAIN},
                    "steps": len(stretch.losses),
                    "dtype": str(stretch.losses.dtype),
                    "weights": None if stretch.weights is None else stretch.weights.tolist(),
                }
                for stretch in stretches
            ],
            "units": list(self._units),
            "evaluations": self._evaluations[: until.evaluations],
            "transitions": self._transitions[: until.transitions],
            "extra": until.extra,
            "weights": None if until.weights is None else until.weights.tolist(),
            "intervals": self.stopwatch.intervals,
        }
        return record, np.concatenate([np.zeros(0), *(s.losses for s in stretches)])

    def restore(self, record: Mapping[str, Any], losses: np.ndarray) -> None:
        """Become the record of an earlier process, with the seconds of this one added.

        Args:
            record: plain values, from `to_record`.
            losses: the losses of all steps, from there too.
        """
        self._stretches, first = [], 0
        for entry in record["stretches"]:
            last = first + entry["steps"]
            weights = None if entry["weights"] is None else np.asarray(entry["weights"])
            plain = {name: entry[name] for name in _PLAIN}
            part = losses[first:last].astype(entry["dtype"])
            self._stretches.append(Stretch(losses=part, weights=weights, **plain))
            first = last
        self._steps = first
        self._units = list(record["units"])
        self._evaluations = [(*entry[:-1], dict(entry[-1])) for entry in record["evaluations"]]
        self._transitions = [(step, a, b) for step, a, b in record["transitions"]]
        self._extra = record["extra"]
        self._weights = None if record["weights"] is None else np.asarray(record["weights"])
        self.stopwatch.resume(Interval(*interval) for interval in record["intervals"])

    # -- time --------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds spent training: steps alone."""
        return self.stopwatch.read("training")

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on tracing programs, and on waiting for their compilation."""
        return self.stopwatch.read("compilation")

    @property
    def transfer_seconds(self) -> float:
        """Seconds spent on moving models, states and corrections, with their line searches."""
        return self.stopwatch.read("transfer")

    @property
    def resample_seconds(self) -> float:
        """Seconds spent on drawing new data, with the compilation of that."""
        return self.stopwatch.read("resampling")

    @property
    def read_seconds(self) -> float:
        """Seconds spent on waiting for batches, and on taking them to the device."""
        return self.stopwatch.read("reading")

    @property
    def balance_seconds(self) -> float:
        """Seconds spent on weights of residual terms, with the compilation of that."""
        return self.stopwatch.read("balancing")

    @property
    def evaluation_seconds(self) -> float:
        """Seconds spent in metrics (with their compilation), callbacks and stopping criteria."""
        return self.stopwatch.read("evaluation")

    @property
    def other_seconds(self) -> float:
        """Seconds spent on everything else: copies, checks, bookkeeping."""
        return self.stopwatch.read("other")

    @property
    def wall_seconds(self) -> float:
        """Seconds spent in ``fit``: the sum of all accounts."""
        return self.stopwatch.total

    @property
    def elapsed_seconds(self) -> float:
        """Seconds spent in ``fit`` without evaluations and callbacks, which a user may do without."""
        return self.wall_seconds - self.evaluation_seconds

    # -- reading -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        if not self._stretches:
            return "History(no steps yet)"
        steps: dict[int, int] = {}
        for stretch in self._stretches:
            steps[stretch.level] = steps.get(stretch.level, 0) + len(stretch.losses)
        per_level = ", ".join(f"{n} on level {level}" for level, n in sorted(steps.items()))
        return (
            f"History({self.num_steps} steps: {per_level}; loss {self.losses[0]:.3e} -> "
            f"{self.losses[-1]:.3e}; {self.work:.4g} work units; {self.seconds:.3g} s training of "
            f"{self.wall_seconds:.3g} s)"
        )

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """The records of all calls of the compiled loop, in order."""
        return tuple(self._stretches)

    @property
    def num_steps(self) -> int:
        """Steps taken on all levels together."""
        return self._steps

    @property
    def num_calls(self) -> int:
        """Calls of ``fit`` so far."""
        return len(self._units)

    def epochs(self, level: int) -> float:
        """Epochs that a level was trained on its own objective, in all calls of ``fit``.

        Args:
            level: the level; 0 is the coarsest.
        """
        return sum(
            len(stretch.losses) / stretch.steps_per_epoch
            for stretch in self._stretches
            if (stretch.level, stretch.objective) == (level, "own")
        )

    @property
    def step_work(self) -> dict[int, float]:
        """Level to the latest cost of one of its steps, in steps of the finest level."""
        return {s.level: s.operations / self._units[s.call] for s in self._stretches}

    @property
    def work(self) -> float:
        """Work units spent: the operations of everything in steps of the finest level.

        A call of ``fit`` is counted in steps of its own finest level.
        """
        return float(np.sum(self._work_per_step()))

    def _work_per_step(self) -> np.ndarray:
        pieces = []
        for stretch in self._stretches:
            piece = np.full(len(stretch.losses), stretch.operations)
            piece[0] += stretch.extra_operations
            pieces.append(piece / self._units[stretch.call])
        return np.concatenate(pieces) if pieces else np.zeros(0)

    def _until(self, column: str) -> np.ndarray:
        """What a cumulative column of the table says after 0, 1, ... steps."""
        return np.concatenate([[0.0], self.table()[column]])

    def table(self) -> dict[str, np.ndarray]:
        """Columns with one entry per step.

        Returns:
            ``step``, ``level``, ``cycle``, ``epoch``, ``objective`` (``"own"``, or what a coarse level
            of a cycle minimised), ``loss`` (before the step), ``work`` and ``seconds`` (both
            cumulative, after the step). See `to_csv` and `to_pandas`.
        """
        stretches = self._stretches
        if not stretches:
            return {name: np.zeros(0) for name in _COLUMNS}
        lengths = [len(s.losses) for s in stretches]

        def repeated(name: str) -> np.ndarray:
            return np.repeat([getattr(s, name) for s in stretches], lengths)

        within = np.concatenate([np.arange(n) for n in lengths])
        per_epoch = repeated("steps_per_epoch")
        return {
            "step": np.arange(sum(lengths)),
            "level": repeated("level"),
            "cycle": repeated("cycle"),
            # From whole steps, so that rounding does not tell in which calls they were taken.
            "epoch": (np.rint(repeated("first_epoch") * per_epoch) + within) / per_epoch,
            "objective": repeated("objective"),
            "loss": np.concatenate([s.losses for s in stretches]),
            "work": np.cumsum(self._work_per_step()),
            "seconds": np.cumsum(repeated("seconds") / np.repeat(lengths, lengths)),
        }

    def evaluations_table(self) -> dict[str, np.ndarray]:
        """Columns with one entry per evaluation.

        Returns:
            ``step``, ``level``, ``epoch``, ``cycle``, ``work``, ``seconds`` and
            ``elapsed_seconds`` as in `Evaluation`, and one column per metric, NaN where an evaluation
            did not have it. A metric with the name of another column is called ``metric_`` and that
            name.
        """
        rows = self.evaluations
        columns = {
            name: np.array([getattr(row, name) for row in rows]) for name in _EVALUATION_COLUMNS
        }
        for metric in dict.fromkeys(name for row in rows for name in row.metrics):
            name = f"metric_{metric}" if metric in _EVALUATION_COLUMNS else metric
            columns[name] = np.array([row.metrics.get(metric, np.nan) for row in rows])
        return columns

    def to_csv(self, path: str | PathLike[str], *, evaluations: bool = False) -> None:
        """Write a table as comma-separated values with a line of names; numbers keep all digits.

        Args:
            path: the file, which is replaced.
            evaluations: write `evaluations_table`, one line per evaluation, in the place of
                `table`, one line per step.

        Raises:
            OSError: if the file cannot be written.
        """
        columns = self.evaluations_table() if evaluations else self.table()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))

    def to_pandas(self, *, evaluations: bool = False) -> pd.DataFrame:
        """A table as a data frame, indexed by the number of the step.

        Args:
            evaluations: `evaluations_table`, one row per evaluation, in the place of `table`, one
                row per step.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "History.to_pandas needs pandas: pip install pandas, or 'opifex-multilevel[data]'"
            ) from error
        columns: dict[str, Any] = self.evaluations_table() if evaluations else self.table()
        return pd.DataFrame(columns).set_index("step")

    @property
    def losses(self) -> np.ndarray:
        """The loss before each step, shape (num_steps,).

        Where weights are balanced, it is the loss with the weights of its time, see `weights`.
        """
        return self.table()["loss"]

    @property
    def weights(self) -> np.ndarray:
        """Weights of the residual terms at each step where `fit` balances them, see `Balanced`.

        Returns:
            Shape (num_steps, terms): the factors of the terms' mean squares in the loss of that row,
            in the order of the terms. NaN where nothing was balanced; without any balancing there
            are no columns.
        """
        most = max((len(s.weights) for s in self._stretches if s.weights is not None), default=0)
        rows = np.full((self.num_steps, most), np.nan)
        first = 0
        for stretch in self._stretches:
            last = first + len(stretch.losses)
            if stretch.weights is not None:
                rows[first:last, : len(stretch.weights)] = stretch.weights
            first = last
        return rows

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations in order."""
        work = self._until("work")
        return [
            Evaluation(step, level, epoch, cycle, float(work[step]), seconds, elapsed, metrics)
            for step, level, epoch, cycle, seconds, elapsed, metrics in self._evaluations
        ]

    @property
    def transitions(self) -> list[Transition]:
        """All changes of level in order."""
        work, seconds = self._until("work"), self._until("seconds")
        return [
            Transition(step, a, b, float(work[step]), float(seconds[step]))
            for step, a, b in self._transitions
        ]

    def first_below(self, metric: str, threshold: float) -> Evaluation | None:
        """The first evaluation whose metric is at most a threshold, or ``None``.

        Args:
            metric: name of the metric.
            threshold: the threshold.

        Raises:
            KeyError: if an evaluation has no metric of that name.
        """
        for evaluation in self.evaluations:
            if evaluation.metrics[metric] <= threshold:
                return evaluation
        return None
