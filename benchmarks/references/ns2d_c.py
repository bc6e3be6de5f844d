"""NS2d-C: the steady Navier-Stokes equations in a cavity whose lid moves.

Problem: u u_x + v u_y = -p_x + nu (u_xx + u_yy), the same for v, u_x + v_y = 0 on the unit square;
nu = 0.01; u = 4 x (1 - x), v = 0 at y = 1; u = v = 0 on the other sides; p(0, 0) = 0.

Method: spectral elements that shrink geometrically towards the two upper corners (and somewhat
towards the lower ones), Newton's method.

The derivative u_x of the lid's velocity does not vanish at the upper corners, so the velocity's
gradient is discontinuous there and the pressure has a logarithmic singularity: it is infinite at
(0, 1) and (1, 1). These two of the suite's points are left out.

Error: the difference between two meshes and degrees, which also gives `error_per_component`.
"""

from __future__ import annotations

import numpy as np
from navier_stokes import Flow, Prescribed, Problem, zero
from spectral_elements import Mesh, graded
from suite import Array, Mask, distance, distances, parsed, read, write

CASE = "ns2d_c"
NU = 0.01


def lid(x: Array, y: Array) -> Array:
    return np.where(y == 1, 4 * x * (1 - x), 0)


def boundary(x: Array, y: Array) -> Mask:
    return (x == 0) | (x == 1) | (y == 0) | (y == 1)


PRESCRIBED: Prescribed = [
    ("u", boundary, lid),
    ("v", boundary, zero),
    ("p", lambda x, y: (x == 0) & (y == 0), zero),
]


def flow(degree: int, layers: int) -> Flow:
    """The solution with elements of a degree, cut a number of times towards the upper corners."""
    x = graded(0, 1, (layers, layers), 0.3, 4)
    y = graded(0, 1, (2, layers), 0.3, 4)
    mesh = Mesh(x, y, np.ones((len(x) - 1, len(y) - 1), bool))
    return Problem(mesh, degree, NU, PRESCRIBED).solved(1e-6)


def main() -> None:
    suite = read(CASE, parsed(__doc__).suite, "lid_driven_a4.dat")
    x, y = suite.points.T
    kept = ~((y == 1) & ((x == 0) | (x == 1)))
    points = suite.points[kept]
    coarse, fine = flow(10, 7)(points), flow(12, 8)(points)
    write(
        CASE,
        points,
        fine,
        distance(coarse, fine),
        None if suite.values is None else suite.values[kept],
        error_per_component=distances(coarse, fine),
    )


if __name__ == "__main__":
    main()
