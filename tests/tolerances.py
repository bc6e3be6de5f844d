"""How far two correct computations may differ, from dtype, conditioning and operation count."""

from __future__ import annotations

import numpy as np

__all__ = ["distance", "rounding"]


def rounding(dtype, *, condition: float = 1.0, operations: int = 1) -> float:
    """A relative error that rounding alone can cause, and more cannot.

    A backward stable method solves a nearby problem exactly; "nearby" is a relative perturbation of
    at most about the number of operations behind one entry times the unit roundoff, and the
    condition number says how much of that reaches the result (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 1.6). The factor 8 covers the constants of both sides.

    Args:
        dtype: floating-point type of the computation.
        condition: relative condition number of the problem.
        operations: additions and multiplications behind one entry of the result.
    """
    return 8.0 * operations * condition * float(np.finfo(dtype).eps)


def distance(actual, expected, *, scale: float | None = None) -> float:
    """The Euclidean norm of the difference, relative to ``scale``: what `rounding` bounds.

    It is taken over all entries together. One entry may be small because large terms cancel, and
    then has no digits of its own.

    Args:
        actual: array to judge.
        expected: array of the same shape, or one number for all entries.
        scale: norm of what is added and subtracted; that of ``expected`` by default.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert expected.shape in ((), actual.shape), f"{actual.shape} is compared with {expected.shape}"
    expected = np.broadcast_to(expected, actual.shape)
    return float(np.linalg.norm(actual - expected) / (scale or np.linalg.norm(expected)))
