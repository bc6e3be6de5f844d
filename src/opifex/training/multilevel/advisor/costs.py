"""What a step of each level costs: timed, counted, or estimated from sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from opifex.training.multilevel.advisor.candidates import Candidate
from opifex.training.multilevel.advisor.probes import Allowance, Probe, count_step
from opifex.training.smoother import Smoother

__all__ = ["ESTIMATED", "Costs", "least_seconds"]

ESTIMATED = "estimated from points and parameters, since timing would take too much"


def _product_speed() -> float:
    """Multiplications and additions per processor second of a product of matrices."""
    matrix = np.ones((256, 256), np.float32)
    times = []
    for _ in range(3):
        clock = time.process_time()
        for _ in range(4):
            matrix = matrix @ matrix * 0.0
        times.append(time.process_time() - clock)
    return 4 * 2 * 256**3 / max(min(times), 1e-4)


def least_seconds(finest: Candidate, samples: int, budget: int) -> float:
    """What a budget takes at the very least: forward and backward at the speed of a matrix product.

    Args:
        finest: the finest level.
        samples: of a step.
        budget: steps.
    """
    return budget * 6 * finest.work * samples / _product_speed()


class Costs:
    """Costs of a step, as exactly as the allowance permits.

    Args:
        candidates: the levels, coarsest first.
        allowance: what measuring may take.
        options: loss, smoother and batch size.
        samples: of a step, ``None`` where there are only points.

    Attributes:
        seconds: of a step of each level that was timed.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        allowance: Allowance,
        options: tuple[Any, Smoother, int | None],
        samples: int | None,
    ) -> None:
        self._candidates, self._allowance, self._options = candidates, allowance, options
        self._samples = samples
        self._probes: dict[int, Probe] = {}
        self.seconds: dict[int, float] = {}

    def probe(self, level: int) -> Probe:
        """The traced step of a level."""
        if level not in self._probes:
            self._probes[level] = Probe(self._candidates[level], *self._options, self._allowance)
        return self._probes[level]

    def time(self, levels: Sequence[int]) -> None:
        """Time levels, the cheapest first, as far as the allowance goes."""
        for level in sorted(levels, key=lambda i: self._candidates[i].work):
            if level in self.seconds:
                continue
            allowance = self._allowance
            if not allowance.allows(allowance.trace_seconds + allowance.compilation):
                return
            self.seconds[level] = self.probe(level).step_seconds()

    def relative(self, levels: Sequence[int]) -> tuple[list[float], str]:
        """Costs of all levels over that of the finest; exact ones for the levels that matter."""
        work = [candidate.work for candidate in self._candidates]
        last = len(work) - 1
        if set(levels) <= set(self.seconds) and last in self.seconds:
            scale = self.seconds[last]
            exact = [self.seconds.get(i, scale * work[i] / work[last]) for i in range(last + 1)]
            return [cost / scale for cost in exact], "timed"
        counts: dict[int, float] = {}
        for level in dict.fromkeys([*levels, last]):
            if not self._allowance.allows(1.5 * self._allowance.trace_seconds):
                break
            counts[level] = count_step(
                self._candidates[level], self._options[0], self._samples, self._allowance
            )
        if all(counts.get(level) for level in [*levels, last]):
            scale = counts[last]
            exact = [counts.get(i, scale * work[i] / work[last]) for i in range(last + 1)]
            return [cost / scale for cost in exact], "counted in operations"
        return [cost / work[last] for cost in work], ESTIMATED
