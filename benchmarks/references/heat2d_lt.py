"""Heat2d-LT: diffusion and a reaction that changes its sign, over a long time.

Problem: u_t = 0.001 (u_xx + u_yy) + 5 sin(u^2) (1 + 2 sin(pi t / 4)) sin(4 pi x) sin(2 pi y) on the
unit square, t in [0, 100]; u = 0 on the boundary, u = sin(4 pi x) sin(3 pi y) at t = 0.

Method: sine series with an exponential integrator of fourth order (Krogstad, J. Comput. Phys. 203,
2005); the reaction is evaluated at the points of the discrete sine transform. The solution is odd
about x = 1/4, 1/2 and 3/4, as the initial state and the reaction's coefficient are, so only
[0, 1/4] x [0, 1] is computed.

The suite has 192 places and 501 times; each fourth time is kept.

Error: the difference between two resolutions in space and time; `error_by_time` is that at each
time. `growth` is the largest factor, over the times, by which a perturbation of the initial state
has grown in the norm, relative to its first size; the perturbation has the symmetry as well.
"""

from __future__ import annotations

import numpy as np
from scipy import fft
from suite import Array, distance, parsed, read, write

CASE = "heat2d_lt"
DIFFUSION, RATE, END = 0.001, 5.0, 100.0
PERTURBATION = 1e-6
EVERY = 4  # of the suite's 501 times, those that are kept
KEPT_TIMES = 126


def phi(z: Array, order: int) -> Array:
    """The function phi_1, phi_2 or phi_3 of exponential integrators, for z <= 0."""
    series = sum(z**n / float(np.prod(np.arange(1.0, n + order + 1))) for n in range(18))
    safe = np.where(np.abs(z) < 0.5, -1.0, z)
    closed = np.expm1(safe) / safe
    for n in range(1, order):
        closed = (closed - 1 / float(np.prod(np.arange(1.0, n + 1)))) / safe
    return np.where(np.abs(z) < 0.5, series, closed)


def evolve(points: Array, size: tuple[int, int], step: float, perturbation: float = 0.0) -> Array:
    """Values at points, at the times 0, 0.2, ..., 100 (one column for each).

    Args:
        points: Places in the unit square.
        size: Number of intervals of [0, 1/4] along x and of [0, 1] along y.
        step: Time step.
        perturbation: Coefficient of sin(8 pi x) sin(pi y), which is added to the initial state.
    """
    m, n = np.arange(1, size[0])[:, None], np.arange(1, size[1])
    x, y = m / (4 * size[0]), n / size[1]
    linear = -step * DIFFUSION * np.pi**2 * ((4 * m) ** 2 + n**2)
    weight = np.sin(4 * np.pi * x) * np.sin(2 * np.pi * y)
    decay, half_decay = np.exp(linear), np.exp(linear / 2)
    half1, half2 = phi(linear / 2, 1), phi(linear / 2, 2)
    phi1, phi2, phi3 = (phi(linear, order) for order in (1, 2, 3))

    def reaction(state: Array, time: float) -> Array:
        u = fft.dstn(state, type=1) / 4
        strength = step * RATE * (1 + 2 * np.sin(np.pi * time / 4))
        return fft.dstn(strength * np.sin(u**2) * weight, type=1) / (size[0] * size[1])

    start = np.sin(4 * np.pi * x) * np.sin(3 * np.pi * y)
    start = start + perturbation * np.sin(8 * np.pi * x) * np.sin(np.pi * y)
    state = fft.dstn(start, type=1) / (size[0] * size[1])
    in_x = np.sin(np.pi * points[:, :1] * 4 * m.T)
    in_y = np.sin(np.pi * points[:, 1:] * n)
    steps = round(0.2 / step)
    columns = []
    for number in range(steps * round(END / 0.2) + 1):
        if number % steps == 0:
            columns.append(np.einsum("pi,ij,pj->p", in_x, state, in_y, optimize=True))
        time = number * step
        at_start = reaction(state, time)
        a = half_decay * state + half1 / 2 * at_start
        at_a = reaction(a, time + step / 2)
        b = half_decay * state + half1 / 2 * at_start + half2 * (at_a - at_start)
        at_b = reaction(b, time + step / 2)
        c = decay * state + phi1 * at_start + 2 * phi2 * (at_b - at_start)
        at_c = reaction(c, time + step)
        state = decay * state + (phi1 - 3 * phi2 + 4 * phi3) * at_start
        state += (2 * phi2 - 4 * phi3) * (at_a + at_b) + (4 * phi3 - phi2) * at_c
    return np.stack(columns, axis=1)


def by_time(found: Array, other: Array) -> Array:
    """Relative L2 distance at each time."""
    return np.linalg.norm(found - other, axis=0) / np.linalg.norm(other, axis=0)


def main() -> None:
    suite = read(CASE, parsed(__doc__).suite, "heat_longtime.dat")
    places = suite.points if suite.values is not None else suite.points[::KEPT_TIMES, :2]
    coarse, fine = evolve(places, (32, 128), 0.02), evolve(places, (48, 192), 0.01)
    perturbed = by_time(evolve(places, (32, 128), 0.02, PERTURBATION), coarse)
    times = np.linspace(0, END, fine.shape[1])[::EVERY]
    points = np.column_stack([np.repeat(places, len(times), axis=0), np.tile(times, len(places))])
    theirs = None if suite.values is None else suite.values[:, ::EVERY].reshape(-1, 1)
    write(
        CASE,
        points,
        fine[:, ::EVERY].reshape(-1, 1),
        distance(coarse, fine),
        theirs,
        error_by_time=by_time(coarse, fine)[::EVERY],
        growth=np.max(perturbed / perturbed[0]),
    )


if __name__ == "__main__":
    main()
