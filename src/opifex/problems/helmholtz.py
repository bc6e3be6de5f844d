"""The Helmholtz problem with a solution of several scales."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive, check_positive_int
from opifex.core.physics import laplacian
from opifex.core.residuals import PointFunction, ResidualTerm
from opifex.models import TrialFunction
from opifex.problems.base import Problem, box_boundary, zero_on_the_boundary
from opifex.problems.points import UNIT_SQUARE, Box

__all__ = ["Helmholtz"]


@dataclass(frozen=True)
class Helmholtz(Problem):
    r"""$\Delta u + k^2 u = f$ on the unit square, $u = 0$ on its boundary.

    Manufactured: $u = \sin(\pi x)\sin(\pi y) + a \sin(n\pi x)\sin(n\pi y)$, a smooth part and
    a wave of half-period $1/n$, and $f$ follows.

    Attributes:
        wave_number: $k$ of the operator.
        half_waves: $n$, half-waves of the fine part per axis.
        amplitude: $a$, of the fine part.
        boundary_weight: weight of the boundary term in the loss.

    Raises:
        TypeError: if a setting is not a number, or ``half_waves`` is not an integer.
        ValueError: if a setting is not positive.
    """

    wave_number: float = 4 * float(jnp.pi)
    half_waves: int = 4
    amplitude: float = 0.5
    boundary_weight: float = 100.0

    def __post_init__(self) -> None:
        check_positive("wave_number", self.wave_number)
        check_positive_int("half_waves", self.half_waves)
        check_positive("amplitude", self.amplitude)
        check_positive("boundary_weight", self.boundary_weight)

    @property
    def domain(self) -> Box:
        """The unit square."""
        return UNIT_SQUARE

    @cached_property
    def terms(self) -> tuple[ResidualTerm, ...]:
        """Interior residual and boundary value."""
        return (
            ResidualTerm("interior", self._residual),
            ResidualTerm("boundary", lambda u, x: u(x), self.boundary_weight),
        )

    def _residual(self, u: PointFunction, x: Array) -> Array:
        return laplacian(u)(x) + self.wave_number**2 * u(x)[0] - self.source(x)

    def _waves(self, x: Array) -> tuple[Array, Array]:
        def wave(n: int) -> Array:
            return jnp.sin(n * jnp.pi * x[..., 0]) * jnp.sin(n * jnp.pi * x[..., 1])

        return wave(1), self.amplitude * wave(self.half_waves)

    def source(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n"]:
        """The right-hand side f."""
        smooth, fine = self._waves(points)
        k2 = self.wave_number**2
        return (k2 - 2 * jnp.pi**2) * smooth + (k2 - 2 * (self.half_waves * jnp.pi) ** 2) * fine

    def condition_points(
        self, num_points: int, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "_ dim"], ...]:
        """Boundary points."""
        return box_boundary(self, num_points, key)

    def trial_function(self, network: nnx.Module) -> TrialFunction:
        """Zero on the boundary."""
        return zero_on_the_boundary(network, self.domain)

    def exact(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n components"]:
        """The manufactured solution."""
        smooth, fine = self._waves(points)
        return (smooth + fine)[..., None]
