"""The points of a term, all at once or some at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.residuals import PointFunction, ResidualTerm

Carry = TypeVar("Carry")

__all__ = ["Block", "PointSet", "map_some"]


class Block(NamedTuple):
    """Some points of one term.

    Attributes:
        term: the term.
        points: the points, shape (block, dim).
        scales: factors of the residuals at each point, shape (block,).
        offset: index of the first residual among those of all terms.
    """

    term: ResidualTerm
    points: Array
    scales: Float[Array, " block"]
    offset: Any

    def residuals(self, u: PointFunction) -> Float[Array, " rows"]:
        """The scaled residuals, point after point, in the dtype of the scales."""
        values = self.term.evaluate(u, self.points).reshape(len(self.points), -1)
        return (self.scales[:, None] * values).reshape(-1).astype(self.scales.dtype)


class PointSet(NamedTuple):
    r"""All points of one term.

    Attributes:
        term: the term.
        points: the points, shape (points, dim).
        offset: index of the first residual among those of all terms.
        components: residuals per point.
        intermediates: numbers per point that reverse mode keeps.
        devices: how many devices hold as many points of the term each.
    """

    term: ResidualTerm
    points: Array
    offset: int
    components: int
    intermediates: int
    devices: int = 1

    def scan(
        self,
        step: Callable[[Carry, Block], Carry],
        carry: Carry,
        most: float,
        dtype: Any,
        *,
        once: bool,
    ) -> Carry:
        r"""Carry something through all points, block after block of the same size.

        The residuals of a term of weight $w$ on $N$ points, those of all devices together, are
        multiplied by $\sqrt{w / N}$. Where the points are no multiple of the size, the last block
        begins among the points of the one before.

        Args:
            step: the new value from the old one and a block.
            carry: where to start.
            most: most points of a block; at least one is taken.
            dtype: of the scales.
            once: whether points that were in the block before get the scale zero, for sums. What
                writes into an array may write the same numbers twice.
        """
        total = len(self.points)
        count = math.ceil(total / min(max(most, 1), total))
        size = math.ceil(total / count)
        scale = jnp.sqrt(jnp.asarray(self.term.weight / (total * self.devices), dtype))
        if count == 1:
            scales = jnp.broadcast_to(scale, (total,))
            return step(carry, Block(self.term, self.points, scales, self.offset))

        def advance(carry: Carry, index: Array) -> tuple[Carry, None]:
            first = jnp.minimum(index * size, total - size)
            new = first + jnp.arange(size) >= index * size if once else True
            block = Block(
                self.term,
                jax.lax.dynamic_slice_in_dim(self.points, first, size),
                jnp.where(new, scale, 0) if once else jnp.broadcast_to(scale, (size,)),
                self.offset + first * self.components,
            )
            return step(carry, block), None

        # Rounding the size up may leave nothing for the last block.
        return jax.lax.scan(advance, carry, jnp.arange(math.ceil(total / size)))[0]


def map_some(function: Callable[[Array], Array], xs: Array, together: int) -> Array:
    """A function of every row, of some rows at a time.

    Args:
        function: a function of one row.
        xs: the rows.
        together: how many rows to work on side by side, a divisor of their number.
    """
    return jax.lax.map(function, xs, batch_size=together if together > 1 else None)
