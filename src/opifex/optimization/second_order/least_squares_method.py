"""What all least-squares solvers share: how a step is called, checked and given back."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.residuals import ResidualTerm
from opifex.optimization.second_order.damped_least_squares import exact_products
from opifex.optimization.second_order.flat_residuals import Bind, FlatResiduals
from opifex.optimization.second_order.memory import ProblemSize, StepMemory

State = TypeVar("State")

__all__ = ["LeastSquaresMethod"]


class LeastSquaresMethod(abc.ABC, Generic[State]):
    """A method that minimises weighted mean squares of residual terms, given one flat vector.

    Attributes:
        block_bytes: about what the intermediate results of one block of points may take.
    """

    block_bytes: float

    @abc.abstractmethod
    def init(self, params: Any) -> State:
        """State before the first step, for these parameters."""

    @abc.abstractmethod
    def step_memory(self, size: ProblemSize) -> StepMemory:
        """Bytes of a step, without compiling it."""

    @abc.abstractmethod
    def advance(
        self, problem: FlatResiduals, state: State
    ) -> tuple[Float[Array, " n"], State, Float[Array, ""]]:
        """The step from ``problem.start``.

        Args:
            problem: residuals, as a function of a flat vector.
            state: state before the step.

        Returns:
            The new flat vector, the new state, and the loss at the start.
        """

    @exact_products
    def step(
        self,
        terms: Sequence[ResidualTerm],
        bind: Bind,
        params: Any,
        state: State,
        points: tuple[Float[Array, "_ _"], ...],
        axes: tuple[str, ...] = (),
    ) -> tuple[Any, State, Float[Array, ""]]:
        """One step; pure, and fit for ``jit``, ``scan`` and ``while_loop``.

        It never increases the loss on the points of this step.

        Args:
            terms: the terms of the objective.
            bind: maps parameters to a function of one point.
            params: any pytree of real arrays, also of several dtypes.
            state: state from `init` or from the step before.
            points: one array of points per term; other points at every step are fine.
            axes: names of the axes of devices that share the points, within ``jax.shard_map``.

        Returns:
            New parameters, new state, and the loss at the old parameters.

        Raises:
            ValueError: if ``terms`` or ``params`` is empty, ``points`` does not match ``terms``,
                there are no points, or parameters and residuals have less than single precision.
            TypeError: if a parameter or residual is not real and floating-point, ``bind`` is not
                callable, or an entry of ``terms`` is not a `ResidualTerm`.
        """
        problem = FlatResiduals(terms, bind, params, points, self.block_bytes, axes)
        if jnp.finfo(problem.size.dtype).bits < 32:
            # Squared condition numbers leave no digits, and there are no such factorisations.
            raise ValueError(
                f"{type(self).__name__} needs parameters or residuals in float32 or float64, got "
                f"{problem.size.dtype}"
            )
        point, state, loss = self.advance(problem, state)
        return problem.unravel(point), state, loss
