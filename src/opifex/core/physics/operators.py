r"""Differential operators of functions of one point.

Each operator takes a function ``u`` of one point, shape (dim,), and returns another function of one
point; ``jax.vmap`` makes it one of many points.

Derivatives above the first are carried through ``u`` in one sweep, see `opifex.core.physics.taylor`:
nothing of the size of the Hessian is formed, and nothing is stored for a reverse pass inside the
derivative. Operators may be nested, differentiated and compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from opifex.core.checks import check_callable, check_positive_int
from opifex.core.dtypes import as_inexact
from opifex.core.physics.taylor import propagate

ScalarField = Callable[[Float[Array, " dim"]], Array]
"""One point to one number: shape () or (1,), as a network with one output gives."""

__all__ = [
    "ScalarField",
    "directional_derivatives",
    "divergence",
    "gradient",
    "hessian_diagonal",
    "laplacian",
]

UNROLLED_DIRECTIONS = 16
"""Up to this many directions of a sweep are written out, which makes faster programs than batching
them; more are batched in blocks of so many, so that programs do not grow."""


def _scalar(u: ScalarField) -> Callable[[Array], Array]:
    """``u`` with its single component as a number."""

    def value(x: Array) -> Array:
        result = jnp.asarray(u(x))
        if result.size != 1:
            raise ValueError(f"u must have one component, got shape {result.shape}")
        return result.reshape(())

    return value


def _point(x: Array) -> Array:
    """One point, of a floating-point dtype."""
    x = as_inexact(x)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"x must be one point of shape (dim,), got shape {x.shape}")
    return x


def gradient(u: ScalarField) -> Callable[[Float[Array, " dim"]], Float[Array, " dim"]]:
    r"""The gradient $\nabla u$ of a scalar function.

    Args:
        u: one point to one number.

    Returns:
        Function from a point to the gradient there, shape (dim,).

    Raises:
        TypeError: if ``u`` is not callable; when evaluated, if the point does not hold numbers.
        ValueError: when evaluated, if ``u`` has more than one component.
    """
    check_callable("u", u)
    slope = jax.grad(_scalar(u))
    return lambda x: slope(as_inexact(x))


def directional_derivatives(
    u: ScalarField, direction: Float[Array | np.ndarray, " dim"], order: int
) -> Callable[[Float[Array, " dim"]], tuple[Float[Array, ""], ...]]:
    r"""All derivatives along one direction, $u, \partial_v u, \dots, \partial_v^k u$, in one sweep.

    Args:
        u: one point to one number.
        direction: $v$, shape (dim,), of any length.
        order: $k$, at least one.

    Returns:
        Function from a point to the value and the derivatives there, ``order + 1`` numbers.

    Raises:
        TypeError: if ``u`` is not callable or ``order`` is not an integer.
        ValueError: if ``order`` is not positive; when evaluated, if ``u`` has more than one component
            or ``direction`` does not have the shape of the point.

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.core.physics import directional_derivatives
        >>> along_x = jnp.array([1.0, 0.0])
        >>> derivatives = directional_derivatives(lambda x: x[0] ** 3 * x[1], along_x, order=4)
        >>> [float(d) for d in derivatives(jnp.array([2.0, 5.0]))]
        [40.0, 60.0, 60.0, 30.0, 0.0]
    """
    check_callable("u", u)
    check_positive_int("order", order)
    value = _scalar(u)

    def derivatives(x: Array) -> tuple[Array, ...]:
        x = as_inexact(x)
        v = jnp.asarray(direction, x.dtype)
        if v.shape != x.shape:
            raise ValueError(f"direction must have the point's shape {x.shape}, got {v.shape}")
        found = propagate(value, x, [v], order)
        zero = jnp.zeros_like(found.value)
        above = (*found.lower[0], found.top)
        return (found.value, *(zero if d is None else d for d in above))

    return derivatives


def _sum_of_second_derivatives(
    value: Callable[[Array], Array], x: Array, directions: Float[Array, "_ dim"]
) -> Array:
    found = propagate(value, x, list(directions), 2)
    return jnp.zeros_like(found.value) if found.top is None else found.top


def hessian_diagonal(u: ScalarField) -> Callable[[Float[Array, " dim"]], Float[Array, " dim"]]:
    r"""The pure second derivatives $\partial_i^2 u$.

    Args:
        u: one point to one number.

    Returns:
        Function from a point to the diagonal of the Hessian there, shape (dim,).

    Raises:
        TypeError: if ``u`` is not callable; when evaluated, if the point does not hold numbers.
        ValueError: when evaluated, if ``u`` has more than one component, or at more than one point.
    """
    check_callable("u", u)
    value = _scalar(u)

    def diagonal(x: Array) -> Array:
        x = _point(x)
        axes = jnp.eye(x.shape[0], dtype=x.dtype)[:, None]
        if len(axes) <= UNROLLED_DIRECTIONS // 4:  # a sweep for each
            return jnp.stack([_sum_of_second_derivatives(value, x, axis) for axis in axes])
        return jax.vmap(lambda axis: _sum_of_second_derivatives(value, x, axis))(axes)

    return diagonal


def laplacian(u: ScalarField) -> Callable[[Float[Array, " dim"]], Float[Array, ""]]:
    r"""The Laplacian $\Delta u = \sum_i \partial_i^2 u$ as a forward Laplacian (arXiv:2307.08214).

    Args:
        u: one point to one number.

    Returns:
        Function from a point to the Laplacian there, a number.

    Raises:
        TypeError: if ``u`` is not callable; when evaluated, if the point does not hold numbers.
        ValueError: when evaluated, if ``u`` has more than one component, or at more than one point.
    """
    check_callable("u", u)
    value = _scalar(u)

    def sum_of_diagonal(x: Array) -> Array:
        x = _point(x)
        axes = jnp.eye(x.shape[0], dtype=x.dtype)
        if len(axes) <= UNROLLED_DIRECTIONS:
            return _sum_of_second_derivatives(value, x, axes)
        # Blocks of directions, the last one filled up with zeros, which add nothing.
        axes = jnp.pad(axes, ((0, -len(axes) % UNROLLED_DIRECTIONS), (0, 0)))
        blocks = axes.reshape(-1, UNROLLED_DIRECTIONS, x.shape[0])
        return jnp.sum(jax.vmap(lambda block: _sum_of_second_derivatives(value, x, block))(blocks))

    return sum_of_diagonal


def divergence(
    f: Callable[[Float[Array, " dim"]], Float[Array, " dim"]],
) -> Callable[[Float[Array, " dim"]], Float[Array, ""]]:
    r"""The divergence $\sum_i \partial_i f_i$ of a vector field.

    Args:
        f: one point to as many components as it has coordinates.

    Returns:
        Function from a point to the divergence there, a number.

    Raises:
        TypeError: if ``f`` is not callable; when evaluated, if the point does not hold numbers.
        ValueError: when evaluated, if the number of components is not the number of coordinates, or
            at more than one point.
    """
    check_callable("f", f)

    def value(x: Array) -> Array:
        x = _point(x)
        found = getattr(jax.eval_shape(f, x), "shape", None)
        if found != x.shape:
            raise ValueError(
                f"f must have one component per coordinate, shape {x.shape}, got {found}"
            )
        directions = jnp.eye(x.shape[0], dtype=x.dtype)
        return sum(
            (jax.jvp(f, (x,), (directions[i],))[1][i] for i in range(x.shape[0])),
            start=jnp.zeros((), x.dtype),
        )

    return value
