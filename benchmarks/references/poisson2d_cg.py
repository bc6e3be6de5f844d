"""Poisson2d-CG (the suite's class PoissonBoltzmann2D): a screened Poisson equation around discs.

Problem: -u_xx - u_yy + 64 u = 10 (17 + x^2 + y^2) sin(pi x) sin(4 pi y) on [-1, 1]^2 without four
discs (`DISCS`); u = 0.2 on the square, u = 1 on the circles.

Method: on the square without discs, the right-hand side and the constant on the boundary have
solutions in closed form (`without_discs`, the second one a sine series). What the discs add vanishes
on the square and solves the homogeneous equation; it is fitted to the data on the circles by least
squares, with multipoles K_n(8 r) of the discs and of their mirror images of the opposite sign, and,
for the images farther away, regular functions I_n(8 r) around the origin.

Error: by the maximum principle it is nowhere greater than the largest misfit on the boundary,
which is measured at points between those of the fit and recorded as `largest_misfit`; `error` is the
difference between two orders of the expansion.
"""

from __future__ import annotations

import numpy as np
from scipy.special import iv, kn
from suite import Array, distance, parsed, read, write
from trefftz import circle, fitted, square_boundary

CASE = "poisson2d_cg"
SCREENING = 8.0
DISCS = [((0.5, 0.5), 0.2), ((0.4, -0.4), 0.4), ((-0.2, -0.7), 0.1), ((-0.6, 0.5), 0.3)]
ON_SQUARE, ON_CIRCLES = 0.2, 1.0


def without_discs(points: Array) -> Array:
    """The solution on the whole square."""
    return forced(points) + ON_SQUARE * one_on_square(points)


def forced(points: Array) -> Array:
    """The solution on the whole square for the right-hand side, zero on the boundary."""
    x, y = points.T
    a, b = np.pi, 4 * np.pi
    decay = a**2 + b**2 + SCREENING**2

    def quadratic(s: Array, wave: float) -> tuple[Array, Array, float]:
        """Factors of sin and cos (of wave * s) in the response to s^2 sin(wave * s)."""
        of_sin = s**2 / decay + 2 / decay**2 - 8 * wave**2 / decay**3
        of_cos = 4 * wave / decay**2
        return of_sin, of_cos * s, of_cos

    def from_side(s: Array, wave: float) -> Array:
        """Odd in s and one at s = 1; times a sine with this wave number, it solves the equation."""
        rate = np.hypot(SCREENING, wave)
        return np.sinh(rate * s) / np.sinh(rate)

    (x_sin, x_cos, x_side), (y_sin, y_cos, y_side) = quadratic(x, a), quadratic(y, b)
    in_x, in_y = np.sin(a * x), np.sin(b * y)
    inhomogeneous = (17 / decay + x_sin + y_sin) * in_x * in_y
    inhomogeneous += x_cos * np.cos(a * x) * in_y + y_cos * in_x * np.cos(b * y)
    # cos(a x) is -1 and cos(b y) is 1 on the sides.
    to_zero = x_side * from_side(x, b) * in_y - y_side * in_x * from_side(y, a)
    return 10 * (inhomogeneous + to_zero)


def one_on_square(points: Array, count: int = 3000) -> Array:
    """The solution of the homogeneous equation on the whole square that is one on the boundary.

    cosh(8 y) / cosh(8) is one on two sides; a series in cos((k + 1/2) pi y), which decreases
    exponentially away from the two other sides, adds what it lacks there. With x and y exchanged
    this holds as well, so each point uses the sides farther away.
    """
    near, far = np.sort(np.abs(points), axis=1).T
    total = np.cosh(SCREENING * far) / np.cosh(SCREENING)
    for k in range(count):
        wave = (k + 0.5) * np.pi
        rate = np.hypot(SCREENING, wave)
        factor = 2 * (-1) ** k * SCREENING**2 / (wave * rate**2)
        # cosh(rate * near) / cosh(rate), without overflow
        ratio = np.exp(rate * (near - 1)) + np.exp(-rate * (near + 1))
        total += factor * np.cos(wave * far) * ratio / (1 + np.exp(-2 * rate))
    return total


def polar(points: Array, center: tuple[float, float]) -> tuple[Array, Array]:
    """Radius and angle around a center."""
    x, y = (points - np.asarray(center)).T
    return np.hypot(x, y), np.arctan2(y, x)


def multipoles(points: Array, order: int) -> list[Array]:
    """K_n around each disc minus its mirror images at the four sides of the square."""
    columns = []
    mirrors = [(1, 0), (-1, 2), (-1, -2)]  # x -> turn x + shift, for one axis
    for (a, b), radius in DISCS:
        total = np.zeros((len(points), 2 * order + 1))
        for turn_x, shift_x in mirrors:
            for turn_y, shift_y in mirrors:
                place = (turn_x * a + shift_x, turn_y * b + shift_y)
                r, angle = polar(points, place)
                local = np.angle(turn_x * np.cos(angle) + 1j * turn_y * np.sin(angle))
                for n in range(order + 1):
                    radial = turn_x * turn_y * kn(n, SCREENING * r) / kn(n, SCREENING * radius)
                    total[:, n] += radial * np.cos(n * local)
                    if n:
                        total[:, order + n] += radial * np.sin(n * local)
        columns.append(total)
    return columns


def regular(points: Array, order: int) -> Array:
    """I_n around the origin."""
    r, angle = polar(points, (0, 0))
    n = np.arange(order + 1)
    radial = iv(n, SCREENING * r[:, None]) / iv(n, SCREENING * np.sqrt(2))
    turns = n * angle[:, None]
    return np.concatenate([radial * np.cos(turns), (radial * np.sin(turns))[:, 1:]], axis=1)


def functions(points: Array, order: int) -> Array:
    """One column for each solution of the homogeneous equation."""
    return np.column_stack([*multipoles(points, order), regular(points, order)])


def boundary(count: int) -> tuple[Array, Array]:
    """Points on the boundary and what the solution without discs lacks there."""
    square = square_boundary(1.0, 2 * count)
    circles = np.concatenate([circle(center, radius, count) for center, radius in DISCS])
    lacking = np.concatenate([np.zeros(len(square)), ON_CIRCLES - without_discs(circles)])
    return np.concatenate([square, circles]), lacking


def solution(points: Array, order: int) -> tuple[Array, float]:
    """Values at the points and the largest misfit on the boundary."""
    where, prescribed = boundary(4 * order)
    coefficients = fitted(functions(where, order), prescribed)
    where, prescribed = boundary(11 * order)
    misfit = np.max(np.abs(functions(where, order) @ coefficients - prescribed))
    values = without_discs(points) + functions(points, order) @ coefficients
    return values[:, None], float(misfit)


def main() -> None:
    suite = read(CASE, parsed(__doc__).suite, "poisson_boltzmann2d.dat")
    coarse, _ = solution(suite.points, 36)
    fine, misfit = solution(suite.points, 44)
    write(CASE, suite.points, fine, distance(coarse, fine), suite.values, largest_misfit=misfit)


if __name__ == "__main__":
    main()
