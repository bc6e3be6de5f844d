"""A damping that follows the success of steps, for methods that try one damping per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.checks import check_positive
from opifex.optimization.second_order.candidates import Choice

__all__ = ["AdaptiveDamping"]


@dataclass(frozen=True)
class AdaptiveDamping:
    """A damping that falls after a full step and rises after a failure.

    A full step is one of the first, longest length tried; a failure is a step of which no length
    lowers the loss.

    Attributes:
        initial: damping of the first step.
        minimum: lower bound; the machine precision of the parameters is one anyway, since below it
            the small eigenvalues are noise.
        maximum: upper bound.
        decrease: factor after a full step, at most one; with one the damping never falls.
        increase: factor after a failure, above one.

    Raises:
        ValueError: if a number is out of range or ``maximum`` is below ``minimum``.
        TypeError: if a setting has the wrong type.
    """

    initial: float = 1e-3
    minimum: float = 1e-16
    maximum: float = 1e3
    decrease: float = 0.3
    increase: float = 10.0

    def __post_init__(self) -> None:
        for name in ("initial", "minimum", "maximum", "decrease", "increase"):
            check_positive(name, getattr(self, name))
        if self.maximum < self.minimum:
            raise ValueError(
                f"maximum must be at least minimum={self.minimum!r}, got {self.maximum!r}"
            )
        if self.decrease > 1:
            raise ValueError(f"decrease must be at most 1, got {self.decrease!r}")
        if self.increase <= 1:
            raise ValueError(f"increase must be above 1, got {self.increase!r}")

    def start(self, dtype: Any) -> Float[Array, ""]:
        """The damping of the first step, an array of the given dtype."""
        return jnp.asarray(self.initial, dtype)

    def clip(self, damping: Float[Array, ""]) -> Float[Array, ""]:
        """The damping within its bounds."""
        floor = max(self.minimum, float(jnp.finfo(damping.dtype).eps))
        return jnp.clip(damping, floor, self.maximum)

    def update(self, damping: Float[Array, ""], choice: Choice) -> Float[Array, ""]:
        """The damping of the next step.

        Args:
            damping: the damping of this step.
            choice: which length was best, of lengths that are tried longest first.
        """
        factor = jnp.where(
            choice.accepted, jnp.where(choice.winner == 0, self.decrease, 1.0), self.increase
        )
        return self.clip(damping * factor.astype(damping.dtype))
