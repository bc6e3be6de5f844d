"""NS2d-CG: the steady Navier-Stokes equations behind a backward step.

Problem: u u_x + v u_y = -p_x + nu (u_xx + u_yy), the same for v, u_x + v_y = 0 on [0, 4] x [0, 2]
without [0, 2] x [1, 2]; nu = 0.01; u = 4 y (1 - y), v = 0 at x = 0; u = v = 0 on the walls; p = 0 at
x = 4.

The statement asks for nothing else at the outlet x = 4 and so leaves the solution undetermined:
one more condition is needed there, and the flow runs backwards through a part of the outlet, so it
matters. The result file holds three choices:

* `values`: nu u_x - p = 0 and nu v_x = 0, the natural condition ("do nothing").
* `values_normal_flow`: p = 0 and v = 0, which is the only one of them that meets the statement
  exactly. (v = 0 and nu u_x - p = 0 are imposed; u_x = -v_y = 0 then makes the pressure vanish.)
* `values_suppressed_backflow`: v = 0, and p = 0 where the flow leaves but p = -97 u^2 where it
  enters. The suite's reference obeys this relation, which was read off its points at the outlet: a
  finite-element package's option against backflow. It does not meet the statement's p = 0.

A fourth one, 2 nu u_x - p = 0 and nu (u_y + v_x) = 0 ("no force"), only enters the distances.

Method: spectral elements that shrink geometrically towards the re-entrant corner and, less, towards
the others, Newton's method. At the re-entrant corner (2, 1) the pressure is infinite (it behaves as
r^-0.456); the suite's point there is left out. Every third of the other points is kept.

Error: the difference between two meshes and degrees, which also gives `error_per_component`. The
other choices are computed on a coarser mesh. `distance_NAME` is how far they are from `values`,
`suite_distance_NAME` how far the suite's reference is from them; both for all three components
together and then for each.
"""

from __future__ import annotations

import numpy as np
from navier_stokes import Prescribed, Problem, zero
from spectral_elements import Mesh, graded, lagrange
from suite import Array, Mask, distance, distances, parsed, read, write

CASE = "ns2d_cg"
NU = 0.01
SUCTION = 97.0


def inflow(x: Array, y: Array) -> Array:
    return np.where(x == 0, 4 * y * (1 - y), 0)


def outlet(x: Array, y: Array) -> Mask:
    return (x == 4) & (y > 0) & (y < 2)


def walls_and_inlet(x: Array, y: Array) -> Mask:
    step = ((x == 2) & (y >= 1)) | ((y == 1) & (x <= 2))
    return (x == 0) | (y == 0) | (y == 2) | step


PRESCRIBED: Prescribed = [("u", walls_and_inlet, inflow), ("v", walls_and_inlet, zero)]
NORMAL_FLOW: Prescribed = [*PRESCRIBED, ("v", outlet, zero)]


class SuppressedBackflow(Problem):
    """With an outlet pressure -SUCTION u^2 where the flow enters through the outlet."""

    def on_element(self, element: int) -> tuple[Array, Array]:
        """Adds the outlet pressure to the equations of the elements there."""
        residual, jacobian = super().on_element(element)
        mesh, degree = self.velocity.mesh, self.velocity.degree
        if mesh.cells[element][0] == len(mesh.x) - 2:
            rule, weights = np.polynomial.legendre.leggauss(2 * degree)
            value, _ = lagrange(degree, rule)
            weights = weights * mesh.sizes[element][1] / 2
            side = (degree + 1) * degree + np.arange(degree + 1)
            u = np.minimum(value @ self.state[self.numbers[element][side]], 0)
            residual[side] -= SUCTION * value.T @ (weights * u**2)
            jacobian[np.ix_(side, side)] -= 2 * SUCTION * value.T @ ((weights * u)[:, None] * value)
        return residual, jacobian


def mesh(layers: int) -> Mesh:
    """Elements that are cut a number of times towards the step."""
    x = [graded(0, 2, (1, layers), 0.3, 3), graded(2, 4, (layers, 2), 0.3, 3)]
    y = [graded(0, 1, (1, layers), 0.3, 2), graded(1, 2, (layers, 2), 0.3, 2)]
    before, below = len(x[0]) - 1, len(y[0]) - 1
    active = np.ones((before + len(x[1]) - 1, below + len(y[1]) - 1), bool)
    active[:before, below:] = False
    return Mesh(np.concatenate([x[0], x[1][1:]]), np.concatenate([y[0], y[1][1:]]), active)


def main() -> None:
    suite = read(CASE, parsed(__doc__).suite, "ns_0_obstacle.dat")
    kept = ~np.all(suite.points == [2, 1], axis=1)
    points = suite.points[kept]
    theirs = None if suite.values is None else suite.values[kept]
    fine = Problem(mesh(10), 9, NU, PRESCRIBED).solved(1e-6)(points)
    coarse = Problem(mesh(8), 7, NU, PRESCRIBED).solved(1e-6)(points)
    others = {
        "normal_flow": Problem(mesh(6), 6, NU, NORMAL_FLOW),
        "suppressed_backflow": SuppressedBackflow(mesh(6), 6, NU, NORMAL_FLOW),
        "no_force": Problem(mesh(8), 7, NU, PRESCRIBED, full_stress=True),
    }
    every = 1 if theirs is None else 3
    more: dict[str, object] = {"error_per_component": distances(coarse, fine)}
    for name, problem in others.items():
        values = problem.solved(1e-6)(points)
        more[f"distance_{name}"] = [distance(values, fine), *distances(values, fine)]
        if theirs is not None:
            found = [distance(theirs, values), *distances(theirs, values)]
            more[f"suite_distance_{name}"] = found
        if name != "no_force":
            more[f"values_{name}"] = values[::every]
    write(CASE, points, fine, distance(coarse, fine), theirs, every, **more)


if __name__ == "__main__":
    main()
