"""Continuous piecewise polynomials of high degree on unions of axis-parallel rectangles.

The elements are the cells of a tensor grid, or some of them. On each, a function is given by its
values at the Gauss-Lobatto points in either direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from suite import Array, Mask

Integers = NDArray[np.int64]


def graded(start: float, end: float, layers: tuple[int, int], ratio: float, inner: int) -> Array:
    """Break points of an interval whose elements shrink geometrically towards its ends.

    Args:
        start: Left end.
        end: Right end.
        layers: How many times the element at the left and at the right end is cut.
        ratio: Where the element next to the end is cut, as a fraction of its length.
        inner: Number of equal elements before the cuts.
    """
    points = list(np.linspace(start, end, inner + 1))
    for _ in range(layers[0]):
        points.insert(1, start + ratio * (points[1] - start))
    for _ in range(layers[1]):
        points.insert(-1, end - ratio * (end - points[-2]))
    return np.asarray(points)


def lobatto(degree: int) -> Array:
    """Gauss-Lobatto points of [-1, 1]."""
    inner = legendre.Legendre.basis(degree).deriv().roots()
    return np.concatenate([[-1.0], np.real(inner), [1.0]])


def lagrange(degree: int, points: Array) -> tuple[Array, Array]:
    """Values and derivatives of the Lagrange polynomials of the Gauss-Lobatto points.

    One row for each point.
    """
    modal = legendre.legvander(lobatto(degree), degree)
    slopes = np.stack(
        [legendre.legval(points, legendre.legder(row)) for row in np.eye(degree + 1)], axis=1
    )
    to_modal = np.linalg.inv(modal)
    return legendre.legvander(points, degree) @ to_modal, slopes @ to_modal


@dataclass
class Mesh:
    """Cells of the tensor grid with the break points `x` and `y` where `active` holds."""

    x: Array
    y: Array
    active: Mask

    @cached_property
    def cells(self) -> Integers:
        """Column and row of each element."""
        return np.argwhere(self.active)

    @cached_property
    def sizes(self) -> Array:
        """Width and height of each element."""
        column, row = self.cells.T
        return np.stack([np.diff(self.x)[column], np.diff(self.y)[row]], axis=1)

    def locate(self, points: Array) -> tuple[Integers, Array]:
        """For each point an element that holds it, and its place there in [-1, 1]^2.

        Points outside are attributed to an element near by.
        """
        number = np.full(self.active.shape, -1)
        number[tuple(self.cells.T)] = np.arange(len(self.cells))
        elements = np.full(len(points), -1)
        for side_x in ("right", "left"):
            for side_y in ("right", "left"):
                column = np.searchsorted(self.x, points[:, 0], side_x) - 1
                row = np.searchsorted(self.y, points[:, 1], side_y) - 1
                column = np.clip(column, 0, len(self.x) - 2)
                row = np.clip(row, 0, len(self.y) - 2)
                elements = np.where(elements < 0, number[column, row], elements)
        assert np.all(elements >= 0), "a point lies outside of the domain"
        column, row = self.cells[elements].T
        corner = np.stack([self.x[column], self.y[row]], axis=1)
        return elements, 2 * (points - corner) / self.sizes[elements] - 1


class Space:
    """Continuous functions of a degree on a mesh; attributes describe the degrees of freedom.

    Attributes:
        numbers: The global numbers of each element's nodes, shape (elements, (degree + 1)^2).
        nodes: Coordinates of all nodes.
    """

    def __init__(self, mesh: Mesh, degree: int) -> None:
        self.mesh, self.degree = mesh, degree
        local = np.arange(degree + 1)
        column, row = (degree * mesh.cells.T)[:, :, None] + local
        shape = (len(mesh.cells), degree + 1, degree + 1)
        columns = np.broadcast_to(column[:, :, None], shape)
        rows = np.broadcast_to(row[:, None, :], shape)
        height = degree * (len(mesh.y) - 1) + 1
        used, numbers = np.unique(columns * height + rows, return_inverse=True)
        self.numbers: Integers = numbers.reshape(len(mesh.cells), -1)
        axes = [self._axis(mesh.x), self._axis(mesh.y)]
        self.nodes = np.stack([axes[0][used // height], axes[1][used % height]], axis=1)

    def _axis(self, breaks: Array) -> Array:
        """Coordinates of the nodes along one axis; shared ones are exactly the break points."""
        inner = (lobatto(self.degree)[:-1] + 1) / 2
        nodes = breaks[:-1, None] + np.diff(breaks)[:, None] * inner
        return np.append(nodes.ravel(), breaks[-1])

    def inside(self) -> Mask:
        """Which of an element's nodes lie inside of it."""
        along = np.zeros(self.degree + 1, bool)
        along[1:-1] = True
        return np.logical_and.outer(along, along).ravel()

    def basis(self, rule: Array) -> tuple[Array, Array, Array]:
        """Values and both derivatives on [-1, 1]^2 at the tensor product of a rule's points."""
        value, slope = lagrange(self.degree, rule)
        return np.kron(value, value), np.kron(slope, value), np.kron(value, slope)

    def __call__(self, coefficients: Array, points: Array) -> Array:
        """Values of a function at points."""
        elements, places = self.mesh.locate(points)
        in_x, _ = lagrange(self.degree, places[:, 0])
        in_y, _ = lagrange(self.degree, places[:, 1])
        square = (len(points), self.degree + 1, self.degree + 1)
        local = coefficients[self.numbers[elements]].reshape(square)
        return np.einsum("pi,pij,pj->p", in_x, local, in_y)
