"""The Poisson problem."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive
from opifex.core.physics import laplacian
from opifex.core.residuals import PointFunction, ResidualTerm
from opifex.models import TrialFunction
from opifex.problems.base import Problem, box_boundary, zero_on_the_boundary
from opifex.problems.points import UNIT_SQUARE, Box

__all__ = ["Poisson"]


@dataclass(frozen=True)
class Poisson(Problem):
    r"""$\Delta u + \sin(\pi x)\sin(\pi y) = 0$ on the unit square, $u = 0$ on its boundary.

    The solution is $u = \sin(\pi x)\sin(\pi y) / (2\pi^2)$.

    Attributes:
        boundary_weight: weight of the boundary term in the loss.

    Raises:
        TypeError: if a setting is not a number.
        ValueError: if a setting is not positive.

    Example:
        >>> import jax
        >>> from opifex.problems import Poisson
        >>> problem = Poisson()
        >>> interior, boundary = problem.sample_points(jax.random.key(0), 100, 40)
        >>> interior.shape, boundary.shape
        ((100, 2), (40, 2))
        >>> bool(problem.loss(problem.exact, interior, boundary) < 1e-6)
        True
    """

    boundary_weight: float = 10.0

    def __post_init__(self) -> None:
        check_positive("boundary_weight", self.boundary_weight)

    @property
    def domain(self) -> Box:
        """The unit square."""
        return UNIT_SQUARE

    @cached_property
    def terms(self) -> tuple[ResidualTerm, ...]:
        """Interior residual and boundary value."""
        return (
            ResidualTerm("interior", _residual),
            ResidualTerm("boundary", lambda u, x: u(x), self.boundary_weight),
        )

    def condition_points(
        self, num_points: int, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "_ dim"], ...]:
        """Boundary points."""
        return box_boundary(self, num_points, key)

    def trial_function(self, network: nnx.Module) -> TrialFunction:
        """Zero on the boundary."""
        return zero_on_the_boundary(network, self.domain)

    def exact(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n components"]:
        """The analytic solution."""
        return _source(points)[..., None] / (2 * jnp.pi**2)


def _source(x: Array) -> Array:
    return jnp.sin(jnp.pi * x[..., 0]) * jnp.sin(jnp.pi * x[..., 1])


def _residual(u: PointFunction, x: Array) -> Array:
    return laplacian(u)(x) + _source(x)
