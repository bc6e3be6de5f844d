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

from opifex.core.checks import check_array, check_bool, check_nonnegative

__all__ = ["block_bidiagonal_solution"]


def block_bidiagonal_solution(
    diagonal: Float[Array, "blocks rows n"],
    upper: Float[Array, "blocks coupled n"],
    right_hand_side: Float[Array, "blocks rows"],
    regularization: float,
    *,
    cyclic: bool = False,
) -> Float[Array, "blocks n"]:
    r"""Minimise $\sum_s |D_s x_s + U_s x_{s+1} - b_s|^2 + \epsilon^2 |A|_F^2 \sum_s |x_s|^2$.

    $A$ is the whole matrix. Rows that do not reach the next block are factored first, for each block
    by itself. Then one block after the other is eliminated, by a QR factorisation of ``2 n + coupled``
    rows and ``2 n`` columns; if the last block is coupled to the first one, the unknowns of the first
    are carried along as ``n`` further columns.

    Args:
        diagonal: $D_s$.
        upper: the last rows of $U_s$, the others are zero; the last block of it is read in the cyclic
            case only.
        right_hand_side: $b_s$.
        regularization: $\epsilon$; at least the machine precision.
        cyclic: whether $x_{s+1}$ of the last block is the first.

    Returns:
        $x_s$.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the arrays do not fit together, ``upper`` has more rows than ``diagonal``, the
            cycle has fewer than three blocks, or ``regularization`` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.optimization.second_order import block_bidiagonal_solution
        >>> ones = jnp.ones((3, 1, 1))
        >>> x = block_bidiagonal_solution(ones, -ones, jnp.array([[1.0], [1.0], [2.0]]), 1e-7)
        >>> [round(float(value), 3) for value in x.ravel()]
        [4.0, 3.0, 2.0]
    """
    diagonal = jnp.asarray(check_array("diagonal", diagonal, "blocks rows n", real=True))
    upper = jnp.asarray(check_array("upper", upper, real=True))
    right_hand_side = jnp.asarray(check_array("right_hand_side", right_hand_side, real=True))
    regularization = check_nonnegative("regularization", regularization)
    check_bool("cyclic", cyclic)
    if not jnp.issubdtype(diagonal.dtype, jnp.floating):
        raise TypeError(f"diagonal must hold floating-point numbers, got {diagonal.dtype}")
    blocks, rows, size = diagonal.shape
    if upper.ndim != 3 or (upper.shape[0], upper.shape[2]) != (blocks, size):
        raise ValueError(f"upper must have shape ({blocks}, coupled, {size}), got {upper.shape}")
    if right_hand_side.shape != (blocks, rows):
        raise ValueError(
            f"right_hand_side must have shape {(blocks, rows)}, got {right_hand_side.shape}"
        )
    coupled = upper.shape[1]
    if coupled > rows:
        raise ValueError(f"upper must have at most the {rows} rows of diagonal, got {coupled}")
    if cyclic and blocks < 3:
        raise ValueError(f"a cycle must have at least 3 blocks, got {blocks}")
    dtype, closing = diagonal.dtype, upper[-1] if cyclic else jnp.zeros_like(upper[-1])
    upper = upper.at[-1].set(0.0)
    norm = jnp.sqrt(jnp.sum(diagonal**2) + jnp.sum(upper**2) + jnp.sum(closing**2))
    smallest = max(regularization, float(jnp.finfo(dtype).eps)) * norm
    own = _own_triangles(diagonal, right_hand_side, rows - coupled, smallest)
    here, values = diagonal[:, rows - coupled :], right_hand_side[:, rows - coupled :]
    border = size if cyclic else 0

    def widened(matrix: Array, gap: int) -> Array:
        """Rows with zeros behind the columns of this block."""
        zeros = jnp.zeros((len(matrix), gap), dtype)
        return jnp.concatenate([matrix[:, :size], zeros, matrix[:, size:]], axis=1)

    def eliminate(carried: Array, block: tuple[Array, ...]) -> tuple[Array, Array]:
        """Of rows over [this block, border, values]; leaves rows over [the next, border, values]."""
        triangle, *link = block
        stacked = jnp.concatenate(
            [
                widened(carried, size),
                widened(triangle, size + border),
                jnp.concatenate([*link[:-1], link[-1][:, None]], axis=1),
            ]
        )
        factor = jnp.linalg.qr(stacked, mode="r")
        return factor[size : 2 * size + border, size:], factor[:size]

    at_border = jnp.zeros((blocks, coupled, border), dtype)
    chain = [own, here, upper, at_border, values]
    if cyclic:
        # The unknowns of the first block are the border; the chain begins with the second.
        first = _first_of_a_cycle(own[0], here[0], upper[0], values[0])
        chain[3] = at_border.at[-1].set(closing)
        chain = [part[1:] for part in chain]
    else:
        first = jnp.zeros((size, size + 1), dtype)
    carried, factors = jax.lax.scan(eliminate, first, tuple(chain))
    # What is left belongs to a block behind the last, which has no rows, and to the border.
    behind = smallest * jnp.eye(size, size + border + 1, dtype=dtype)
    triangle = jnp.linalg.qr(jnp.concatenate([carried, behind]), mode="r")[: size + border]
    ends = jax.scipy.linalg.solve_triangular(triangle[:, :-1], triangle[:, -1])
    outside = ends[size:]

    def substitute(following: Array, factor: Array) -> tuple[Array, Array]:
        known = jnp.concatenate([following, outside])
        values = factor[:, -1] - factor[:, size:-1] @ known
        solution = jax.scipy.linalg.solve_triangular(factor[:, :size], values)
        return solution, solution

    _, solution = jax.lax.scan(substitute, ends[:size], factors, reverse=True)
    return jnp.concatenate([outside[None], solution]) if cyclic else solution


def _own_triangles(diagonal: Array, right_hand_side: Array, count: int, smallest: Array) -> Array:
    """Factors of the first rows of every block, regularised, shape (blocks, n, n + 1)."""
    size = diagonal.shape[-1]
    penalty = smallest * jnp.eye(size, size + 1, dtype=diagonal.dtype)

    def factor(block: tuple[Array, Array]) -> Array:
        matrix, values = block
        rows = jnp.concatenate([matrix[:count], values[:count, None]], axis=1)
        return jnp.linalg.qr(jnp.concatenate([rows, penalty]), mode="r")[:size]

    return jax.lax.map(factor, (diagonal, right_hand_side))


def _first_of_a_cycle(own: Array, here: Array, following: Array, values: Array) -> Array:
    """Rows of the first block, over [the second, itself, values], as a triangle."""
    size = here.shape[1]
    inside = jnp.concatenate([jnp.zeros_like(own[:, :size]), own], axis=1)
    link = jnp.concatenate([following, here, values[:, None]], axis=1)
    below = jnp.zeros((size, 2 * size + 1), own.dtype)
    return jnp.linalg.qr(jnp.concatenate([inside, link, below]), mode="r")[: 2 * size]
