"""The viscous Burgers equation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive
from opifex.core.residuals import PointFunction, ResidualTerm
from opifex.models import SymmetricModel, TrialFunction
from opifex.problems.base import Problem
from opifex.problems.double_precision import in_double_precision
from opifex.problems.evolution import initial_and_side_points, space_time_derivatives
from opifex.problems.points import Box

__all__ = ["Burgers"]

LARGEST_ERROR = 1e-9

CHUNK = 2**22
"""Points times nodes that are held at once."""


@dataclass(frozen=True)
class Burgers(Problem):
    r"""$u_t + u u_x = \nu u_{xx}$ on $[-1, 1] \times [0, 1]$, with $u(x, 0) = -\sin \pi x$.

    At the ends $u = 0$. Points are (x, t). The solution follows from the Cole-Hopf transformation
    (Basdevant et al., Computers & Fluids 14, 1986, section 2), a mean of $-\sin \pi y$ with the weights
    $\exp(-(x - y)^2 / (4 \nu t) - \cos(\pi y) / (2 \pi \nu))$ over all $y$. The trapezoidal rule
    converges exponentially for it, and positive weights cancel nothing.

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
        return initial_and_side_points(num_points, self.domain, key)

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

    def exact(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n components"]:
        """The solution by quadrature, in float64 whatever the dtype of the points.

        Raises:
            ValueError: if the viscosity is so small that rounding spoils the weights, below 3e-7.
        """
        nodes, _ = _quadrature(self.viscosity)

        def values(where: Array) -> Array:
            return _evaluate(where, self.viscosity, jnp.asarray(nodes))

        return in_double_precision(values)(points)

    @property
    def exact_error(self) -> float:
        """An estimate of the largest error of `exact`, by halving the distance of the nodes."""
        return _quadrature(self.viscosity)[1]


def _cole_hopf(xp: ModuleType, place: Any, time: Any, viscosity: float, nodes: Any) -> Any:
    """The solution with ``nodes`` of the integral at y = x - sqrt(4 nu t) nodes, by NumPy or JAX."""
    # The square root has no derivative at 0, the solution has.
    later = xp.where(time < 1e-12, time + 1e-14, time)
    shifted = place[..., None] - xp.sqrt(4 * viscosity * later)[..., None] * nodes
    exponent = -(nodes**2) - xp.cos(np.pi * shifted) / (2 * np.pi * viscosity)
    weights = xp.exp(exponent - xp.max(exponent, axis=-1, keepdims=True))
    mean = xp.sum(weights * xp.sin(np.pi * shifted), -1) / xp.sum(weights, -1)
    return -mean


@jax.jit
def _evaluate(points: Array, viscosity: float, nodes: Array) -> Array:
    def at(point: Array) -> Array:
        return _cole_hopf(jnp, point[0], point[1], viscosity, nodes)

    flat = points.reshape(-1, 2)
    batch = max(1, CHUNK // nodes.size)
    few = flat.shape[0] <= batch
    values = jax.vmap(at)(flat) if few else jax.lax.map(at, flat, batch_size=batch)
    return values.reshape(*points.shape[:-1], 1)


@lru_cache(maxsize=8)
def _quadrature(viscosity: float) -> tuple[np.ndarray, float]:
    """Nodes of the integral that suffice at probes, and an estimate of the error there."""
    rounding = 4 * float(np.finfo(np.float64).eps) * (1 + 1 / (np.pi * viscosity))
    if rounding > LARGEST_ERROR:
        raise ValueError(
            f"viscosity={viscosity} is too small for the exact solution in double precision "
            f"(error {rounding:.0e}, at most {LARGEST_ERROR:.0e} is allowed): it must be at least 3e-7"
        )
    # Farther out, weights are below exp(-40) of the largest one.
    farthest = np.sqrt(40 + 1 / (np.pi * viscosity))
    front = np.geomspace(min(viscosity, 0.01), 1, 20)
    place, time = np.meshgrid([*-front, *front], [*np.geomspace(1e-6, 0.1, 6), 0.3, 0.5, 0.8, 1])

    def rule(spacing: float) -> tuple[np.ndarray, np.ndarray]:
        count = int(farthest / spacing) + 1
        nodes = spacing * np.arange(-count, count + 1)
        return nodes, _cole_hopf(np, place, time, viscosity, nodes)

    spacing, change = 0.25, np.inf
    coarse = rule(spacing)
    while change > rounding:
        spacing /= 2
        nodes, before = coarse
        coarse = rule(spacing)
        change = float(np.max(np.abs(coarse[1] - before)))
    return nodes, rounding + change
