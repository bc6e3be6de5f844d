"""A history as plain values, and back: what `History` needs is recorded again in the same order."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from opifex.training.multilevel import History
from opifex.training.stopwatch import Stopwatch

__all__ = ["history_from_record", "history_record"]


def history_record(history: History) -> tuple[dict[str, Any], np.ndarray]:
    """A history as a tree of plain values, and its losses.

    Args:
        history: the record of a run.

    Returns:
        What `history_from_record` takes: a dictionary for JSON, and the losses, shape (num_steps,).
    """
    table = history.table()
    work = np.concatenate([[0.0], table["work"]])
    stretches, first = [], 0
    for stretch in history.stretches:
        last = first + len(stretch.losses)
        # In units of work, so that the price of a step of the finest level need not be known.
        operations = len(stretch.losses) * stretch.operations + stretch.extra_operations
        spent = float(work[last] - work[first])
        unit = operations / spent if spent > 0 else float("nan")
        stretches.append(
            {
                "level": stretch.level,
                "objective": stretch.objective,
                "cycle": stretch.cycle,
                "first_epoch": float(stretch.first_epoch),
                "steps_per_epoch": stretch.steps_per_epoch,
                "steps": len(stretch.losses),
                "seconds": stretch.seconds,
                "work_per_step": stretch.operations / unit,
                "extra_work": stretch.extra_operations / unit,
                "call": stretch.call,
                "weights": None if stretch.weights is None else stretch.weights.tolist(),
            }
        )
        first = last
    record = {
        "stretches": stretches,
        "evaluations": [asdict(evaluation) for evaluation in history.evaluations],
        "transitions": [[t.step, t.from_level, t.to_level] for t in history.transitions],
        "intervals": [list(interval) for interval in history.stopwatch.intervals],
    }
    return record, np.asarray(table["loss"], float)


class _Clock:
    """The time of the record while that is replayed, and the machine's afterwards."""

    def __init__(self) -> None:
        self.replayed: float | None = 0.0

    def __call__(self) -> float:
        return time.perf_counter() if self.replayed is None else self.replayed


def history_from_record(record: dict[str, Any], losses: np.ndarray) -> History:
    """The history that a record was made of; a trainer may go on with it.

    Args:
        record: the plain values.
        losses: the losses of all steps.

    Returns:
        A history with the same steps, evaluations, transitions and accounts.
    """
    clock = _Clock()
    history = History(stopwatch=Stopwatch(clock))
    evaluations, transitions = list(record["evaluations"]), list(record["transitions"])

    def catch_up() -> None:
        while transitions and transitions[0][0] <= history.num_steps:
            _, from_level, to_level = transitions.pop(0)
            history.record_transition(from_level, to_level)
        while evaluations and evaluations[0]["step"] <= history.num_steps:
            given = evaluations.pop(0)
            # What the accounts said at that moment.
            history.stopwatch.seconds = {
                "training": given["seconds"],
                "other": given["elapsed_seconds"] - given["seconds"],
            }
            history.record_evaluation(
                given["level"], given["epoch"], given["metrics"], cycle=given["cycle"]
            )

    first, call = 0, -1
    catch_up()
    for stretch in record["stretches"]:
        while call < stretch["call"]:
            history.begin()
            history.set_unit(1.0)
            call += 1
        if stretch["weights"] is not None:
            history.record_weights(np.asarray(stretch["weights"]))
        if stretch["extra_work"]:
            history.record_extra_operations(stretch["extra_work"])
        last = first + stretch["steps"]
        history.record_steps(
            stretch["level"],
            losses[first:last],
            stretch["seconds"],
            stretch["work_per_step"],
            objective=stretch["objective"],
            first_epoch=stretch["first_epoch"],
            steps_per_epoch=stretch["steps_per_epoch"],
            cycle=stretch["cycle"],
        )
        first = last
        catch_up()
    history.stopwatch.seconds = {}
    for account, start, end in record["intervals"]:
        clock.replayed = start
        with history.stopwatch.charge(account):
            clock.replayed = end
    clock.replayed = None
    return history
