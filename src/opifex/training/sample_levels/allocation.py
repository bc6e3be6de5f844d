r"""How many samples to solve on which level.

Multilevel Monte Carlo writes the fine field as a cheap one plus differences between neighbours and
spends most where a sample says most per second: with variances $V_l$ and costs $C_l$ of the terms, the
error for a given budget is least for $N_l \propto \sqrt{V_l / C_l}$ (Giles, Operations Research 56,
2008, section 2), and the budget for a given error is proportional to $(\sum_l \sqrt{V_l C_l})^2$. Lye,
Mishra and Molinaro (arXiv:1909.09448, section 3) choose training samples in this way. That the error of
a *trained* term falls like $N^{-1/2}$ is an assumption; networks on smooth terms do better.

Every difference that is learned costs its training $c$ besides its samples. For $k + 1$ levels that
leaves $B - k c$ of the budget for solving, and the squared error is
$(\sum_l \sqrt{V_l C_l})^2 / (B - k c)$: fewer levels where the training is dear.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from opifex.core.checks import check_nonnegative, check_positive, check_positive_int
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


def allocate_samples(
    measured: SampleLevels,
    budget: float,
    *,
    least: int = 8,
    correction_seconds: float = 0.0,
) -> SampleAllocation:
    r"""The levels, and the numbers of samples on them, that make the most of a budget.

    Of all sets of levels that end with the highest one, that with the least
    $(\sum_l \sqrt{V_l C_l})^2 / (B - k c)$, where $k$ corrections at $c$ seconds are taken out of the
    budget $B$. If it is the highest level alone, coarse samples do not pay.

    Args:
        measured: what `measure_sample_levels` found.
        budget: processor seconds for solving and for the corrections, positive.
        least: samples on every chosen level, at least. A correction can hardly be learned from fewer.
        correction_seconds: processor seconds that each correction between two levels takes besides its
            samples, that is its training with compilation; `Correction.seconds` of an earlier call says
            what it was. Zero counts solving alone.

    Returns:
        Levels and counts.

    Raises:
        ValueError: if ``budget`` does not pay for ``least`` samples of the highest level, or a number
            is out of range.

    Example:
        >>> import numpy as np
        >>> from opifex.training.sample_levels import SampleLevels, allocate_samples
        >>> apart = np.array([[0.0, 0.01], [0.01, 0.0]])
        >>> measured = SampleLevels((0.01, 1.0), 1.0, apart, 16)
        >>> allocate_samples(measured, budget=100.0)
        SampleAllocation(levels=(0, 1), counts=(5000, 50))
        >>> allocate_samples(measured, budget=100.0, correction_seconds=20.0)
        SampleAllocation(levels=(0, 1), counts=(4000, 40))
        >>> allocate_samples(measured, budget=100.0, correction_seconds=99.0)
        SampleAllocation(levels=(1,), counts=(100,))
    """
    check_positive("budget", budget)
    check_positive_int("least", least)
    check_nonnegative("correction_seconds", correction_seconds)
    highest = len(measured.seconds) - 1
    cost = measured.seconds

    def terms(levels: tuple[int, ...]) -> list[tuple[float, float]]:
        """Variance and cost of each term: the lowest level, then differences of neighbours."""
        found = [(1.0, cost[levels[0]])]
        for low, high in itertools.pairwise(levels):
            found.append((float(measured.differences[low, high]), cost[high]))
        return found

    def for_solving(levels: tuple[int, ...]) -> float:
        """What the corrections leave of the budget."""
        return budget - (len(levels) - 1) * correction_seconds

    def squared_error(levels: tuple[int, ...]) -> float:
        return sum(math.sqrt(v * c) for v, c in terms(levels)) ** 2 / for_solving(levels)

    def counts(levels: tuple[int, ...]) -> tuple[int, ...]:
        split = terms(levels)
        scale = for_solving(levels) / sum(math.sqrt(v * c) for v, c in split)
        exact = [scale * math.sqrt(v / c) for v, c in split]
        # From the top, so that every level holds the samples of the one above it.
        found: list[int] = []
        for value in reversed(exact):
            found.append(max([math.floor(value * (1 + 1e-9)), least, *found[-1:]]))
        # What the least numbers took is missing at the bottom, where most of the samples are.
        found.reverse()
        dearer = sum(n * cost[i] for n, i in zip(found[1:], levels[1:], strict=True))
        rest = for_solving(levels) - dearer
        found[0] = min(found[0], math.floor(rest / cost[levels[0]] * (1 + 1e-9)))
        return tuple(found)

    subsets = [
        (*lower, highest)
        for size in range(highest + 1)
        for lower in itertools.combinations(range(highest), size)
    ]
    for levels in sorted(
        filter(lambda levels: for_solving(levels) > 0, subsets), key=squared_error
    ):
        found = counts(levels)
        if found[0] >= max([least, *found[1:]]):
            return SampleAllocation(levels, found)
    raise ValueError(
        f"budget must pay for least={least} samples of the highest level at {cost[-1]:.3g} s each, "
        f"got {budget} s"
    )
