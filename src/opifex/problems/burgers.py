"""The viscous Burgers equation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive
from opifex.core.residuals import PointFunction, ResidualTerm
from opifex.models import SymmetricModel, TrialFunction
from opifex.problems.base import Problem
from opifex.problems.evolution import initial_points, side_points, space_time_derivatives
from opifex.problems.points import Box

__all__ = ["Burgers"]

QUADRATURE_POINTS = 200


@dataclass(frozen=True)
class Burgers(Problem):
    r"""$u_t + u u_x = \nu u_{xx}$ on $[-1, 1] \times [0, 1]$, with $u(x, 0) = -\sin \pi x$.

    At the ends $u = 0$. Points are (x, t). The solution follows from the Cole-Hopf transformation,
    a quotient of Gaussian integrals (Basdevant et al., Computers & Fluids 14, 1986, section 2),
    evaluated by Gauss-Hermite quadrature with a shift of the exponent against overflow.

    Attributes:
        viscosity: $\nu$; $0.01/\pi$ gives the usual steep front at $x = 0$.
        condition_weight: weight of the initial and of the boundary term.

    Raises:
        TypeError: if a setting is not a number.
        ValueError: if a setting is not positive.
    """

    viscosity: float = 0.01 / float(np.pi)
    condition_weight: float = 10.0

    def __post_init__(self) -> None:
        check_positive("viscosity", self.viscosity)
        check_positive("condition_weight", self.condition_weight)

    @property
    def domain(self) -> Box:
        """Space and time."""
        return Box((-1.0, 0.0), (1.0, 1.0))

    @cached_property
    def terms(self) -> tuple[ResidualTerm, ...]:
        """Equation, initial value, boundary value."""
        return (
            ResidualTerm("interior", self._residual),
            ResidualTerm(
                "initial", lambda u, x: u(x) + jnp.sin(jnp.pi * x[0]), self.condition_weight
            ),
            ResidualTerm("boundary", lambda u, x: u(x), self.condition_weight),
        )

    def _residual(self, u: PointFunction, x: Array) -> Array:
        v, v_t, v_x, v_xx = space_time_derivatives(u, x)
        return v_t + v * v_x - self.viscosity * v_xx

    def condition_points(
        self, num_points: int, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "_ dim"], ...]:
        """Half of the points at the initial time, half at the ends."""
        half = max(1, num_points // 2)
        return initial_points(half, self.domain, key), side_points(half, self.domain, key)

    def trial_function(self, network: nnx.Module) -> TrialFunction:
        r"""$-\sin \pi x + t (1 - x^2) N$ with the odd part of the network in $x$, as the solution is.

        The network's second input is the time scaled to [-1, 1].
        """
        odd = SymmetricModel(network, lambda x: x * jnp.asarray([-1, 1], x.dtype), odd=True)
        return TrialFunction(
            odd,
            offset=lambda x: -jnp.sin(jnp.pi * x[..., :1]),
            factor=lambda x: x[..., 1:] * (1 - x[..., :1] ** 2),
            embed=lambda x: jnp.concatenate([x[..., :1], 2 * x[..., 1:] - 1], axis=-1),
        )

    def exact(self, points: Float[Array, "n dim"]) -> Float[Array, "n components"]:
        """The solution at points, by quadrature in the dtype of the points."""
        rule = np.polynomial.hermite.hermgauss(QUADRATURE_POINTS)
        # Logarithms: near the front the outer nodes decide, and their weights underflow in float32.
        nodes, log_weights = (
            jnp.asarray(values, points.dtype) for values in (rule[0], np.log(rule[1]))
        )

        def at(point: Array) -> Array:
            x, t = point
            # At t = 0 the integrals are point evaluations and the formula is the initial value.
            shifted = x - jnp.sqrt(4 * self.viscosity * t) * nodes
            exponent = log_weights - jnp.cos(jnp.pi * shifted) / (2 * jnp.pi * self.viscosity)
            kernel = jnp.exp(exponent - jnp.max(exponent))
            return -jnp.sum(kernel * jnp.sin(jnp.pi * shifted)) / jnp.sum(kernel)

        return jax.vmap(at)(points)[:, None]
