r"""Gauss-Newton without a Jacobian matrix, for networks that are too large for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from opifex.core.checks import (
    check_nonnegative_int,
    check_positive,
    check_positive_int,
    check_positive_numbers,
)
from opifex.core.residuals import ResidualTerm
from opifex.optimization.second_order.candidates import best_candidate
from opifex.optimization.second_order.damping import AdaptiveDamping
from opifex.optimization.second_order.flat_residuals import Bind, FlatResiduals
from opifex.optimization.second_order.levenberg_marquardt import LevenbergMarquardtState
from opifex.optimization.second_order.nystrom import nystrom_approximation

__all__ = ["MatrixFreeGaussNewton"]


@dataclass(frozen=True)
class MatrixFreeGaussNewton:
    r"""Damped Gauss-Newton steps by preconditioned conjugate gradients.

    A step solves $(J^T J + \mu s I) d = -J^T r$ with products $J v$ in forward and $J^T w$ in
    reverse mode. The conjugate gradients are preconditioned by a randomised Nyström approximation
    of $J^T J$ (arXiv:2505.11638), and $s$ is the sum of its eigenvalues, which for the fast decaying
    spectra of these problems is close to the $|J|_F^2$ of `LevenbergMarquardt`. The state is the
    same as there, so that the damping can be carried from one method to the other.

    The length of the step is the best of a grid.

    Attributes:
        damping: $\mu$ and how it changes.
        step_lengths: lengths to try.
        rank: rank of the preconditioner; larger than the number of parameters means that number.
        tolerance: relative residual at which the conjugate gradients end.
        max_iterations: most conjugate gradient iterations per step.
        seed: of the random vectors of the preconditioner.

    Raises:
        ValueError: if a number is out of range or ``step_lengths`` is empty.
        TypeError: if a setting has the wrong type.
    """

    damping: AdaptiveDamping = field(default_factory=AdaptiveDamping)
    step_lengths: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.03)
    rank: int = 50
    tolerance: float = 1e-3
    max_iterations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.damping, AdaptiveDamping):
            raise TypeError(f"damping must be an AdaptiveDamping, got {self.damping!r}")
        check_positive_numbers("step_lengths", self.step_lengths)
        check_positive_int("rank", self.rank)
        check_positive("tolerance", self.tolerance)
        check_positive_int("max_iterations", self.max_iterations)
        check_nonnegative_int("seed", self.seed)

    def init(self, params: Any) -> LevenbergMarquardtState:
        """State before the first step."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return LevenbergMarquardtState(self.damping.start(dtype))

    def step(
        self,
        terms: Sequence[ResidualTerm],
        bind: Bind,
        params: Any,
        state: LevenbergMarquardtState,
        points: tuple[Float[Array, "_ _"], ...],
    ) -> tuple[Any, LevenbergMarquardtState, Float[Array, ""]]:
        """One step; pure. Never increases the loss.

        Args:
            terms: the terms of the objective.
            bind: maps parameters to a function of one point.
            params: any pytree of real arrays.
            state: state from `init` or from the step before.
            points: one array of points per term.

        Returns:
            New parameters, new state, and the loss at the old parameters.

        Raises:
            ValueError: if ``terms`` or ``params`` is empty or ``points`` does not match ``terms``.
            TypeError: if a parameter is not a real floating-point array, ``bind`` is not callable,
                or an entry of ``terms`` is not a `ResidualTerm`.
        """
        problem = FlatResiduals(terms, bind, params, points)
        residuals, forward = jax.linearize(problem.residuals, problem.start)
        transposed = jax.linear_transpose(forward, problem.start)
        loss = jnp.sum(residuals**2)
        size, dtype = problem.start.size, problem.start.dtype

        def gram(vector: Array) -> Array:
            return transposed(forward(vector))[0]

        sketch = nystrom_approximation(
            gram, size, min(self.rank, size), jax.random.key(self.seed), dtype
        )
        damping = self.damping.clip(state.damping)
        absolute = damping * jnp.sum(sketch.values)
        direction, _ = cg(
            lambda vector: gram(vector) + absolute * vector,
            -transposed(residuals)[0],
            M=lambda vector: sketch.precondition(vector, absolute),
            tol=self.tolerance,
            maxiter=self.max_iterations,
        )
        lengths = jnp.asarray(self.step_lengths, dtype)
        choice = best_candidate(problem.loss, problem.start, loss, lengths[:, None] * direction)
        new = self.damping.update(damping, choice)
        return problem.unravel(choice.point), LevenbergMarquardtState(new), loss
