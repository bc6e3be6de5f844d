"""The heat equation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive
from opifex.core.residuals import PointFunction, ResidualTerm
from opifex.models import TrialFunction
from opifex.problems.base import Problem
from opifex.problems.evolution import initial_and_side_points, space_time_derivatives
from opifex.problems.points import Box

__all__ = ["Heat"]


@dataclass(frozen=True)
class Heat(Problem):
    r"""$u_t = \kappa u_{xx}$ on $[0, 1] \times [0, 1]$, $u(x, 0) = \sin \pi x$, $u = 0$ at the ends.

    The solution is $e^{-\kappa\pi^2 t}\sin \pi x$. Points are (x, t).

    Attributes:
        diffusivity: $\kappa$.
        condition_weight: weight of the initial and of the boundary term.

    Raises:
        TypeError: if a setting is not a number.
        ValueError: if a setting is not positive.
    """

    diffusivity: float = 0.1
    condition_weight: float = 10.0

    def __post_init__(self) -> None:
        check_positive("diffusivity", self.diffusivity)
        check_positive("condition_weight", self.condition_weight)

    @property
    def domain(self) -> Box:
        """Space and time."""
        return Box((0.0, 0.0), (1.0, 1.0))

    @cached_property
    def terms(self) -> tuple[ResidualTerm, ...]:
        """Equation, initial value, boundary value."""
        return (
            ResidualTerm("interior", self._residual),
            ResidualTerm(
                "initial", lambda u, x: u(x) - jnp.sin(jnp.pi * x[0]), self.condition_weight
            ),
            ResidualTerm("boundary", lambda u, x: u(x), self.condition_weight),
        )

    def _residual(self, u: PointFunction, x: Array) -> Array:
        _, u_t, _, u_xx = space_time_derivatives(u, x)
        return u_t - self.diffusivity * u_xx

    def condition_points(
        self, num_points: int, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "_ dim"], ...]:
        """Half of the points at the initial time, half at the ends."""
        return initial_and_side_points(num_points, self.domain, key)

    def trial_function(self, network: nnx.Module) -> TrialFunction:
        r"""$\sin \pi x + 4 t x (1 - x) N$."""
        return TrialFunction(
            network,
            offset=lambda x: jnp.sin(jnp.pi * x[..., :1]),
            factor=lambda x: 4 * x[..., 1:] * x[..., :1] * (1 - x[..., :1]),
            embed=lambda x: 2 * x - 1,
        )

    def exact(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n components"]:
        """The analytic solution."""
        x, t = points[..., 0], points[..., 1]
        decay = jnp.exp(-self.diffusivity * jnp.pi**2 * t)
        return (decay * jnp.sin(jnp.pi * x))[..., None]
