"""What evolution equations in one space dimension share: (x, t) boxes and their edges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.residuals import PointFunction
from opifex.problems.points import Box

__all__ = ["initial_points", "side_points", "space_time_derivatives"]


def space_time_derivatives(u: PointFunction, x: Float[Array, " 2"]) -> tuple[Array, ...]:
    """``u, u_t, u_x, u_xx`` at one point (x, t), in forward mode."""

    def value(y: Array) -> Array:
        return u(y)[0]

    along_x = jnp.array([1.0, 0.0], x.dtype)
    along_t = jnp.array([0.0, 1.0], x.dtype)

    def slope(y: Array) -> tuple[Array, Array]:
        return jax.jvp(value, (y,), (along_x,))

    (v, v_x), (_, v_xx) = jax.jvp(slope, (x,), (along_x,))
    _, v_t = jax.jvp(value, (x,), (along_t,))
    return v, v_t, v_x, v_xx


def _spread(count: int, key: PRNGKeyArray | None) -> np.ndarray:
    if key is not None:
        return np.asarray(jax.random.uniform(key, (count,)))
    return (np.arange(count) + 0.5) / count


def initial_points(
    num_points: int, domain: Box, key: PRNGKeyArray | None = None
) -> Float[Array, "n dim"]:
    """Points at the initial time, shape (num_points, 2), evenly spaced unless a key is given."""
    unit = np.stack([_spread(num_points, key), np.zeros(num_points)], axis=1)
    return jnp.asarray(domain.scale(unit), jnp.result_type(float))


def side_points(
    num_points: int, domain: Box, key: PRNGKeyArray | None = None, *, both: bool = True
) -> Float[Array, "n dim"]:
    """Points on the ends of the space interval, shape (num_points, 2).

    They alternate between both ends, or all lie on the left one. Times are evenly spaced unless a key
    is given.
    """
    times = _spread(num_points, key)
    sides = np.arange(num_points) % 2 if both else np.zeros(num_points)
    return jnp.asarray(domain.scale(np.stack([sides, times], axis=1)), jnp.result_type(float))
