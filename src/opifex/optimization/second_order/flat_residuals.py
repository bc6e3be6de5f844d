"""The residuals of a least-squares objective as a function of one flat parameter vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from opifex.core.checks import check_callable
from opifex.core.residuals import PointFunction, ResidualTerm, residual_vector

Bind = Callable[[Any], PointFunction]
"""Maps parameters to the function of one point that they describe."""

__all__ = ["Bind", "FlatResiduals"]


def _check_params(params: Any) -> None:
    leaves = jax.tree.leaves(params)
    if sum(jnp.size(leaf) for leaf in leaves) == 0:
        raise ValueError("params must hold at least one number, got an empty tree")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params must consist of real floating-point arrays, got dtype "
                f"{jnp.result_type(leaf)} at {jax.tree_util.keystr(path)}"
            )


class FlatResiduals:
    r"""Residuals $r(\theta) \in R^m$, scaled so that $|r|^2$ is the loss, for flat $\theta \in R^n$.

    The scaling is that of `residual_vector`: the residuals of a term of weight $w$ on $N$ points are
    multiplied by $\sqrt{w / N}$.

    Args:
        terms: the terms of the objective, at least one.
        bind: maps parameters to a function of one point.
        params: where to start; fixes the structure, shapes and dtypes of the parameters.
        points: one array (points, dim) per term.

    Attributes:
        start: ``params`` as one vector, shape (n,).
        unravel: maps such a vector back to the structure of ``params``.

    Raises:
        ValueError: if there is no term, no parameter, or not one array of points per term.
        TypeError: if ``bind`` is not callable, an entry of ``terms`` is not a `ResidualTerm`, or a
            parameter is not a real floating-point array.
    """

    def __init__(
        self,
        terms: Sequence[ResidualTerm],
        bind: Bind,
        params: Any,
        points: Sequence[Float[Array, "_ _"]],
    ) -> None:
        if len(terms) == 0:
            raise ValueError("terms must hold at least one ResidualTerm, got none")
        for term in terms:
            if not isinstance(term, ResidualTerm):
                raise TypeError(f"terms must consist of ResidualTerm, got {term!r}")
        check_callable("bind", bind)
        _check_params(params)
        if len(terms) != len(points):
            raise ValueError(
                f"points must hold one array per term ({[t.name for t in terms]}), "
                f"got {len(points)} arrays"
            )
        self.terms = tuple(terms)
        self.points = tuple(points)
        self._bind = bind
        self.start, self.unravel = ravel_pytree(params)

    def function(self, flat: Float[Array, " n"]) -> PointFunction:
        """The function of one point that the parameters describe."""
        return self._bind(self.unravel(flat))

    def residuals(self, flat: Float[Array, " n"]) -> Float[Array, " m"]:
        """All residuals, one term after the other."""
        return residual_vector(self.terms, self.function(flat), *self.points)

    def loss(self, flat: Float[Array, " n"]) -> Float[Array, ""]:
        """The sum of squares of the residuals, which is the loss."""
        return jnp.sum(self.residuals(flat) ** 2)

    def second_derivative(
        self, flat: Float[Array, " n"], direction: Float[Array, " n"]
    ) -> Float[Array, " m"]:
        """The second derivative of all residuals along a direction.

        Args:
            flat: the parameters.
            direction: the direction, not normalised.
        """

        def slope(flat: Array) -> Array:
            return jax.jvp(self.residuals, (flat,), (direction,))[1]

        return jax.jvp(slope, (flat,), (direction,))[1]

    def linearize(self, flat: Float[Array, " n"]) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
        """Residuals and their dense Jacobian.

        The residual at a point depends on that point only. A reverse pass per point and component,
        batched over the points, therefore gives the Jacobian at the cost of a few batched
        evaluations, where a reverse pass per row through the batch costs as many as there are rows.
        """
        values, rows = [], []
        for term, points in zip(self.terms, self.points, strict=True):
            scale = jnp.sqrt(term.weight / points.shape[0])

            def at_point(
                flat: Array, point: Array, term: ResidualTerm = term, scale: Array = scale
            ) -> tuple[Array, Array]:
                value = scale * jnp.ravel(term.residual(self.function(flat), point))
                return value, value

            row, value = jax.vmap(jax.jacrev(at_point, has_aux=True), in_axes=(None, 0))(
                flat, points
            )
            values.append(value.reshape(-1))
            rows.append(row.reshape(-1, flat.size))
        return jnp.concatenate(values), jnp.concatenate(rows)
