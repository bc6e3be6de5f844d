"""Korteweg-de Vries: a cosine that breaks up into solitons.

Problem: u_t + u u_x + 0.0025 u_xxx = 0 with period 2 on [-1, 1], t in [0, 1], u = cos(pi x) at t = 0.
(It is not one of the suite's cases.)

Method: Fourier with an exponential integrator (`spectral_waves.py`). Points are a grid of 256 places
in x, from -1 on and without 1, and 101 times; t runs fastest.

Error: the difference between two time steps and numbers of modes, in 80-bit numbers.
"""

from __future__ import annotations

import numpy as np
from spectral_waves import PI, evolve
from suite import Array, distance, parsed, write

CASE = "korteweg_de_vries"


def solution(modes: int, steps: int) -> Array:
    """Values at 256 places and 101 times."""
    return evolve(
        lambda x: np.cos(PI * x), lambda k: 0.0025j * k**3, 1.0, (-1, 1), modes, steps, 100, 256
    )


def main() -> None:
    parsed(__doc__)
    coarse, fine = solution(256, 10000), solution(512, 20000)
    grid = np.meshgrid(-1 + np.arange(256) / 128, np.linspace(0, 1, 101), indexing="ij")
    points = np.stack(grid, axis=-1).reshape(-1, 2)
    write(CASE, points, fine.reshape(-1, 1), distance(coarse, fine))


if __name__ == "__main__":
    main()
