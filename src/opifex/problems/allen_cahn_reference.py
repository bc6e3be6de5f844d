r"""The solution of the Allen-Cahn equation by operator splitting, and an interpolant of it.

Diffusion alone is exact for cosines, the reaction alone is exact at points. Strang's symmetric
composition of the two (SIAM J. Numer. Anal. 5, 1968) errs by even powers of the step, and four of
them, of one to four parts, are extrapolated to order eight (Hairer, Norsett, Wanner, Solving Ordinary
Differential Equations I, 1993, section II.9). The periodic initial value has kinks at $\pm 1$, for
which a cosine series would need a million terms. They are carried along in closed form; the error of
the rest falls with the fourth power of the grid width.

Time steppers for periodic problems that know nothing of kinks are of second order here. The package
exponax 0.2.0 (Fourier, ETDRK4) ends at 1e-8 in the measure by which this reference has 1e-12, on twice
as many points per period and after ten times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil, log2, sqrt
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float
from numpy.polynomial.polynomial import polyfromroots

from opifex.problems.kink import FARTHEST, periodic_kink

__all__ = ["AllenCahnReference", "solve_allen_cahn"]

WANTED_ERROR, LARGEST_ERROR = 1e-10, 1e-8

MOST_VALUES = 2**24
"""Points in space times steps in time: what takes some seconds."""

EXTRAPOLATION = {1: -1 / 360, 2: 16 / 45, 3: -729 / 280, 4: 1024 / 315}
"""Weights of the compositions, by their number of parts."""

TAPS = 12
"""Points along each axis that the interpolant takes."""

Values = Float[np.ndarray, " points"]


@dataclass(frozen=True, eq=False)
class AllenCahnReference:
    r"""The solution for $x^2 \cos \pi x$ at the initial time, as a function of float64 points (x, t).

    Attributes:
        diffusivity: coefficient of the second derivative.
        reaction: coefficient of u - u^3.
        smooth: the solution without its kinks, at $0 < x < 1$ (cell centres) and at times that lie
            dense at first, as logarithms, then evenly, shape (times, points).
        error: an estimate of the largest error, about four times what it is.
    """

    diffusivity: float
    reaction: float
    smooth: Float[np.ndarray, "times points"]
    error: float

    def __call__(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n components"]:
        """Values at points with times in [0, 1] (NaN elsewhere); periodic in x, period 2."""
        return _evaluate(self.diffusivity, self.reaction, points, jnp.asarray(self.smooth))


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(diffusivity: float, reaction: float, points: Array, smooth: Array) -> Array:
    place, time = jnp.abs((points[..., 0] + 1) % 2 - 1), points[..., 1]
    kinks = place**2 + 2 * diffusivity * time - 2 * periodic_kink(place, time, diffusivity)
    value = _interpolate(jnp, smooth, place, time, diffusivity)
    value = value - jnp.exp(-2 * reaction * time) * kinks
    return jnp.where((time >= 0) & (time <= 1), value, jnp.nan)[..., None]


def _stretched(xp: ModuleType, time: Any, diffusivity: float) -> Any:
    """A time in which the solution has no fast part: logarithmic at first, then linear."""
    start = _start(diffusivity)
    return (xp.log1p(time / start) / np.log1p(1 / start) + time) / 2


def _start(diffusivity: float) -> float:
    # While the width sqrt(4 epsilon t) of the kinks is below 0.002, they are all that happens.
    return min(1e-6 / diffusivity, 0.05)


def _times(diffusivity: float, num_steps: int) -> np.ndarray:
    """Times whose stretched ones have the distance 1 / num_steps, a few beyond 1, by Newton's method."""
    start = _start(diffusivity)
    wanted = np.arange(num_steps + TAPS // 2 + 1) / num_steps
    time = np.zeros_like(wanted)
    for _ in range(100):  # monotone, since stretching is concave
        slope = (1 / (time + start) / np.log1p(1 / start) + 1) / 2
        time += (wanted - _stretched(np, time, diffusivity)) / slope
    return time


def _lagrange_polynomials() -> np.ndarray:
    """Coefficients, by power and point, of the Lagrange polynomials for equal distances in [-1, 1]."""
    nodes = np.linspace(-1, 1, TAPS)
    others = [np.delete(nodes, j) for j in range(TAPS)]
    columns = [polyfromroots(o) / np.prod(x - o) for x, o in zip(nodes, others, strict=True)]
    return np.stack(columns, axis=1)


LAGRANGE = _lagrange_polynomials()


def _weights(offset: Any) -> Any:
    """Weights of the points 0, 1, ... in polynomial interpolation at an offset, along a last axis."""
    place = offset[..., None] * (2 / (TAPS - 1)) - 1
    weights = LAGRANGE[-1] + 0 * place
    for coefficients in LAGRANGE[-2::-1]:
        weights = weights * place + coefficients
    return weights


def _interpolate(xp: ModuleType, smooth: Any, place: Any, time: Any, diffusivity: float) -> Any:
    """The smooth part at places in [0, 1], with NumPy or JAX."""
    num_times, num_points = smooth.shape
    step = _stretched(xp, time, diffusivity) * (num_times - 1 - TAPS // 2)
    first = xp.clip(xp.floor(step) - TAPS // 2 + 1, 0, num_times - TAPS).astype(int)
    cell = place * num_points - 0.5
    left = (xp.floor(cell) - TAPS // 2 + 1).astype(int)
    columns = left[..., None] + np.arange(TAPS)
    columns = xp.where(columns < 0, -1 - columns, columns)  # even about both ends
    columns = xp.where(columns >= num_points, 2 * num_points - 1 - columns, columns)
    rows = first[..., None] + np.arange(TAPS)
    values = smooth[rows[..., :, None], columns[..., None, :]]
    along = xp.sum(values * _weights(cell - left)[..., None, :], -1)
    return xp.sum(along * _weights(step - first), -1)


class _Splitting:
    """The flows of diffusion and reaction on a grid of cell centres in [0, 1]."""

    def __init__(self, diffusivity: float, reaction: float, num_points: int) -> None:
        self.diffusivity, self.reaction = diffusivity, reaction
        self.places = (np.arange(num_points) + 0.5) / num_points
        self.squares = self.places**2
        self.rates = diffusivity * (np.pi * np.arange(num_points)) ** 2
        self.waves = np.pi * np.arange(1, 16)
        signs = np.where(np.arange(1, 16) % 2, -4, 4)
        self.cosines = (signs / self.waves**2)[:, None] * np.cos(self.waves[:, None] * self.places)

    def kinks(self, time: float) -> Values:
        r"""The square of x, continued with period 2, after diffusion for the given time.

        Times $e^{-2 \rho t}$, it takes the kinks at $\pm 1$ from $u$: near its stable value -1 the
        reaction multiplies deviations by that factor.
        """
        spread = sqrt(4 * self.diffusivity * time)
        if spread > 0.3:  # some cosines are enough, and many kinks would be needed
            return 1 / 3 + np.exp(-((self.waves * spread / 2) ** 2)) @ self.cosines
        value = self.squares + 2 * self.diffusivity * time
        for kink in np.arange(1, 1 + FARTHEST * spread, 2):
            for distance, values in (
                (kink - self.places[::-1], value[::-1]),
                (kink + self.places, value),
            ):
                near = slice(np.searchsorted(distance, FARTHEST * spread))
                ratio = distance[near] / spread
                bell = np.exp(-(ratio**2)) / sqrt(np.pi)
                values[near] -= 2 * spread * (bell - ratio * scipy.special.erfc(ratio))
        return value

    def linear_decay(self, duration: float) -> float:
        """What the reaction leaves of a small deviation from a stable value."""
        return np.exp(-2 * self.reaction * duration)

    def react(self, values: Values, duration: float) -> Values:
        """The exact flow of u_t = reaction (u - u^3)."""
        decay = self.linear_decay(duration)
        return values / np.sqrt(decay + (1 - decay) * values**2)

    def compose(self, smooth: Values, time: float, step: float, parts: int) -> Values:
        """The smooth part after a step: reaction and diffusion in turn, half of a reaction first."""
        part = step / parts
        damping = np.exp(-self.rates * part)
        kinks, reacted = self.kinks(time), time
        values = smooth - self.linear_decay(reacted) * kinks
        for j in range(parts):
            duration = part / 2 if j == 0 else part
            values = self.react(values, duration)
            reacted += duration
            values += self.linear_decay(reacted) * kinks
            values = scipy.fft.idct(damping * scipy.fft.dct(values))
            kinks = self.kinks(time + (j + 1) * part)
            values -= self.linear_decay(reacted) * kinks
        return self.react(values, part / 2) + self.linear_decay(time + step) * kinks


def _smooth_part(
    diffusivity: float, reaction: float, num_points: int, num_steps: int
) -> Float[np.ndarray, "times points"]:
    flows = _Splitting(diffusivity, reaction, num_points)
    times = _times(diffusivity, num_steps)
    values = [flows.squares * np.cos(np.pi * flows.places) + flows.squares]
    for time, step in zip(times[:-1], np.diff(times), strict=True):
        composed = [w * flows.compose(values[-1], time, step, m) for m, w in EXTRAPOLATION.items()]
        values.append(np.sum(composed, axis=0))
    return np.stack(values)


def _probes(width: float) -> tuple[np.ndarray, np.ndarray]:
    """Places and times to compare at: everywhere, and near the kinks, the fronts and the start."""
    kink, front = np.geomspace(1e-6, 1, 30), np.linspace(-10, 10, 40) * min(width, 0.05)
    places = np.concatenate([np.linspace(0, 1, 30), 1 - kink, 0.5 + front])
    times = np.concatenate([np.geomspace(1e-10, 1, 40), np.linspace(0, 1, 20)])
    place, time = np.meshgrid(places, times)
    return place.ravel(), time.ravel()


@lru_cache(maxsize=8)
def solve_allen_cahn(diffusivity: float, reaction: float) -> AllenCahnReference:
    """The solution to an error of 1e-10 where some seconds suffice, else of at most 1e-8.

    Points and steps are doubled until the solution changes by little, at probes that are dense near
    kinks and fronts and at early times. A doubling divides the error by sixteen or more where it is
    resolved; a quarter of the last change is what the result states.

    Args:
        diffusivity: coefficient of the second derivative.
        reaction: coefficient of u - u^3.

    Returns:
        The solution as a function, kept for the last eight settings.

    Raises:
        ValueError: if the diffusivity is above 1, the fronts are too narrow or the reaction is too
            fast.
    """
    if diffusivity > 1:
        raise ValueError(
            f"diffusivity must be at most 1 for the reference solution, got {diffusivity}"
        )
    width = sqrt(2 * diffusivity / reaction)
    num_points = min(max(512, 2 ** ceil(log2(2 / width))), 4096)
    num_steps = max(32, 2 ** ceil(log2(4 * reaction)))
    place, time = _probes(width)
    smooth, before, error = None, None, np.inf
    while error > WANTED_ERROR and num_points * num_steps <= MOST_VALUES:
        with np.errstate(all="ignore"):
            smooth = _smooth_part(diffusivity, reaction, num_points, num_steps)
            value = _interpolate(np, smooth, place, time, diffusivity)
        if before is not None:
            error = float(np.max(np.abs(value - before))) / 4
        before = value
        num_points, num_steps = 2 * num_points, 2 * num_steps
    if smooth is None or not error <= LARGEST_ERROR:
        raise ValueError(
            f"diffusivity={diffusivity} and reaction={reaction} are too sharp for the reference "
            f"solution (error {error:.0e}, at most {LARGEST_ERROR:.0e} is allowed): the reaction "
            "must be at most 50, the diffusivity at least 1e-6 times the reaction"
        )
    return AllenCahnReference(diffusivity, reaction, smooth, error)
