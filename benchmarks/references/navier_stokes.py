"""Steady Navier-Stokes equations by Newton's method on spectral elements.

Velocity of degree k and continuous pressure of degree k - 1 (Taylor-Hood). The weak form is

    (u . grad u, w) + nu (grad u, grad w) - (p, div w) = 0,    (q, div u) = 0

for all w that vanish where the velocity is prescribed. Where it is not, this means
nu du/dn - p n = 0 or, with `full_stress`, nu (du/dn + grad(u) . n) - p n = 0.

In each linear system the unknowns inside of the elements are eliminated element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from spectral_elements import Integers, Mesh, Space
from suite import Array, Mask

Select = Callable[[Array, Array], Mask]
Values = Callable[[Array, Array], Array]
Prescribed = list[tuple[str, Select, Values]]


def zero(x: Array, _: Array) -> Array:
    """The value zero everywhere."""
    return np.zeros_like(x)


@dataclass
class Flow:
    """A solution: velocity and pressure and their spaces."""

    velocity: Space
    pressure: Space
    u: Array
    v: Array
    p: Array

    def __call__(self, points: Array) -> Array:
        """Columns u, v, p at points."""
        u, v = self.velocity(self.u, points), self.velocity(self.v, points)
        return np.stack([u, v, self.pressure(self.p, points)], axis=1)


class Problem:
    """The discrete equations.

    Args:
        mesh: The elements.
        degree: Degree of the velocity.
        nu: Viscosity.
        prescribed: Triples of a component's name ("u", "v", "p"), a choice of nodes by their
            coordinates, and the values there.
        full_stress: Whether the symmetric gradient takes the gradient's place.
    """

    def __init__(
        self, mesh: Mesh, degree: int, nu: float, prescribed: Prescribed, full_stress: bool = False
    ) -> None:
        self.nu, self.full_stress = nu, full_stress
        self.velocity, self.pressure = Space(mesh, degree), Space(mesh, degree - 1)
        count_u, count_p = len(self.velocity.nodes), len(self.pressure.nodes)
        offsets = {"u": 0, "v": count_u, "p": 2 * count_u}
        self.state = np.zeros(2 * count_u + count_p)
        self.fixed = np.zeros(len(self.state), bool)
        for name, select, values in prescribed:
            space = self.pressure if name == "p" else self.velocity
            chosen = np.flatnonzero(select(*space.nodes.T))
            self.state[offsets[name] + chosen] = values(*space.nodes[chosen].T)
            self.fixed[offsets[name] + chosen] = True
        self.parts = [count_u, 2 * count_u]
        # Each element's unknowns: u, then v, then p.
        self.numbers: Integers = np.concatenate(
            [
                self.velocity.numbers,
                self.velocity.numbers + offsets["v"],
                self.pressure.numbers + offsets["p"],
            ],
            axis=1,
        )
        inside = [space.inside() for space in (self.velocity, self.velocity, self.pressure)]
        self.inside = np.concatenate(inside)
        # The convective term has degree 3 k in either direction.
        rule, weights = np.polynomial.legendre.leggauss((3 * degree) // 2 + 1)
        self.basis_u, self.basis_p = self.velocity.basis(rule), self.pressure.basis(rule)[0]
        self.weights = np.kron(weights, weights)

    def on_element(self, element: int) -> tuple[Array, Array]:
        """Residual and Jacobian of one element at the present state."""
        width, height = self.velocity.mesh.sizes[element]
        value, ref_x, ref_y = self.basis_u
        by_x, by_y, value_p = ref_x * (2 / width), ref_y * (2 / height), self.basis_p
        weights = (self.weights * (width * height / 4))[:, None]
        local = self.state[self.numbers[element]]
        u_local, v_local, p_local = np.split(local, [value.shape[1], 2 * value.shape[1]])
        u, u_x, u_y = (matrix @ u_local for matrix in (value, by_x, by_y))
        v, v_x, v_y = (matrix @ v_local for matrix in (value, by_x, by_y))
        p = value_p @ p_local
        test, test_x, test_y, test_p = ((m * weights).T for m in (value, by_x, by_y, value_p))
        nu, stress = self.nu, self.nu * self.full_stress
        momentum_u = test @ (u * u_x + v * u_y) - test_x @ p
        momentum_u += test_x @ ((nu + stress) * u_x) + test_y @ (nu * u_y + stress * v_x)
        momentum_v = test @ (u * v_x + v * v_y) - test_y @ p
        momentum_v += test_x @ (nu * v_x + stress * u_y) + test_y @ ((nu + stress) * v_y)
        residual = np.concatenate([momentum_u, momentum_v, test_p @ (u_x + v_y)])
        laplace_x, laplace_y = test_x @ by_x, test_y @ by_y
        carried = test @ (u[:, None] * by_x + v[:, None] * by_y)
        common = carried + nu * (laplace_x + laplace_y)
        div_x, div_y = test_p @ by_x, test_p @ by_y
        uu = common + test @ (u_x[:, None] * value) + stress * laplace_x
        uv = test @ (u_y[:, None] * value) + stress * (test_y @ by_x)
        vu = test @ (v_x[:, None] * value) + stress * (test_x @ by_y)
        vv = common + test @ (v_y[:, None] * value) + stress * laplace_y
        pp = np.zeros((len(p_local), len(p_local)))
        return residual, np.block([[uu, uv, -div_x.T], [vu, vv, -div_y.T], [div_x, div_y, pp]])

    def update(self) -> Array:
        """The Newton step."""
        inner, outer = np.flatnonzero(self.inside), np.flatnonzero(~self.inside)
        total = np.zeros(len(self.state))
        blocks, solves = [], []
        for element, numbers in enumerate(self.numbers):
            residual, jacobian = self.on_element(element)
            from_outer = jacobian[np.ix_(inner, outer)]
            right = np.column_stack([from_outer, residual[inner]])
            solve = np.linalg.solve(jacobian[np.ix_(inner, inner)], right)
            to_outer = jacobian[np.ix_(outer, inner)] @ solve
            blocks.append(jacobian[np.ix_(outer, outer)] - to_outer[:, :-1])
            total[numbers[outer]] += residual[outer] - to_outer[:, -1]
            solves.append(solve)
        between = np.unique(self.numbers[:, outer])
        free = between[~self.fixed[between]]
        rows = np.repeat(self.numbers[:, outer], len(outer), axis=1).ravel()
        columns = np.tile(self.numbers[:, outer], (1, len(outer))).ravel()
        size = (len(total), len(total))
        matrix = sparse.csc_matrix((np.concatenate(blocks).ravel(), (rows, columns)), size)
        step = np.zeros(len(total))
        step[free] = splu(matrix[free][:, free].tocsc()).solve(-total[free])
        for numbers, solve in zip(self.numbers, solves, strict=True):
            step[numbers[inner]] = -solve[:, -1] - solve[:, :-1] @ step[numbers[outer]]
        return step

    def solved(self, tolerance: float, steps: int = 20) -> Flow:
        """Newton's method from rest (with the prescribed values) to a small update."""
        for number in range(steps):
            step = self.update()
            self.state += step
            largest = np.max(np.abs(step))
            print(f"Newton step {number}: largest update {largest:.1e}", flush=True)
            if largest < tolerance:
                break
        return Flow(self.velocity, self.pressure, *np.split(self.state, self.parts))
