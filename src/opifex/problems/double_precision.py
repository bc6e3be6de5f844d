"""Functions of points that compute in double precision, whatever the precision of the points is."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.dtypes import as_inexact

__all__ = ["PointsFunction", "in_double_precision"]

PointsFunction = Callable[[Float[Array, "*n dim"]], Float[Array, "*n components"]]
"""A function that acts on every point for itself."""


def in_double_precision(function: PointsFunction) -> PointsFunction:
    """The function, computed in float64 also where JAX's 64-bit mode is off.

    It may be compiled, mapped and differentiated any number of times. Derivatives too are computed
    in float64 and then rounded to the dtype of the points.

    Args:
        function: acts on every point for itself; gets points of float64.

    Returns:
        A function of points of any floating-point dtype, with values of the same dtype; integers are
        taken as JAX's default floating-point type.
    """

    @jax.custom_jvp
    def rounded(points: Array) -> Array:
        with jax.enable_x64(True):
            return function(points.astype(jnp.float64)).astype(points.dtype)

    @rounded.defjvp
    def derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        # Differentiated through the conversions, JAX would mix modes where it transposes.
        (points,), (direction,) = primals, tangents
        change = sum(
            in_double_precision(_slope(function, axis))(points) * direction[..., axis, None]
            for axis in range(points.shape[-1])
        )
        return rounded(points), jnp.asarray(change)

    def evaluate(points: Array) -> Array:
        points = as_inexact(points)
        return function(points) if points.dtype == jnp.float64 else rounded(points)

    return evaluate


def _slope(function: PointsFunction, axis: int) -> PointsFunction:
    """The partial derivative along one coordinate."""

    def slope(points: Array) -> Array:
        along = jnp.zeros_like(points).at[..., axis].set(1.0)
        return jax.jvp(function, (points,), (along,))[1]

    return slope
