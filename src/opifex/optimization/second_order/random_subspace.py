r"""Least-squares steps in random subspaces, for networks with too many parameters for dense ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from opifex.core.checks import check_nonnegative_int, check_positive_int
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.optimization.second_order.least_squares_method import LeastSquaresMethod
from opifex.optimization.second_order.memory import ProblemSize, StepMemory

__all__ = ["RandomSubspace", "RandomSubspaceState"]


class RandomSubspaceState(NamedTuple):
    """What is carried from step to step; independent of the number of parameters.

    Attributes:
        drawn: subspaces so far, from which the next subspace is drawn.
        inner: state of the method.
    """

    drawn: Int[Array, ""]
    inner: Any


@dataclass(frozen=True)
class RandomSubspace(LeastSquaresMethod[RandomSubspaceState]):
    r"""Every step of a method moves a few parameters, drawn anew each time, and leaves the others.

    A dense step costs the square of the number of parameters per residual and its cube for the
    factorisation. With $k$ of $n$ columns of the Jacobian both shrink by $(k/n)^2$ and more, and since
    the Jacobians of networks have few large singular values, a step is worse by less than that
    (random subspace Gauss-Newton: Cartis, Fowkes and Shao, arXiv:2206.03371, section 4, with sampling
    sketches; column sketches of PINNs: arXiv:2607.02194). Where $k \ge n$ it is the method itself.

    A network that is small enough for a dense step is better served by that.

    Attributes:
        method: `LevenbergMarquardt` or `GaussNewton`: one whose state does not grow with the
            parameters.
        parameters: $k$, how many move in a step.
        seed: of the draws.

    Raises:
        TypeError: if ``method`` is no least-squares method, or a number is not an integer; by `init`,
            if the state of the method grows with the parameters.
        ValueError: if ``parameters`` is not positive or ``seed`` is negative.

    Example:
        >>> from opifex.optimization.second_order import LevenbergMarquardt, RandomSubspace
        >>> solver = RandomSubspace(LevenbergMarquardt(), parameters=1000)
    """

    method: LeastSquaresMethod[Any]
    parameters: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.method, LeastSquaresMethod):
            raise TypeError(
                f"method must be a least-squares method such as LevenbergMarquardt(), "
                f"got {self.method!r}"
            )
        check_positive_int("parameters", self.parameters)
        check_nonnegative_int("seed", self.seed)

    @property
    def block_bytes(self) -> float:  # type: ignore[override]
        """That of the method."""
        return self.method.block_bytes

    def init(self, params: Any) -> RandomSubspaceState:
        """State before the first step.

        Raises:
            TypeError: if the state of the method grows with the parameters.
        """
        state = self.method.init(params)
        if any(jnp.ndim(leaf) for leaf in jax.tree.leaves(state)):
            raise TypeError(
                f"method must not keep a state for every parameter, as "
                f"{type(self.method).__name__} does: other parameters move in the next step"
            )
        return RandomSubspaceState(jnp.zeros((), jnp.int32), state)

    def step_memory(self, size: ProblemSize) -> StepMemory:
        """Bytes of a step, without compiling it; XLA's figure is within a factor of two.

        Args:
            size: of the whole problem.
        """
        return self.method.step_memory(
            size._replace(parameters=min(self.parameters, size.parameters))
        )

    def advance(
        self, problem: FlatResiduals, state: RandomSubspaceState
    ) -> tuple[Float[Array, " n"], RandomSubspaceState, Float[Array, ""]]:
        """The step from ``problem.start``, see `LeastSquaresMethod`."""
        total = problem.start.size
        drawn = state.drawn + 1
        if self.parameters >= total:
            point, inner, loss = self.method.advance(problem, state.inner)
            return point, RandomSubspaceState(drawn, inner), loss
        key = jax.random.fold_in(jax.random.key(self.seed), state.drawn)
        moved = jax.random.choice(key, total, (self.parameters,), replace=False)
        point, inner, loss = self.method.advance(problem.restricted(moved), state.inner)
        return problem.start.at[moved].set(point), RandomSubspaceState(drawn, inner), loss
