r"""The solution operator of the viscous Burgers equation: initial condition to final state.

$u_t + (u^2 / 2)_x = \nu\, u_{xx}$ on the periodic unit interval, the benchmark of Li et al. (ICLR
2021, arXiv:2010.08895, section 5.1): initial conditions from
$N(0, 625 (-\Delta + 25 I)^{-2})$, $\nu = 0.1$, final time 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import scipy.fft
from jaxtyping import Float

from opifex.core.checks import (
    check_nonnegative_int,
    check_positive,
    check_positive_int,
)
from opifex.data.cache import cached_arrays
from opifex.data.fields import OperatorData
from opifex.data.progress import track
from opifex.data.random_fields import gaussian_random_field

__all__ = ["generate_burgers_operator_data", "solve_burgers"]

BATCH = 64
"""Samples solved at once: enough to fill the vector units, few enough to stay in the cache."""

Vector = Float[np.ndarray, " frequencies"]


def _phi_functions(z: Vector) -> tuple[Vector, Vector, Vector]:
    r"""The functions $\varphi_1, \varphi_2, \varphi_3$ of exponential integrators at real ``z``.

    Means over circles of radius one around each argument, which avoid the cancellation of the
    closed forms near zero (Kassam and Trefethen, SIAM J. Sci. Comput. 26, 2005, section 3).
    """
    points = 32
    circle = np.exp(1j * np.pi * (np.arange(points) + 0.5) / points)
    w = z[:, None] + circle[None, :]
    e = np.exp(w)
    first = ((e - 1) / w).mean(axis=1).real
    second = ((e - 1 - w) / w**2).mean(axis=1).real
    third = ((e - 1 - w - w**2 / 2) / w**3).mean(axis=1).real
    return first, second, third


def _make_step(
    num_points: int, viscosity: float, time_step: float
) -> Callable[[np.ndarray], np.ndarray]:
    """One ETDRK4 step on the coefficients of the real transform, shape (samples, frequencies)."""
    k = 2 * np.pi * np.arange(num_points // 2 + 1)
    linear = -viscosity * k**2
    # Quadratic terms alias; the frequencies that they reach are removed (the 2/3 rule).
    kept = np.arange(k.size) <= (num_points - 1) // 3
    factor = np.where(kept, -0.5j * k, 0.0)

    def nonlinear(v: np.ndarray) -> np.ndarray:
        u = scipy.fft.irfft(v, n=num_points, axis=-1)
        return factor * scipy.fft.rfft(u * u, axis=-1)

    z = time_step * linear
    whole, half = np.exp(z), np.exp(z / 2)
    half_weight = time_step / 2 * _phi_functions(z / 2)[0]
    one, two, three = _phi_functions(z)
    # Cox and Matthews' fourth-order scheme, as in Kassam and Trefethen, equation (2.5).
    first = time_step * (one - 3 * two + 4 * three)
    middle = time_step * (2 * two - 4 * three)
    last = time_step * (4 * three - two)

    def step(v: np.ndarray) -> np.ndarray:
        at_v = nonlinear(v)
        a = half * v + half_weight * at_v
        at_a = nonlinear(a)
        b = half * v + half_weight * at_a
        at_b = nonlinear(b)
        c = half * a + half_weight * (2 * at_b - at_v)
        at_c = nonlinear(c)
        return whole * v + first * at_v + middle * (at_a + at_b) + last * at_c

    return step


def solve_burgers(
    initial: Float[np.ndarray, "samples points"],
    *,
    viscosity: float = 0.1,
    final_time: float = 1.0,
    num_steps: int = 200,
) -> Float[np.ndarray, "samples points"]:
    r"""Solutions of $u_t + (u^2/2)_x = \nu u_{xx}$ on the periodic unit interval, in float64.

    Fourier collocation with the 2/3 rule in space, the exponential Runge-Kutta scheme ETDRK4 in
    time (Kassam and Trefethen 2005), which treats diffusion exactly. Frequencies from a third of
    the number of points on are not fed by the nonlinear term; small viscosities need grids that
    resolve the fronts, of width about $\nu / |u|$.

    Args:
        initial: initial values at j / n, one sample per row.
        viscosity: $\nu$, positive.
        final_time: time of the solution.
        num_steps: number of equal time steps.

    Returns:
        Values at ``final_time`` at the same points.

    Raises:
        ValueError: if ``initial`` is not two-dimensional or not finite, a number is not positive,
            or the computation became unstable.
        TypeError: if ``num_steps`` is not an integer.
    """
    values = np.asarray(initial, np.float64)
    if values.ndim != 2 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"initial must hold finite numbers of shape (samples, points), got shape {values.shape}"
        )
    check_positive("viscosity", viscosity)
    check_positive("final_time", final_time)
    check_positive_int("num_steps", num_steps)
    n = values.shape[1]
    step = _make_step(n, viscosity, final_time / num_steps)
    v = scipy.fft.rfft(values, axis=-1)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(num_steps):
            v = step(v)
    if not np.all(np.isfinite(v)):
        raise ValueError(
            f"num_steps={num_steps} is too small for viscosity={viscosity} and {n} points: "
            "the solution became infinite"
        )
    return scipy.fft.irfft(v, n=n, axis=-1)


def generate_burgers_operator_data(
    num_samples: int,
    resolution: int = 512,
    *,
    viscosity: float = 0.1,
    final_time: float = 1.0,
    num_steps: int = 200,
    smoothness: float = 2.0,
    inverse_length: float = 5.0,
    scale: float = 25.0,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> OperatorData:
    r"""Initial conditions and final states of the viscous Burgers equation.

    Initial conditions are Gaussian random fields with mean zero (as in the data of Li et al.),
    band-limited to the grid, solved by `solve_burgers` on a grid twice as fine. The values are
    point values; the same seed and parameters give the same data on every machine of one kind.

    Args:
        num_samples: number of pairs.
        resolution: number of grid points of the data, at j / resolution.
        viscosity: $\nu$.
        final_time: time of the output.
        num_steps: time steps of the solver.
        smoothness: power $\alpha$ of the covariance, see `gaussian_random_field`.
        inverse_length: shift $\tau$ of the covariance.
        scale: factor $\sigma$ of the covariance.
        seed: of the random initial conditions.
        cache_dir: folder of the cache; see `opifex.data.cache.default_cache_dir`.
        progress: show a progress bar.

    Returns:
        Inputs and outputs of shape (num_samples, resolution, 1), float32.

    Raises:
        ValueError: if a number is out of range, or ``num_steps`` is too small.
        TypeError: if a count or the seed is not an integer.
    """
    parameters = {
        "version": 1,
        "num_samples": check_positive_int("num_samples", num_samples),
        "resolution": check_positive_int("resolution", resolution),
        "viscosity": check_positive("viscosity", viscosity),
        "final_time": check_positive("final_time", final_time),
        "num_steps": check_positive_int("num_steps", num_steps),
        "smoothness": check_positive("smoothness", smoothness),
        "inverse_length": check_positive("inverse_length", inverse_length),
        "scale": check_positive("scale", scale),
        "seed": check_nonnegative_int("seed", seed),
    }

    def compute() -> dict[str, np.ndarray]:
        initial = gaussian_random_field(
            num_samples,
            2 * resolution,
            smoothness=smoothness,
            inverse_length=inverse_length,
            scale=scale,
            modes=(resolution + 1) // 2,
            random_mean=False,
            seed=seed,
        )
        final = np.concatenate(
            [
                solve_burgers(
                    initial[start : start + BATCH],
                    viscosity=viscosity,
                    final_time=final_time,
                    num_steps=num_steps,
                )
                for start in track(
                    range(0, num_samples, BATCH), "Burgers equation", visible=progress
                )
            ]
        )
        return {
            "inputs": initial[:, ::2, None].astype(np.float32),
            "outputs": final[:, ::2, None].astype(np.float32),
        }

    return OperatorData(**cached_arrays("burgers", parameters, compute, cache_dir))
