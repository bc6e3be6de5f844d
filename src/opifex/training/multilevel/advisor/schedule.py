"""The proposal, and the rule by which levels are chosen from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx
from rich.console import Console

from opifex.training.multilevel.advisor.candidates import Candidate
from opifex.training.multilevel.advisor.costs import ESTIMATED, Costs
from opifex.training.multilevel.advisor.probes import Allowance, race
from opifex.training.multilevel.config import MultilevelConfig

__all__ = [
    "ScheduleAdvice",
    "choose_levels",
    "level_to_arrive_at",
    "levels_before",
    "shares_of",
]

OVERHEAD = 2.0
"""A further level costs the compilation of its program and about as much again for the transfer."""

SAFETY = 2.0
"""A further level has to save so many times what it costs: coarse steps are not worth as much as fine
ones, and the budget is an upper bound."""


@dataclass(frozen=True)
class ScheduleAdvice:
    """What `recommend_schedule` proposes.

    Attributes:
        sizes: modes per axis (operators) or hidden widths (networks) of each level, coarsest first.
        shapes: grid of each level, for operators; otherwise the number of interior points.
        relative_cost: cost of a step of each level over that of the finest model.
        step_seconds: measured processor seconds of one step of each level; empty where timing would
            have cost too much.
        config: levels and epochs, for `CascadeTrainer`.
        data: training data of each level, the second argument of `CascadeTrainer.fit`.
        reasons: one sentence per decision.
        cost_seconds: processor seconds that the measurements took.
    """

    sizes: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    relative_cost: tuple[float, ...]
    step_seconds: tuple[float, ...]
    config: MultilevelConfig
    data: list[tuple[Any, ...]]
    reasons: tuple[str, ...]
    cost_seconds: float
    _builders: tuple[Callable[[nnx.Rngs], nnx.Module], ...]

    @property
    def alone(self) -> bool:
        """Whether the advice is one network and no coarser levels."""
        return len(self.sizes) == 1

    def build(self, rngs: nnx.Rngs) -> list[nnx.Module]:
        """Models of the proposed sizes, coarsest first: those that were given, all others new.

        Args:
            rngs: random streams for the new models.

        Returns:
            One model per level.
        """
        return [build(rngs) for build in self._builders]

    def print(self, console: Console | None = None) -> None:
        """Print levels, epochs and reasons."""
        out = console or Console()
        if self.alone:
            out.print("levels: none, one network alone")
        for reason in self.reasons:
            out.print(f"- {reason}")
        rows = zip(self.sizes, self.shapes, self.relative_cost, strict=True)
        for level, (size, shape, cost) in enumerate(rows):
            timed = (
                f"{1000 * self.step_seconds[level]:.2f} ms per step"
                if self.step_seconds
                else f"{cost:.2f} of a step of the finest model"
            )
            out.print(
                f"level {level}: size {list(size)}, data {list(shape)}, {timed}, "
                f"{self.config.epochs(level)} epochs"
            )


def shares_of(levels: int) -> list[float]:
    """Shares of the budget, coarsest first: half for the finest, half of the rest for the next.

    Example:
        >>> from opifex.training.multilevel.advisor.schedule import shares_of
        >>> shares_of(3)
        [0.25, 0.25, 0.5]
    """
    shares = [0.5**position for position in range(1, levels)]
    return [*shares, 1.0 - sum(shares)][::-1]


def choose_levels(
    last: int,
    usable: Sequence[bool],
    costs: Sequence[float],
    *,
    seconds: float,
    compile_seconds: float | None,
    max_cost_ratio: float,
) -> tuple[list[int], list[str]]:
    """The level to arrive at alone, or coarser ones before it where they save more than they cost.

    Args:
        last: the level to arrive at.
        usable: of each level, whether training may start there.
        costs: of a step of each level, in any unit.
        seconds: of training.
        compile_seconds: of one program; ``None`` where nothing is known.
        max_cost_ratio: largest cost of a level's step relative to that of the next finer level.

    Returns:
        Levels, coarsest first, and sentences.

    Example:
        >>> from opifex.training.multilevel.advisor.schedule import choose_levels
        >>> choose_levels(1, [True, True], [0.1, 1.0], seconds=600.0, compile_seconds=3.0,
        ...     max_cost_ratio=0.7)[0]
        [0, 1]
        >>> choose_levels(1, [True, True], [0.1, 1.0], seconds=20.0, compile_seconds=3.0,
        ...     max_cost_ratio=0.7)[0]
        [1]
    """
    levels, reasons, share = [last], [], 0.5
    for coarse in range(last - 1, -1, -1):
        if not usable[coarse]:
            continue
        ratio = costs[coarse] / costs[levels[0]]
        if ratio > max_cost_ratio:
            reasons.append(
                f"level {coarse} is left out: its step costs {ratio:.2f} of one of the next finer level"
            )
            continue
        if compile_seconds is None:
            reasons.append(
                f"level {coarse} is left out: the training is too short to measure what a transition "
                "costs, so that it will hardly pay"
            )
            break
        saved = seconds * share * (costs[levels[0]] - costs[coarse]) / costs[last]
        price = OVERHEAD * compile_seconds
        pays = saved >= SAFETY * price
        reasons.append(
            f"level {coarse} {'comes before' if pays else 'is left out'}: it saves at most "
            f"{saved:.2g} s of {seconds:.3g} s, and a transition costs about {price:.2g} s"
        )
        if not pays:
            break
        levels.insert(0, coarse)
        share /= 2
    return levels, reasons


def _startable(candidates: Sequence[Candidate], last: int) -> list[int]:
    """The level to arrive at, and the coarser ones that training may start from."""
    return [*(i for i in range(last) if candidates[i].usable), last]


def level_to_arrive_at(
    candidates: Sequence[Candidate], costs: Costs, allowance: Allowance, enough: str
) -> tuple[int, list[str]]:
    """The coarsest level that is good enough, or the winner of a race with the finer ones.

    Args:
        candidates: the levels, coarsest first.
        costs: of their steps.
        allowance: what measuring may take.
        enough: what good enough is, in words.

    Returns:
        The level, and sentences.
    """
    finest = len(candidates) - 1
    last = next((i for i, level in enumerate(candidates) if level.adequate), finest)
    held = ", ".join(f"{level} ({level.known})" for level in candidates[: last + 1])
    reasons = [
        f"of {held} the last one is the coarsest that is good enough for {enough}"
        if candidates[last].adequate
        else f"no level is coarse and good enough for {enough}: {held}"
    ]
    # Only levels that may be chosen are measured, finer ones for the race.
    costs.time([*_startable(candidates, last), *range(last + 1, finest + 1)])
    rivals = {i: costs.seconds[i] for i in range(last, finest + 1) if i in costs.seconds}
    won = race(candidates, rivals, costs.probe, allowance) if last in rivals else None
    if won is not None:
        last, told = won
        reasons.append(f"{told}: {candidates[last]} is the one to arrive at")
    return last, reasons


def levels_before(
    last: int,
    candidates: Sequence[Candidate],
    costs: Costs,
    allowance: Allowance,
    *,
    seconds: float,
    max_cost_ratio: float,
) -> tuple[list[int], list[float], list[str]]:
    """Coarser levels where they save more than they cost, see `choose_levels`.

    Args:
        last: the level to arrive at.
        candidates: the levels, coarsest first.
        costs: of their steps.
        allowance: knows what compiling a program takes.
        seconds: of training.
        max_cost_ratio: largest cost of a level's step relative to that of the next finer level.

    Returns:
        The levels, ``last`` included; costs of a step of all levels over that of the finest; sentences.
    """
    relative, how = costs.relative(_startable(candidates, last))
    compile_seconds = allowance.compile_seconds
    if compile_seconds is None and how != ESTIMATED:
        compile_seconds = allowance.compilation
    axes = len(candidates[last].size)
    levels, reasons = choose_levels(
        last,
        [level.usable and len(level.size) == axes for level in candidates],
        relative,
        seconds=seconds,
        compile_seconds=compile_seconds,
        max_cost_ratio=max_cost_ratio,
    )
    shares = ", ".join(f"{share:.0%}" for share in shares_of(len(levels)))
    prices = ", ".join(f"{relative[level]:.2g}" for level in levels)
    reasons.append(
        f"time is shared as {shares} from coarse to fine; a step costs {prices} of one of the finest "
        f"model, {how}"
    )
    return levels, relative, reasons
