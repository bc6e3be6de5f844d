"""Weights of residual terms in a run: when they are computed anew, by what program, at what price."""

from __future__ import annotations

import sys
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from opifex.training.balancing import Balance, Balanced
from opifex.training.multilevel.history import History
from opifex.training.multilevel.state import LevelState
from opifex.training.objective import Objective, hashable, kept_program
from opifex.training.operations import count_operations

__all__ = ["Weights"]

# Epochs between two updates of weights that are computed once per level.
_NEVER_AGAIN = sys.maxsize


def _updated(method: Any, *arguments: Any) -> Balance:
    return method.update(*arguments)


class Weights:
    """Computes the weights of residual terms, and records what that costs.

    Args:
        balanced: the terms and the method, or ``None`` where there is nothing to balance.
        history: record of the run.
    """

    def __init__(self, balanced: Balanced | None, history: History) -> None:
        self._balanced = balanced
        self._history = history
        self._operations: dict[int, float] = {}

    def of(self, level: LevelState) -> Balance:
        """The state of the balancing of a level, whether it was balanced already or not."""
        assert self._balanced is not None
        if level.balance is None:
            return self._balanced.method.start(self._balanced.terms)
        return level.balance

    def interval(self, visiting: bool) -> int:
        """Epochs from one update of the weights to the next; zero where there is none.

        Args:
            visiting: whether a coarser level is visited to correct a finer one: weights that change
                then would change what the correction is for.
        """
        if self._balanced is None or visiting:
            return 0
        return self._balanced.every or _NEVER_AGAIN

    def price(self, level: int, values: LevelState, own: Objective, key: PRNGKeyArray) -> None:
        """Trace the program of a level, which finds what it cannot work with.

        Args:
            level: the level.
            values: its state.
            own: its objective.
            key: a random key.
        """
        assert self._balanced is not None
        program = kept_program(_updated, own.structure, hashable(self._balanced.method))
        traced = program.trace(own, values.params, self.of(values), key)
        self._operations[level] = count_operations(traced) or 0.0

    def new(
        self, level: int, values: LevelState, objective: Objective, params: Any, key: PRNGKeyArray
    ) -> tuple[Balance, PRNGKeyArray]:
        """The next state of the balancing of a level, and the key that is left.

        Args:
            level: the level.
            values: its state, with the balancing so far.
            objective: its present objective, with all variables.
            params: its present parameters.
            key: random key.
        """
        assert self._balanced is not None
        key, now = jax.random.split(key)
        program = kept_program(_updated, objective.structure, hashable(self._balanced.method))
        balance = program(objective.at(shift=None, weights=None), params, self.of(values), now)
        self._history.record_extra_operations(self._operations.get(level, 0.0))
        return jax.block_until_ready(balance), key
