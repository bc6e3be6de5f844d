"""What happened during a run: losses, evaluations and transitions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Evaluation", "History", "Transition"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the user's metric.

    Attributes:
        step: optimizer steps taken so far in the whole run.
        level: level at which the model was.
        epoch: epochs done on that level.
        cycle: number of the cycle, zero for a cascade.
        work: work units spent so far (steps of the finest level).
        seconds: seconds spent training so far, without compilation and evaluation.
        metrics: the values, by name.
    """

    step: int
    level: int
    epoch: float
    cycle: int
    work: float
    seconds: float
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
class _Segment:
    level: int
    cycle: int
    first_epoch: float
    steps_per_epoch: int
    losses: np.ndarray
    seconds: float
    extra: tuple[tuple[int, float], ...] = ()


@dataclass
class History:
    """Record of a run, one row per step.

    Attributes:
        step_work: level to the cost of one of its steps, in steps of the finest level.
        compile_seconds: seconds that the run waited for compilation.
        transfer_seconds: seconds spent on moving models and optimizer states.
        resample_seconds: seconds spent on drawing new data, with the compilation of that.
    """

    step_work: dict[int, float] = field(default_factory=dict)
    compile_seconds: float = 0.0
    transfer_seconds: float = 0.0
    resample_seconds: float = 0.0
    _segments: list[_Segment] = field(default_factory=list, repr=False)
    _evaluations: list[tuple[int, int, float, int, float, dict[str, float]]] = field(
        default_factory=list, repr=False
    )
    _transitions: list[tuple[int, int, int]] = field(default_factory=list, repr=False)
    _extra: list[tuple[int, float]] = field(default_factory=list, repr=False)

    # -- recording ---------------------------------------------------------------------------

    def record_steps(
        self,
        level: int,
        losses: np.ndarray,
        seconds: float,
        *,
        first_epoch: float = 0.0,
        steps_per_epoch: int = 1,
        cycle: int = 0,
    ) -> None:
        """Append the losses of consecutive steps on one level."""
        if len(losses):
            self._segments.append(
                _Segment(
                    level,
                    cycle,
                    first_epoch,
                    steps_per_epoch,
                    np.asarray(losses),
                    seconds,
                    tuple(self._extra),
                )
            )
            self._extra.clear()

    def record_extra_work(self, level: int, steps: float) -> None:
        """Charge work beside the steps (gradients for transfers, line searches) to the next step.

        Args:
            level: level on which it was done.
            steps: its cost in steps of that level.
        """
        self._extra.append((level, steps))

    def record_evaluation(
        self, level: int, epoch: float, metrics: dict[str, float], *, cycle: int = 0
    ) -> None:
        """Append the metrics of the present model."""
        self._evaluations.append((self.num_steps, level, epoch, cycle, self.seconds, dict(metrics)))

    def record_transition(self, from_level: int, to_level: int) -> None:
        """Note a change of level."""
        self._transitions.append((self.num_steps, from_level, to_level))

    def measure_work_by_time(self, finest: int) -> None:
        """Replace ``step_work`` by measured seconds per step, relative to the finest level.

        Does nothing where the finest level took no step.
        """
        spent: dict[int, tuple[float, int]] = {}
        for segment in self._segments:
            seconds, steps = spent.get(segment.level, (0.0, 0))
            spent[segment.level] = (seconds + segment.seconds, steps + len(segment.losses))
        if finest in spent:
            unit = spent[finest][0] / spent[finest][1]
            self.step_work = {level: s / n / unit for level, (s, n) in spent.items()}

    # -- reading -----------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        """Steps taken on all levels together."""
        return sum(len(segment.losses) for segment in self._segments)

    @property
    def seconds(self) -> float:
        """Seconds spent training, without compilation, transfer and evaluation."""
        return sum(segment.seconds for segment in self._segments)

    @property
    def work(self) -> float:
        """Work units spent: the cost of all steps in steps of the finest level."""
        return float(np.sum(self._work_per_step()))

    def _work_per_step(self) -> np.ndarray:
        pieces = []
        for segment in self._segments:
            piece = np.full(len(segment.losses), self.step_work.get(segment.level, np.nan))
            piece[0] += sum(
                steps * self.step_work.get(level, 0.0) for level, steps in segment.extra
            )
            pieces.append(piece)
        return np.concatenate(pieces) if pieces else np.zeros(0)

    def _until(self, column: str) -> np.ndarray:
        """What a cumulative column of the table says after 0, 1, ... steps."""
        return np.concatenate([[0.0], self.table()[column]])

    def table(self) -> dict[str, np.ndarray]:
        """Columns with one entry per step.

        Returns:
            ``step``, ``level``, ``cycle``, ``epoch``, ``loss`` (before the step), ``work`` and
            ``seconds`` (both cumulative, after the step). ``pandas.DataFrame`` takes it as it is.
        """
        segments = self._segments
        if not segments:
            names = ("step", "level", "cycle", "epoch", "loss", "work", "seconds")
            return {name: np.zeros(0) for name in names}
        lengths = [len(s.losses) for s in segments]
        per_step = np.concatenate(
            [np.full(n, s.seconds / n) for s, n in zip(segments, lengths, strict=True)]
        )
        return {
            "step": np.arange(sum(lengths)),
            "level": np.repeat([s.level for s in segments], lengths),
            "cycle": np.repeat([s.cycle for s in segments], lengths),
            "epoch": np.concatenate(
                [
                    s.first_epoch + np.arange(n) / s.steps_per_epoch
                    for s, n in zip(segments, lengths, strict=True)
                ]
            ),
            "loss": np.concatenate([s.losses for s in segments]),
            "work": np.cumsum(self._work_per_step()),
            "seconds": np.cumsum(per_step),
        }

    @property
    def losses(self) -> np.ndarray:
        """The loss before each step."""
        return self.table()["loss"]

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations in order."""
        work = self._until("work")
        return [
            Evaluation(step, level, epoch, cycle, float(work[step]), seconds, metrics)
            for step, level, epoch, cycle, seconds, metrics in self._evaluations
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
        """The first evaluation whose metric is at most a threshold, or ``None``."""
        for evaluation in self.evaluations:
            if evaluation.metrics[metric] <= threshold:
                return evaluation
        return None
