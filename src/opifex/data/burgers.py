r"""The solution operator of the viscous Burgers equation: initial condition to final state.

$u_t + (u^2 / 2)_x = \nu\, u_{xx}$ on the periodic unit interval, the benchmark of Li et al. (ICLR
2021, arXiv:2010.08895, section 5.1): initial conditions from
$N(0, 625 (-\Delta + 25 I)^{-2})$, $\nu = 0.1$, final time 1.
"""

from __future__ import annotations

import os
from math import ceil, sqrt

import numpy as np
import scipy
from jaxtyping import Float

from opifex.core.checks import (
    check_array,
    check_nonnegative_int,
    check_positive,
    check_positive_int,
)
from opifex.data.cache import cached_arrays
from opifex.data.fields import OperatorData
from opifex.data.progress import track
from opifex.data.random_fields import gaussian_random_field

__all__ = ["generate_burgers_operator_data", "solve_burgers"]

BATCH = 256
"""Samples solved at once, so that progress can be shown."""

TOLERANCE = 1e-10
"""Largest change, relative to the largest initial value, when the points of the integral are doubled."""

MOST_ENTRIES = 2**24
"""Points of the solution times points of the integral: a matrix of 128 MiB."""

LARGEST_EXPONENT = 600.0
"""Weights down to exp(-600) are normal numbers, and so are their products with those of the kernel."""


def _heat_kernel(num_points: int, num_nodes: int, variance: float) -> np.ndarray:
    """The periodic heat kernel from nodes j / m to points i / n, up to a factor, shape (m, n)."""
    variance = min(variance, 4.0)  # of which the kernel is constant to the last digit
    distances = np.arange(num_nodes) / num_nodes
    images = np.arange(-ceil(9 * sqrt(variance)) - 1, ceil(9 * sqrt(variance)) + 1)
    squares = (distances + images[:, None]) ** 2
    kernel = np.exp(-squares / (2 * variance)).sum(axis=0)
    points = np.arange(num_points) * (num_nodes // num_points)
    return kernel[(points - np.arange(num_nodes)[:, None]) % num_nodes]


def _cole_hopf(
    initial: Float[np.ndarray, "samples points"], viscosity: float, time: float, num_nodes: int
) -> Float[np.ndarray, "samples points"]:
    """The exact solution, with its integrals by the trapezoidal rule on ``num_nodes`` points."""
    n = initial.shape[1]
    coefficients = scipy.fft.rfft(initial, axis=-1)
    # On a finer grid the Nyquist frequency is an ordinary one, of which this is half.
    if n % 2 == 0 and num_nodes > n:
        coefficients[:, -1] /= 2
    mean = coefficients[:, :1].real / n
    coefficients[:, 0] = 0
    # In coordinates that move with the mean; there it starts from values that are shifted back.
    frequencies = 2j * np.pi * np.arange(coefficients.shape[1])
    coefficients *= num_nodes / n * np.exp(-frequencies * mean * time)
    values = scipy.fft.irfft(coefficients, n=num_nodes, axis=-1)
    coefficients[:, 1:] /= frequencies[1:]
    potential = scipy.fft.irfft(coefficients, n=num_nodes, axis=-1) / (2 * viscosity)
    potential -= potential.min(axis=-1, keepdims=True)
    if potential.max() > LARGEST_EXPONENT:
        least = viscosity * potential.max() / LARGEST_EXPONENT
        raise ValueError(
            f"viscosity must be at least {least:.1e} for these initial values, got {viscosity}"
        )
    weights = np.exp(-potential)
    kernel = _heat_kernel(n, num_nodes, 2 * viscosity * time)
    return mean + ((weights * values) @ kernel) / (weights @ kernel)


def solve_burgers(
    initial: Float[np.ndarray, "samples points"],
    *,
    viscosity: float = 0.1,
    final_time: float = 1.0,
) -> Float[np.ndarray, "samples points"]:
    r"""Solutions of $u_t + (u^2/2)_x = \nu u_{xx}$ on the periodic unit interval, in float64.

    By the Cole-Hopf transformation the solution is a mean of the initial values with the weights
    $\exp(-\psi(y) / 2\nu - (x - y)^2 / 4\nu t)$ over all $y$, where $\psi' = u_0$ (Hopf, Comm. Pure
    Appl. Math. 3, 1950; values of mean zero, to which a constant speed is added). No time steps are
    made. The trapezoidal rule converges exponentially; its points are doubled until no value changes
    by more than 1e-10 of the largest initial value. Since the weights are positive, nothing cancels
    however small the viscosity is. Steps in time (exponax 0.2.0, ETDRK4) agree to their own error,
    5e-9 at the defaults after 200 steps, and take twenty times as long.

    Args:
        initial: initial values at j / n, one sample per row; between the points the trigonometric
            polynomial of lowest degree is meant.
        viscosity: $\nu$, positive.
        final_time: time of the solution.

    Returns:
        Values at ``final_time`` at the same points: of the solution itself, also where the grid is
        too coarse for its fronts.

    Raises:
        TypeError: if ``initial`` does not hold real numbers, or a number is none.
        ValueError: if ``initial`` is not two-dimensional or not finite, a number is not positive, or
            the viscosity is too small for double precision or for the memory of some hundred MiB
            that the method takes.
    """
    values = np.asarray(check_array("initial", initial, real=True), np.float64)
    if values.ndim != 2 or 0 in values.shape or not np.all(np.isfinite(values)):
        raise ValueError(
            f"initial must hold finite numbers of shape (samples, points), got shape {values.shape}"
        )
    check_positive("viscosity", viscosity)
    check_positive("final_time", final_time)
    n = values.shape[1]
    allowed = TOLERANCE * np.max(np.abs(values))
    num_nodes = n
    before = _cole_hopf(values, viscosity, final_time, num_nodes)
    while 2 * num_nodes * n <= MOST_ENTRIES:
        num_nodes *= 2
        solution = _cole_hopf(values, viscosity, final_time, num_nodes)
        if np.max(np.abs(solution - before)) <= allowed:
            return solution
        before = solution
    raise ValueError(
        f"viscosity={viscosity} is too small, or {n} points are too many: the solution is not exact "
        f"to {TOLERANCE:.0e} with {num_nodes} points of its integral"
    )


def generate_burgers_operator_data(
    num_samples: int,
    resolution: int = 512,
    *,
    viscosity: float = 0.1,
    final_time: float = 1.0,
    smoothness: float = 2.0,
    inverse_length: float = 5.0,
    scale: float = 25.0,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> OperatorData:
    r"""Initial conditions and final states of the viscous Burgers equation.

    Initial conditions are Gaussian random fields with mean zero (as in the data of Li et al.),
    band-limited to the grid, solved by `solve_burgers`. The values are point values; the same seed
    and parameters give the same data on every machine of one kind.

    Args:
        num_samples: number of pairs.
        resolution: number of grid points of the data, at j / resolution; at least 3, since coarser
            grids carry nothing but the mean, which is zero.
        viscosity: $\nu$.
        final_time: time of the output.
        smoothness: power $\alpha$ of the covariance, see `gaussian_random_field`.
        inverse_length: shift $\tau$ of the covariance.
        scale: factor $\sigma$ of the covariance.
        seed: of the random initial conditions.
        cache_dir: folder of the cache; see `opifex.data.cache.default_cache_dir`.
        progress: show a progress bar.

    Returns:
        Inputs and outputs of shape (num_samples, resolution, 1), float32.

    Raises:
        ValueError: if a number is out of range, or the viscosity too small for `solve_burgers`.
        TypeError: if a count or the seed is not an integer.
    """
    if check_positive_int("resolution", resolution) < 3:
        raise ValueError(f"resolution must be at least 3, got {resolution}")
    parameters = {
        "version": 2,
        "num_samples": check_positive_int("num_samples", num_samples),
        "resolution": resolution,
        "viscosity": check_positive("viscosity", viscosity),
        "final_time": check_positive("final_time", final_time),
        "smoothness": check_positive("smoothness", smoothness),
        "inverse_length": check_positive("inverse_length", inverse_length),
        "scale": check_positive("scale", scale),
        "seed": check_nonnegative_int("seed", seed),
    }

    def compute() -> dict[str, np.ndarray]:
        initial = gaussian_random_field(
            num_samples,
            resolution,
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
                )
                for start in track(
                    range(0, num_samples, BATCH), "Burgers equation", visible=progress
                )
            ]
        )
        return {
            "inputs": initial[..., None].astype(np.float32),
            "outputs": final[..., None].astype(np.float32),
        }

    return OperatorData(**cached_arrays("burgers", parameters, compute, cache_dir))
