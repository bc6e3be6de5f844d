r"""Models that meet conditions by construction: trial functions and symmetric models.

Trial functions are also known as hard constraints, or as an ansatz. They are not the basis functions
that finite elements call so: one trial function is the whole approximation, network included. A
condition that holds whatever the parameters are needs no residual term and no weight, and the
equation is left as the only thing to learn (Lagaris, Likas, Fotiadis, IEEE Trans. Neural Networks
9, 1998, section 2; Sukumar and Srivastava, CMAME 389, 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from opifex.core.checks import check_callable, check_module
from opifex.core.dtypes import as_input_of

__all__ = ["SymmetricModel", "TrialFunction"]

PointMap = Callable[[Float[Array, "*batch inputs"]], Float[Array, "*batch outputs"]]
"""A function of points that acts on the last axis and keeps all others."""


class TrialFunction(nnx.Module):
    r"""$u(x) = a(x) + b(x)\, N(e(x))$ with a network $N$ and fixed functions $a$, $b$, $e$.

    With $a$ equal to the prescribed values and $b = 0$ where they are prescribed, $u$ meets them for
    all parameters (hard constraints; $u$ is called the ansatz). Since $u$ is affine in the output of
    the network, prolongations that preserve the network's function preserve $u$.

    Args:
        network: $N$, trainable.
        offset: $a$, from points (..., inputs) to values (..., outputs).
        factor: $b$, likewise.
        embed: $e$, the inputs of the network at points, such as $\cos \pi x$ for a periodic even
            function; by default the points themselves.

    Raises:
        TypeError: if ``network`` is not an ``nnx.Module`` or a function is not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.models import MLP, TrialFunction
        >>> network = MLP(1, 1, [8], rngs=nnx.Rngs(0))
        >>> u = TrialFunction(network, offset=lambda x: 1 + x, factor=lambda x: x * (1 - x))
        >>> u(jnp.array([[0.0], [1.0]])).tolist()
        [[1.0], [2.0]]
    """

    def __init__(
        self,
        network: nnx.Module,
        *,
        offset: PointMap,
        factor: PointMap,
        embed: PointMap | None = None,
    ) -> None:
        check_module("network", network)
        check_callable("offset", offset)
        check_callable("factor", factor)
        if embed is not None:
            check_callable("embed", embed)
        self.network: Callable[[Any], Any] = network
        self.offset = offset
        self.factor = factor
        self.embed = embed

    def __call__(
        self, x: Real[Array | np.ndarray, "*batch inputs"]
    ) -> Float[Array, "*batch outputs"]:
        """Evaluate at points; a single point has no batch axis."""
        x = as_input_of(self.network, x)
        inputs = x if self.embed is None else self.embed(x)
        return self.offset(x) + self.factor(x) * self.network(inputs)


class SymmetricModel(nnx.Module):
    r"""The even or odd part of a network under a reflection $s$: $(N(x) \pm N(s(x))) / 2$.

    Args:
        network: $N$, trainable.
        reflection: $s$, with $s(s(x)) = x$, acting on the last axis of points.
        odd: take the difference instead of the sum.

    Raises:
        TypeError: if ``network`` is not an ``nnx.Module``, ``reflection`` is not callable, or
            ``odd`` is not a bool.
    """

    def __init__(self, network: nnx.Module, reflection: PointMap, *, odd: bool = False) -> None:
        check_module("network", network)
        check_callable("reflection", reflection)
        if not isinstance(odd, bool):
            raise TypeError(f"odd must be a bool, got {odd!r}")
        self.network: Callable[[Any], Any] = network
        self.reflection = reflection
        self.odd = odd

    def __call__(
        self, x: Real[Array | np.ndarray, "*batch inputs"]
    ) -> Float[Array, "*batch outputs"]:
        """Evaluate at points; a single point has no batch axis."""
        x = as_input_of(self.network, x)
        here, there = self.network(x), self.network(self.reflection(x))
        return 0.5 * (here - there if self.odd else here + there)
