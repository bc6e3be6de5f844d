"""The training programs of a run: traced once, compiled ahead of their use, with what a step costs."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import suppress

import jax

from opifex.training.loop import CompiledLoop, LoopState
from opifex.training.multilevel.cycle import Smooth
from opifex.training.multilevel.run import Run
from opifex.training.smoother import PassingSmoother, Smoother

__all__ = ["Programs"]


class Programs:
    """One program for each pair of a level that is smoothed and the level whose loss is minimised.

    Args:
        run: the run.
        executor: where programs are compiled.

    Attributes:
        seconds: of a step of each program that has run, as measured last.
    """

    def __init__(self, run: Run, executor: Executor) -> None:
        self._run, self._executor = run, executor
        self._loops: dict[tuple[int, int], CompiledLoop] = {}
        self._needed = self._coming = self._of_moves(0)
        self._ahead = iter(self._coming)
        self.seconds: dict[tuple[int, int], float] = {}

    def begin_at(self, index: int) -> None:
        """The run takes up a move in the middle: what came before is not compiled ahead."""
        self._coming = self._of_moves(index)
        self._ahead = iter(self._coming)

    def _of_moves(self, index: int) -> list[tuple[int, int]]:
        """What the moves from one on need, in the order of first use."""
        run = self._run
        return list(
            dict.fromkeys(
                (move.level, run.owner(move.level, user_level))
                for move, user_level in run.coming(index)
                if isinstance(move, Smooth) and move.epochs
            )
        )

    def loop(self, level: int, owner: int) -> CompiledLoop:
        """The traced program of a level, compiling in the thread."""
        if (level, owner) not in self._loops:
            loop = self._traced(level, owner, self._run.smoother(level))
            loop.compile(self._executor)
            self._loops[level, owner] = loop
            self._set_unit(level, owner)
        return self._loops[level, owner]

    def skipper(self, level: int, owner: int) -> CompiledLoop:
        """A program that lets a batch of a level pass by and changes nothing else."""
        return self._traced(level, owner, PassingSmoother(self._run.smoother(level)))

    def _traced(self, level: int, owner: int, smoother: Smoother) -> CompiledLoop:
        run, levels = self._run, self._run.predicted
        sampling, objective = run.task.sampling[owner], run.objective(levels, level, owner)
        shapes = jax.eval_shape(
            lambda params, rest, key: LoopState.start(
                params,
                rest,
                smoother.init(params),
                key,
                objective.data,
                sampling.batch_size,
                parts=objective.parts,
            ),
            levels[level].params,
            levels[owner].rest,
            run.state.key,
        )
        return CompiledLoop(
            objective,
            smoother,
            shapes,
            batch_size=sampling.batch_size,
            window=sampling.window,
            keep_programs=run.task.config.keep_programs,
        )

    def trace_ahead(self) -> None:
        """Trace the next program that the run needs, and compile it in the thread."""
        key = next((key for key in self._ahead if key not in self._loops), None)
        if key is not None:
            with suppress(Exception):  # raised again, as itself, when the level is entered
                self.loop(*key)

    def forget(self, level: int) -> None:
        """Drop what was traced ahead for another model of a level."""
        self._loops = {key: loop for key, loop in self._loops.items() if level not in key}
        self._ahead = iter(self._coming)

    def operations(self, level: int, owner: int) -> float:
        """Price of a step; by the number of parameters where operations cannot be counted."""
        if (level, owner) in self._needed:  # traced now, if a run was taken up after its first use
            self.loop(level, owner)
        loop = self._loops.get((level, owner))
        count = loop.operations if loop is not None else None
        return float(self._size(level)) if count is None else count

    def step_work(self, level: int) -> float:
        """Cost of one step of a level in steps of the finest, by the count of operations."""
        finest = self._run.finest
        try:
            with self._run.history.stopwatch.charge("compilation"):
                for wanted in (level, finest):
                    self.loop(wanted, wanted)
        except Exception:  # an estimate must not end a run: the level itself will raise
            return self._size(level) / self._size(finest)
        return self.operations(level, level) / self.operations(finest, finest)

    def seconds_left(self, index: int, epochs: int) -> float:
        """Seconds of the planned steps, from those of the present level and the price of a step.

        Args:
            index: of the present move.
            epochs: that are left of it.
        """
        run, left = self._run, 0.0
        here = run.moves[index].level
        known = here, run.owner(here)
        for number, (move, user_level) in enumerate(run.coming(index)):
            if not isinstance(move, Smooth):
                continue
            key = move.level, run.owner(move.level, user_level)
            seconds = self.seconds.get(key)
            if seconds is None:
                counted = key in self._loops
                prices = [
                    self.operations(*pair) if counted else self._size(pair[0])
                    for pair in (key, known)
                ]
                seconds = self.seconds[known] * prices[0] / prices[1]
            steps = run.task.sampling[key[1]].steps_per_epoch
            left += seconds * steps * (move.epochs if number else epochs)
        return left

    def _set_unit(self, level: int, owner: int) -> None:
        """The unit of work: estimated from another level until the finest has been traced."""
        finest, unit = self._run.finest, self._run.history.set_unit
        if (finest, finest) in self._loops:
            unit(self.operations(finest, finest))
        else:
            unit(self._size(finest) / self._size(level) * self.operations(level, owner))

    def _size(self, level: int) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self._run.state.levels[level].params))
