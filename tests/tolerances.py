"""How far two correct computations may differ, from dtype, conditioning and operation count."""

from __future__ import annotations

import numpy as np

__all__ = ["rounding"]


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
