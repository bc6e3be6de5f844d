"""What a step costs and how fast a level learns, within an allowance of processor time.

An advice must cost little beside the training it is for. Everything here is therefore asked for only
as long as the allowance lasts, and what it takes is predicted before it is begun: tracing a step by
what the last one took, compiling it by `COMPILATION` times the tracing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from opifex.training.loop import CAPACITY, CompiledLoop, LoopState, as_arrays, owned
from opifex.training.multilevel.advisor.candidates import Candidate
from opifex.training.objective import Objective, split_model
from opifex.training.operations import count_operations
from opifex.training.smoother import Smoother

__all__ = ["Allowance", "Probe", "count_step", "race"]

COMPILATION = 10.0
"""Times longer than tracing that compiling takes, rather too many than too few."""

FIRST_TRACE = 0.5
"""Processor seconds to expect of the first step that is traced."""

TIMED_STEPS = 3
MARGIN = 1.2
"""Ratio of two losses in a short race below which the coarser level is preferred."""


@dataclass
class Allowance:
    """Processor seconds that the advice may take.

    Attributes:
        seconds: in all.
        started: the clock at the start.
        trace_seconds: the last, or the longest, time that tracing a step took.
        compile_seconds: the same for compiling; ``None`` before any was compiled.
    """

    seconds: float
    started: float = field(default_factory=time.process_time)
    trace_seconds: float = FIRST_TRACE
    compile_seconds: float | None = None

    @property
    def spent(self) -> float:
        """Processor seconds since the start."""
        return time.process_time() - self.started

    def allows(self, seconds: float) -> bool:
        """Whether so many more seconds stay within the allowance."""
        return self.spent + seconds <= self.seconds

    @property
    def compilation(self) -> float:
        """Seconds that compiling one more step will take."""
        return self.compile_seconds or COMPILATION * self.trace_seconds


def count_step(candidate: Candidate, loss: Any, samples: int | None, allowance: Allowance) -> float:
    """Floating-point operations of a gradient, from shapes alone; zero where they cannot be counted.

    Args:
        candidate: the level.
        loss: what is trained.
        samples: of a step; all by default.
        allowance: learns what tracing cost.
    """
    began = time.process_time()
    graphdef, params, rest = candidate.parts
    data: Any = jax.eval_shape(lambda: as_arrays(candidate.load(slice(1))))
    if samples is not None:
        data = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((samples, *leaf.shape[1:]), leaf.dtype), data
        )
    objective = Objective(loss, graphdef, data, rest)
    traced = jax.jit(jax.grad(lambda params, objective: objective.value(params))).trace(
        params, objective
    )
    operations = count_operations(traced) or 0.0
    allowance.trace_seconds = time.process_time() - began
    return operations


class Probe:
    """A level's training program, to time its steps and to train for a few seconds.

    Args:
        candidate: the level.
        loss: what is minimised.
        smoother: what minimises it.
        batch_size: samples per step, or ``None``.
        allowance: keeps the record of what compiling took.
    """

    def __init__(
        self,
        candidate: Candidate,
        loss: Any,
        smoother: Smoother,
        batch_size: int | None,
        allowance: Allowance,
    ) -> None:
        self._allowance = allowance
        self._began = time.process_time()
        arrays = as_arrays(candidate.data)
        graphdef, params, rest = split_model(candidate.model)
        self._objective = Objective(loss, graphdef, arrays)
        # The buffers of a state are consumed: the given model must keep its own.
        self._state = owned(
            LoopState.start(
                params, rest, smoother.init(params), jax.random.key(0), arrays, batch_size
            )
        )
        self._loop = CompiledLoop(
            self._objective, smoother, self._state, batch_size=batch_size, keep_programs=False
        )

    def step_seconds(self) -> float:
        """Compile, and time a few steps: the median in processor seconds."""
        self._loop.compile()
        self._run(1)
        self._allowance.compile_seconds = time.process_time() - self._began
        times = []
        for _ in range(TIMED_STEPS):
            clock = time.process_time()
            self._run(1)
            times.append(time.process_time() - clock)
        return max(float(np.median(times)), 1e-9)

    def _run(self, steps: int) -> float:
        """Take steps; the geometric mean of the last losses, infinite where one is not finite."""
        losses: list[float] = []
        while steps > 0:
            taken = min(steps, CAPACITY)
            self._state, found, healthy = self._loop.run(self._state, self._objective, taken)
            losses = [float(value) for value in found[-max(1, len(found) // 5) :]]
            if not healthy:
                return float("inf")
            steps -= taken
        return float(np.exp(np.mean(np.log(np.maximum(losses, 1e-300)))))

    def train(self, seconds: float, step_seconds: float) -> float:
        """Train for about so many seconds; what the loss fell to."""
        return self._run(max(1, round(seconds / step_seconds)))


def race(
    candidates: Sequence[Candidate],
    step_seconds: dict[int, float],
    probe: Callable[[int], Probe],
    allowance: Allowance,
) -> tuple[int, str] | None:
    """Train levels for equal times, drop the worse half, double the time, until one is left.

    A race that is a few per cent as long as the training favours coarse levels. A finer one wins only
    if its loss is clearly lower even so.

    Args:
        candidates: all levels.
        step_seconds: of the levels that take part, by their index.
        probe: the program of a level.
        allowance: what is left of it is used.

    Returns:
        The winner and a sentence, or ``None`` where less than the time of a hundred steps of the
        dearest level is left for each.
    """
    running = sorted(step_seconds)
    rounds = max(1, len(running) - 1).bit_length()
    # Half of the levels for twice the time: all rounds cost the same.
    left = 0.9 * (allowance.seconds - allowance.spent) / rounds
    if len(running) < 2 or left / len(running) < 100 * max(step_seconds.values()):
        return None
    told = []
    while len(running) > 1:
        share = left / len(running)
        losses = {i: probe(i).train(share, step_seconds[i]) for i in running}
        told.append(
            f"after {share:.2g} s more each: "
            + ", ".join(f"{candidates[i]} {losses[i]:.2e}" for i in running)
        )
        ranked = sorted(running, key=lambda i: losses[i])
        coarsest = running[0]
        if losses[coarsest] <= MARGIN * losses[ranked[0]]:
            ranked = [coarsest, *(i for i in ranked if i != coarsest)]
        running = sorted(ranked[: len(running) // 2])
    return running[0], f"losses in a short race, {'; '.join(told)}"
