r"""How many samples to solve on which level.

Multilevel Monte Carlo writes the fine field as a cheap one plus differences between neighbours and
spends most where a sample says most per second: with variances $V_l$ and costs $C_l$ of the terms, the
error for a given budget is least for $N_l \propto \sqrt{V_l / C_l}$ (Giles, Operations Research 56,
2008, section 2), and the budget for a given error is proportional to $(\sum_l \sqrt{V_l C_l})^2$. Lye,
Mishra and Molinaro (arXiv:1909.09448, section 3) choose training samples in this way. That the error of
a *trained* term falls like $N^{-1/2}$ is an assumption; networks on smooth terms do better.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from opifex.core.checks import check_positive, check_positive_int
from opifex.training.sample_levels.measurement import SampleLevels

__all__ = ["SampleAllocation", "allocate_samples"]


@dataclass(frozen=True)
class SampleAllocation:
    """What `allocate_samples` proposes; it may as well be written by hand.

    Attributes:
        levels: which levels are solved on, cheapest first; the last one is trusted.
        counts: how many samples on each, falling.

    Raises:
        ValueError: if levels do not rise, or counts are not positive, as many, and falling.
    """

    levels: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.levels) == 0 or len(self.levels) != len(self.counts):
            raise ValueError(
                f"levels and counts must be as many, at least one, got {self.levels} and {self.counts}"
            )
        if any(a >= b for a, b in itertools.pairwise(self.levels)) or self.levels[0] < 0:
            raise ValueError(f"levels must rise from at least 0, got {self.levels}")
        for i, count in enumerate(self.counts):
            check_positive_int(f"counts[{i}]", count)
        if any(a < b for a, b in itertools.pairwise(self.counts)):
            raise ValueError(
                f"counts must not rise with the level, since levels share samples, got {self.counts}"
            )

    def seconds(self, measured: SampleLevels) -> float:
        """Processor seconds to solve all samples.

        Args:
            measured: costs of the levels.
        """
        pairs = zip(self.levels, self.counts, strict=True)
        return sum(count * measured.seconds[level] for level, count in pairs)


def allocate_samples(measured: SampleLevels, budget: float, *, least: int = 8) -> SampleAllocation:
    r"""The levels, and the numbers of samples on them, that make the most of a budget.

    Of all sets of levels that end with the highest one, that with the least $\sum_l \sqrt{V_l C_l}$.
    If it is the highest level alone, coarse samples do not pay.

    Args:
        measured: what `measure_sample_levels` found.
        budget: processor seconds for solving, positive.
        least: samples on every chosen level, at least. A correction can hardly be learned from fewer.

    Returns:
        Levels and counts.

    Raises:
        ValueError: if ``budget`` does not pay for ``least`` samples of the highest level, or a number
            is not positive.

    Example:
        >>> import numpy as np
        >>> from opifex.training.sample_levels import SampleLevels, allocate_samples
        >>> apart = np.array([[0.0, 0.01], [0.01, 0.0]])
        >>> measured = SampleLevels((0.01, 1.0), 1.0, apart, 16)
        >>> allocate_samples(measured, budget=100.0)
        SampleAllocation(levels=(0, 1), counts=(5000, 50))
    """
    check_positive("budget", budget)
    check_positive_int("least", least)
    highest = len(measured.seconds) - 1
    cost = measured.seconds

    def terms(levels: tuple[int, ...]) -> list[tuple[float, float]]:
        """Variance and cost of each term: the lowest level, then differences of neighbours."""
        found = [(1.0, cost[levels[0]])]
        for low, high in itertools.pairwise(levels):
            found.append((float(measured.differences[low, high]), cost[high]))
        return found

    subsets = [
        (*lower, highest)
        for size in range(highest + 1)
        for lower in itertools.combinations(range(highest), size)
    ]

    def counts(levels: tuple[int, ...]) -> tuple[int, ...]:
        split = terms(levels)
        scale = budget / sum(math.sqrt(v * c) for v, c in split)
        exact = [scale * math.sqrt(v / c) for v, c in split]
        # From the top, so that every level holds the samples of the one above it.
        found: list[int] = []
        for value in reversed(exact):
            found.append(max([math.floor(value * (1 + 1e-9)), least, *found[-1:]]))
        # What the least numbers took is missing at the bottom, where most of the samples are.
        found.reverse()
        rest = budget - sum(n * cost[i] for n, i in zip(found[1:], levels[1:], strict=True))
        found[0] = min(found[0], math.floor(rest / cost[levels[0]] * (1 + 1e-9)))
        return tuple(found)

    order = sorted(subsets, key=lambda levels: sum(math.sqrt(v * c) for v, c in terms(levels)))
    for levels in order:
        found = counts(levels)
        if found[0] >= max([least, *found[1:]]):
            return SampleAllocation(levels, found)
    raise ValueError(
        f"budget must pay for least={least} samples of the highest level at {cost[-1]:.3g} s each, "
        f"got {budget} s"
    )
