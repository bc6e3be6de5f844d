"""One visit of a level while it goes on: where it stands, where it has been good, what is due when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from opifex.training.balancing import Balance
from opifex.training.loop import CompiledLoop, LoopState, owned
from opifex.training.objective import Objective

__all__ = ["Anchor", "Dues", "Place", "Stay"]


class Dues(NamedTuple):
    """When what is due in one visit of a level, in steps; zero where it never is.

    Attributes:
        per_epoch: steps of an epoch.
        total: steps of the visit.
        look_in: from one evaluation to the next.
        redraw: from one drawing of data to the next.
        rebalance: from one update of weights to the next, of the steps of the level in all visits.
    """

    per_epoch: int
    total: int
    look_in: int
    redraw: int
    rebalance: int

    def redraws(self, done: int) -> bool:
        """Whether data are drawn anew after so many steps of the visit."""
        return bool(self.redraw and done and done % self.redraw == 0)

    def rebalances(self, taken: int) -> bool:
        """Whether weights are updated after so many steps of the level."""
        return bool(self.rebalance and taken % self.rebalance == 0)

    def looks_in(self, done: int) -> bool:
        """Whether the level is evaluated after so many steps of the visit."""
        return done % self.look_in == 0 or done == self.total

    def steps(self, done: int, taken: int) -> int:
        """How many steps there are before anything is due.

        Args:
            done: steps of the visit.
            taken: steps of the level in all visits.
        """
        counts = (self.look_in, done), (self.redraw, done), (self.rebalance, taken)
        return min(self.total - done, *(every - n % every for every, n in counts if every))


class Place(NamedTuple):
    """Where the smoothing of a level stands.

    Attributes:
        loop: state of the compiled loop.
        objective: what is minimised, with present data and weights.
        balance: state of the balancing that the weights come from.
    """

    loop: LoopState
    objective: Objective
    balance: Balance | None

    def after(self, loop: CompiledLoop, steps: int) -> Place:
        """The place some steps later.

        Args:
            loop: the program of the level.
            steps: how many, all of which were good before.
        """
        if steps == 0:
            return self
        return self._replace(loop=loop.run(owned(self.loop), self.objective, steps)[0])

    @property
    def finite(self) -> bool:
        """Whether all parameters are."""
        leaves = jax.tree.leaves(self.loop.params)
        return all(bool(np.all(np.isfinite(np.asarray(leaf)))) for leaf in leaves)


class Anchor(NamedTuple):
    """Where a rollback leads to: the place, the steps done there, and how many losses it had."""

    place: Place
    done: int
    losses: int


@dataclass
class Stay:
    """One visit of a level while it goes on.

    Attributes:
        key: the level, and the one whose loss is minimised.
        place: where it stands.
        anchor: where a rollback leads to.
        done: steps done, those that were skipped among them.
        losses: of the steps.
        faults: that were mended.
        previous: place before the last call of the loop, and the steps of that call.
    """

    key: tuple[int, int]
    place: Place
    anchor: Anchor
    done: int
    losses: np.ndarray
    faults: int = 0
    previous: tuple[Place, int] | None = None

    def reference(self, values: np.ndarray, interval: int) -> float:
        """What an explosion is measured by: the mean loss of the last interval, or the first loss.

        Args:
            values: losses that follow.
            interval: steps of an interval.
        """
        recent = self.losses[-interval:]
        if len(recent):
            return float(np.mean(recent))
        return float(values[0]) if len(values) and np.isfinite(values[0]) else float("inf")
