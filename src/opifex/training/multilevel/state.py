"""Where a run stands: one immutable value, which every move maps to the next.

An exception, a callback that ends the run and an interrupt are then the same thing: the trainer
keeps the last value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from opifex.training.objective import Objective, hashable, split_model
from opifex.training.placement import LevelPlacement

__all__ = ["CoarseVisit", "LevelState", "RunState"]


class LevelState(NamedTuple):
    """One level's model and its smoother.

    Attributes:
        graphdef: graph definition of the model.
        params: trainable parameters.
        rest: all other variables.
        smoother: state of the smoother; ``None`` before its first step.
        balance: state of the balancing of residual terms; ``None`` before they were balanced.
    """

    graphdef: Any
    params: Any
    rest: Any
    smoother: Any = None
    balance: Any = None

    @classmethod
    def of(cls, model: nnx.Module, smoother: Any = None) -> LevelState:
        """The state of a level from its model as it is now, which may change later.

        Args:
            model: the model.
            smoother: state of the smoother, or ``None``.
        """
        graphdef, *variables = split_model(model)
        params, rest = jax.tree.map(lambda leaf: leaf, variables)
        return cls(graphdef, params, rest, smoother)

    def placed(self, placement: LevelPlacement | None) -> LevelState:
        """The same state with its arrays where they belong.

        Args:
            placement: of the level, or ``None``.
        """
        if placement is None:
            return self
        params, smoother = placement.parameters((self.params, self.smoother))
        rest, balance = placement.whole((self.rest, self.balance))
        return LevelState(self.graphdef, params, rest, smoother, balance)

    def together(self, placement: LevelPlacement | None) -> LevelState:
        """The same state with no array in pieces.

        Args:
            placement: of the level, or ``None``.
        """
        if placement is None:
            return self
        return LevelState(self.graphdef, *placement.together(tuple(self)[1:]))

    @property
    def model(self) -> nnx.Module:
        """A new model with these values."""
        return nnx.merge(self.graphdef, self.params, self.rest, copy=True)

    @property
    def structure(self) -> Any:
        """What decides the program of the level."""
        leaves = self.params, self.rest
        shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(leaves)]
        return hashable(self.graphdef), jax.tree.structure(leaves), shapes


class CoarseVisit(NamedTuple):
    """A visit of a coarser level for a correction, not finished yet.

    Attributes:
        level: where.
        objective: what is minimised there.
        start: parameters on arrival.
        params: parameters now.
        rest: other variables now.
    """

    level: int
    objective: Objective
    start: Any
    params: Any
    rest: Any


@dataclass(frozen=True)
class RunState:
    """Everything that changes during a run but its record.

    Attributes:
        level: the level the user stands on. Visits for a correction do not change it.
        levels: state of every level, coarsest first.
        data: arguments of the loss on every level.
        key: random key from which all later ones follow.
        visits: visits of coarser levels that are not finished, the coarsest last.
        batches: taken from each stream of data.
    """

    level: int
    levels: tuple[LevelState, ...]
    data: tuple[tuple[Any, ...], ...]
    key: PRNGKeyArray
    visits: tuple[CoarseVisit, ...] = ()
    batches: tuple[int, ...] = ()

    @property
    def working_level(self) -> int:
        """The level that is smoothed: that of the last visit, or the user's."""
        return self.visits[-1].level if self.visits else self.level

    def with_level(self, level: int, **changes: Any) -> RunState:
        """With another state of one level."""
        new = list(self.levels)
        new[level] = new[level]._replace(**changes)
        return replace(self, levels=tuple(new))

    def with_data(self, level: int, data: tuple[Any, ...]) -> RunState:
        """With other data on one level."""
        return replace(self, data=(*self.data[:level], data, *self.data[level + 1 :]))

    def with_batches(self, stream: int, taken: int) -> RunState:
        """With another number of batches taken from a stream."""
        return replace(self, batches=(*self.batches[:stream], taken, *self.batches[stream + 1 :]))
