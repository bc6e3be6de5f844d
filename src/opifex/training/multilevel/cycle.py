r"""Cycles: the order in which levels are smoothed and transferred, as lists of moves.

Level 0 is the coarsest. A cycle says which moves are made and how long each smoothing lasts; it
knows no model and no array. `opifex.training.multilevel.train` carries the moves out, so that a run
cannot take other steps than its cycle planned. The number of epochs of a level is divided evenly
among its smoothings, and the shares add up to exactly that number.

Write a cycle of your own as a class with two members, ``coarse`` and ``moves``; see `Cycle`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

from opifex.core.checks import (
    check_choice,
    check_nonnegative_int,
    check_positive,
    check_positive_int,
    check_sequence,
)
from opifex.training.multilevel.stopping import StoppingCriterion

CoarseObjective = Literal["rediscretised", "galerkin"]
"""What coarse levels of a cycle minimise. ``"rediscretised"``: the loss of their own, smaller network
with a linear term that makes it coherent to first order with the finer level. ``"galerkin"``: the
finer level's loss over those of its parameters that the coarse level has. See `VCycle`."""

__all__ = [
    "Cascade",
    "CoarseObjective",
    "Correct",
    "Cycle",
    "Enter",
    "FullMultigrid",
    "Interpolate",
    "Move",
    "Restrict",
    "Smooth",
    "VCycle",
    "WCycle",
    "as_cycle",
    "check_moves",
    "draw",
]


class Smooth(NamedTuple):
    """Train a level for some epochs.

    Attributes:
        level: where.
        epochs: how long; zero is allowed.
        cycle: number of the cycle it belongs to.
        part: what it is for: ``"pre"`` before a coarse correction and ``"post"`` after it,
            ``"coarsest"`` on the coarsest level of a cycle, ``"solve"`` outside of cycles.
    """

    level: int
    epochs: int
    cycle: int = 0
    part: str = "solve"


class Enter(NamedTuple):
    """Make a level the present one, with its model as it is."""

    level: int


class Interpolate(NamedTuple):
    """Nested iteration: start a level from the next coarser one, $x_h = P x_H$."""

    level: int


class Restrict(NamedTuple):
    """Go to a coarser level, $x_H = R x_h$, with an objective coherent with the finer one."""

    level: int


class Correct(NamedTuple):
    r"""Take a coarse correction to the next finer level, $x_h + \alpha P (x_H - R x_h)$."""

    level: int


Move = Smooth | Enter | Interpolate | Restrict | Correct
"""One move of a cycle."""


class Cycle(Protocol):
    """What `CascadeTrainer.fit` takes as ``cycle``.

    Four attributes are optional: ``says_epochs``, true if the cycle itself says how long to smooth;
    ``gradient_scale`` and ``backtracking_steps``, as in `VCycle`; and ``stop``, as in `Cascade`.
    """

    @property
    def coarse(self) -> CoarseObjective | None:
        """What coarse levels minimise after a `Restrict`; ``None`` if there is no such move."""
        ...

    def moves(self, num_levels: int, start: int, epochs: Sequence[int] | None) -> Iterator[Move]:
        """The moves of a run.

        Args:
            num_levels: number of levels.
            start: level on which the run begins.
            epochs: planned epochs of every level, or ``None`` if the cycle says them itself.
        """
        ...


@dataclass(frozen=True)
class Cascade:
    """Coarse to fine, once: smooth, interpolate, smooth, ..., and the finest level too.

    Attributes:
        stop: criterion that may end a level before its epochs are done, or ``None``.

    Raises:
        TypeError: if ``stop`` has no method ``should_stop``.

    Example:
        >>> from opifex.training.multilevel import Cascade, draw
        >>> print(draw(Cascade(), num_levels=3, epochs=[4, 3, 2]))
          2
         3
        4
    """

    stop: StoppingCriterion | None = None
    coarse: ClassVar[CoarseObjective | None] = None

    def __post_init__(self) -> None:
        if self.stop is not None and not callable(getattr(self.stop, "should_stop", None)):
            raise TypeError(f"stop must have a should_stop method, got {self.stop!r}")

    def moves(self, num_levels: int, start: int, epochs: Sequence[int] | None) -> Iterator[Move]:
        """The moves from the present level up; see `Cycle.moves`.

        Raises:
            ValueError: if ``epochs`` is ``None``.
        """
        for level in range(start, num_levels):
            if level > start:
                yield Interpolate(level)
            yield Smooth(level, _planned(epochs)[level])


def _planned(epochs: Sequence[int] | None) -> Sequence[int]:
    if epochs is None:
        raise ValueError("epochs must be given, since the cycle does not say how long to smooth")
    return epochs


@dataclass(frozen=True)
class VCycle:
    r"""Every level visits the next coarser one once per cycle (cycle index gamma = 1).

    Attributes:
        cycles: number of cycles.
        coarse: what coarse levels minimise. ``"rediscretised"``: the loss of their own network minus
            $\langle \tau, x \rangle$ with $\tau = \nabla F_H(R x_h) - c\, P^T \nabla F_h(x_h)$, so
            that both levels agree to first order (MG/OPT, Nash 2000; Lewis and Nash 2005, section
            2). ``"galerkin"``: the finer loss over those of its parameters that the coarse level
            has, all others fixed (Gratton, Mercier, Riccietti and Toint, arXiv:2305.14477): coherent
            without a linear term, so that least-squares solvers smooth it too, but every step
            evaluates the finer network.
        pre: epochs of smoothing before a coarse correction; V(2, 1) is ``pre=2, post=1``.
        post: epochs of smoothing after it.
        coarsest: epochs on the coarsest level per visit. Give all three, or none: then the epochs
            planned for each level are divided evenly.
        gradient_scale: $c$ in $c\, P^T$, the restriction of gradients.
        backtracking_steps: trial lengths 1, 1/2, ... of a correction; if none lowers the finer
            objective, the correction is dropped.

    Raises:
        ValueError: if a number is out of range, ``coarse`` is neither of the two, or some but not all
            of ``pre``, ``post`` and ``coarsest`` are given.
        TypeError: if a number has the wrong type.

    Example:
        >>> from opifex.training.multilevel import VCycle
        >>> cycle = VCycle(cycles=1, pre=2, post=1, coarsest=4)
        >>> for move in cycle.moves(2, start=1, epochs=None):
        ...     print(type(move).__name__, move.level, getattr(move, "epochs", "-"))
        Smooth 1 2
        Restrict 0 -
        Smooth 0 4
        Correct 1 -
        Smooth 1 1
    """

    cycles: int = 5
    coarse: CoarseObjective = "rediscretised"
    pre: int | None = None
    post: int | None = None
    coarsest: int | None = None
    gradient_scale: float = 1.0
    backtracking_steps: int = 8
    gamma: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_positive_int("cycles", self.cycles)
        check_choice("coarse", self.coarse, get_args(CoarseObjective))
        parts = {"pre": self.pre, "post": self.post, "coarsest": self.coarsest}
        missing = [name for name, value in parts.items() if value is None]
        if missing and len(missing) < len(parts):
            raise ValueError(
                f"pre, post and coarsest must be given together, got no {missing[0]}; without all "
                "three the planned epochs are divided among the smoothings"
            )
        for name, value in parts.items():
            if value is not None:
                check_nonnegative_int(name, value)
        check_positive("gradient_scale", self.gradient_scale)
        check_positive_int("backtracking_steps", self.backtracking_steps)

    @property
    def says_epochs(self) -> bool:
        """Whether the cycle itself says how long to smooth."""
        return self.pre is not None

    def _correction(self, level: int, cycle: int) -> Iterator[Move]:
        """One cycle from a level down and back, with lengths still to be filled in."""
        if level == 0:
            yield Smooth(0, 0, cycle, "coarsest")
            return
        yield Smooth(level, 0, cycle, "pre")
        yield Restrict(level - 1)
        # The coarsest level twice in a row would be once, for longer.
        for _ in range(self.gamma if level > 1 else 1):
            yield from self._correction(level - 1, cycle)
        yield Correct(level)
        yield Smooth(level, 0, cycle, "post")

    def _order(self, num_levels: int, start: int) -> Iterator[Move]:
        """The moves of the run, with lengths still to be filled in."""
        finest = num_levels - 1
        if start != finest:
            yield Enter(finest)
        for cycle in range(1, self.cycles + 1):
            yield from self._correction(finest, cycle)

    def moves(self, num_levels: int, start: int, epochs: Sequence[int] | None) -> Iterator[Move]:
        """The moves, with epochs divided evenly or as ``pre``, ``post`` and ``coarsest`` say.

        Arguments are those of `Cycle.moves`.

        Raises:
            ValueError: if the lengths are said twice (by the cycle and by ``epochs``), or not at all.
        """
        order = list(self._order(num_levels, start))
        if not self.says_epochs:
            return _divided(order, _planned(epochs))
        if epochs is not None:
            raise ValueError(
                f"epochs must be None where the cycle says pre={self.pre}, post={self.post} and "
                f"coarsest={self.coarsest}, got {list(epochs)}"
            )
        lengths: dict[str, Any] = {
            "pre": self.pre,
            "post": self.post,
            "coarsest": self.coarsest,
            "solve": self.coarsest,
        }
        return (
            move._replace(epochs=lengths[move.part]) if isinstance(move, Smooth) else move
            for move in order
        )


def _divided(order: Sequence[Move], epochs: Sequence[int]) -> Iterator[Move]:
    """Fill in lengths: each level's epochs evenly over its smoothings, exactly in the sum."""
    smoothings = [move for move in order if isinstance(move, Smooth)]
    visits = Counter(move.level for move in smoothings)
    solves = {move.level for move in smoothings if move.part == "solve"}
    # A first solve counts as much as all later visits of its level together.
    weight = {level: visits[level] - 1 for level in solves}
    total = {level: n + max(weight.get(level, 1) - 1, 0) for level, n in visits.items()}
    done: Counter[int] = Counter()
    for move in order:
        if isinstance(move, Smooth):
            level = move.level
            before = done[level]
            done[level] += max(weight[level], 1) if move.part == "solve" else 1
            shares = [n * epochs[level] // total[level] for n in (before, done[level])]
            move = move._replace(epochs=shares[1] - shares[0])
        yield move


@dataclass(frozen=True)
class WCycle(VCycle):
    """Every level visits the next coarser one twice, the coarsest once (cycle index gamma = 2).

    Attributes are those of `VCycle`.

    Raises:
        ValueError: as `VCycle` does.
        TypeError: as `VCycle` does.
    """

    gamma: ClassVar[int] = 2


@dataclass(frozen=True)
class FullMultigrid(VCycle):
    """From the present level up: solve, interpolate, and do V-cycles on each new level.

    On the coarsest level the first solve takes half of its epochs. A run that begins on a finer level
    begins with V-cycles there. Attributes are those of `VCycle`; ``cycles`` is the number of cycles on
    each level.

    Raises:
        ValueError: as `VCycle` does.
        TypeError: as `VCycle` does.

    Example:
        >>> from opifex.training.multilevel import FullMultigrid, draw
        >>> print(draw(FullMultigrid(cycles=1, pre=2, post=1, coarsest=4), num_levels=3))
            2   1
         2 1 2 1
        4 4   4
    """

    def _order(self, num_levels: int, start: int) -> Iterator[Move]:
        cycle = 0
        for level in range(start, num_levels):
            if level > start:
                yield Interpolate(level)
            if level == 0:
                yield Smooth(0, 0)
                continue
            for _ in range(self.cycles):
                cycle += 1
                yield from self._correction(level, cycle)


_BY_NAME: dict[str, Cycle] = {
    "cascade": Cascade(),
    "v-cycle": VCycle(),
    "w-cycle": WCycle(),
    "full-multigrid": FullMultigrid(),
}


def as_cycle(cycle: Any) -> Cycle:
    """A cycle from its name, or as given.

    Raises:
        ValueError: if there is no cycle of that name.
        TypeError: if ``cycle`` is neither a name nor a `Cycle`.
    """
    if isinstance(cycle, str):
        return _BY_NAME[check_choice("cycle", cycle, list(_BY_NAME))]
    is_class = isinstance(cycle, type)  # VCycle in place of VCycle()
    if not is_class and callable(getattr(cycle, "moves", None)) and hasattr(cycle, "coarse"):
        return cycle
    raise TypeError(
        f"cycle must be one of {list(_BY_NAME)} or a Cycle such as VCycle(cycles=10), got "
        f"{cycle!r} of type {type(cycle).__name__}"
    )


def check_moves(moves: Sequence[Move], num_levels: int, start: int) -> None:
    """Raise unless every move can be made from where the one before it ends.

    Args:
        moves: the moves of a run.
        num_levels: number of levels.
        start: level on which the run begins.

    Raises:
        ValueError: naming the move and where the run stands then.
    """
    visits = [start]
    for number, move in enumerate(moves):
        if not isinstance(move, Smooth | Enter | Interpolate | Restrict | Correct):
            raise TypeError(f"move {number} of the cycle must be one of {Move}, got {move!r}")
        here = visits[-1]
        allowed = {
            Smooth: move.level == here and getattr(move, "epochs", 0) >= 0,
            Enter: len(visits) == 1 and 0 <= move.level < num_levels,
            Interpolate: len(visits) == 1 and move.level == here + 1 < num_levels,
            Restrict: move.level == here - 1 >= 0,
            Correct: len(visits) > 1 and move.level == visits[-2] == here + 1,
        }
        if not allowed[type(move)]:
            raise ValueError(
                f"move {number} of the cycle, {move}, cannot be made on level {here} of "
                f"0..{num_levels - 1} ({len(visits) - 1} visits for a correction are open)"
            )
        if isinstance(move, Restrict):
            visits.append(move.level)
        elif isinstance(move, Correct):
            visits.pop()
        elif not isinstance(move, Smooth):
            visits[0] = move.level
    if len(visits) > 1:
        raise ValueError(
            f"the cycle ends on level {visits[-1]}, in the middle of a visit for a correction"
        )


def draw(cycle: Cycle, num_levels: int, epochs: Sequence[int] | None = None) -> str:
    """A picture of a cycle from the coarsest level on, one line per level, the finest on top.

    Args:
        cycle: the cycle.
        num_levels: number of levels.
        epochs: planned epochs per level; one each by default, for cycles that need them.

    Returns:
        Every smoothing as its number of epochs, in order from left to right.

    Raises:
        TypeError: if ``cycle`` is no `Cycle`, or a number is not an integer.
        ValueError: if there are no levels, or ``epochs`` does not have one entry per level, none of
            them negative.

    Example:
        >>> from opifex.training.multilevel import VCycle, draw
        >>> print(draw(VCycle(cycles=1, pre=2, post=1, coarsest=4), num_levels=3))
        2   1
         2 1
          4
    """
    cycle = as_cycle(cycle)
    check_positive_int("num_levels", num_levels)
    if epochs is not None:
        check_sequence("epochs", epochs)
        epochs = [check_nonnegative_int(f"epochs[{i}]", n) for i, n in enumerate(epochs)]
        if len(epochs) != num_levels:
            raise ValueError(
                f"epochs must have one entry per level ({num_levels}), got {len(epochs)}"
            )
    elif not getattr(cycle, "says_epochs", False):
        epochs = [1] * num_levels
    rows = [""] * num_levels
    for move in cycle.moves(num_levels, 0, epochs):
        if isinstance(move, Smooth):
            width = len(str(move.epochs))
            for level in range(num_levels):
                rows[level] += str(move.epochs) if level == move.level else " " * width
    return "\n".join(row.rstrip() for row in reversed(rows))
