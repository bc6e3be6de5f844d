r"""Levenberg-Marquardt with a dense Jacobian and a search over dampings, lengths and curvature.

One factorisation gives the steps for all dampings of a geometric grid around the last successful
one, and their geodesic accelerations; the losses after all these steps, at several lengths, cost a
few batched evaluations of the residuals, which are cheap beside the Jacobian and its factorisation.
The candidate with the lowest loss is taken and its damping remembered, so that the damping follows
the problem by trying and not by a model of it. If no candidate lowers the loss, the parameters stay
and the damping rises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.checks import check_positive, check_positive_numbers
from opifex.optimization.second_order.candidates import best_candidate
from opifex.optimization.second_order.damped_least_squares import factorize
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.optimization.second_order.least_squares_method import LeastSquaresMethod
from opifex.optimization.second_order.memory import (
    BLOCK_BYTES,
    ProblemSize,
    StepMemory,
    dense_step_memory,
)

__all__ = ["LevenbergMarquardt", "LevenbergMarquardtState"]


class LevenbergMarquardtState(NamedTuple):
    """What is carried from step to step; independent of the number of parameters, and so of the level.

    Attributes:
        damping: the last successful damping, relative to the Jacobian.
    """

    damping: Float[Array, ""]


@dataclass(frozen=True)
class LevenbergMarquardt(LeastSquaresMethod[LevenbergMarquardtState]):
    r"""Minimises the weighted mean squares of residual terms (Levenberg 1944, Marquardt 1963).

    A step solves $(J^T J + \mu |J|_F^2 I) d = -J^T r$ for the residual vector $r$ and its Jacobian
    $J$, scaled so that $|r|^2$ is the loss. The damping $\mu$ is relative to the Frobenius norm of
    the Jacobian, that is, to the sum of the eigenvalues of $J^T J$: it has no unit, means the same
    for any weights of the terms, and can be carried from network to network. The solve works on the
    smaller of $J^T J$ and $J J^T$. The points are worked through in blocks. The Jacobian is kept if
    it has more columns than rows or fits into a block; else the products are added up block after
    block.

    With geodesic acceleration (Transtrum and Sethna, arXiv:1201.5885, section 3) the steps also
    follow the parabola $t d + t^2 a$ with $(J^T J + \mu |J|_F^2 I) a = -J^T r_{dd} / 2$ and
    $r_{dd}$ the second derivative of $r$ along $d$. Straight and curved steps compete by their
    loss, which is why the ratio of $|a|$ to $|d|$ needs no limit here. On networks of a few hundred
    parameters the curved steps reach the same loss several times sooner.

    The dampings that are worth trying end where rounding begins: below the machine precision of the
    parameters the small eigenvalues are noise, so that no smaller damping is tried. Use float64
    where low errors are wanted. A step is computed in the dtype that parameters and residuals
    promote to, with full precision of all matrix products; every parameter keeps its own dtype, and
    the damping has that which the parameters promote to.

    Attributes:
        initial_damping: damping of the first step.
        damping_factors: the dampings to try are the last one times these; one below one, so that the
            damping can fall, and one above.
        min_damping: lower bound of the dampings tried.
        max_damping: upper bound of the dampings tried.
        step_lengths: lengths $t$ to try.
        geodesic_acceleration: also try the curved steps.
        block_bytes: about what the intermediate results of one block of points may take.

    Raises:
        ValueError: if a number is not positive, ``damping_factors`` has no entry below or no entry
            above one, ``step_lengths`` is empty, or ``max_damping`` is below ``min_damping``.
        TypeError: if a setting has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.core import ResidualTerm
        >>> from opifex.optimization.second_order import LevenbergMarquardt
        >>> term = ResidualTerm("fit", lambda u, x: u(x) - 3 * x)
        >>> points, slope, solver = jnp.ones((4, 1)), jnp.zeros(1), LevenbergMarquardt()
        >>> slope, state, loss = solver.step(
        ...     [term], lambda slope: lambda x: slope * x, slope, solver.init(slope), (points,)
        ... )
        >>> float(loss), round(float(slope[0]), 1)
        (9.0, 3.0)
    """

    initial_damping: float = 1e-3
    damping_factors: tuple[float, ...] = (0.1, 1.0, 10.0)
    min_damping: float = 1e-16
    max_damping: float = 1e3
    step_lengths: tuple[float, ...] = (1.0, 0.3, 0.1)
    geodesic_acceleration: bool = True
    block_bytes: float = BLOCK_BYTES

    def __post_init__(self) -> None:
        check_positive("initial_damping", self.initial_damping)
        check_positive("min_damping", self.min_damping)
        check_positive("max_damping", self.max_damping)
        if not isinstance(self.geodesic_acceleration, bool):
            raise TypeError(
                f"geodesic_acceleration must be a bool, got {self.geodesic_acceleration!r}"
            )
        check_positive("block_bytes", self.block_bytes)
        factors = check_positive_numbers("damping_factors", self.damping_factors)
        if not min(factors) < 1 < max(factors):
            raise ValueError(
                "damping_factors must contain a factor below 1 and one above 1, so that the damping "
                f"can fall and rise, got {self.damping_factors!r}"
            )
        lengths = check_positive_numbers("step_lengths", self.step_lengths)
        # Lists cannot be hashed, which compiled programs need.
        object.__setattr__(self, "damping_factors", factors)
        object.__setattr__(self, "step_lengths", lengths)
        if self.max_damping < self.min_damping:
            raise ValueError(
                f"max_damping must be at least min_damping={self.min_damping!r}, "
                f"got {self.max_damping!r}"
            )

    def init(self, params: Any) -> LevenbergMarquardtState:
        """State before the first step."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return LevenbergMarquardtState(jnp.asarray(self.initial_damping, dtype))

    def step_memory(self, size: ProblemSize) -> StepMemory:
        """Bytes of a step, without compiling it; XLA's figure is within a factor of two.

        Args:
            size: of the problem.

        Example:
            >>> from opifex.optimization.second_order import LevenbergMarquardt, ProblemSize
            >>> size = ProblemSize(parameters=33537, residuals=10000)
            >>> LevenbergMarquardt().step_memory(size).total // 2**20
            5610
        """
        straight = len(self.damping_factors) * len(self.step_lengths)
        return dense_step_memory(
            size,
            candidates=straight * (2 if self.geodesic_acceleration else 1),
            curved=self.geodesic_acceleration,
            block_bytes=self.block_bytes,
        )

    def advance(
        self, problem: FlatResiduals, state: LevenbergMarquardtState
    ) -> tuple[Float[Array, " n"], LevenbergMarquardtState, Float[Array, ""]]:
        """The step from ``problem.start``, see `LeastSquaresMethod`."""
        linear = problem.linearize(problem.start)
        system = factorize(linear.gram, linear.rows)
        dampings = self._dampings(state.damping)
        absolute = dampings.astype(problem.size.dtype) * linear.squared_norm
        steps = jax.vmap(system.solve, in_axes=(None, 0))(linear.right_hand_side, absolute)
        lengths = jnp.asarray(self.step_lengths, steps.dtype)[:, None, None]
        candidates = lengths * steps
        if self.geodesic_acceleration:
            curvatures = problem.second_derivatives(problem.start, steps, linear)
            accelerations = 0.5 * jax.vmap(system.solve)(curvatures, absolute)
            candidates = jnp.concatenate([candidates, candidates + lengths**2 * accelerations])
        candidates = candidates.reshape(-1, problem.start.size)
        choice = best_candidate(problem.losses, problem.start, linear.loss, candidates)
        # Dampings vary fastest among the candidates. After a failure the largest damping tried
        # becomes the centre of the next grid.
        used = dampings[choice.winner % dampings.size]
        damping = jnp.where(choice.accepted, used, jnp.max(dampings))
        return choice.point, LevenbergMarquardtState(damping), linear.loss

    def _dampings(self, last: Float[Array, ""]) -> Float[Array, " dampings"]:
        floor = max(self.min_damping, float(jnp.finfo(last.dtype).eps))
        factors = jnp.asarray(self.damping_factors, last.dtype)
        return jnp.clip(last * factors, floor, self.max_damping)
