"""The Allen-Cahn equation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive
from opifex.core.residuals import PointFunction, ResidualTerm
from opifex.models import TrialFunction
from opifex.problems.allen_cahn_reference import solve_allen_cahn
from opifex.problems.base import Problem
from opifex.problems.double_precision import in_double_precision
from opifex.problems.evolution import initial_and_side_points, space_time_derivatives
from opifex.problems.kink import periodic_kink
from opifex.problems.points import Box

__all__ = ["AllenCahn"]


@dataclass(frozen=True)
class AllenCahn(Problem):
    r"""$u_t = \epsilon u_{xx} + \rho(u - u^3)$ on $[-1, 1] \times [0, 1]$, periodic in $x$.

    Initial value $u(x, 0) = x^2\cos \pi x$ (Raissi, Perdikaris, Karniadakis, JCP 378, 2019,
    section 3.2.1). Points are (x, t). The solution is computed at its first use, in a second or so,
    to a relative error of about 1e-10, see `exact_error`.

    Attributes:
        diffusivity: $\epsilon$.
        reaction: $\rho$.
        condition_weight: weight of the initial and of the periodicity term.

    Raises:
        TypeError: if a setting is not a number.
        ValueError: if a setting is not positive.
    """

    diffusivity: float = 1e-4
    reaction: float = 5.0
    condition_weight: float = 100.0

    def __post_init__(self) -> None:
        check_positive("diffusivity", self.diffusivity)
        check_positive("reaction", self.reaction)
        check_positive("condition_weight", self.condition_weight)

    @property
    def domain(self) -> Box:
        """Space and time."""
        return Box((-1.0, 0.0), (1.0, 1.0))

    @cached_property
    def terms(self) -> tuple[ResidualTerm, ...]:
        """Equation, initial value, periodicity of value and slope."""
        return (
            ResidualTerm("interior", self._residual),
            ResidualTerm("initial", lambda u, x: u(x) - initial_value(x[0]), self.condition_weight),
            ResidualTerm("periodicity", _jump, self.condition_weight),
        )

    def _residual(self, u: PointFunction, x: Array) -> Array:
        v, v_t, _, v_xx = space_time_derivatives(u, x)
        return v_t - self.diffusivity * v_xx - self.reaction * (v - v**3)

    def condition_points(
        self, num_points: int, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "_ dim"], ...]:
        """Half of the points at the initial time, half at the left end (for periodicity)."""
        return initial_and_side_points(num_points, self.domain, key, both=False)

    def trial_function(self, network: nnx.Module) -> TrialFunction:
        r"""$e^{-2\rho t}\,(u_0 + 2w) + (1 - e^{-2\rho t})\, N(\cos \pi x, t)$: even, periodic.

        The periodic continuation of $u_0 = -1 + 2\xi + O(\xi^2)$, with $\xi$ the distance to the next
        end, has a kink there. Deviations from the stable value -1 obey the linearised equation
        $v_t = \epsilon v_{xx} - 2\rho v$, which turns the kink $|\xi|$ into
        $e^{-2\rho t}(|\xi| + w)$ with $w$ from `periodic_kink`. No smooth network could follow that.
        The network's second input is the time scaled to [-1, 1].

        Values and derivatives are finite for all $t \ge 0$. At the initial time they are the limits
        for $t \to 0$, and so is the residual, which the kinks leave. At the kinks themselves $u_t$
        and $u_{xx}$ have no limits: they grow like $t^{-1/2}$ and cancel in the residual, and at
        $t = 0$ both are given without that part.
        """

        def decay(x: Array) -> Array:
            return jnp.exp(-2 * self.reaction * x[..., 1:])

        def offset(x: Array) -> Array:
            place, time = x[..., :1], x[..., 1:]
            kink = periodic_kink(place, time, self.diffusivity)
            return decay(x) * (initial_value(place) + 2 * kink)

        return TrialFunction(
            network,
            offset=offset,
            factor=lambda x: -jnp.expm1(-2 * self.reaction * x[..., 1:]),
            embed=lambda x: jnp.concatenate(
                [jnp.cos(jnp.pi * x[..., :1]), 2 * x[..., 1:] - 1], axis=-1
            ),
        )

    def exact(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n components"]:
        """The reference solution, interpolated; see `solve_allen_cahn`.

        Computed in float64 whatever the dtype of the points. NaN at times outside [0, 1].

        Raises:
            ValueError: if the settings are too sharp for the reference.
        """
        return in_double_precision(solve_allen_cahn(self.diffusivity, self.reaction))(points)

    @property
    def exact_error(self) -> float:
        """An estimate of the largest error of `exact`, by doubling points and steps."""
        return solve_allen_cahn(self.diffusivity, self.reaction).error


def initial_value(x: Array) -> Array:
    r"""$x^2 \cos \pi x$."""
    return x**2 * jnp.cos(jnp.pi * x)


def _jump(u: PointFunction, x: Array) -> Array:
    """Difference of value and slope between the right end and the left."""
    right = x.at[0].add(2.0)
    v_left, _, slope_left, _ = space_time_derivatives(u, x)
    v_right, _, slope_right, _ = space_time_derivatives(u, right)
    return jnp.stack([v_right - v_left, slope_right - slope_left])
