r"""How a kink of the initial value spreads by diffusion.

The repeated integrals of the complementary error function (Carslaw and Jaeger, Conduction of Heat in
Solids, 1959, appendix II), scaled to solutions of the heat equation $w_t = \epsilon w_{\xi\xi}$ for
$\xi > 0$: $w_n(\xi, t) = s^n\, i^n\mathrm{erfc}(\xi / s)$ with $s = \sqrt{4 \epsilon t}$. The kink
$|\xi|$ becomes $|\xi| + w_1(|\xi|, t)$.
"""

from __future__ import annotations

from functools import partial
from math import ceil, pi, sqrt

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc
from jaxtyping import Array

__all__ = ["periodic_kink", "repeated_erfc"]

FARTHEST = 7.0
"""In units of s, where all of these functions have fallen below 1e-20."""


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def repeated_erfc(order: int, distance: Array, variance: Array) -> Array:
    r"""$w_n$ with its derivatives, $w_0 = \mathrm{erfc}(\xi / s)$ and $w_{-1} = -\partial_\xi w_0$.

    All derivatives are of this kind, $\partial_\xi w_n = -w_{n-1}$ and
    $\partial_{s^2} w_n = w_{n-2} / 4$, and finite down to $s = 0$. There they are the limits for
    $t \to 0$, with one exception: at the kink itself $w_{-1}$ and what follows grow without bound,
    and are set to zero. In the heat equation they cancel.

    Args:
        order: $n$, at most 1.
        distance: $\xi$, not negative.
        variance: $s^2 = 4 \epsilon t$, not negative.

    Returns:
        Values in the shape and dtype of the arguments.
    """
    # A kink that has spread by less than the unit roundoff has not spread; its derivatives would be
    # all that is left of it, and cancel badly.
    begun = variance > jnp.finfo(variance.dtype).eps ** 2
    near = begun & (distance < FARTHEST * jnp.sqrt(variance))
    # Unused branches must be finite, too: their derivatives are multiplied by zero.
    spread = jnp.sqrt(jnp.where(near, variance, 1))
    ratio = jnp.where(near, distance, 0) / spread
    if order == 0:
        return jnp.where(near, erfc(ratio), jnp.where(distance > 0, 0, 1).astype(ratio.dtype))
    bell = jnp.exp(-(ratio**2)) / sqrt(pi)
    if order == 1:
        value = spread * (bell - ratio * erfc(ratio))
    elif order == -1:
        value = 2 * bell / spread
    else:
        # The recurrence 2 n w_n = s^2 w_{n-2} - 2 xi w_{n-1}.
        one, two = (repeated_erfc(order + i, distance, variance) for i in (1, 2))
        value = (2 * (order + 2) * two + 2 * ratio * spread * one) / spread**2
    return jnp.where(near, value, 0)


@repeated_erfc.defjvp
def _derivative(
    order: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    by_distance = -repeated_erfc(order - 1, *primals)
    by_variance = repeated_erfc(order - 2, *primals) / 4
    return repeated_erfc(order, *primals), by_distance * tangents[0] + by_variance * tangents[1]


def periodic_kink(place: Array, time: Array, diffusivity: float) -> Array:
    r"""$\sum_j w_1(\xi_j, t)$ over the distances $\xi_j$ of a place from all odd numbers.

    What diffusion makes of kinks at $\pm 1$ that are continued with period 2, apart from the kinks
    themselves.

    Args:
        place: $x$ in $[-1, 1]$.
        time: $t$ in $[0, 1]$, of the same shape.
        diffusivity: $\epsilon$.
    """
    nearest = 1 - jnp.abs(place)
    # The others are at 2 - xi, 2 + xi, 4 - xi, ..., the j-th at a distance of at least j.
    others = range(1, ceil(FARTHEST * sqrt(4 * diffusivity)))
    distances = [nearest] + [j + nearest if j % 2 == 0 else j + 1 - nearest for j in others]
    return sum(
        (repeated_erfc(1, distance, 4 * diffusivity * time) for distance in distances),
        start=jnp.zeros_like(nearest),
    )
