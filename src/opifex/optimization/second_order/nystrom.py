r"""A randomised low-rank approximation as a preconditioner of $(A + \mu I) x = b$.

$A$ is symmetric, positive semidefinite and known only by its products with vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["NystromApproximation", "nystrom_approximation", "positive_or_one"]

Products = Callable[[Float[Array, "rank n"]], Float[Array, "rank n"]]


class NystromApproximation(NamedTuple):
    r"""A low-rank approximation $U \Lambda U^T$ of a positive semidefinite matrix.

    Attributes:
        vectors: $U$, orthonormal columns, shape (n, rank).
        values: $\Lambda$, descending, shape (rank,).
    """

    vectors: Float[Array, "n rank"]
    values: Float[Array, " rank"]

    def precondition(
        self, vector: Float[Array, " n"], damping: Float[Array, ""]
    ) -> Float[Array, " n"]:
        r"""$(\lambda_k + \mu) U (\Lambda + \mu)^{-1} U^T v + (I - U U^T) v$.

        Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 44, 2023, equation 1.3.

        Args:
            vector: $v$.
            damping: $\mu$, positive.
        """
        inside = self.vectors.T @ vector
        factors = (self.values[-1] + damping) / (self.values + damping)
        return vector + self.vectors @ ((factors - 1.0) * inside)


def positive_or_one(value: Float[Array, ""]) -> Float[Array, ""]:
    """The value if it is positive, else one: something to divide by."""
    return jnp.where(value > 0, value, 1)


def nystrom_approximation(
    products: Products, size: int, rank: int, key: PRNGKeyArray, dtype: jnp.dtype
) -> NystromApproximation:
    """Approximate a matrix from its products with random vectors.

    Frangella, Tropp and Udell (2023), algorithm 2.1, with an eigendecomposition in place of the
    Cholesky factorisation, which may fail by rounding. The approximation is never larger than the
    matrix, so that the sum of its eigenvalues is at most the trace.

    Args:
        products: the matrix times every row.
        size: rows of the matrix.
        rank: number of random vectors, at most ``size``.
        key: random key.
        dtype: of the vectors.
    """
    test = jnp.linalg.qr(jax.random.normal(key, (size, rank), dtype))[0]
    sketch = products(test.T).T
    # In units of its largest entry, so that squares neither overflow nor vanish.
    unit = positive_or_one(jnp.max(jnp.abs(sketch)))
    sketch = sketch / unit
    # The shift keeps the small matrix definite, also that of zeros; it is taken off the eigenvalues.
    norm = jnp.linalg.norm(sketch) + jnp.finfo(dtype).tiny
    shift = jnp.sqrt(float(size)) * jnp.finfo(dtype).eps * norm
    sketch = sketch + shift * test
    small = test.T @ sketch
    values, vectors = jnp.linalg.eigh(0.5 * (small + small.T))
    values = jnp.maximum(values, shift)
    root = sketch @ (vectors / jnp.sqrt(values))
    left, singular, _ = jnp.linalg.svd(root, full_matrices=False)
    return NystromApproximation(left, unit * jnp.maximum(singular**2 - shift, 0.0))
