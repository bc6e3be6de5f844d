"""Poisson2d-MS (the suite's class Poisson2D_ManyArea): coefficients that jump between 25 blocks.

Problem, as the suite's code states it: a (u_xx + u_yy) + f = 0 on [-10, 10]^2, du/dn = -u on the
boundary. On each of the 5 x 5 blocks a is a constant, and with the place (s, t) in the block, which
runs over [0, 1]^2, f = c_00 + c_11 sin(pi s) sin(pi t). The constants are those of the suite's files
`poisson_a_coef.dat` and `poisson_f_coef.dat`; the first index of each is the block's along x. (The
code also adds c_01, c_10 and c_00 times a sine of zero, and makes the blocks longer by 4e-6.)

With this residual, and a function whose derivatives are continuous, u solves -u_xx - u_yy = f / a.
`values_divergence_form` solves -(a u_x)_x - (a u_y)_y = f with a du/dn = -a u instead, whose flux
a grad(u) is continuous across the blocks' edges, as a physical reading (and the paper's text) asks.
Both are not the same: a network trained on the residual tends to the first.

Method: spectral elements aligned with the blocks, which shrink geometrically towards the edges of
the blocks.

Error: the difference between two meshes and degrees; `error_divergence_form` is that of the other
problem, which has singularities where four blocks meet.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from spectral_elements import Mesh, Space, graded, lagrange
from suite import HERE, Array, distance, parsed, write

CASE = "poisson2d_ms"
HALF_WIDTH, BLOCKS = 10.0, 5


def coefficients(folder: Path | None) -> tuple[Array, Array]:
    """The table a, and the table of (c_00, c_11), of all blocks."""
    if folder is None:
        with np.load(HERE / f"{CASE}.npz") as last:
            return last["a"], last["c"]
    table = np.loadtxt(folder / "poisson_f_coef.dat").reshape(BLOCKS, BLOCKS, 4)
    return np.loadtxt(folder / "poisson_a_coef.dat"), table[:, :, [0, 3]]


def solution(
    points: Array, a: Array, c: Array, degree: int, layers: int, divergence_form: bool
) -> Array:
    """Values at the points."""
    edges = np.linspace(-HALF_WIDTH, HALF_WIDTH, BLOCKS + 1)
    pieces = [
        graded(left, right, (layers, layers), 0.2, 2) for left, right in itertools.pairwise(edges)
    ]
    axis = np.unique(np.concatenate(pieces))
    mesh = Mesh(axis, axis, np.ones((len(axis) - 1, len(axis) - 1), bool))
    space = Space(mesh, degree)
    rule, weights = np.polynomial.legendre.leggauss(degree + 4)
    value, by_x, by_y = space.basis(rule)
    on_square = np.kron(weights, weights)[:, None]
    along_side, _ = lagrange(degree, rule)
    mass = along_side.T @ (weights[:, None] * along_side)
    stiffness_x, stiffness_y = by_x.T @ (on_square * by_x), by_y.T @ (on_square * by_y)
    numbers = np.arange((degree + 1) ** 2).reshape(degree + 1, degree + 1)
    sides = {(0, -1): numbers[0], (0, 1): numbers[-1]}
    sides |= {(1, -1): numbers[:, 0], (1, 1): numbers[:, -1]}
    right_side = np.zeros(len(space.nodes))
    blocks = []
    for cell, (width, height), local in zip(mesh.cells, mesh.sizes, space.numbers, strict=True):
        low = np.array([axis[cell[0]], axis[cell[1]]])
        size = np.array([width, height])
        place = (low + size / 2 + HALF_WIDTH) * BLOCKS / (2 * HALF_WIDTH)
        i, j = block = np.floor(place).astype(int)
        diffusion, load = (a[i, j], 1.0) if divergence_form else (1.0, 1 / a[i, j])
        s, t = (
            (low[k] + size[k] * (rule + 1) / 2 + HALF_WIDTH) * BLOCKS / (2 * HALF_WIDTH) - block[k]
            for k in (0, 1)
        )
        f = c[i, j, 0] + c[i, j, 1] * np.outer(np.sin(np.pi * s), np.sin(np.pi * t)).ravel()
        right_side[local] += load * (width * height / 4) * (value.T @ (on_square[:, 0] * f))
        matrix = diffusion * (height / width * stiffness_x + width / height * stiffness_y)
        for (direction, end), side in sides.items():
            if axis[cell[direction] + (end > 0)] == end * HALF_WIDTH:
                along = size[1 - direction] / 2
                matrix[np.ix_(side, side)] += diffusion * along * mass
        blocks.append(matrix)
    count = (degree + 1) ** 2
    rows = np.repeat(space.numbers, count, axis=1).ravel()
    columns = np.tile(space.numbers, (1, count)).ravel()
    whole = sparse.csc_matrix((np.concatenate(blocks).ravel(), (rows, columns)))
    found = splu(whole, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    return space(found.solve(right_side), points)[:, None]


def main() -> None:
    a, c = coefficients(parsed(__doc__).suite)
    grid = np.linspace(-HALF_WIDTH, HALF_WIDTH, 101)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    coarse, fine = (solution(points, a, c, *size, False) for size in ((11, 2), (13, 3)))
    coarse_flux, fine_flux = (solution(points, a, c, *size, True) for size in ((6, 6), (7, 7)))
    write(
        CASE,
        points,
        fine,
        distance(coarse, fine),
        a=a,
        c=c,
        values_divergence_form=fine_flux,
        error_divergence_form=distance(coarse_flux, fine_flux),
        distance_divergence_form=distance(fine_flux, fine),
    )


if __name__ == "__main__":
    main()
