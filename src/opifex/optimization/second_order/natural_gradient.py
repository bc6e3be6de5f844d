r"""Energy natural gradient in residual space, with momentum and a line search over a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from opifex.core.checks import check_nonnegative, check_positive, check_positive_numbers
from opifex.optimization.second_order.candidates import best_length
from opifex.optimization.second_order.damped_least_squares import factorize
from opifex.optimization.second_order.damping import AdaptiveDamping
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.optimization.second_order.least_squares_method import LeastSquaresMethod
from opifex.optimization.second_order.memory import (
    BLOCK_BYTES,
    ProblemSize,
    StepMemory,
    dense_step_memory,
)

__all__ = ["EnergyNaturalGradient", "EnergyNaturalGradientState"]


class EnergyNaturalGradientState(NamedTuple):
    """What is carried from step to step.

    Attributes:
        damping: the damping of the next step.
        direction: the direction of the step before, with the structure of the parameters, so that
            it moves to another level as they do; zeros before the first step and after a failure.
    """

    damping: Float[Array, ""]
    direction: Any


@dataclass(frozen=True)
class EnergyNaturalGradient(LeastSquaresMethod[EnergyNaturalGradientState]):
    r"""Natural gradient for the weighted mean squares of residual terms.

    For a least-squares energy of a linear equation the energy inner product pulled back to the
    parameters is $J^T J$ (Müller and Zeinhofer, ICML 2023, section 3), with $J$ the Jacobian of the
    residual vector $r$; for a nonlinear equation $J^T J$ is its Gauss-Newton approximation. The
    direction solves
    $\min_d |r + J d|^2 + \mu |J|_F^2 |d - \beta d_{old}|^2$: the direction $d_{old}$ of the step
    before, shortened by the momentum $\beta$, is where the damping pulls (the SPRING method; for
    these networks arXiv:2505.12149, section 3). With fewer residuals than parameters the solve is
    done in the space of residuals by the identity of Woodbury, so that small batches of points make
    cheap steps on large networks. The length of the step is the best of a grid by the loss on the
    points of this step. A fixed $\mu$ either slows every step or, far from the solution, finds no
    step at all; it therefore falls after full steps and rises after failures.

    Dtypes, precision of products and blocks of points are those of `LevenbergMarquardt`.

    Attributes:
        damping: $\mu$ and how it changes.
        momentum: $\beta$, in [0, 1); 0 gives the plain natural gradient.
        step_lengths: lengths to try.
        block_bytes: about what the intermediate results of one block of points may take.

    Raises:
        ValueError: if a length is not positive, ``momentum`` is not in [0, 1), or
            ``step_lengths`` is empty.
        TypeError: if a setting has the wrong type.
    """

    damping: AdaptiveDamping = field(default_factory=AdaptiveDamping)
    momentum: float = 0.8
    step_lengths: tuple[float, ...] = tuple(0.5**k for k in range(10))
    block_bytes: float = BLOCK_BYTES

    def __post_init__(self) -> None:
        if not isinstance(self.damping, AdaptiveDamping):
            raise TypeError(f"damping must be an AdaptiveDamping, got {self.damping!r}")
        if check_nonnegative("momentum", self.momentum) >= 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum!r}")
        check_positive("block_bytes", self.block_bytes)
        # A list cannot be hashed, which compiled programs need.
        lengths = check_positive_numbers("step_lengths", self.step_lengths)
        object.__setattr__(self, "step_lengths", lengths)

    def init(self, params: Any) -> EnergyNaturalGradientState:
        """State before the first step."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return EnergyNaturalGradientState(
            self.damping.start(dtype), jax.tree.map(jnp.zeros_like, params)
        )

    def step_memory(self, size: ProblemSize) -> StepMemory:
        """Bytes of a step, without compiling it; XLA's figure is within a factor of two.

        Args:
            size: of the problem.
        """
        return dense_step_memory(
            size, candidates=len(self.step_lengths), curved=False, block_bytes=self.block_bytes
        )

    def advance(
        self, problem: FlatResiduals, state: EnergyNaturalGradientState
    ) -> tuple[Float[Array, " n"], EnergyNaturalGradientState, Float[Array, ""]]:
        """The step from ``problem.start``, see `LeastSquaresMethod`."""
        linear = problem.linearize(problem.start)
        pull = self.momentum * ravel_pytree(state.direction)[0].astype(problem.size.dtype)
        system = factorize(linear.gram, linear.rows)
        relative = self.damping.clip(state.damping)
        absolute = relative.astype(problem.size.dtype) * linear.squared_norm
        direction = pull + system.solve(linear.right_hand_side + linear.image(pull), absolute)
        choice = best_length(
            problem.losses, problem.start, linear.loss, direction, self.step_lengths
        )
        # Momentum that leads nowhere is forgotten: the next step is a plain one.
        kept = jnp.where(choice.accepted, direction, jnp.zeros_like(direction))
        new_state = EnergyNaturalGradientState(
            self.damping.update(relative, choice), problem.unravel(kept)
        )
        return choice.point, new_state, linear.loss
