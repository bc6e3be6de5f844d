"""Where a run stood when: visits of levels, and the two clocks of a history."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from opifex.training.multilevel.history import History

__all__ = ["OVER", "Visit", "before_steps", "check_history", "elapsed_at", "level_visits"]

OVER = {
    "work": "work units (steps of the finest level)",
    "seconds": "training seconds",
    "elapsed_seconds": "seconds with compilation and transfers",
}
"""What a curve can be drawn over, with the label of the axis."""


class Visit(NamedTuple):
    """An uninterrupted stay on one level.

    Attributes:
        level: the level.
        first: first row of the history's table.
        last: the row behind its last one.
        start: where it began on the horizontal axis.
        end: where it ended.
    """

    level: int
    first: int
    last: int
    start: float
    end: float


def check_history(name: str, history: Any) -> History:
    """Return a history with at least one step.

    Args:
        name: of the argument.
        history: what was given.

    Raises:
        TypeError: if it is not a `History`.
        ValueError: if it holds no step.
    """
    if not isinstance(history, History):
        raise TypeError(f"{name} must be a History, got {type(history).__name__}")
    if history.num_steps == 0:
        raise ValueError(f"{name} must hold at least one step, got an empty one")
    return history


def elapsed_at(history: History, training_seconds: np.ndarray) -> np.ndarray:
    """Seconds of the run without evaluations, when so many seconds of training had passed.

    Args:
        history: the record of a run.
        training_seconds: shape (n,).

    Raises:
        ValueError: if the history was not timed.
    """
    trained, elapsed = [], []
    training = total = 0.0
    for account, start, end in history.stopwatch.intervals:
        if account == "training":
            trained.append(training)
            elapsed.append(total)
            training += end - start
        if account != "evaluation":
            total += end - start
    if not trained:
        raise ValueError("over='elapsed_seconds' needs a history that was timed, this one was not")
    # The latest interval that begins by then: what lies between two of them belongs to the next one.
    index = np.maximum(np.searchsorted(trained, training_seconds, side="right") - 1, 0)
    return np.asarray(elapsed)[index] + training_seconds - np.asarray(trained)[index]


def before_steps(history: History, over: str) -> np.ndarray:
    """What had been spent before each step, and at the end.

    Args:
        history: the record of a run.
        over: a key of `OVER`.

    Returns:
        Shape (steps + 1,).
    """
    columns = history.table()
    if over == "work":
        return np.concatenate([[0.0], columns["work"]])
    spent = np.concatenate([[0.0], columns["seconds"]])
    return spent if over == "seconds" else elapsed_at(history, spent)


def level_visits(history: History, over: str = "work") -> list[Visit]:
    """The visits of a run in order.

    Args:
        history: the record of a run, with at least one step.
        over: a key of `OVER`, the horizontal axis.
    """
    columns, spent = history.table(), before_steps(history, over)
    changed = (np.diff(columns["level"]) != 0) | (np.diff(columns["cycle"]) != 0)
    borders = [0, *(int(i) + 1 for i in np.flatnonzero(changed)), len(columns["level"])]
    return [
        Visit(int(columns["level"][a]), a, b, float(spent[a]), float(spent[b]))
        for a, b in itertools.pairwise(borders)
    ]
