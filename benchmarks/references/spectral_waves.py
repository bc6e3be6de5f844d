"""Periodic evolution equations u_t = L u - c (u^2)_x / 2 by a Fourier method.

The linear part L is diagonal in Fourier space and is integrated exactly; the rest by the
fourth-order exponential scheme of Cox and Matthews, whose coefficients are averaged over a circle in
the complex plane as Kassam and Trefethen advise (SIAM J. Sci. Comput. 26, 2005). The product is
free of aliasing (3/2 rule). Numbers have 80 bits where the platform's `longdouble` has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from suite import Array

Complex = NDArray[np.clongdouble]


def evolve(
    initial: Callable[[NDArray[np.longdouble]], NDArray[np.longdouble]],
    symbol: Callable[[NDArray[np.longdouble]], Complex],
    advection: float,
    interval: tuple[float, float],
    modes: int,
    steps: int,
    outputs: int,
    grid: int,
) -> Array:
    """The solution on [0, 1] in time at `outputs` + 1 times and `grid` equal places.

    Args:
        initial: The initial state.
        symbol: The factor by which L multiplies exp(i k x), a function of k.
        advection: The coefficient c.
        interval: The period, from its left end (which is a place of the grid) to its right end.
        modes: Number of points of the Fourier method.
        steps: Number of time steps; a multiple of `outputs`.
        outputs: Number of equal time intervals.
        grid: Number of places; it divides `modes`.
    """
    start, end = (np.longdouble(side) for side in interval)
    x = start + (end - start) * np.arange(modes, dtype=np.longdouble) / modes
    k = 2 * PI * np.arange(modes // 2 + 1, dtype=np.longdouble) / (end - start)
    step = np.longdouble(1) / steps
    linear = step * symbol(k)
    circle = np.exp(2j * PI * (np.arange(64, dtype=np.longdouble) + 0.5) / 64)
    z = linear[:, None] + circle
    half = step * (np.expm1(z / 2) / z).mean(axis=1)
    first = step * ((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3).mean(axis=1)
    middle = step * ((2 + z + np.exp(z) * (z - 2)) / z**3).mean(axis=1)
    last = step * ((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3).mean(axis=1)
    whole_decay, half_decay = np.exp(linear), np.exp(linear / 2)
    fine = 3 * modes // 2
    slope = -0.5j * np.longdouble(advection) * k
    slope[-1] = 0

    def product(state: Complex) -> Complex:
        padded = fft.irfft(np.concatenate([state, np.zeros(fine // 2 - modes // 2)]), fine)
        return slope * fft.rfft(padded**2)[: len(k)] * (np.longdouble(fine) / modes)

    state = fft.rfft(initial(x))
    history = [fft.irfft(state, modes)]
    for number in range(1, steps + 1):
        old = product(state)
        a = half_decay * state + half * old
        at_a = product(a)
        b = half_decay * state + half * at_a
        at_b = product(b)
        at_c = product(half_decay * a + half * (2 * at_b - old))
        state = whole_decay * state + first * old + 2 * middle * (at_a + at_b) + last * at_c
        if number % (steps // outputs) == 0:
            history.append(fft.irfft(state, modes))
    return np.asarray(np.stack(history, axis=1)[:: modes // grid], float)


PI = np.arctan(np.longdouble(1)) * 4
