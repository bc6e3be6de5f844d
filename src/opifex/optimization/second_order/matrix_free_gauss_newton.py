r"""Gauss-Newton without a Jacobian matrix, for networks that are too large for one."""

from __future__ import annotations

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
from opifex.optimization.second_order.blocks import map_some
from opifex.optimization.second_order.candidates import best_length
from opifex.optimization.second_order.damping import AdaptiveDamping
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.optimization.second_order.least_squares_method import LeastSquaresMethod
from opifex.optimization.second_order.levenberg_marquardt import LevenbergMarquardtState
from opifex.optimization.second_order.memory import (
    BLOCK_BYTES,
    ProblemSize,
    StepMemory,
    matrix_free_step_memory,
)
from opifex.optimization.second_order.nystrom import nystrom_approximation, positive_or_one

__all__ = ["MatrixFreeGaussNewton"]


@dataclass(frozen=True)
class MatrixFreeGaussNewton(LeastSquaresMethod[LevenbergMarquardtState]):
    r"""Damped Gauss-Newton steps by preconditioned conjugate gradients.

    A step solves $(J^T J + \mu s I) d = -J^T r$ with products $J v$ in forward and $J^T w$ in
    reverse mode, block after block of points and for a few vectors at a time. The conjugate gradients
    are preconditioned by a randomised Nyström approximation of $J^T J$ (arXiv:2505.11638), and $s$ is
    the sum of its eigenvalues: at most the $|J|_F^2$ of `LevenbergMarquardt`, and close to it where
    the spectrum decays fast within the rank. On networks of 105 and 337 parameters in trial functions
    for Poisson's and Helmholtz' equations it was below by at most 4e-4 of it with rank 50, by 1e-4 to
    5e-2 with rank 10, and by up to four fifths with rank 1. The state is the same as there,
    so that the damping can be carried from one method to the other, and means nearly the same.

    Dtypes and the precision of products are those of `LevenbergMarquardt`.

    The length of the step is the best of a grid.

    Attributes:
        damping: $\mu$ and how it changes.
        step_lengths: lengths to try.
        rank: rank of the preconditioner; larger than the number of parameters means that number.
        tolerance: relative residual at which the conjugate gradients end.
        max_iterations: most conjugate gradient iterations per step.
        seed: of the random vectors of the preconditioner.
        block_bytes: about what the intermediate results of one block of points may take.

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
    block_bytes: float = BLOCK_BYTES

    def __post_init__(self) -> None:
        if not isinstance(self.damping, AdaptiveDamping):
            raise TypeError(f"damping must be an AdaptiveDamping, got {self.damping!r}")
        # A list cannot be hashed, which compiled programs need.
        lengths = check_positive_numbers("step_lengths", self.step_lengths)
        object.__setattr__(self, "step_lengths", lengths)
        check_positive_int("rank", self.rank)
        check_positive("tolerance", self.tolerance)
        check_positive_int("max_iterations", self.max_iterations)
        check_nonnegative_int("seed", self.seed)
        check_positive("block_bytes", self.block_bytes)

    def init(self, params: Any) -> LevenbergMarquardtState:
        """State before the first step."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return LevenbergMarquardtState(self.damping.start(dtype))

    def step_memory(self, size: ProblemSize) -> StepMemory:
        """Bytes of a step, without compiling it; XLA's figure is within a factor of two.

        Args:
            size: of the problem.
        """
        return matrix_free_step_memory(
            size,
            candidates=len(self.step_lengths),
            rank=self.rank,
            block_bytes=self.block_bytes,
        )

    def advance(
        self, problem: FlatResiduals, state: LevenbergMarquardtState
    ) -> tuple[Float[Array, " n"], LevenbergMarquardtState, Float[Array, ""]]:
        """The step from ``problem.start``, see `LeastSquaresMethod`."""
        size, dtype = problem.start.size, problem.start.dtype
        rank = min(self.rank, size)
        linear = problem.linearize_matrix_free(problem.start, rank)
        sketch = nystrom_approximation(
            lambda vectors: map_some(linear.product, vectors, linear.columns),
            size,
            rank,
            jax.random.key(self.seed),
            dtype,
        )
        damping = self.damping.clip(state.damping)
        # Matrix and right-hand side of size one: the iteration squares them.
        unit = positive_or_one(jnp.sum(sketch.values))
        slope = positive_or_one(jnp.max(jnp.abs(linear.gradient)))
        relative, scaled = damping.astype(dtype), sketch._replace(values=sketch.values / unit)
        direction, _ = cg(
            lambda vector: linear.product(vector) / unit + relative * vector,
            -linear.gradient / slope,
            M=lambda vector: scaled.precondition(vector, relative),
            tol=self.tolerance,
            maxiter=self.max_iterations,
        )
        direction = direction * (slope / unit)
        choice = best_length(
            problem.losses, problem.start, linear.loss, direction, self.step_lengths
        )
        new = self.damping.update(damping, choice)
        return choice.point, LevenbergMarquardtState(new), linear.loss
