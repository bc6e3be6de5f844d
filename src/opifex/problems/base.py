"""What a boundary value problem is to the rest of the library."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive_int
from opifex.core.residuals import (
    PointFunction,
    ResidualTerm,
    mean_square_loss,
    residual_vector,
)
from opifex.problems.points import Box, generate_boundary_points, grid_points, interior_points

__all__ = ["Problem"]


class Problem(abc.ABC):
    """A differential equation on a box, with its conditions and its solution.

    A model is anything that maps points, shape (..., input_dim), to values, shape (...,
    output_dim), and works on a single point too.
    """

    output_dim: int = 1

    @property
    @abc.abstractmethod
    def domain(self) -> Box:
        """The box; for evolution equations the last coordinate is time."""

    @property
    @abc.abstractmethod
    def terms(self) -> tuple[ResidualTerm, ...]:
        """The residual terms: the equation first, then the conditions."""

    @abc.abstractmethod
    def exact(self, points: Float[Array, "n dim"]) -> Float[Array, "n components"]:
        """The solution at points: analytic, or interpolated from a converged computation."""

    @abc.abstractmethod
    def condition_points(
        self, num_points: int, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "n dim"], ...]:
        """Points for every term after the first, ``num_points`` for all of them together."""

    @property
    def input_dim(self) -> int:
        """Number of coordinates."""
        return self.domain.dim

    def sample_points(
        self,
        key: PRNGKeyArray,
        num_interior: int,
        num_boundary: int,
        *,
        method: str = "uniform",
    ) -> tuple[Float[Array, "n dim"], ...]:
        """Collocation points, one array per term. Interior sets are nested for equal keys.

        Args:
            key: random key.
            num_interior: points for the equation.
            num_boundary: points for all conditions together.
            method: how interior points are drawn, see `interior_points`.

        Raises:
            TypeError: if a number is not an integer, or ``key`` is no random key.
            ValueError: if a number is not positive or ``method`` is unknown.
        """
        check_positive_int("num_interior", num_interior)
        check_positive_int("num_boundary", num_boundary)
        interior = interior_points(num_interior, self.domain, key=key, method=method)
        return (interior, *self.condition_points(num_boundary))

    def loss(self, model: PointFunction, *points: Float[Array, "n dim"]) -> Float[Array, ""]:
        """Weighted sum of the terms' mean squares.

        Raises:
            ValueError: if the number of point arrays is not the number of terms.
        """
        return mean_square_loss(self.terms, model, *points)

    def residual_vector(
        self, model: PointFunction, *points: Float[Array, "n dim"]
    ) -> Float[Array, " total"]:
        """All residuals, scaled so that the sum of their squares is `loss`."""
        return residual_vector(self.terms, model, *points)

    def evaluation_points(self, points_per_axis: int = 101) -> Float[Array, "n dim"]:
        """A tensor grid for measuring errors. Training never sees it."""
        return grid_points([points_per_axis] * self.input_dim, self.domain)

    def relative_l2_error(
        self, model: PointFunction, points: Float[Array, "n dim"] | None = None
    ) -> Float[Array, ""]:
        """Euclidean norm of the error over that of the solution, at points.

        Args:
            model: the approximation.
            points: where; `evaluation_points` by default.
        """
        where = self.evaluation_points() if points is None else points
        exact = self.exact(where)
        error = jax.vmap(model)(where) - exact
        return jnp.linalg.norm(error) / jnp.linalg.norm(exact)


def box_boundary(problem: Problem, num_points: int, key: PRNGKeyArray | None) -> tuple[Array, ...]:
    """Condition points of problems whose only condition holds on the whole boundary."""
    return (generate_boundary_points(num_points, problem.domain, key=key),)
