"""Smoothers: what improves one level, step by step. The compiled loop runs any of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import jax
import optax
from jaxtyping import Array, Float

from opifex.core.residuals import ResidualTerm
from opifex.training.objective import Objective, hashable, plain

__all__ = [
    "GradientSmoother",
    "LeastSquaresSmoother",
    "LeastSquaresSolver",
    "Smoother",
    "as_smoother",
    "initial_state",
]


class Smoother(Protocol):
    """A method that improves the parameters of one level step by step, as pure functions.

    Smoothers are hashable, since compiled programs take them as static arguments.
    """

    def init(self, params: Any) -> Any:
        """State for these parameters, a tree of arrays."""
        ...

    def step(
        self, objective: Objective, params: Any, state: Any
    ) -> tuple[Any, Any, Float[Array, ""], Any]:
        """One step.

        Args:
            objective: what is minimised.
            params: trainable parameters of the level.
            state: state from `init` or from the step before.

        Returns:
            New parameters, new state, the loss *before* the step, and the new values of all variables
            that are not parameters.
        """
        ...

    def check(self, objective: Objective) -> None:
        """Raise ``ValueError`` if the objective lacks what the method needs."""
        ...


@dataclass(frozen=True)
class GradientSmoother:
    """Any Optax transformation.

    Attributes:
        transformation: the transformation. Ones that need more than a gradient (line searches,
            L-BFGS) are handed ``value``, ``grad`` and ``value_fn``.
    """

    transformation: optax.GradientTransformationExtraArgs

    def init(self, params: Any) -> optax.OptState:
        """The Optax state."""
        return self.transformation.init(params)

    def check(self, objective: Objective) -> None:
        """Every objective has a gradient."""

    def apply(self, grads: Any, params: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
        """New parameters and state from a gradient.

        Args:
            grads: the gradient, a tree like ``params``.
            params: trainable parameters.
            state: the Optax state.
            **extra: extra arguments of the transformation.
        """
        updates, state = self.transformation.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    def step(
        self, objective: Objective, params: Any, state: Any
    ) -> tuple[Any, Any, Float[Array, ""], Any]:
        """One update; see `Smoother.step`."""
        value, grads, rest = objective.value_and_gradient(params)
        params, state = self.apply(
            grads, params, state, value=value, grad=grads, value_fn=objective.value
        )
        return params, state, value, rest


class LeastSquaresSolver(Protocol):
    """A method that sees residuals: Gauss-Newton, Levenberg-Marquardt, natural gradient."""

    def init(self, params: Any) -> Any:
        """State for these parameters; momentum, if any, has the structure of ``params``."""
        ...

    def step(
        self, terms: tuple[ResidualTerm, ...], bind: Any, params: Any, state: Any, points: Any
    ) -> tuple[Any, Any, Float[Array, ""]]:
        """One step.

        Args:
            terms: the residual terms whose weighted mean squares are minimised.
            bind: maps parameters to a function of one point.
            params: parameters, any pytree of real arrays.
            state: state from `init` or from the step before.
            points: one array (points, dim) per term.

        Returns:
            New parameters, new state, and the loss before the step.
        """
        ...


@dataclass(frozen=True)
class LeastSquaresSmoother:
    """A least-squares solver such as ``LevenbergMarquardt``.

    Attributes:
        solver: the solver. Its objective is the weighted mean square of the residual terms.
    """

    solver: LeastSquaresSolver

    def init(self, params: Any) -> Any:
        """State of the solver."""
        return self.solver.init(params)

    def check(self, objective: Objective) -> None:
        """Raise ``ValueError`` if there are no residual terms, or the objective is shifted."""
        name = type(self.solver).__name__
        if objective.shift is not None:
            raise ValueError(
                f"{name} minimises sums of squares, but a rediscretised coarse objective has a "
                'linear term: use Optax transformations, or a cycle with coarse="galerkin"'
            )
        if not objective.terms:
            raise ValueError(
                f"{name} minimises residuals: loss_fn must be a sequence of ResidualTerm, for "
                "instance problem.terms"
            )

    def step(
        self, objective: Objective, params: Any, state: Any
    ) -> tuple[Any, Any, Float[Array, ""], Any]:
        """One step, see `Smoother.step`; variables that are not parameters stay as they are."""
        params, state, value = self.solver.step(
            objective.terms, objective.bind, params, state, objective.data
        )
        return params, state, value, objective.rest


def as_smoother(method: Any) -> Smoother:
    """A smoother from an Optax transformation, a least-squares solver, or a smoother.

    Args:
        method: one of these; a smoother is returned as it is.

    Raises:
        TypeError: if ``method`` is none of these.
    """
    if isinstance(method, optax.GradientTransformation):
        return GradientSmoother(optax.with_extra_args_support(method))
    if hasattr(method, "init") and hasattr(method, "step"):
        return method if hasattr(method, "check") else LeastSquaresSmoother(method)
    raise TypeError(
        "transformation (optimizer) must be an optax.GradientTransformation, a solver such as "
        f"LevenbergMarquardt(), or one of these per level, got {method!r} of type "
        f"{type(method).__name__}"
    )


@lru_cache(maxsize=64)
def _init_program(smoother: Any) -> Any:
    return jax.jit(plain(smoother).init)


def initial_state(smoother: Smoother, params: Any) -> Any:
    """State of a smoother for parameters, as one compiled program."""
    return _init_program(hashable(smoother))(params)
