"""What samples cost on each level of accuracy, and how far the levels are apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from opifex.core.checks import (
    check_callable,
    check_nonnegative_int,
    check_positive_int,
    check_positive_numbers,
    check_sequence,
)
from opifex.data import OperatorData

__all__ = [
    "SampleLevels",
    "SampleSolver",
    "compare_sample_levels",
    "measure_sample_levels",
    "solved",
]


TIMED_SHARE = 0.1
"""A lower level is timed for this part of the time of the highest one, at least."""

MOST_TIMED = 1024
"""Samples to time a level on, at most."""


class SampleSolver(Protocol):
    """Solves random samples on a level of accuracy."""

    def __call__(self, level: int, num_samples: int, seed: int) -> OperatorData:
        """Samples of one level.

        Inputs and outputs lie on one grid whatever the level: that of the networks, to which a solver
        on another grid restricts (or prolongates) its solution.

        Args:
            level: 0 is the cheapest solver, the highest one is trusted.
            num_samples: how many.
            seed: one seed gives the same inputs on every level, and the first inputs of a longer set
                are those of a shorter one.
        """


def solved(solve: SampleSolver, level: int, num_samples: int, seed: int) -> OperatorData:
    """Call a solver and check what it gives.

    Args:
        solve: the solver.
        level: the level.
        num_samples: how many samples.
        seed: of the inputs.

    Returns:
        Inputs and outputs of shape (num_samples, *spatial, channels).

    Raises:
        TypeError: if it does not give a pair of arrays.
        ValueError: if these are not that many finite samples on one grid.
    """
    return checked(solve(level, num_samples, seed), level, num_samples)


def checked(found: Any, level: int, num_samples: int) -> OperatorData:
    """Check samples of a level; arguments and errors are those of `solved`."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(
            f"solve must return OperatorData or a pair of arrays, got {type(found).__name__} on "
            f"level {level}"
        )
    inputs, outputs = (np.asarray(part) for part in found)
    for name, part in (("inputs", inputs), ("outputs", outputs)):
        if part.ndim < 2 or len(part) != num_samples or not np.all(np.isfinite(part)):
            raise ValueError(
                f"solve must return {num_samples} samples of finite {name}, shape (samples, *spatial, "
                f"channels), on level {level}; got shape {part.shape}"
                + ("" if np.all(np.isfinite(part)) else ", not all finite")
            )
    if inputs.shape[:-1] != outputs.shape[:-1]:
        raise ValueError(
            f"inputs and outputs of solve must lie on one grid, got shapes {inputs.shape} and "
            f"{outputs.shape} on level {level}"
        )
    return OperatorData(inputs, outputs)


def check_same_inputs(one: np.ndarray, other: np.ndarray, level: int) -> None:
    """Raise unless two levels solved the same samples.

    Args:
        one: inputs of a lower level.
        other: as many inputs of ``level``.
        level: named in the error.

    Raises:
        ValueError: if they differ by more than a tenth of their size: restrictions of one field from
            two grids need not agree to rounding.
    """
    size = np.linalg.norm(one)
    if one.shape != other.shape or np.linalg.norm(one - other) > 0.1 * size:
        raise ValueError(
            f"solve must give the same inputs on every level for one seed; on level {level} they are "
            "others"
        )


@dataclass(frozen=True)
class SampleLevels:
    """What `measure_sample_levels` found.

    Attributes:
        seconds: processor seconds of one sample on each level, cheapest first.
        variance: of the outputs on the highest level: the mean over samples and points of the square
            of their deviation from the mean field.
        differences: shape (levels, levels); entry (i, j) is the same for the difference of the outputs
            of levels i and j, divided by ``variance``. Zero on the diagonal.
        num_samples: on which it was measured.
    """

    seconds: tuple[float, ...]
    variance: float
    differences: np.ndarray
    num_samples: int


def _variance(fields: np.ndarray) -> float:
    return float(np.mean((fields - fields.mean(axis=0)) ** 2))


def _seconds_per_sample(
    solve: SampleSolver, level: int, num_samples: int, seed: int, enough: float
) -> float:
    """Of so many samples that they take long enough to be timed, and fill the batches of the solver.

    The solver has been called with ``num_samples`` once, which may have compiled it.
    """
    while True:
        start = time.process_time()
        solved(solve, level, num_samples, seed)
        took = time.process_time() - start
        if took >= enough or num_samples >= MOST_TIMED:
            # The clock of the process may not have moved for a very cheap solver.
            return max(took, 1e-6) / num_samples
        num_samples = min(MOST_TIMED, 4 * num_samples)
        solved(solve, level, num_samples, seed)


def compare_sample_levels(
    samples: Sequence[OperatorData], seconds: Sequence[float]
) -> SampleLevels:
    """The same as `measure_sample_levels`, from samples that are solved and costs that are known.

    For solvers that ran elsewhere, in other processes or on other machines, and for samples that become
    part of the training set afterwards, so that comparing the levels costs nothing of its own.

    Args:
        samples: the same inputs solved on each level, cheapest first, two levels and two samples at
            least.
        seconds: of one sample on each level, positive, in any unit of cost that the budget of
            `allocate_samples` has, too.

    Returns:
        Costs and differences.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if there are not two levels and two samples, not as many costs, the samples are not
            finite or not the same ones on all levels, a cost is not positive, or all outputs of the
            highest level are equal.

    Example:
        >>> import numpy as np
        >>> from opifex.training.sample_levels import compare_sample_levels
        >>> fine = np.random.default_rng(0).standard_normal((50, 32, 1))
        >>> found = compare_sample_levels([(fine, 0.9 * fine), (fine, fine)], [0.1, 2.0])
        >>> round(float(found.differences[0, 1]), 6)
        0.01
    """
    check_sequence("samples", samples)
    costs = check_positive_numbers("seconds", seconds)
    if len(samples) < 2 or len(samples) != len(costs):
        raise ValueError(
            f"samples and seconds must be as many, at least two levels, got {len(samples)} and "
            f"{len(costs)}"
        )
    first: Any = samples[0]
    num_samples = len(first[0]) if isinstance(first, tuple) and len(first) == 2 else 0
    found = [checked(data, level, num_samples) for level, data in enumerate(samples)]
    if num_samples < 2:
        raise ValueError(f"samples must be at least 2 on each level, got {num_samples}")
    return _compared(found, costs)


def _compared(samples: Sequence[OperatorData], seconds: Sequence[float]) -> SampleLevels:
    """Compare samples that are checked one by one, but not yet against each other."""
    for level, data in enumerate(samples):
        check_same_inputs(samples[-1].inputs, data.inputs, level)
    fields = [np.asarray(data.outputs, np.float64) for data in samples]
    variance = _variance(fields[-1])
    if variance == 0:
        raise ValueError("solve gives the same outputs for all samples on the highest level")
    apart = [[_variance(one - other) / variance for other in fields] for one in fields]
    return SampleLevels(tuple(seconds), variance, np.asarray(apart), len(fields[-1]))


def measure_sample_levels(
    solve: SampleSolver, num_levels: int, *, num_samples: int = 16, seed: int = 0
) -> SampleLevels:
    """Solve a few samples on every level, and compare.

    Lower levels are timed on more samples: solvers that work in batches are cheaper then. Each time is
    that of a second call, since the first one may compile.

    Args:
        solve: the solver, see `SampleSolver`.
        num_levels: number of levels, at least two.
        num_samples: samples to compare, at least two. The highest level solves them twice.
        seed: of the inputs.

    Returns:
        Costs and differences.

    Raises:
        TypeError: if ``solve`` is not callable, or does not return a pair of arrays.
        ValueError: if a number is out of range, the samples are not finite or not the same ones on all
            levels, or all outputs of the highest level are equal.
    """
    check_callable("solve", solve)
    for name, value in (("num_levels", num_levels), ("num_samples", num_samples)):
        if check_positive_int(name, value) < 2:
            raise ValueError(f"{name} must be at least 2, got {value}")
    check_nonnegative_int("seed", seed)
    highest = num_levels - 1
    samples = [solved(solve, level, num_samples, seed) for level in range(num_levels)]
    seconds = [_seconds_per_sample(solve, highest, num_samples, seed, 0.0)]
    enough = TIMED_SHARE * seconds[0] * num_samples
    for level in range(highest):
        seconds.insert(level, _seconds_per_sample(solve, level, num_samples, seed, enough))
    return _compared(samples, seconds)
