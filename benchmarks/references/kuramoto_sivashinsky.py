"""Kuramoto-Sivashinsky: a chaotic equation, over a short time.

Problem: u_t + alpha u u_x + beta u_xx + gamma u_xxxx = 0, alpha = 100 / 16, beta = 100 / 16^2,
gamma = 100 / 16^4, with period 2 pi in x, t in [0, 1], u = cos(x) (1 + sin(x)) at t = 0. (The suite's
code states no boundary condition; its reference is periodic.)

Method: Fourier with an exponential integrator (`spectral_waves.py`). Points are a grid of 256 places
in x, from 0 on and without 2 pi, and 101 times; t runs fastest.

Error: the difference between two time steps and numbers of modes, in 80-bit numbers. `error_by_time`
is that at each time. `growth` is the factor by which a perturbation of the initial state by 1e-8
(of one mode) has grown at each time, relative to the solution: by about 400 until t = 1.
"""

from __future__ import annotations

import numpy as np
from spectral_waves import PI, evolve
from suite import Array, distance, parsed, write

CASE = "kuramoto_sivashinsky"
ALPHA, BETA, GAMMA = 100 / 16, 100 / 16**2, 100 / 16**4
PERTURBATION = 1e-8


def solution(modes: int, steps: int, perturbation: float = 0.0) -> Array:
    """Values at 256 places and 101 times."""
    return evolve(
        lambda x: np.cos(x) * (1 + np.sin(x)) + perturbation * np.cos(3 * x),
        lambda k: BETA * k**2 - GAMMA * k**4 + 0j,
        ALPHA,
        (0, 2 * PI),
        modes,
        steps,
        100,
        256,
    )


def by_time(found: Array, other: Array) -> Array:
    """Relative L2 distance at each time."""
    return np.linalg.norm(found - other, axis=0) / np.linalg.norm(other, axis=0)


def main() -> None:
    parsed(__doc__)
    coarse, fine = solution(256, 20000), solution(512, 40000)
    perturbed = solution(256, 20000, PERTURBATION)
    grid = np.meshgrid(2 * np.pi * np.arange(256) / 256, np.linspace(0, 1, 101), indexing="ij")
    initial = by_time(perturbed, coarse)
    write(
        CASE,
        np.stack(grid, axis=-1).reshape(-1, 2),
        fine.reshape(-1, 1),
        distance(coarse, fine),
        error_by_time=by_time(coarse, fine),
        growth=initial / initial[0],
    )


if __name__ == "__main__":
    main()
