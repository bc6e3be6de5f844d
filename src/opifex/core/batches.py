"""Functions of samples, evaluated on some at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

Outputs = TypeVar("Outputs")

__all__ = ["in_batches"]


def in_batches(
    function: Callable[[np.ndarray], Outputs], samples: np.ndarray, size: int
) -> list[Outputs]:
    """What a function makes of samples, batch after batch, the last one being what is left.

    Args:
        function: takes samples of shape (batch, ...).
        samples: all of them, shape (samples, ...).
        size: samples of a batch, positive.

    Example:
        >>> import numpy as np
        >>> from opifex.core.batches import in_batches
        >>> in_batches(len, np.zeros((5, 3)), 2)
        [2, 2, 1]
    """
    return [function(samples[i : i + size]) for i in range(0, len(samples), size)]
