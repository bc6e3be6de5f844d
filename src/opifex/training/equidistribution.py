r"""Nodes that are close where a function bends: equidistribution of a monitor function.

The error of an element of length $h$ grows with $h^k |u^{(k)}|$, so that $\int |u^{(k)}|^{1/k}$ over
the element should be the same for all (de Boor, Springer LNM 363, 1974; Huang and Russell, Adaptive
Moving Mesh Methods, 2011, section 2.2). A share of the mean is added everywhere, without which
elements where nothing happens would be as long as they like (chapter 2.4 of the same book).
"""

from __future__ import annotations

import numpy as np

__all__ = ["equidistributed_nodes"]

ORDER = 3
"""Derivative whose root is equidistributed: a front stands out less than by its slope."""

EVERYWHERE = 0.3
"""Share of the mean that is added to the monitor function."""

WINDOW = 21
"""Grid points over which the monitor function is averaged."""

SMOOTHINGS = 2
"""How often lengths of neighbours are averaged (geometrically)."""


def equidistributed_nodes(
    places: np.ndarray, values: np.ndarray, elements: int, *, periodic: bool = False
) -> np.ndarray:
    """Ends of elements between the first and the last place.

    Args:
        places: an even grid, shape (n,), of 100 points or more.
        values: a function there, shape (n, components); components count by their largest derivative.
        elements: how many.
        periodic: whether the last place is the first of the next period.

    Returns:
        Shape (elements + 1,), ascending; evenly spaced if the function has no curvature.
    """
    derivative = values
    for _ in range(ORDER):
        derivative = np.gradient(derivative, axis=0)
    # One-sided differences at the ends are of a lower order.
    derivative[:ORDER], derivative[-ORDER:] = derivative[ORDER], derivative[-ORDER - 1]
    largest = np.abs(derivative).max(axis=0)
    # What is rounding next to the values is no curvature.
    seen = largest > 1e3 * np.finfo(values.dtype).eps * np.abs(values).max(axis=0)
    if not seen.any():
        return np.linspace(places[0], places[-1], elements + 1)
    monitor = np.sum(np.abs(derivative[:, seen] / largest[seen]), axis=1) ** (1 / ORDER)
    padded = np.pad(monitor, WINDOW // 2, mode="wrap" if periodic else "edge")
    monitor = np.convolve(padded, np.full(WINDOW, 1 / WINDOW), "valid")
    monitor += EVERYWHERE * monitor.mean()
    reached = np.concatenate([[0.0], np.cumsum(monitor[1:] + monitor[:-1])])
    nodes = np.interp(np.linspace(0, reached[-1], elements + 1), reached, places)
    for _ in range(SMOOTHINGS):
        lengths = np.pad(np.log(np.diff(nodes)), 1, mode="wrap" if periodic else "edge")
        lengths = np.exp((lengths[:-2] + 2 * lengths[1:-1] + lengths[2:]) / 4)
        ends = np.concatenate([[0.0], np.cumsum(lengths)])
        nodes = places[0] + ends / ends[-1] * (places[-1] - places[0])
    return nodes
