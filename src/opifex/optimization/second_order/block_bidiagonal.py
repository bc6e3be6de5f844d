r"""Linear least squares whose rows touch two neighbouring blocks of unknowns.

Elements in a row, each with unknowns of its own and coupled to the next one, lead to matrices with one
block row per element (almost block diagonal systems). They are factored block by block, the remainder
of each being carried on to the next one: the cost is linear in the number of blocks (Lawson and Hanson,
Solving Least Squares Problems, 1974, chapter 27; de Boor and Weiss, ACM TOMS 6, 1980).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["block_bidiagonal_solution"]


def block_bidiagonal_solution(
    diagonal: Float[Array, "blocks rows n"],
    upper: Float[Array, "blocks rows n"],
    right_hand_side: Float[Array, "blocks rows"],
    regularization: float,
    *,
    cyclic: bool = False,
) -> Float[Array, "blocks n"]:
    r"""Minimise $\sum_s |D_s x_s + U_s x_{s+1} - b_s|^2 + \epsilon^2 |A|_F^2 \sum_s |x_s|^2$.

    $A$ is the whole matrix. Each block is eliminated by one QR factorisation of at most
    ``2 n + rows`` rows and ``2 n`` columns; if the last block is coupled to the first one, the
    unknowns of the first are carried along as further columns, which doubles the work.

    Args:
        diagonal: $D_s$.
        upper: $U_s$; the last one is read in the cyclic case only.
        right_hand_side: $b_s$.
        regularization: $\epsilon$; at least the machine precision.
        cyclic: whether $x_{s+1}$ of the last block is the first.

    Returns:
        $x_s$.

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.optimization.second_order import block_bidiagonal_solution
        >>> ones = jnp.ones((3, 1, 1))
        >>> x = block_bidiagonal_solution(ones, -ones, jnp.array([[1.0], [1.0], [2.0]]), 1e-7)
        >>> [round(float(value), 3) for value in x.ravel()]
        [4.0, 3.0, 2.0]
    """
    blocks, rows, size = diagonal.shape
    dtype = diagonal.dtype
    last = upper[-1]
    upper = upper.at[-1].set(0.0)
    border = size if cyclic else 0
    coupling = jnp.zeros((blocks, rows, border), dtype)
    if cyclic:
        # The unknowns of the first block become the border; in its place is a block without rows.
        coupling = coupling.at[0].set(diagonal[0]).at[-1].set(last)
        diagonal = diagonal.at[0].set(0.0)
    norm = jnp.sqrt(jnp.sum(diagonal**2) + jnp.sum(upper**2) + jnp.sum(coupling**2))
    smallest = max(regularization, float(jnp.finfo(dtype).eps)) * norm
    penalty = smallest * jnp.eye(size, 2 * size + border + 1, dtype=dtype)

    def eliminate(carried: Array, block: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        on_diagonal, above, at_border, values = block
        gap = jnp.zeros((len(carried), size), dtype)
        triangle = jnp.linalg.qr(
            jnp.concatenate(
                [
                    jnp.concatenate([carried[:, :size], gap, carried[:, size:]], axis=1),
                    jnp.concatenate([on_diagonal, above, at_border, values[:, None]], axis=1),
                    penalty,
                ]
            ),
            mode="r",
        )
        own = triangle[:size]
        rest = (own[:, size : 2 * size], own[:, 2 * size : -1], own[:, -1])
        return triangle[size : 2 * size + border, size:], (own[:, :size], *rest)

    start = jnp.zeros((size + border, size + border + 1), dtype)
    carried, factors = jax.lax.scan(eliminate, start, (diagonal, upper, coupling, right_hand_side))
    # What is left belongs to a block behind the last, which has no rows, and to the border.
    behind = smallest * jnp.eye(size + border, size + border + 1, dtype=dtype)
    triangle = jnp.linalg.qr(jnp.concatenate([carried, behind]), mode="r")[: size + border]
    ends = jax.scipy.linalg.solve_triangular(triangle[:, :-1], triangle[:, -1])
    following, first = ends[:size], ends[size:]

    def substitute(following: Array, factor: tuple[Array, ...]) -> tuple[Array, Array]:
        own, above, at_border, values = factor
        values = values - above @ following - at_border @ first
        solution = jax.scipy.linalg.solve_triangular(own, values)
        return solution, solution

    _, solution = jax.lax.scan(substitute, following, factors, reverse=True)
    return solution.at[0].set(first) if cyclic else solution
