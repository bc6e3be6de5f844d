"""Samples from solvers of several accuracies, where the solver costs more than the training.

Many samples of a cheap solver and few of a dear one: `measurement` finds what each level costs and how
far levels are apart, `allocation` says how many samples to solve on which, `correction` learns from the
few pairs what the cheap solver gets wrong and mends the many.

The room may import `opifex.core`, `opifex.data`, `opifex.models` and `opifex.training.multilevel`.
"""

from opifex.training.sample_levels.allocation import SampleAllocation, allocate_samples
from opifex.training.sample_levels.correction import (
    CorrectedSamples,
    Correction,
    correct_samples,
)
from opifex.training.sample_levels.measurement import (
    SampleLevels,
    SampleSolver,
    compare_sample_levels,
    measure_sample_levels,
)

__all__ = [
    "CorrectedSamples",
    "Correction",
    "SampleAllocation",
    "SampleLevels",
    "SampleSolver",
    "allocate_samples",
    "compare_sample_levels",
    "correct_samples",
    "measure_sample_levels",
]
