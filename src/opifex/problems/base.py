"""What a boundary value problem is to the rest of the library."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive_int
from opifex.core.residuals import (
    PointFunction,
    ResidualTerm,
    mean_square_loss,
    residual_vector,
)
from opifex.models import TrialFunction
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
    def exact(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n components"]:
        """The solution at points: analytic, or from a computation whose error is known.

        It may be used in compiled code and differentiated, as any model.

        Args:
            points: shape (..., input_dim).

        Returns:
            Values of shape (..., output_dim), in the dtype of the points.

        Raises:
            ValueError: if the settings are such that the solution cannot be computed to the accuracy
                that the problem promises.
        """

    @abc.abstractmethod
    def condition_points(
        self, num_points: int, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "_ dim"], ...]:
        """Points for every term after the first.

        Args:
            num_points: number of points for all these terms together.
            key: random key; without it the points are evenly spread.

        Returns:
            One array (points, input_dim) per term after the first.
        """

    @abc.abstractmethod
    def trial_function(self, network: nnx.Module) -> TrialFunction:
        """A model around a network that meets all conditions whatever the parameters are.

        These are hard constraints (an ansatz), see `opifex.models.TrialFunction`. Only the first of
        the `terms` is then left to minimise.

        Args:
            network: maps points (..., input_dim) to values (..., output_dim).

        Raises:
            TypeError: if ``network`` is not an ``nnx.Module``.
        """

    @property
    def exact_error(self) -> float:
        """An estimate of the largest error of `exact` at points in float64.

        Analytic solutions have rounding errors only: a hundred times the unit roundoff for values of
        size one, unless a problem says otherwise. What a model can be judged by ends there.
        """
        return 100 * float(np.finfo(np.float64).eps)

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
    ) -> tuple[Float[Array, "_ dim"], ...]:
        """Collocation points, one array (points, input_dim) per term.

        Interior sets are nested for equal keys: the first points of a larger set are the smaller one.
        Points of the conditions are evenly spread, whatever the key, since a rule with equal distances
        beats random points on a line; draw random ones with `condition_points` and a key.

        Args:
            key: random key of the interior points.
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

    def loss(self, model: PointFunction, *points: Float[Array, "_ dim"]) -> Float[Array, ""]:
        """Weighted sum of the terms' mean squares, a scalar.

        Args:
            model: the approximation, a function of one point.
            *points: one array (points, input_dim) per term, as `sample_points` returns them.

        Raises:
            ValueError: if the number of point arrays is not the number of terms.
        """
        return mean_square_loss(self.terms, model, *points)

    def residual_vector(
        self, model: PointFunction, *points: Float[Array, "_ dim"]
    ) -> Float[Array, " total"]:
        """All residuals, scaled so that the sum of their squares is `loss`; arguments are the same."""
        return residual_vector(self.terms, model, *points)

    def evaluation_points(self, points_per_axis: int = 101) -> Float[Array, "n dim"]:
        """A tensor grid for measuring errors, not among the points of training.

        Returns:
            Shape (points_per_axis ** input_dim, input_dim), boundary included.
        """
        return grid_points([points_per_axis] * self.input_dim, self.domain)

    def relative_l2_error(
        self, model: PointFunction, points: Float[Array, "n dim"] | None = None
    ) -> Float[Array, ""]:
        """Euclidean norm of the error over that of the solution, at points.

        The solution is computed once for the default points, and once per trace for other points
        that compiled code holds as constants.

        Args:
            model: the approximation.
            points: where, shape (n, input_dim); `evaluation_points` by default.

        Returns:
            The relative error, a scalar.
        """
        where, exact = self._default_evaluation() if points is None else self._evaluation(points)
        error = jax.vmap(model)(where) - exact
        return jnp.linalg.norm(error) / jnp.linalg.norm(exact)

    def _default_evaluation(self) -> tuple[Array, Array]:
        kept = self.__dict__.setdefault("_kept_evaluations", {})
        dtype = jnp.result_type(float)
        if dtype not in kept:
            with jax.ensure_compile_time_eval():
                pair = self._evaluation(self.evaluation_points())
            kept[dtype] = tuple(np.asarray(array) for array in pair)
        where, exact = kept[dtype]
        return jnp.asarray(where), jnp.asarray(exact)

    def _evaluation(self, points: Array) -> tuple[Array, Array]:
        if isinstance(points, jax.core.Tracer):
            return points, self.exact(points)
        with jax.ensure_compile_time_eval():
            where = jnp.asarray(points)
            return where, self.exact(where)


def zero_on_the_boundary(network: nnx.Module, domain: Box) -> TrialFunction:
    r"""$\prod_i 4 y_i (1 - y_i)\, N(2y - 1)$ with $y$ the point scaled to the unit cube.

    Args:
        network: $N$, of one output.
        domain: the box.
    """
    lower, extent = np.asarray(domain.lower), np.asarray(domain.upper) - np.asarray(domain.lower)

    def unit(x: Array) -> Array:
        return (x - lower.astype(x.dtype)) / extent.astype(x.dtype)

    def bubble(x: Array) -> Array:
        return jnp.prod(4 * unit(x) * (1 - unit(x)), axis=-1, keepdims=True)

    return TrialFunction(
        network,
        offset=lambda x: jnp.zeros_like(x[..., :1]),
        factor=bubble,
        embed=lambda x: 2 * unit(x) - 1,
    )


def box_boundary(problem: Problem, num_points: int, key: PRNGKeyArray | None) -> tuple[Array, ...]:
    """Condition points of problems whose only condition holds on the whole boundary."""
    return (generate_boundary_points(num_points, problem.domain, key=key),)
