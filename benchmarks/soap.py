"""SOAP as an Optax transformation: Adam in the slowly moving eigenbasis of Shampoo's preconditioner.

Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade: SOAP: Improving and stabilizing
Shampoo using Adam, arXiv:2409.11321, algorithms 3 (the step) and 4 (the basis). Optax 0.2.8 has none,
and on PyPI there was only one inside a trainer of language models, Levanter. As in the authors' program
the first step only sets up the preconditioner, and parameters that are no matrices get Adam.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = ["SoapState", "scale_by_soap"]


class Sides(NamedTuple):
    """Two symmetric or orthogonal matrices: for the rows of a parameter and for its columns."""

    left: jax.Array
    right: jax.Array


class SoapState(NamedTuple):
    """State of `scale_by_soap`; `factors` and `bases` hold ``None`` for what is no matrix.

    Attributes:
        steps: steps so far, with the first one.
        mean: average of the gradients, in the coordinates of the parameters.
        square: average of their squares, in the eigenbasis.
        factors: averages of G G^T and G^T G.
        bases: their approximate eigenvectors, largest eigenvalue first.
    """

    steps: jax.Array
    mean: list[jax.Array]
    square: list[jax.Array]
    factors: list[Sides | None]
    bases: list[Sides | None]


def _rotate(matrix: jax.Array, basis: Sides | None) -> jax.Array:
    return matrix if basis is None else basis.left.T @ matrix @ basis.right


def _rotate_back(matrix: jax.Array, basis: Sides | None) -> jax.Array:
    return matrix if basis is None else basis.left @ matrix @ basis.right.T


def _eigenvectors(factor: jax.Array) -> jax.Array:
    return jnp.flip(jnp.linalg.eigh(factor)[1], axis=1)


def _improve(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of orthogonal iteration, and the order in which it took the old vectors."""
    order = jnp.argsort(-jnp.diag(basis.T @ factor @ basis))
    return jnp.linalg.qr(factor @ basis[:, order])[0], order


def _refresh(
    square: jax.Array, factor: Sides | None, basis: Sides | None
) -> tuple[jax.Array, Sides | None]:
    if factor is None or basis is None:
        return square, None
    left, rows = _improve(factor.left, basis.left)
    right, columns = _improve(factor.right, basis.right)
    return square[rows][:, columns], Sides(left, right)


def scale_by_soap(
    b1: float = 0.95, b2: float = 0.95, eps: float = 1e-8, frequency: int = 10
) -> optax.GradientTransformation:
    """The direction of SOAP, to be multiplied by minus the learning rate.

    Args:
        b1: decay of the average of gradients.
        b2: decay of the averages of squares and of the preconditioner.
        eps: added to the square root in the denominator.
        frequency: steps between improvements of the eigenbases.
    """

    def init(params: Any) -> SoapState:
        leaves = jax.tree.leaves(params)

        def sides(leaf: jax.Array) -> Sides | None:
            if leaf.ndim != 2:
                return None
            return Sides(*(jnp.zeros((n, n), leaf.dtype) for n in leaf.shape))

        return SoapState(
            jnp.zeros((), jnp.int32),
            [jnp.zeros_like(leaf) for leaf in leaves],
            [jnp.zeros_like(leaf) for leaf in leaves],
            [sides(leaf) for leaf in leaves],
            [sides(leaf) for leaf in leaves],
        )

    def averaged(state: SoapState, grads: list[jax.Array]) -> list[Sides | None]:
        return [
            None
            if factor is None
            else Sides(
                b2 * factor.left + (1 - b2) * grad @ grad.T,
                b2 * factor.right + (1 - b2) * grad.T @ grad,
            )
            for factor, grad in zip(state.factors, grads, strict=True)
        ]

    def begin(state: SoapState, grads: list[jax.Array]) -> tuple[list[jax.Array], SoapState]:
        factors = averaged(state, grads)
        bases = [
            None if f is None else Sides(_eigenvectors(f.left), _eigenvectors(f.right))
            for f in factors
        ]
        return [jnp.zeros_like(g) for g in grads], state._replace(factors=factors, bases=bases)

    def go_on(state: SoapState, grads: list[jax.Array]) -> tuple[list[jax.Array], SoapState]:
        mean = [b1 * m + (1 - b1) * g for m, g in zip(state.mean, grads, strict=True)]
        square = [
            b2 * s + (1 - b2) * _rotate(g, basis) ** 2
            for s, g, basis in zip(state.square, grads, state.bases, strict=True)
        ]
        used = state.steps.astype(square[0].dtype)  # the first step set up only the basis
        correction = jnp.sqrt(1 - b2**used) / (1 - b1**used)
        direction = [
            _rotate_back(correction * _rotate(m, basis) / (jnp.sqrt(s) + eps), basis)
            for m, s, basis in zip(mean, square, state.bases, strict=True)
        ]
        factors = averaged(state, grads)

        def refreshed() -> tuple[list[jax.Array], list[Sides | None]]:
            both = [_refresh(*x) for x in zip(square, factors, state.bases, strict=True)]
            return [b[0] for b in both], [b[1] for b in both]

        square, bases = jax.lax.cond(
            state.steps % frequency == 0, refreshed, lambda: (square, state.bases)
        )
        return direction, SoapState(state.steps, mean, square, factors, bases)

    def update(updates: Any, state: SoapState, params: Any = None) -> tuple[Any, SoapState]:
        del params
        grads, structure = jax.tree.flatten(updates)
        direction, new = jax.lax.cond(
            state.steps == 0, lambda: begin(state, grads), lambda: go_on(state, grads)
        )
        return jax.tree.unflatten(structure, direction), new._replace(steps=state.steps + 1)

    return optax.GradientTransformation(init, update)
