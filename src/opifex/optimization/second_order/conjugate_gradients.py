r"""Conjugate gradients with a randomised Nyström preconditioner, for $(A + \mu I) x = b$.

$A$ is symmetric, positive semidefinite and known only by its products with vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

__all__ = ["NystromApproximation", "conjugate_gradients", "nystrom_approximation"]

Product = Callable[[Float[Array, " n"]], Float[Array, " n"]]


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
        """
        inside = self.vectors.T @ vector
        factors = (self.values[-1] + damping) / (self.values + damping)
        return vector + self.vectors @ ((factors - 1.0) * inside)


def nystrom_approximation(
    product: Product, size: int, rank: int, key: PRNGKeyArray, dtype: jnp.dtype
) -> NystromApproximation:
    """Approximate a matrix from its products with random vectors.

    Frangella, Tropp and Udell (2023), algorithm 2.1, with an eigendecomposition in place of the
    Cholesky factorisation, which may fail by rounding.

    Args:
        product: the matrix times a vector.
        size: rows of the matrix.
        rank: number of random vectors, at most ``size``.
        key: random key.
        dtype: of the vectors.
    """
    test = jnp.linalg.qr(jax.random.normal(key, (size, rank), dtype))[0]
    sketch = jax.vmap(product, in_axes=1, out_axes=1)(test)
    # The shift keeps the small matrix definite; it is taken off the eigenvalues again.
    shift = jnp.sqrt(float(size)) * jnp.finfo(dtype).eps * jnp.linalg.norm(sketch)
    sketch = sketch + shift * test
    small = test.T @ sketch
    values, vectors = jnp.linalg.eigh(0.5 * (small + small.T))
    values = jnp.maximum(values, shift)
    root = sketch @ (vectors / jnp.sqrt(values))
    left, singular, _ = jnp.linalg.svd(root, full_matrices=False)
    return NystromApproximation(left, jnp.maximum(singular**2 - shift, 0.0))


class _Iterate(NamedTuple):
    solution: Float[Array, " n"]
    residual: Float[Array, " n"]
    preconditioned: Float[Array, " n"]
    search: Float[Array, " n"]
    iterations: Int[Array, ""]


def conjugate_gradients(
    product: Product,
    right_hand_side: Float[Array, " n"],
    precondition: Product,
    *,
    tolerance: float,
    max_iterations: int,
) -> tuple[Float[Array, " n"], Int[Array, ""]]:
    """Solve a positive definite system from zero.

    Args:
        product: the matrix times a vector.
        right_hand_side: the right-hand side.
        precondition: the inverse of the preconditioner times a vector.
        tolerance: the iteration ends when the norm of the residual is at most this times that of
            the right-hand side.
        max_iterations: or after so many iterations.

    Returns:
        The solution and the number of iterations.
    """
    limit = tolerance * jnp.linalg.norm(right_hand_side)

    def proceed(now: _Iterate) -> Array:
        return (jnp.linalg.norm(now.residual) > limit) & (now.iterations < max_iterations)

    def iterate(now: _Iterate) -> _Iterate:
        image = product(now.search)
        energy = now.residual @ now.preconditioned
        length = energy / (now.search @ image)
        residual = now.residual - length * image
        preconditioned = precondition(residual)
        ratio = (residual @ preconditioned) / energy
        return _Iterate(
            now.solution + length * now.search,
            residual,
            preconditioned,
            preconditioned + ratio * now.search,
            now.iterations + 1,
        )

    first = precondition(right_hand_side)
    start = _Iterate(
        jnp.zeros_like(right_hand_side), right_hand_side, first, first, jnp.zeros((), jnp.int32)
    )
    end = jax.lax.while_loop(proceed, iterate, start)
    return end.solution, end.iterations
