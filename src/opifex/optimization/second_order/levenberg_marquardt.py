r"""Levenberg-Marquardt with a dense Jacobian and a search over dampings, lengths and curvature.

One factorisation gives the steps for all dampings of a geometric grid around the last successful
one, and their geodesic accelerations; the losses after all these steps, at several lengths, cost a
few batched evaluations of the residuals, which are cheap beside the Jacobian and its factorisation.
The candidate with the lowest loss is taken and its damping remembered, so that the damping follows
the problem by trying and not by a model of it. If no candidate lowers the loss, the parameters stay
and the damping rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.checks import (
    check_positive,
    check_positive_numbers,
)
from opifex.core.residuals import ResidualTerm
from opifex.optimization.second_order.candidates import best_candidate
from opifex.optimization.second_order.damped_least_squares import factorize
from opifex.optimization.second_order.flat_residuals import Bind, FlatResiduals

__all__ = ["LevenbergMarquardt", "LevenbergMarquardtState"]


class LevenbergMarquardtState(NamedTuple):
    """What is carried from step to step; independent of the number of parameters, and so of the level.

    Attributes:
        damping: the last successful damping, relative to the Jacobian.
    """

    damping: Float[Array, ""]


@dataclass(frozen=True)
class LevenbergMarquardt:
    r"""Minimises the weighted mean squares of residual terms (Levenberg 1944, Marquardt 1963).

    A step solves $(J^T J + \mu |J|_F^2 I) d = -J^T r$ for the residual vector $r$ and its Jacobian
    $J$, scaled so that $|r|^2$ is the loss. The damping $\mu$ is relative to the Frobenius norm of
    the Jacobian, that is, to the sum of the eigenvalues of $J^T J$: it has no unit, means the same
    for any weights of the terms, and can be carried from network to network. The solve works on the
    smaller of $J^T J$ and $J J^T$.

    With geodesic acceleration (Transtrum and Sethna, arXiv:1201.5885, section 3) the steps also
    follow the parabola $t d + t^2 a$ with $(J^T J + \mu |J|_F^2 I) a = -J^T r_{dd} / 2$ and
    $r_{dd}$ the second derivative of $r$ along $d$. Straight and curved steps compete by their
    loss, which is why the ratio of $|a|$ to $|d|$ needs no limit here. On networks of a few hundred
    parameters the curved steps reach the same loss several times sooner.

    The dampings that are worth trying end where rounding begins: below the machine precision of the
    parameters the small eigenvalues are noise, so that no smaller damping is tried. Use float64
    where low errors are wanted.

    Attributes:
        initial_damping: damping of the first step.
        damping_factors: the dampings to try are the last one times these.
        min_damping: lower bound of the dampings tried.
        max_damping: upper bound of the dampings tried.
        step_lengths: lengths $t$ to try.
        geodesic_acceleration: also try the curved steps.

    Raises:
        ValueError: if a number is not positive, ``damping_factors`` is empty or has no entry above
            one (the damping could never rise), ``step_lengths`` is empty, or ``max_damping`` is
            below ``min_damping``.
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

    def __post_init__(self) -> None:
        check_positive("initial_damping", self.initial_damping)
        check_positive("min_damping", self.min_damping)
        check_positive("max_damping", self.max_damping)
        if not isinstance(self.geodesic_acceleration, bool):
            raise TypeError(
                f"geodesic_acceleration must be a bool, got {self.geodesic_acceleration!r}"
            )
        check_positive_numbers("damping_factors", self.damping_factors)
        if not any(factor > 1 for factor in self.damping_factors):
            raise ValueError(
                "damping_factors must contain a factor above 1, so that the damping can rise, "
                f"got {self.damping_factors!r}"
            )
        check_positive_numbers("step_lengths", self.step_lengths)
        if self.max_damping < self.min_damping:
            raise ValueError(
                f"max_damping must be at least min_damping={self.min_damping!r}, "
                f"got {self.max_damping!r}"
            )

    def init(self, params: Any) -> LevenbergMarquardtState:
        """State before the first step."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return LevenbergMarquardtState(jnp.asarray(self.initial_damping, dtype))

    def step(
        self,
        terms: Sequence[ResidualTerm],
        bind: Bind,
        params: Any,
        state: LevenbergMarquardtState,
        points: tuple[Float[Array, "_ _"], ...],
    ) -> tuple[Any, LevenbergMarquardtState, Float[Array, ""]]:
        """One step; pure, and fit for ``jit``, ``scan`` and ``while_loop``. Never increases the loss.

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
        residuals, jacobian = problem.linearize(problem.start)
        loss = jnp.sum(residuals**2)
        system = factorize(jacobian)
        dampings = self._dampings(state.damping)
        absolute = dampings * jnp.sum(jacobian**2)

        def solve(right_hand_side: Array, damping: Array) -> Array:
            return system.solve(system.project(right_hand_side), damping)

        steps = jax.vmap(solve, in_axes=(None, 0))(residuals, absolute)
        lengths = jnp.asarray(self.step_lengths, steps.dtype)[:, None, None]
        candidates = lengths * steps
        if self.geodesic_acceleration:
            curvatures = jax.vmap(problem.second_derivative, in_axes=(None, 0))(
                problem.start, steps
            )
            accelerations = 0.5 * jax.vmap(solve)(curvatures, absolute)
            candidates = jnp.concatenate([candidates, candidates + lengths**2 * accelerations])
        candidates = candidates.reshape(-1, problem.start.size)
        choice = best_candidate(problem.loss, problem.start, loss, candidates)
        # Dampings vary fastest among the candidates. After a failure the largest damping tried
        # becomes the centre of the next grid.
        used = dampings[choice.winner % dampings.size]
        damping = jnp.where(choice.accepted, used, jnp.max(dampings))
        return problem.unravel(choice.point), LevenbergMarquardtState(damping), loss

    def _dampings(self, last: Float[Array, ""]) -> Float[Array, " dampings"]:
        floor = max(self.min_damping, float(jnp.finfo(last.dtype).eps))
        factors = jnp.asarray(self.damping_factors, last.dtype)
        return jnp.clip(last * factors, floor, self.max_damping)
