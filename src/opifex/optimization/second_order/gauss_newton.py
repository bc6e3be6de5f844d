r"""Gauss-Newton without damping, by orthogonal factorisation: for models that are linear, or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.checks import check_fraction, check_positive, check_positive_numbers
from opifex.optimization.second_order.candidates import best_length
from opifex.optimization.second_order.damped_least_squares import (
    regularized_solution,
)
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.optimization.second_order.least_squares_method import LeastSquaresMethod
from opifex.optimization.second_order.memory import (
    BLOCK_BYTES,
    ProblemSize,
    StepMemory,
    orthogonal_step_memory,
)

__all__ = ["GaussNewton", "GaussNewtonState"]

FORCING = 0.3
"""Ratio of residuals that a linear model must promise for its regularisation to be weak enough."""

KEPT_PROMISE = 0.5
"""Share of the reduction that the linear model promises, with which the first length is taken."""


class GaussNewtonState(NamedTuple):
    """Nothing is carried from step to step."""


@dataclass(frozen=True)
class GaussNewton(LeastSquaresMethod[GaussNewtonState]):
    r"""Minimises the weighted mean squares of residual terms by full Gauss-Newton steps.

    A step minimises $|r + J d|^2 + \epsilon^2 |J|_F^2 |d|^2$ for the residual vector $r$ and its
    Jacobian $J$, by a QR factorisation of $J$ with the regularisation as further rows. Normal
    equations, which `LevenbergMarquardt` solves, lose all directions with singular values below the
    root of the machine precision; this solver keeps them, and $\epsilon$ is so small that it only
    bounds the length of the step. Where the residuals are linear in the parameters, as with
    `opifex.models.RandomFeatures` and a linear equation, the first step is the solution up to
    $\epsilon$, and a second one removes most of what $\epsilon$ has changed. A step that lowers the
    loss by half of what the linear model promises is taken as it is. Elsewhere its length is the best
    of a grid, and the direction is a gamble: networks want `LevenbergMarquardt`.

    Dtypes and precision of products are those of `LevenbergMarquardt`. The Jacobian is stored.

    On nonlinear equations the iterates of the first steps are rougher than the solution. A weak
    regularisation fits even that, with coefficients so large that their rounding ends the progress.
    Give several, ``regularization=(1e-8, 1e-15)``: a step uses the first with which the linear model
    promises residuals three times smaller, so that it is solved no more exactly than it deserves
    (inexact Newton methods: Dembo, Eisenstat and Steihaug, SIAM J. Numer. Anal. 19, 1982). Each one
    that is tried costs a factorisation.

    Attributes:
        regularization: $\epsilon$, in (0, 1), or several, the largest first; never below the machine
            precision.
        step_lengths: lengths to try, the first of them first.
        block_bytes: about what the intermediate results of one block of points may take.

    Raises:
        ValueError: if a setting is out of range, or ``step_lengths`` or ``regularization`` is empty.
        TypeError: if a setting has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.core import ResidualTerm
        >>> from opifex.optimization.second_order import GaussNewton
        >>> term = ResidualTerm("fit", lambda u, x: u(x) - 3 * x)
        >>> points, slope, solver = jnp.ones((4, 1)), jnp.zeros(1), GaussNewton()
        >>> slope, state, loss = solver.step(
        ...     [term], lambda slope: lambda x: slope * x, slope, solver.init(slope), (points,)
        ... )
        >>> float(loss), round(float(slope[0]), 5)
        (9.0, 3.0)
    """

    regularization: float | Sequence[float] = 1e-15
    step_lengths: tuple[float, ...] = tuple(0.5**k for k in range(10))
    block_bytes: float = BLOCK_BYTES

    def __post_init__(self) -> None:
        check_positive("block_bytes", self.block_bytes)
        if isinstance(self.regularization, Sequence):
            for epsilon in check_positive_numbers("regularization", self.regularization):
                check_fraction("regularization", epsilon)
            # Lists cannot be hashed, which compiled programs need.
            object.__setattr__(self, "regularization", tuple(self.regularization))
        else:
            check_fraction("regularization", self.regularization)
        lengths = check_positive_numbers("step_lengths", self.step_lengths)
        object.__setattr__(self, "step_lengths", lengths)

    def init(self, params: Any) -> GaussNewtonState:
        """State before the first step."""
        del params
        return GaussNewtonState()

    def step_memory(self, size: ProblemSize) -> StepMemory:
        """Bytes of a step, without compiling it; XLA's figure is within a factor of two.

        Args:
            size: of the problem.
        """
        return orthogonal_step_memory(
            size, candidates=len(self.step_lengths), block_bytes=self.block_bytes
        )

    def advance(
        self, problem: FlatResiduals, state: GaussNewtonState
    ) -> tuple[Float[Array, " n"], GaussNewtonState, Float[Array, ""]]:
        """The step from ``problem.start``, see `LeastSquaresMethod`."""
        residuals, jacobian = problem.jacobian(problem.start)
        loss = residuals @ residuals
        direction = self._direction(jacobian, residuals, loss)
        length = self.step_lengths[0]
        full = problem.start + length * direction
        promised = jnp.sum((residuals + length * (jacobian @ direction)) ** 2)
        point = jax.lax.cond(
            # By rounding a model may promise less than nothing; a step up is never taken.
            loss - problem.loss(full) >= KEPT_PROMISE * jnp.maximum(loss - promised, 0.0),
            lambda: full,
            lambda: self._searched(problem, loss, direction),
        )
        return point, state, loss

    def _direction(
        self, jacobian: Float[Array, "m n"], residuals: Float[Array, " m"], loss: Float[Array, ""]
    ) -> Float[Array, " n"]:
        """The full step, with the first regularisation that promises enough, or else the last."""
        several = self.regularization
        choices = several if isinstance(several, tuple) else (several,)

        def solved(number: int) -> Float[Array, " n"]:
            direction = regularized_solution(jacobian, -residuals, choices[number])
            if number + 1 == len(choices):
                return direction
            promised = jnp.sum((residuals + jacobian @ direction) ** 2)
            enough = promised <= FORCING**2 * loss
            return jax.lax.cond(enough, lambda: direction, lambda: solved(number + 1))

        return solved(0)

    def _searched(
        self, problem: FlatResiduals, loss: Float[Array, ""], direction: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        lengths = self.step_lengths
        return best_length(problem.losses, problem.start, loss, direction, lengths).point
