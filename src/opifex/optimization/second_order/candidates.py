"""Choosing among several candidate steps by their loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Choice", "best_candidate", "best_length"]


class Choice(NamedTuple):
    """The outcome of a search.

    Attributes:
        point: the best candidate, or the start if no candidate has a lower loss.
        winner: which candidate is the best.
        accepted: whether it has a lower loss than the start.
    """

    point: Float[Array, " n"]
    winner: Int[Array, ""]
    accepted: Bool[Array, ""]


def best_candidate(
    losses_at: Callable[[Float[Array, "candidates n"]], Float[Array, " candidates"]],
    start: Float[Array, " n"],
    start_loss: Float[Array, ""],
    steps: Float[Array, "candidates n"],
) -> Choice:
    """Evaluate the loss after each step and take the lowest, never going up.

    A loss that is not finite counts as infinitely large.

    Args:
        losses_at: the losses at several points, one per row.
        start: the point before the step.
        start_loss: the loss there.
        steps: candidate steps, one per row.
    """
    points = start + steps
    losses = losses_at(points)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    index = jnp.argmin(losses)
    accepted = losses[index] < start_loss
    return Choice(jnp.where(accepted, points[index], start), index, accepted)


def best_length(
    losses_at: Callable[[Float[Array, "candidates n"]], Float[Array, " candidates"]],
    start: Float[Array, " n"],
    start_loss: Float[Array, ""],
    direction: Float[Array, " n"],
    lengths: Sequence[float],
) -> Choice:
    """`best_candidate` among several lengths of one direction.

    Args:
        losses_at: the losses at several points, one per row.
        start: the point before the step.
        start_loss: the loss there.
        direction: the step of length one.
        lengths: what it is multiplied by.
    """
    steps = jnp.asarray(lengths, direction.dtype)[:, None] * direction
    return best_candidate(losses_at, start, start_loss, steps)
