"""The residuals of a least-squares objective as a function of one flat parameter vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from opifex.core.checks import check_callable, check_sequence
from opifex.core.residuals import PointFunction, ResidualTerm, check_points
from opifex.optimization.second_order.blocks import Block, PointSet
from opifex.optimization.second_order.memory import (
    BLOCK_BYTES,
    COLUMN,
    CURVATURE,
    PASS,
    REVERSE,
    SIDE_BY_SIDE,
    ProblemSize,
    largest_divisor,
)

Bind = Callable[[Any], PointFunction]
"""Maps parameters to the function of one point that they describe."""

Carry = TypeVar("Carry")
Sums = tuple[Array, Array, Array]

__all__ = ["Bind", "FlatResiduals", "Linearization", "MatrixFreeLinearization"]


class Linearization(NamedTuple):
    r"""Residuals $r \in R^m$ and their Jacobian $J \in R^{m \times n}$ as dense solvers need them.

    Systems are solved in the smaller of two spaces, of size k: with at most as many parameters as
    residuals in that of the parameters (primal), else in that of the residuals (dual).

    Attributes:
        loss: $|r|^2$.
        right_hand_side: $J^T r$ (primal) or $r$ (dual), shape (k,).
        gram: $J^T J$ or $J J^T$, shape (k, k).
        rows: $J$, shape (m, n), in the dual form, else ``None``.
        columns: $J^T$, shape (n, m), in the primal form if that is small enough to be kept; where
            devices share the points, those of the own points.
    """

    loss: Float[Array, ""]
    right_hand_side: Float[Array, " k"]
    gram: Float[Array, "k k"]
    rows: Float[Array, "m n"] | None = None
    columns: Float[Array, "n m"] | None = None

    @property
    def squared_norm(self) -> Float[Array, ""]:
        """The squared Frobenius norm of the Jacobian."""
        return jnp.sum(jnp.diagonal(self.gram))

    def image(self, vector: Float[Array, " n"]) -> Float[Array, " k"]:
        """What replaces the right-hand side if the residuals are $J v$."""
        return (self.gram if self.rows is None else self.rows) @ vector


class MatrixFreeLinearization(NamedTuple):
    r"""Residuals $r$ and their Jacobian $J$ as matrix-free solvers need them.

    Attributes:
        loss: $|r|^2$.
        gradient: $J^T r$, half the gradient of the loss, shape (n,).
        product: $v \mapsto J^T J v$.
        columns: how many products fit side by side.
    """

    loss: Float[Array, ""]
    gradient: Float[Array, " n"]
    product: Callable[[Array], Array]
    columns: int


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

    Everything is computed in the dtype that parameters and residuals promote to; the parameters are
    rounded to their own dtypes before they are used.

    Args:
        terms: the terms of the objective, at least one.
        bind: maps parameters to a function of one point.
        params: where to start; fixes the structure, shapes and dtypes of the parameters.
        points: one array (points, dim) per term.
        block_bytes: about what intermediate results of one block of points may take.
        axes: names of the axes of devices, within ``jax.shard_map``, that share the points: each
            device is given its own, as many as the others of every term. Sums over points are then
            sums over the devices too, and all devices get the same results.

    Attributes:
        start: ``params`` as one vector, shape (n,).
        size: of the problem.

    Raises:
        ValueError: if there is no term, no parameter, or not one array of at least one point per
            term.
        TypeError: if ``bind`` is not callable, an entry of ``terms`` is not a `ResidualTerm`, or a
            parameter or residual is not real and floating-point.
    """

    def __init__(
        self,
        terms: Sequence[ResidualTerm],
        bind: Bind,
        params: Any,
        points: Sequence[Float[Array, "_ _"]],
        block_bytes: float = BLOCK_BYTES,
        axes: tuple[str, ...] = (),
    ) -> None:
        check_sequence("terms", terms)
        if len(terms) == 0:
            raise ValueError("terms must hold at least one ResidualTerm, got none")
        for term in terms:
            if not isinstance(term, ResidualTerm):
                raise TypeError(f"terms must consist of ResidualTerm, got {term!r}")
        check_callable("bind", bind)
        _check_params(params)
        check_points(terms, points)
        self._bind, self._axes = bind, axes
        devices = jax.lax.axis_size(axes) if axes else 1
        flat, self._unravel = ravel_pytree(params)
        self._params_dtype = flat.dtype

        def linearize_all(flat: Array) -> list[Any]:
            return [
                jax.vjp(lambda flat, t=t, x=x: t.evaluate(self.function(flat), x), flat)
                for t, x in zip(terms, points, strict=True)
            ]

        dtype, sets, offset = flat.dtype, [], 0
        shapes = jax.eval_shape(linearize_all, flat)
        for term, x, (value, pull) in zip(terms, points, shapes, strict=True):
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise TypeError(
                    f"residual of the term {term.name!r} must be real and floating-point, "
                    f"got {value.dtype}"
                )
            dtype = jnp.promote_types(dtype, value.dtype)
            components = math.prod(value.shape[1:])
            kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
            intermediates = math.ceil(kept / len(x))
            sets.append(PointSet(term, x, offset, components, intermediates, devices))
            offset += len(x) * components
        self._sets = tuple(sets)
        self.start = flat.astype(dtype)
        kept = sum(s.intermediates * len(s.points) for s in sets)
        self.size = ProblemSize(flat.size, offset * devices, dtype, kept, devices)
        # Residuals at the own points.
        self._own = offset
        # Numbers, not bytes.
        self._room = block_bytes / dtype.itemsize

    def restricted(self, entries: Int[Array, " k"]) -> FlatResiduals:
        """The same residuals as a function of some entries, the others being those of ``start``.

        Args:
            entries: numbers of different entries.
        """

        def bind(moved: Array) -> PointFunction:
            return self.function(self.start.at[entries].set(moved))

        terms, points = [s.term for s in self._sets], [s.points for s in self._sets]
        # A reverse pass gives a row for all parameters, of which the entries are taken.
        room = self._room * entries.size / self.size.parameters
        block_bytes = room * self.start.dtype.itemsize
        return FlatResiduals(terms, bind, self.start[entries], points, block_bytes, self._axes)

    def unravel(self, flat: Float[Array, " n"]) -> Any:
        """The parameters in their own structure and dtypes."""
        return self._unravel(flat.astype(self._params_dtype))

    def function(self, flat: Float[Array, " n"]) -> PointFunction:
        """The function of one point that the parameters describe."""
        return self._bind(self.unravel(flat))

    def loss(self, flat: Float[Array, " n"]) -> Float[Array, ""]:
        """The sum of squares of the residuals, which is the loss."""
        return self._sum(self._own_loss(flat))

    def losses(self, places: Float[Array, "candidates n"]) -> Float[Array, " candidates"]:
        """The losses for several parameter vectors, one after the other."""
        return self._sum(jax.lax.map(self._own_loss, places))

    def _own_loss(self, flat: Array) -> Array:
        u = self.function(flat)

        def add(loss: Array, block: Block) -> Array:
            return loss + jnp.sum(block.residuals(u) ** 2)

        return self._fold(add, jnp.zeros((), self.size.dtype), PASS)

    def jacobian(self, flat: Float[Array, " n"]) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
        """Residuals and their dense Jacobian, which is written where it stays.

        Args:
            flat: the parameters.
        """
        values, rows = self._own_jacobian(flat, transposed=False)
        return self._gather(values), self._gather(rows)

    def _own_jacobian(
        self, flat: Array, *, transposed: bool
    ) -> tuple[Float[Array, " m"], Float[Array, "_ _"]]:
        """Residuals at the own points and their Jacobian, shape (m, n), or (n, m) if transposed."""
        m, n = self._own, self.size.parameters

        def write(carry: tuple[Array, Array], block: Block) -> tuple[Array, Array]:
            values, rows = self._rows(flat, block, transposed)
            corner = (0, block.offset) if transposed else (block.offset, 0)
            return (
                jax.lax.dynamic_update_slice(carry[0], values, (block.offset,)),
                jax.lax.dynamic_update_slice(carry[1], rows, corner),
            )

        shape = (n, m) if transposed else (m, n)
        start = jnp.zeros(m, flat.dtype), jnp.zeros(shape, flat.dtype)
        return self._fold(write, start, PASS, rows=1, once=False)

    def squared_norms(self, flat: Float[Array, " n"]) -> Float[Array, " terms"]:
        """The squared Frobenius norm of each term's rows of the Jacobian, none of which is kept."""

        def add(total: Array, block: Block) -> Array:
            return total + jnp.sum(self._rows(flat, block, transposed=False)[1] ** 2)

        zero = jnp.zeros((), self.size.dtype)
        norms = [self._fold(add, zero, PASS, rows=1, sets=(points,)) for points in self._sets]
        return self._sum(jnp.stack(norms))

    def linearize(self, flat: Float[Array, " n"]) -> Linearization:
        """What dense solvers need of residuals and Jacobian."""
        n, dtype = self.size.parameters, self.size.dtype
        if not self.size.is_primal:
            residuals, rows = self.jacobian(flat)
            return Linearization(residuals @ residuals, residuals, rows @ rows.T, rows=rows)
        if n * self._own <= self._room:
            residuals, columns = self._own_jacobian(flat, transposed=True)
            sums = residuals @ residuals, columns @ residuals, columns @ columns.T
            return Linearization(*self._sum(sums), columns=columns)

        def add(sums: Sums, block: Block) -> Sums:
            values, columns = self._rows(flat, block, transposed=True)
            loss, gradient, gram = sums
            return (
                loss + values @ values,
                gradient + columns @ values,
                gram + columns @ columns.T,
            )

        zeros = jnp.zeros((), dtype), jnp.zeros(n, dtype), jnp.zeros((n, n), dtype)
        return Linearization(*self._sum(self._fold(add, zeros, PASS, rows=1)))

    def _rows(
        self, flat: Array, block: Block, transposed: bool
    ) -> tuple[Float[Array, " rows"], Float[Array, "_ _"]]:
        """Residuals of a block and their Jacobian.

        The residual at a point depends on that point only. A reverse pass per point and component,
        batched over the points, therefore gives the Jacobian at the cost of a few batched
        evaluations, where a reverse pass per row through the batch costs as many as there are rows.
        Products that contract the last axis are the fast ones, hence the transposed form.
        """

        def at_point(flat: Array, point: Array, scale: Array) -> tuple[Array, Array]:
            value = scale * jnp.ravel(block.term.at(self.function(flat), point))
            value = value.astype(self.size.dtype)
            return value, value

        def slopes(flat: Array, point: Array, scale: Array) -> tuple[Array, Array]:
            rows, value = jax.jacrev(at_point, has_aux=True)(flat, point, scale)
            return (rows.T if transposed else rows), value

        rows, values = jax.vmap(slopes, (None, 0, 0), (1 if transposed else 0, 0))(
            flat, block.points, block.scales
        )
        shape = (flat.size, -1) if transposed else (-1, flat.size)
        return values.reshape(-1), rows.reshape(shape)

    def second_derivatives(
        self,
        flat: Float[Array, " n"],
        directions: Float[Array, "directions n"],
        linearization: Linearization,
    ) -> Float[Array, "directions k"]:
        r"""Second derivatives of the residuals along directions, as right-hand sides.

        Args:
            flat: the parameters.
            directions: the directions, not normalised.
            linearization: residuals and Jacobian there.

        Returns:
            For the second derivatives $r_{dd}$ of the residuals: $J^T r_{dd}$ in the primal form,
            $r_{dd}$ in the dual form.
        """

        def at(block: Block) -> Callable[[Array], Array]:
            return lambda flat: block.residuals(self.function(flat))

        def along(direction: Array, block: Block) -> Array:
            def slope(flat: Array) -> Array:
                return jax.jvp(at(block), (flat,), (direction,))[1]

            return jax.jvp(slope, (flat,), (direction,))[1]

        def written(direction: Array) -> Array:
            def write(found: Array, block: Block) -> Array:
                values = along(direction, block)
                return jax.lax.dynamic_update_slice(found, values, (block.offset,))

            zeros = jnp.zeros(self._own, self.size.dtype)
            return self._fold(write, zeros, CURVATURE, once=False)

        def summed(direction: Array) -> Array:
            def add(found: Array, block: Block) -> Array:
                return found + jax.vjp(at(block), flat)[1](along(direction, block))[0]

            return self._fold(add, jnp.zeros_like(flat), CURVATURE + REVERSE)

        if linearization.rows is None and linearization.columns is None:
            return self._sum(jax.lax.map(summed, directions))
        found = jax.lax.map(written, directions)
        if linearization.columns is None:
            return self._gather(found, axis=1)
        return self._sum(found @ linearization.columns.T)

    def linearize_matrix_free(self, flat: Float[Array, " n"], rank: int) -> MatrixFreeLinearization:
        """What matrix-free solvers need of residuals and Jacobian.

        A linearisation that fits into one block is kept. A larger one is computed anew for every
        block and product, which costs a third more but not the memory, and often less time, since
        blocks stay in the cache.

        Args:
            flat: the parameters.
            rank: how many products are needed at once.
        """
        room = self._room / max(self.size.intermediates or 1, 1)
        if room >= PASS + COLUMN:
            residuals, forward = jax.linearize(self._residuals, flat)
            back = jax.linear_transpose(forward, flat)
            columns = largest_divisor(rank, min(SIDE_BY_SIDE, (room - PASS) / COLUMN))
            return MatrixFreeLinearization(
                *self._sum((residuals @ residuals, back(residuals)[0])),
                lambda vector: self._sum(back(forward(vector))[0]),
                columns,
            )
        columns = largest_divisor(rank, SIDE_BY_SIDE)
        passes = PASS + COLUMN * columns

        def linearized(block: Block) -> tuple[Any, Any, Any]:
            residuals, forward = jax.linearize(
                lambda flat: block.residuals(self.function(flat)), flat
            )
            return residuals, forward, jax.linear_transpose(forward, flat)

        def add(carry: tuple[Array, Array], block: Block) -> tuple[Array, Array]:
            residuals, _, back = linearized(block)
            return carry[0] + residuals @ residuals, carry[1] + back(residuals)[0]

        def product(vector: Array) -> Array:
            def add(carry: Array, block: Block) -> Array:
                _, forward, back = linearized(block)
                return carry + back(forward(vector))[0]

            return self._sum(self._fold(add, jnp.zeros_like(vector), passes))

        zeros = jnp.zeros((), self.size.dtype), jnp.zeros_like(flat)
        sums = self._sum(self._fold(add, zeros, passes))
        return MatrixFreeLinearization(*sums, product, columns)

    def _sum(self, parts: Carry) -> Carry:
        """The sum over all devices that share the points."""
        return jax.lax.psum(parts, self._axes) if self._axes else parts

    def _gather(self, parts: Array, axis: int = 0) -> Array:
        """What all devices have, one after the other along an axis."""
        if not self._axes:
            return parts
        return jax.lax.all_gather(parts, self._axes, axis=axis, tiled=True)

    def _residuals(self, flat: Array) -> Array:
        """All residuals at the own points at once."""
        u = self.function(flat)

        def append(parts: list[Array], block: Block) -> list[Array]:
            return [*parts, block.residuals(u)]

        parts: list[Array] = []
        for points in self._sets:
            parts = points.scan(append, parts, math.inf, self.size.dtype, once=False)
        return jnp.concatenate(parts)

    def _fold(
        self,
        step: Callable[[Carry, Block], Carry],
        carry: Carry,
        passes: float,
        *,
        rows: int = 0,
        once: bool = True,
        sets: tuple[PointSet, ...] | None = None,
    ) -> Carry:
        """Carry something through the points of all terms; see `PointSet.scan`.

        Args:
            step: the new value from the old one and a block.
            carry: where to start.
            passes: what the step holds, in units of what reverse mode keeps.
            rows: how many rows of the Jacobian it holds for each residual.
            once: give repeated points the scale zero.
            sets: those of some terms only.
        """
        for points in self._sets if sets is None else sets:
            numbers = passes * points.intermediates
            numbers += rows * points.components * self.size.parameters
            most = self._room / max(numbers, 1)
            carry = points.scan(step, carry, most, self.size.dtype, once=once)
        return carry
