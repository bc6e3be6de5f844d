r"""Damped linear least squares, factored once and solved for many dampings.

The step of Levenberg and Marquardt solves $\min_d |r + J d|^2 + \lambda |d|^2$ for a Jacobian
$J \in R^{m \times n}$. With fewer parameters than residuals (primal) an eigendecomposition of
$J^T J$ gives the minimiser for every $\lambda$ at the cost of two small products; with fewer
residuals than parameters (dual) one of $J J^T$ does, by the identity of Woodbury
$(J^T J + \lambda)^{-1} J^T = J^T (J J^T + \lambda)^{-1}$.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["DampedLeastSquares", "factorize"]

# Reduced-precision products (bfloat16, tf32) on accelerators would ruin the squared condition.
_EXACT = jax.lax.Precision.HIGHEST


class DampedLeastSquares(NamedTuple):
    """A factored Jacobian.

    Attributes:
        jacobian: the Jacobian, shape (m, n).
        eigenvalues: of the smaller of the two Gram matrices, shape (k,) with k = min(m, n).
        eigenvectors: of the same matrix, shape (k, k).
    """

    jacobian: Float[Array, "m n"]
    eigenvalues: Float[Array, " k"]
    eigenvectors: Float[Array, "k k"]

    @property
    def is_primal(self) -> bool:
        """Whether the Gram matrix is that of the parameters."""
        residuals, parameters = self.jacobian.shape
        return parameters <= residuals

    def project(self, residuals: Float[Array, " m"]) -> Float[Array, " k"]:
        """Coordinates of a right-hand side in the eigenbasis; the part shared by all dampings."""
        if self.is_primal:
            residuals = jnp.matmul(residuals, self.jacobian, precision=_EXACT)
        return jnp.matmul(residuals, self.eigenvectors, precision=_EXACT)

    def solve(self, projected: Float[Array, " k"], damping: Float[Array, ""]) -> Float[Array, " n"]:
        r"""The minimiser of $|r + J d|^2 + \lambda |d|^2$.

        Args:
            projected: ``project(r)``.
            damping: $\lambda$, positive.
        """
        inner = jnp.matmul(
            self.eigenvectors, projected / (self.eigenvalues + damping), precision=_EXACT
        )
        return -(inner if self.is_primal else jnp.matmul(inner, self.jacobian, precision=_EXACT))


def factorize(jacobian: Float[Array, "m n"]) -> DampedLeastSquares:
    """Factor a Jacobian, in the primal form if it has at most as many columns as rows."""
    residuals, parameters = jacobian.shape
    if parameters <= residuals:
        gram = jnp.matmul(jacobian.T, jacobian, precision=_EXACT)
    else:
        gram = jnp.matmul(jacobian, jacobian.T, precision=_EXACT)
    eigenvalues, eigenvectors = jnp.linalg.eigh(gram)
    # Rounding may push zero eigenvalues below zero.
    return DampedLeastSquares(jacobian, jnp.maximum(eigenvalues, 0.0), eigenvectors)
