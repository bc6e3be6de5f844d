"""Poisson2d-C: the Laplace equation on a square without four discs.

Problem: u_xx + u_yy = 0 on [-0.5, 0.5]^2 without the discs of radius 0.1 around (+-0.3, +-0.3);
u = 1 on the square, u = 0 on the circles.

Method: 1 - u vanishes on the square, so by reflection it continues as a function that is odd about
each side, with images of the discs outside. Its expansion into multipoles (a logarithm and negative
powers) of the discs and of the first ring of images, plus harmonic polynomials for the images
farther away, is fitted to the boundary data by least squares. All functions are even
in x and in y, as the solution is.

Error: by the maximum principle it is nowhere greater than the largest misfit on the boundary,
which is measured at points between those of the fit and recorded as `largest_misfit`; `error` is the
difference between two orders of the expansion.
"""

from __future__ import annotations

import numpy as np
from suite import Array, distance, parsed, read, write
from trefftz import circle, fitted, square_boundary

CASE = "poisson2d_c"
CENTER, RADIUS = 0.3, 0.1
# Coordinates, along one axis, of the disc at CENTER and of its images under reflection at 0 (even)
# and at +-0.5 (odd): the sign of the field there, and whether the image is mirrored (-1).
PLACES = {CENTER: (1, 1), -CENTER: (1, -1), 1 - CENTER: (-1, -1), CENTER - 1: (-1, 1)}


def functions(points: Array, order: int) -> Array:
    """One column for each harmonic function, even in x and in y."""
    z = points[:, 0] + 1j * points[:, 1]
    multipoles = np.zeros((len(z), 2 * order + 1))
    for a, (sign_a, turn_a) in PLACES.items():
        for b, (sign_b, turn_b) in PLACES.items():
            shifted = (z - complex(a, b)) / RADIUS
            local = turn_a * shifted.real + 1j * turn_b * shifted.imag
            multipoles[:, 0] += sign_a * sign_b * np.log(np.abs(shifted))
            for n in range(1, order + 1):
                power = sign_a * sign_b * local**-n
                multipoles[:, n] += power.real
                multipoles[:, order + n] += power.imag
    polynomials = np.stack([(z / np.sqrt(0.5)) ** (4 * n) for n in range(order)], axis=1).real
    return np.concatenate([multipoles, polynomials], axis=1)


def boundary(count: int) -> tuple[Array, Array]:
    """Points on the boundary and the values prescribed there."""
    square = square_boundary(0.5, count)
    discs = [circle((a, b), RADIUS, count) for a in (-CENTER, CENTER) for b in (-CENTER, CENTER)]
    values = np.concatenate([np.ones(len(square)), np.zeros(4 * count)])
    return np.concatenate([square, *discs]), values


def solution(points: Array, order: int) -> tuple[Array, float]:
    """Values at the points and the largest misfit on the boundary."""
    where, prescribed = boundary(8 * order)
    coefficients = fitted(functions(where, order), prescribed)
    where, prescribed = boundary(27 * order)
    misfit = np.max(np.abs(functions(where, order) @ coefficients - prescribed))
    return (functions(points, order) @ coefficients)[:, None], float(misfit)


def main() -> None:
    suite = read(CASE, parsed(__doc__).suite, "poisson1_cg_data.dat")
    coarse, _ = solution(suite.points, 24)
    fine, misfit = solution(suite.points, 32)
    write(CASE, suite.points, fine, distance(coarse, fine), suite.values, largest_misfit=misfit)


if __name__ == "__main__":
    main()
