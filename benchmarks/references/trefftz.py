"""Boundary collocation with functions that solve the differential equation exactly.

A linear combination of such functions is fitted to the boundary data by least squares. For the
Laplace equation and for the modified Helmholtz equation a maximum principle holds: nowhere in the
domain is the error greater than the largest misfit on the boundary.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lstsq
from suite import Array


def square_boundary(half_width: float, count: int) -> Array:
    """Points on the boundary of a square around the origin, dense towards its corners."""
    along = half_width * np.cos(np.pi * (np.arange(count) + 0.5) / count)
    across = np.full(count, half_width)
    sides = [(along, across), (along, -across), (across, along), (-across, along)]
    return np.concatenate([np.stack(side, axis=1) for side in sides])


def circle(center: tuple[float, float], radius: float, count: int) -> Array:
    """Equally spaced points on a circle."""
    angle = 2 * np.pi * (np.arange(count) + 0.5) / count
    return np.asarray(center) + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def fitted(matrix: Array, data: Array) -> Array:
    """Least-squares coefficients; the columns are scaled to unit length first."""
    scale = np.linalg.norm(matrix, axis=0)
    coefficients, *_ = lstsq(matrix / scale, data, cond=1e-15, lapack_driver="gelsd")
    return coefficients / scale
