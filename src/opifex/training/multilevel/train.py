"""Carrying out a cycle: one move after the other, from one immutable `RunState` to the next."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from opifex.training.multilevel.coarse_correction import correct, restrict
from opifex.training.multilevel.cycle import Correct, Enter, Interpolate, Restrict, Smooth
from opifex.training.multilevel.interpolation import interpolate
from opifex.training.multilevel.observation import Observation
from opifex.training.multilevel.programs import Programs
from opifex.training.multilevel.rehearsal import rehearse
from opifex.training.multilevel.resumption import resume
from opifex.training.multilevel.run import Run
from opifex.training.multilevel.smoothing import Smoothing

__all__ = ["train"]


def train(run: Run) -> None:
    """Carry out all moves of a run.

    Raises:
        NonFiniteLossError: if the loss or the parameters stop being finite.
        LossExplosionError: if the loss grows beyond what is allowed.
        TransferError: if a transfer does not keep the function that it promises to keep.
        ValueError: if there are checkpoints, and they belong to another run or none can be read.
    """
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        with run.interruptible:
            try:
                _carry_out(run, Programs(run, executor))
            except BaseException:
                run.close(alone=True)
                raise
            run.close()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _carry_out(run: Run, programs: Programs) -> None:
    observation = Observation(run, programs)
    smoothing = Smoothing(run, programs, observation)
    observation.phase("compiling", run.state.level)
    with run.history.stopwatch.charge("transfer"):
        rehearse(run)
    taken_up = None
    if run.recorder is not None:
        with run.history.stopwatch.charge("other"):
            taken_up = resume(run)
    first, within = taken_up or (0, None)
    if taken_up is not None:
        programs.begin_at(first)
    elif run.moves and not isinstance(run.moves[0], Enter):
        observation.evaluate(0)
    for index, move in enumerate(run.moves[first:], first):
        run.check_interrupt()
        if isinstance(move, Smooth):
            smoothing.smooth(move, index, within if index == first else None)
            if run.stopped:
                run.reached(len(run.moves))
                return
            continue
        observation.phase("transferring", move.level)
        with run.history.stopwatch.charge("transfer"):
            match move:
                case Enter():
                    run.history.record_transition(run.state.level, move.level)
                    run.keep(replace(run.state, level=move.level))
                case Interpolate():
                    interpolate(run, programs, move.level)
                case Restrict():
                    restrict(run, programs, move.level)
                case Correct():
                    correct(run, programs, move.level)
        if isinstance(move, Enter | Interpolate):
            observation.evaluate(0)
        run.reached(index + 1)
