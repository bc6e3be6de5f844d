"""What evolution equations in one space dimension share: (x, t) boxes and their edges."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_key, check_positive_int
from opifex.core.physics import directional_derivatives
from opifex.core.residuals import PointFunction
from opifex.problems.points import Box

__all__ = ["initial_and_side_points", "space_time_derivatives"]


def space_time_derivatives(u: PointFunction, x: Float[Array, " 2"]) -> tuple[Array, ...]:
    """``u, u_t, u_x, u_xx`` at one point (x, t)."""

    def value(y: Array) -> Array:
        return u(y)[0]

    v, v_x, v_xx = directional_derivatives(value, np.array([1.0, 0.0]), 2)(x)
    _, v_t = directional_derivatives(value, np.array([0.0, 1.0]), 1)(x)
    return v, v_t, v_x, v_xx


def initial_and_side_points(
    num_points: int, domain: Box, key: PRNGKeyArray | None = None, *, both: bool = True
) -> tuple[Float[Array, "_ dim"], Float[Array, "_ dim"]]:
    """Points at the initial time, and on the ends of the space interval.

    Args:
        num_points: of both together; one more at the initial time if it is odd. Each kind has at
            least one, so that 1 gives two.
        domain: the box, time last.
        key: random key, from which independent ones are drawn for the two kinds; without it places
            and times are evenly spaced.
        both: take the two ends in turn instead of the left one only.

    Returns:
        Two arrays of shape (points, 2), of JAX's default floating-point type.

    Raises:
        TypeError: if ``num_points`` is not an integer or ``key`` is no random key.
        ValueError: if ``num_points`` is not positive.
    """
    check_positive_int("num_points", num_points)
    keys: Any = (None, None)
    if key is not None:
        check_key("key", key)
        keys = jax.random.split(key)
    places = _spread((num_points + 1) // 2, keys[0])
    times = _spread(max(1, num_points // 2), keys[1])
    sides = np.arange(times.size) % 2 if both else np.zeros(times.size)
    initial = np.stack([places, np.zeros(places.size)], axis=1)
    at_sides = np.stack([sides, times], axis=1)
    dtype = jnp.result_type(float)
    return jnp.asarray(domain.scale(initial), dtype), jnp.asarray(domain.scale(at_sides), dtype)


def _spread(count: int, key: PRNGKeyArray | None) -> np.ndarray:
    if key is not None:
        return np.asarray(jax.random.uniform(key, (count,)))
    return (np.arange(count) + 0.5) / count
