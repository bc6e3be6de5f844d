r"""GradNorm: loss weights that equalise how fast the terms of a loss train.

Chen, Badrinarayanan, Lee, Rabinovich: GradNorm, ICML 2018 (arXiv:1711.02257), section 3 and
algorithm 1. With $L = \sum_i w_i L_i$ and $G_i = \|\nabla_W w_i L_i\|$ for shared parameters $W$, the
inverse training rates $r_i = \tilde L_i / \operatorname{mean}_j \tilde L_j$ with
$\tilde L_i = L_i / L_i(0)$ set targets $\bar G\, r_i^\alpha$ for $G_i$, with $\bar G$ their mean. After
each step the weights are renormalised to sum to the number of terms.

Targets and renormalisation are the paper's, the step is not. The paper descends
$\sum_i |G_i - \bar G\, r_i^\alpha|$, whose slope in $w_i$ is the gradient norm itself: with norms of a
hundred, common for differential equations, a step jumps across the whole range of the weights. Here a
proximal step is taken on $\sum_i |\log G_i - \log \bar G\, r_i^\alpha|$ in $\log w_i$, targets held
constant: every weight moves by at most the factor $e^{\pm\eta}$ towards its target and never beyond
it. That does not depend on the scale of the norms, and does not oscillate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from opifex.core.checks import (
    check_array,
    check_callable,
    check_nonnegative,
    check_positive,
    check_positive_int,
    check_rngs,
)

Losses = Sequence[Any] | Float[Array, " terms"]

__all__ = [
    "GradNormBalancer",
    "gradient_norms",
    "loss_ratios",
    "renormalise",
    "updated_weights",
]


SMALLEST_WEIGHT = 1e-12
"""Before renormalisation. A weight of zero would stay zero."""


def renormalise(weights: Float[Array, " terms"]) -> Float[Array, " terms"]:
    """Weights scaled to sum to their number; very small ones are raised to a small positive value."""
    positive = jnp.maximum(weights, SMALLEST_WEIGHT)
    return positive * (weights.shape[0] / jnp.sum(positive))


def updated_weights(
    weights: Float[Array, " terms"],
    norms: Float[Array, " terms"],
    loss_ratios: Float[Array, " terms"],
    *,
    alpha: float,
    learning_rate: float,
) -> Float[Array, " terms"]:
    r"""Weights after one step towards the targets, then `renormalise`. Pure.

    A term without a gradient keeps its weight, up to the renormalisation. If a norm or a ratio is not
    finite, nothing changes.

    Args:
        weights: present weights, shape (terms,).
        norms: $\|\nabla_W L_i\|$, norms of the *unweighted* gradients, shape (terms,).
        loss_ratios: $\tilde L_i$, losses relative to the initial ones, shape (terms,).
        alpha: strength of the restoring force.
        learning_rate: $\eta$, by which the logarithm of a weight may change.
    """
    weighted = weights * norms
    # When every loss has become zero, all train alike; 0 / 0 would end in the weights for good.
    mean = jnp.mean(loss_ratios)
    rates = jnp.where(mean > 0, loss_ratios / jnp.where(mean > 0, mean, 1.0), 1.0)
    targets = jnp.log(jnp.mean(weighted) * rates**alpha)
    gaps = jnp.where(weighted > 0, jnp.log(weighted) - targets, 0.0)
    moved = renormalise(weights * jnp.exp(-jnp.clip(gaps, -learning_rate, learning_rate)))
    finite = jnp.isfinite(norms) & jnp.isfinite(loss_ratios) & jnp.isfinite(moved)
    return jnp.where(jnp.all(finite), moved, weights)


def loss_ratios(
    losses: Float[Array, " terms"], initial: Float[Array, " terms"]
) -> Float[Array, " terms"]:
    r"""$\tilde L_i$, losses relative to the initial ones. Pure.

    A loss that started at zero, or was not finite then, has no training rate; it counts as an
    average one.

    Args:
        losses: present unweighted losses, shape (terms,).
        initial: the losses that training rates are relative to, shape (terms,).
    """
    known = jnp.isfinite(initial) & (initial > 0)
    ratios = losses / jnp.where(known, initial, 1.0)
    average = jnp.sum(jnp.where(known, ratios, 0.0)) / jnp.maximum(jnp.sum(known), 1)
    # What is not finite shall be seen, whether its rate is known or not.
    return jnp.where(known | ~jnp.isfinite(losses), ratios, average)


def gradient_norms(
    losses_fn: Callable[[Any], Float[Array, " terms"]], params: Any
) -> Float[Array, " terms"]:
    r"""Norms $\|\nabla_W L_i\|$ of the unweighted losses.

    Args:
        losses_fn: the shared parameters to the vector of losses.
        params: the shared parameters, any pytree (often the last shared layer's alone).

    Returns:
        One norm per loss, shape (terms,).

    Raises:
        TypeError: if ``losses_fn`` is not callable, or a parameter is not an array of floating-point
            numbers.
        ValueError: if ``losses_fn`` returns something else than one axis of losses.
    """
    check_callable("losses_fn", losses_fn)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = check_array(f"params{jax.tree_util.keystr(path)}", leaf)
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            raise TypeError(f"params must hold floating-point numbers, got {array.dtype}")
    if not jax.tree.leaves(params):
        raise TypeError("params must hold at least one array, got an empty tree")
    shape = jax.eval_shape(lambda p: jnp.asarray(losses_fn(p)), params).shape
    if len(shape) != 1:
        raise ValueError(f"losses_fn must return shape (terms,), got {shape}")
    jacobian = jax.jacrev(lambda p: jnp.asarray(losses_fn(p)))(params)
    squares = [
        jnp.sum(leaf.reshape(leaf.shape[0], -1) ** 2, axis=1) for leaf in jax.tree.leaves(jacobian)
    ]
    return jnp.sqrt(sum(squares[1:], start=squares[0]))


def _stack(values: Any) -> Array:
    return jnp.stack([jnp.asarray(v) for v in values]) if len(values) else jnp.zeros(0)


class GradNormBalancer(nnx.Module):
    """Keeps the weights of several losses, and the losses they started from.

    Args:
        num_losses: number of losses.
        alpha: strength of the restoring force; 1.5 in the paper's experiments.
        learning_rate: by how much the logarithm of a weight may change in one step.
        rngs: accepted for symmetry with other modules; the method uses no random numbers.

    Attributes:
        weights: the weights, shape (num_losses,), summing to ``num_losses``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> from opifex.core.physics import GradNormBalancer
        >>> balancer = GradNormBalancer(num_losses=2)
        >>> balancer.set_initial_losses([1.0, 1.0])
        >>> weights = balancer.update_weights([1.0, 0.5], [1.0, 1.0])  # losses, gradient norms
        >>> bool(weights[0] > weights[1])  # the first loss has fallen less
        True
    """

    def __init__(
        self,
        num_losses: int,
        alpha: float = 1.5,
        learning_rate: float = 0.025,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.num_losses = check_positive_int("num_losses", num_losses)
        self.alpha = check_nonnegative("alpha", alpha)
        self.learning_rate = check_positive("learning_rate", learning_rate)
        if rngs is not None:
            check_rngs("rngs", rngs)
        self.weights = nnx.Variable(jnp.ones(num_losses))
        self._initial_losses: Array | None = nnx.data(None)

    def _vector(self, name: str, values: Losses) -> Float[Array, " terms"]:
        if not isinstance(values, Sequence | jax.Array | np.ndarray) or isinstance(values, str):
            raise TypeError(
                f"{name} must be a sequence or an array of numbers, got {type(values).__name__}"
            )
        vector = jnp.asarray(values) if isinstance(values, jax.Array) else _stack(values)
        if vector.shape != (self.num_losses,):
            raise ValueError(
                f"{name} must hold num_losses={self.num_losses} numbers, got shape {vector.shape}"
            )
        return vector

    @property
    def initial_losses(self) -> Float[Array, " terms"] | None:
        """The losses that training rates are relative to, ``None`` before they are set."""
        return self._initial_losses

    def set_initial_losses(self, losses: Losses) -> None:
        """Set the losses that training rates are relative to.

        Raises:
            TypeError: if ``losses`` is neither a sequence nor an array.
            ValueError: if the number of losses is wrong.
        """
        self._initial_losses = jax.lax.stop_gradient(self._vector("losses", losses))

    def reset(self) -> None:
        """Forget the initial losses and return to equal weights, as at the start of a level."""
        self._initial_losses = None
        self.weights[...] = jnp.ones(self.num_losses)

    def compute_weighted_loss(self, losses: Losses) -> Float[Array, ""]:
        """The sum of the weighted losses. The weights count as constants.

        Raises:
            TypeError: if ``losses`` is neither a sequence nor an array.
            ValueError: if the number of losses is wrong.
        """
        vector = self._vector("losses", losses)
        return jnp.sum(jax.lax.stop_gradient(self.weights[...]) * vector)

    def update_weights(self, losses: Losses, norms: Losses) -> Float[Array, " terms"]:
        r"""Move the weights by one step, or not at all if a loss or a norm is not finite.

        A loss that started at zero, or was not finite then, has no training rate; it counts as an
        average one.

        Args:
            losses: present unweighted losses.
            norms: norms of their gradients, as `gradient_norms` gives them.

        Returns:
            The new weights.

        Raises:
            TypeError: if ``losses`` or ``norms`` is neither a sequence nor an array.
            ValueError: if a number of entries is wrong.
            RuntimeError: if the initial losses are not set.
        """
        vector, slopes = self._vector("losses", losses), self._vector("norms", norms)
        if self._initial_losses is None:
            raise RuntimeError("update_weights needs initial losses: call set_initial_losses first")
        self.weights[...] = updated_weights(
            self.weights[...],
            slopes,
            loss_ratios(vector, self._initial_losses),
            alpha=self.alpha,
            learning_rate=self.learning_rate,
        )
        return self.weights[...]
