r"""Damped linear least squares, factored once and solved for many dampings.

The step of Levenberg and Marquardt solves $\min_d |r + J d|^2 + \lambda |d|^2$ for a Jacobian
$J \in R^{m \times n}$. With fewer parameters than residuals (primal) an eigendecomposition of
$J^T J$ gives the minimiser for every $\lambda$ at the cost of two small products; with fewer
residuals than parameters (dual) one of $J J^T$ does, by the identity of Woodbury
$(J^T J + \lambda)^{-1} J^T = J^T (J J^T + \lambda)^{-1}$.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["DampedLeastSquares", "exact_products", "factorize", "regularized_solution"]

P = ParamSpec("P")
R = TypeVar("R")


def exact_products(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with matrix products of the full precision of their operands.

    On accelerators products of float32 are computed from fewer bits by default, which would ruin
    a condition number that is squared, and a loss whose digits decide which step is taken.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped


class DampedLeastSquares(NamedTuple):
    """A factored Gram matrix.

    Attributes:
        eigenvalues: of the Gram matrix, shape (k,).
        eigenvectors: of the same matrix, shape (k, k).
        rows: the Jacobian, shape (m, n), in the dual form, where solutions are combinations of its
            rows; ``None`` in the primal form.
    """

    eigenvalues: Float[Array, " k"]
    eigenvectors: Float[Array, "k k"]
    rows: Float[Array, "k n"] | None = None

    def solve(
        self, right_hand_side: Float[Array, " k"], damping: Float[Array, ""]
    ) -> Float[Array, " n"]:
        r"""The minimiser of $|r + J d|^2 + \lambda |d|^2$.

        Args:
            right_hand_side: $J^T r$ in the primal form, $r$ in the dual form.
            damping: $\lambda$, positive.
        """
        projected = right_hand_side @ self.eigenvectors
        inner = self.eigenvectors @ (projected / (self.eigenvalues + damping))
        return -(inner if self.rows is None else inner @ self.rows)


def factorize(
    gram: Float[Array, "k k"], rows: Float[Array, "k n"] | None = None
) -> DampedLeastSquares:
    """Factor a Gram matrix.

    Args:
        gram: $J^T J$, or $J J^T$, of which the lower triangle is read.
        rows: $J$ if the matrix is $J J^T$.
    """
    eigenvectors, eigenvalues = jax.lax.linalg.eigh(gram, symmetrize_input=False)
    # Rounding may push zero eigenvalues below zero.
    return DampedLeastSquares(jnp.maximum(eigenvalues, 0.0), eigenvectors, rows)


def regularized_solution(
    matrix: Float[Array, "m n"], right_hand_side: Float[Array, " m"], regularization: float
) -> Float[Array, " n"]:
    r"""The minimiser of $|A x - b|^2 + \epsilon^2 |A|_F^2 |x|^2$ by an orthogonal factorisation.

    The regularisation is a block of rows below $A$, so that one QR factorisation and one triangular
    solve do everything and no condition number is squared (Golub and Van Loan, Matrix Computations,
    4th edition, section 6.1.4). A wide $A$ is first reduced to the space of its rows, where the
    minimiser is.

    Args:
        matrix: $A$.
        right_hand_side: $b$.
        regularization: $\epsilon$; at least the machine precision.
    """
    if matrix.shape[0] < matrix.shape[1]:
        basis, triangle = jnp.linalg.qr(matrix.T)
        return basis @ regularized_solution(triangle.T, right_hand_side, regularization)
    columns = matrix.shape[1]
    smallest = max(regularization, float(jnp.finfo(matrix.dtype).eps)) * jnp.linalg.norm(matrix)
    upper = jnp.concatenate([matrix, right_hand_side[:, None]], axis=1)
    lower = smallest * jnp.eye(columns, columns + 1, dtype=matrix.dtype)
    triangle = jnp.linalg.qr(jnp.concatenate([upper, lower]), mode="r")
    return jax.scipy.linalg.solve_triangular(
        triangle[:columns, :columns], triangle[:columns, columns]
    )
