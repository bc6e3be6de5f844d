r"""Levenberg-Marquardt with a dense Jacobian and a search over dampings.

The damping is found by trying: one eigendecomposition gives the steps for all dampings of a
geometric grid around the last successful one, and the losses after all these steps cost one batched
evaluation. The step with the lowest loss is taken and its damping remembered, so that the damping
can fall or rise by orders of magnitude within one step, which a rule based on the gain ratio of one
trial cannot. If no step lowers the loss, the parameters stay and the damping rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.checks import check_positive
from opifex.core.residuals import ResidualTerm
from opifex.optimization.second_order.candidates import best_candidate
from opifex.optimization.second_order.damped_least_squares import DampedLeastSquares, factorize
from opifex.optimization.second_order.flat_residuals import Bind, FlatResiduals

__all__ = ["LevenbergMarquardt", "LevenbergMarquardtState"]


class LevenbergMarquardtState(NamedTuple):
    """What is carried from step to step, and from level to level: it knows no parameter sizes.

    Attributes:
        damping: the last successful damping.
    """

    damping: Float[Array, ""]


@dataclass(frozen=True)
class LevenbergMarquardt:
    r"""Minimises the weighted mean squares of residual terms (Levenberg 1944, Marquardt 1963).

    A step solves $(J^T J + \lambda I) d = -J^T r$ for the residual vector $r$ and its Jacobian $J$,
    scaled so that $|r|^2$ is the loss; $\lambda$ is therefore comparable between networks and
    numbers of points. The solve works on the smaller of $J^T J$ and $J J^T$. With geodesic
    acceleration (Transtrum and Sethna, arXiv:1201.5885, section 3) every step has a second
    candidate $d + a$ with $(J^T J + \lambda I) a = -J^T r_{dd} / 2$, $r_{dd}$ the second derivative
    of $r$ along $d$, which is dropped if $|a|$ exceeds ``acceleration_limit`` $\cdot |d|$.

    Attributes:
        initial_damping: damping of the first step.
        damping_factors: the dampings to try are the last one times these.
        min_damping: lower bound of the dampings tried.
        max_damping: upper bound of the dampings tried.
        geodesic_acceleration: also try the accelerated steps.
        acceleration_limit: largest length of the acceleration relative to the step.

    Raises:
        ValueError: if a number is not positive, ``damping_factors`` is empty or has no entry above
            one (the damping could never rise), or ``max_damping`` is below ``min_damping``.
        TypeError: if a setting has the wrong type.
    """

    initial_damping: float = 1e-2
    damping_factors: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 1000.0)
    min_damping: float = 1e-20
    max_damping: float = 1e10
    geodesic_acceleration: bool = False
    acceleration_limit: float = 0.75

    def __post_init__(self) -> None:
        check_positive("initial_damping", self.initial_damping)
        check_positive("min_damping", self.min_damping)
        check_positive("max_damping", self.max_damping)
        check_positive("acceleration_limit", self.acceleration_limit)
        if not isinstance(self.geodesic_acceleration, bool):
            raise TypeError(
                f"geodesic_acceleration must be a bool, got {self.geodesic_acceleration!r}"
            )
        for i, factor in enumerate(self.damping_factors):
            check_positive(f"damping_factors[{i}]", factor)
        if not any(factor > 1 for factor in self.damping_factors):
            raise ValueError(
                "damping_factors must contain a factor above 1, so that the damping can rise, "
                f"got {self.damping_factors!r}"
            )
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
        points: tuple[Float[Array, "points dim"], ...],
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
        factors = jnp.asarray(self.damping_factors, state.damping.dtype)
        dampings = jnp.clip(state.damping * factors, self.min_damping, self.max_damping)
        projected = system.project(residuals)
        steps = jax.vmap(lambda damping: system.solve(projected, damping))(dampings)
        if self.geodesic_acceleration:
            accelerated = jax.vmap(
                lambda step, damping: self._accelerate(problem, system, step, damping)
            )(steps, dampings)
            steps = jnp.concatenate([steps, accelerated])
            dampings = jnp.concatenate([dampings, dampings])
        choice = best_candidate(problem.loss, problem.start, loss, steps)
        # After a failure the largest damping tried becomes the centre of the next grid.
        damping = jnp.where(choice.accepted, dampings[choice.winner], jnp.max(dampings))
        return problem.unravel(choice.point), LevenbergMarquardtState(damping), loss

    def _accelerate(
        self,
        problem: FlatResiduals,
        system: DampedLeastSquares,
        step: Float[Array, " n"],
        damping: Float[Array, ""],
    ) -> Float[Array, " n"]:
        def slope(flat: Array) -> Array:
            return jax.jvp(problem.residuals, (flat,), (step,))[1]

        curvature = jax.jvp(slope, (problem.start,), (step,))[1]
        acceleration = 0.5 * system.solve(system.project(curvature), damping)
        ratio = jnp.linalg.norm(acceleration) / jnp.linalg.norm(step)
        return jnp.where(ratio <= self.acceleration_limit, step + acceleration, step)
