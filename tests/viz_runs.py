"""Histories of known content, whose clock passes only when it is told to."""

from __future__ import annotations

import numpy as np

from opifex.training.multilevel import History
from opifex.training.stopwatch import Stopwatch

__all__ = ["cycle_history", "example_history", "timed_history"]


def example_history() -> History:
    """Four steps on level 0, two on level 1, and an error at the start and at the end."""
    history = History()
    history.begin()
    history.set_unit(400.0)
    history.record_evaluation(0, 0, {"error": 1.0})
    history.record_steps(0, np.array([8.0, 4.0, 3.0, 2.0]), 0.5, 100.0)
    history.record_transition(0, 1)
    history.record_steps(1, np.array([1.5, 0.5]), 2.0, 400.0)
    history.record_evaluation(1, 2, {"error": 0.1})
    return history


def cycle_history() -> History:
    """Two V-cycles of two levels, whose coarse objective is another."""
    history = History()
    history.begin()
    history.set_unit(2.0)
    for cycle, loss in enumerate((4.0, 2.0)):
        history.record_steps(1, np.array([loss, loss - 0.5]), 1.0, 2.0, cycle=cycle)
        history.record_steps(0, np.array([-9.0]), 0.5, 1.0, cycle=cycle, objective="rediscretised")
        history.record_steps(1, np.array([loss - 1.0]), 0.5, 2.0, cycle=cycle)
    return history


class _Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def timed_history() -> History:
    """Compiles 2 s, trains 1 s, evaluates 0.5 s, transfers 0.25 s, compiles 1 s, trains 2 s."""
    clock = _Clock()
    history = History(Stopwatch(clock))
    history.begin()
    history.set_unit(200.0)

    def charge(account: str, seconds: float) -> None:
        with history.stopwatch.charge(account):
            clock.time += seconds

    charge("compilation", 2.0)
    charge("training", 1.0)
    history.record_steps(0, np.array([4.0, 2.0]), 1.0, 100.0)
    charge("evaluation", 0.5)
    history.record_evaluation(0, 2, {"error": 0.5})
    charge("transfer", 0.25)
    history.record_transition(0, 1)
    charge("compilation", 1.0)
    charge("training", 2.0)
    history.record_steps(1, np.array([2.0, 3.0, 2.5, 1.0]), 2.0, 200.0)
    history.record_evaluation(1, 4, {"error": 0.125})
    return history
