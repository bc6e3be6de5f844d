r"""Differential operators of functions of one point, in forward mode.

Each operator takes a function ``u`` of one point, shape (dim,), and returns another function of one
point; ``jax.vmap`` makes it one of many points.

Second derivatives use Taylor-like propagation: along a direction $v$ two nested forward derivatives
carry $(u, \partial_v u, \partial_v^2 u)$ through the network in one sweep. The primal part does not
depend on the direction, and the two first-order tangents are the same computation, so the compiler
keeps one of each. Nothing of the size of the Hessian is formed and nothing is stored for a reverse
pass inside the derivative (compare the forward Laplacian, arXiv:2307.08214).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.checks import check_callable

ScalarField = Callable[[Float[Array, " dim"]], Array]
"""One point to one number: shape () or (1,), as a network with one output gives."""

__all__ = ["ScalarField", "divergence", "gradient", "hessian_diagonal", "laplacian"]

UNROLLED_DIMENSIONS = 4
"""Up to this many directions the sweeps are written out, which compiles to faster code than a
batched sweep; beyond it they are batched, so that programs do not grow."""


def _scalar(u: ScalarField) -> Callable[[Array], Array]:
    """``u`` with its single component as a number."""

    def value(x: Array) -> Array:
        result = jnp.asarray(u(x))
        if result.size != 1:
            raise ValueError(f"u must have one component, got shape {result.shape}")
        return result.reshape(())

    return value


def gradient(u: ScalarField) -> Callable[[Float[Array, " dim"]], Float[Array, " dim"]]:
    r"""The gradient $\nabla u$ of a scalar function.

    Args:
        u: one point to one number.

    Returns:
        Function from a point to the gradient there, shape (dim,).

    Raises:
        TypeError: if ``u`` is not callable.
        ValueError: when evaluated, if ``u`` has more than one component.
    """
    check_callable("u", u)
    return jax.grad(_scalar(u))


def hessian_diagonal(u: ScalarField) -> Callable[[Float[Array, " dim"]], Float[Array, " dim"]]:
    r"""The pure second derivatives $\partial_i^2 u$.

    Args:
        u: one point to one number.

    Returns:
        Function from a point to the diagonal of the Hessian there, shape (dim,).

    Raises:
        TypeError: if ``u`` is not callable.
        ValueError: when evaluated, if ``u`` has more than one component.
    """
    check_callable("u", u)
    value = _scalar(u)

    def second(x: Array, direction: Array) -> Array:
        def first(y: Array) -> Array:
            return jax.jvp(value, (y,), (direction,))[1]

        return jax.jvp(first, (x,), (direction,))[1]

    def diagonal(x: Array) -> Array:
        directions = jnp.eye(x.shape[0], dtype=x.dtype)
        if x.shape[0] <= UNROLLED_DIMENSIONS:
            return jnp.stack([second(x, directions[i]) for i in range(x.shape[0])])
        return jax.vmap(second, in_axes=(None, 0))(x, directions)

    return diagonal


def laplacian(u: ScalarField) -> Callable[[Float[Array, " dim"]], Float[Array, ""]]:
    r"""The Laplacian $\Delta u = \sum_i \partial_i^2 u$.

    Args:
        u: one point to one number.

    Returns:
        Function from a point to the Laplacian there, a number.

    Raises:
        TypeError: if ``u`` is not callable.
        ValueError: when evaluated, if ``u`` has more than one component.
    """
    diagonal = hessian_diagonal(u)
    return lambda x: jnp.sum(diagonal(x))


def divergence(
    f: Callable[[Float[Array, " dim"]], Float[Array, " dim"]],
) -> Callable[[Float[Array, " dim"]], Float[Array, ""]]:
    r"""The divergence $\sum_i \partial_i f_i$ of a vector field.

    Args:
        f: one point to as many components as it has coordinates.

    Returns:
        Function from a point to the divergence there, a number.

    Raises:
        TypeError: if ``f`` is not callable.
        ValueError: when evaluated, if the number of components is not the number of coordinates.
    """
    check_callable("f", f)

    def value(x: Array) -> Array:
        if jax.eval_shape(f, x).shape != x.shape:
            raise ValueError(
                f"f must have one component per coordinate, shape {x.shape}, got "
                f"{jax.eval_shape(f, x).shape}"
            )
        directions = jnp.eye(x.shape[0], dtype=x.dtype)
        return sum(
            (jax.jvp(f, (x,), (directions[i],))[1][i] for i in range(x.shape[0])),
            start=jnp.zeros((), x.dtype),
        )

    return value
