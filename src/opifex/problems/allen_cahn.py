"""The Allen-Cahn equation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.special import erf
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.interpolate import RectBivariateSpline

from opifex.core.checks import check_positive
from opifex.core.residuals import PointFunction, ResidualTerm
from opifex.models import TrialFunction
from opifex.problems.base import Problem
from opifex.problems.evolution import initial_points, side_points, space_time_derivatives
from opifex.problems.points import Box

__all__ = ["AllenCahn", "solve_allen_cahn"]


@dataclass(frozen=True)
class AllenCahn(Problem):
    r"""$u_t = \epsilon u_{xx} + \rho(u - u^3)$ on $[-1, 1] \times [0, 1]$, periodic in $x$.

    Initial value $u(x, 0) = x^2\cos \pi x$ (Raissi, Perdikaris, Karniadakis, JCP 378, 2019,
    section 3.2.1). Points are (x, t). The solution is computed once by `solve_allen_cahn` and
    interpolated.

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
        half = max(1, num_points // 2)
        return (
            initial_points(half, self.domain, key),
            side_points(half, self.domain, key, both=False),
        )

    def trial_function(self, network: nnx.Module) -> TrialFunction:
        r"""$e^{-2\rho t}\,(u_0 + 2(h - \xi)) + (1 - e^{-2\rho t})\, N(\cos \pi x, t)$: even, periodic.

        The periodic continuation of $u_0 = -1 + 2\xi + O(\xi^2)$, with $\xi$ the distance to the next
        end, has a kink there. Deviations from the stable value -1 obey the linearised equation
        $w_t = \epsilon w_{xx} - 2\rho w$, which turns the kink $|\xi|$ into $e^{-2\rho t} h$ with
        $h = \xi\,\mathrm{erf}(\xi / s) + (s / \sqrt{\pi})\, e^{-\xi^2 / s^2}$ and
        $s = \sqrt{4 \epsilon t}$. No smooth network could follow that. The network's second input is
        the time scaled to [-1, 1].
        """

        def decay(x: Array) -> Array:
            return jnp.exp(-2 * self.reaction * x[..., 1:])

        def offset(x: Array) -> Array:
            place, time = x[..., :1], jnp.maximum(x[..., 1:], 1e-30)
            distance = 1 - jnp.abs(place)
            spread = jnp.sqrt(4 * self.diffusivity * time)
            ratio = distance / spread
            smooth = distance * erf(ratio) + spread / jnp.sqrt(jnp.pi) * jnp.exp(-(ratio**2))
            return decay(x) * (initial_value(place) + 2 * (smooth - distance))

        return TrialFunction(
            network,
            offset=offset,
            factor=lambda x: 1 - decay(x),
            embed=lambda x: jnp.concatenate(
                [jnp.cos(jnp.pi * x[..., :1]), 2 * x[..., 1:] - 1], axis=-1
            ),
        )

    def exact(self, points: Float[Array, "n dim"]) -> Float[Array, "n components"]:
        """The reference solution at concrete points (not inside compiled code)."""
        spline = _reference(self.diffusivity, self.reaction)
        where = np.asarray(points, np.float64)
        values = spline(where[:, 0], where[:, 1], grid=False)
        return jnp.asarray(values[:, None], points.dtype)


def initial_value(x: Array) -> Array:
    r"""$x^2 \cos \pi x$."""
    return x**2 * jnp.cos(jnp.pi * x)


def _jump(u: PointFunction, x: Array) -> Array:
    """Difference of value and slope between the right end and the left."""
    right = x.at[0].add(2.0)
    v_left, _, slope_left, _ = space_time_derivatives(u, x)
    v_right, _, slope_right, _ = space_time_derivatives(u, right)
    return jnp.stack([v_right - v_left, slope_right - slope_left])


def solve_allen_cahn(
    diffusivity: float = 1e-4,
    reaction: float = 5.0,
    *,
    num_modes: int = 1024,
    num_steps: int = 1000,
    save_every: int = 5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve on [-1, 1] x [0, 1] by a Fourier method in space and ETDRK4 in time, in float64.

    Exponential time differencing of fourth order, with the coefficients averaged over a circle
    (Kassam & Trefethen, SIAM J. Sci. Comput. 26, 2005, equations 26-29 and section 3). The periodic
    initial value has a kink at the ends, which limits the error near them to about 1e-5 at early
    times; elsewhere it is far smaller.

    Args:
        diffusivity: coefficient of the second derivative.
        reaction: coefficient of u - u^3.
        num_modes: grid points in space.
        num_steps: time steps.
        save_every: steps between saved times.

    Returns:
        Points in space (num_modes,), saved times (m,), and values (m, num_modes), all float64.
    """
    x = -1 + 2 * np.arange(num_modes) / num_modes
    frequency = np.fft.rfftfreq(num_modes, 2 / num_modes) * 2 * np.pi
    linear = reaction - diffusivity * frequency**2
    h = 1 / num_steps
    circle = np.exp(1j * np.pi * (np.arange(1, 33) - 0.5) / 32)
    z = h * linear[:, None] + circle[None]
    full, half = np.exp(h * linear), np.exp(h * linear / 2)
    q = h * np.mean((np.exp(z / 2) - 1) / z, axis=1).real
    e = np.exp(z)
    f1 = h * np.mean((-4 - z + e * (4 - 3 * z + z**2)) / z**3, axis=1).real
    f2 = h * np.mean((2 + z + e * (z - 2)) / z**3, axis=1).real
    f3 = h * np.mean((-4 - 3 * z - z**2 + e * (4 - z)) / z**3, axis=1).real

    def nonlinear(v: np.ndarray) -> np.ndarray:
        return -reaction * np.fft.rfft(np.fft.irfft(v, num_modes) ** 3)

    v = np.fft.rfft(np.asarray(x**2 * np.cos(np.pi * x)))
    values = [np.fft.irfft(v, num_modes)]
    for step in range(1, num_steps + 1):
        n_v = nonlinear(v)
        a = half * v + q * n_v
        n_a = nonlinear(a)
        b = half * v + q * n_a
        n_b = nonlinear(b)
        c = half * a + q * (2 * n_b - n_v)
        v = full * v + n_v * f1 + 2 * (n_a + n_b) * f2 + nonlinear(c) * f3
        if step % save_every == 0:
            values.append(np.fft.irfft(v, num_modes))
    times = np.arange(0, num_steps + 1, save_every) * h
    return x, times, np.stack(values)


@lru_cache(maxsize=8)
def _reference(diffusivity: float, reaction: float) -> RectBivariateSpline:
    x, times, values = solve_allen_cahn(diffusivity, reaction)
    closed_x = np.append(x, 1.0)
    closed = np.concatenate([values, values[:, :1]], axis=1)
    return RectBivariateSpline(closed_x, times, closed.T, kx=5, ky=5)
