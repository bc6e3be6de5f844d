"""Smoothers: what improves one level, step by step. The compiled loop runs any of them."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.residuals import ResidualTerm
from opifex.training.objective import Objective, value_and_gradient

__all__ = ["GradientSmoother", "LeastSquaresSmoother", "LeastSquaresSolver", "Smoother"]


class Smoother(Protocol):
    """One step of some minimisation method, as a pure function."""

    def init(self, params: Any) -> Any:
        """State for these parameters."""
        ...

    def step(
        self,
        objective: Objective,
        params: Any,
        rest: Any,
        state: Any,
        batch: tuple[Any, ...],
        key: PRNGKeyArray | None,
    ) -> tuple[Any, Any, Any, Float[Array, ""]]:
        """New parameters, other variables and state, and the loss *before* the step."""
        ...

    def check(self, objective: Objective) -> None:
        """Raise ``ValueError`` if the objective lacks what the method needs."""
        ...


class GradientSmoother:
    """Any Optax transformation.

    Args:
        transformation: the transformation. Ones that need more than a gradient (line searches,
            L-BFGS) are handed ``value``, ``grad`` and ``value_fn``.
    """

    def __init__(self, transformation: optax.GradientTransformation) -> None:
        self.transformation = optax.with_extra_args_support(transformation)

    def init(self, params: Any) -> optax.OptState:
        """The Optax state."""
        return self.transformation.init(params)

    def check(self, objective: Objective) -> None:
        """Every objective has a gradient."""

    def step(
        self,
        objective: Objective,
        params: Any,
        rest: Any,
        state: Any,
        batch: tuple[Any, ...],
        key: PRNGKeyArray | None,
    ) -> tuple[Any, Any, Any, Float[Array, ""]]:
        """One update."""
        value, grads, new_rest = value_and_gradient(objective, params, rest, batch, key)
        updates, state = self.transformation.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=lambda trial: objective.value(trial, rest, batch, key),
        )
        return optax.apply_updates(params, updates), new_rest, state, value


class LeastSquaresSolver(Protocol):
    """A method that sees residuals: Gauss-Newton, Levenberg-Marquardt, natural gradient."""

    def init(self, params: Any) -> Any:
        """State for these parameters; momentum, if any, has the structure of ``params``."""
        ...

    def step(
        self, terms: tuple[ResidualTerm, ...], bind: Any, params: Any, state: Any, points: Any
    ) -> tuple[Any, Any, Float[Array, ""]]:
        """New parameters and state, and the loss before the step."""
        ...


class LeastSquaresSmoother:
    """A least-squares solver such as ``LevenbergMarquardt``.

    Args:
        solver: the solver. Its objective is the weighted mean square of the residual terms.
    """

    def __init__(self, solver: LeastSquaresSolver) -> None:
        self.solver = solver

    def init(self, params: Any) -> Any:
        """State of the solver."""
        return self.solver.init(params)

    def check(self, objective: Objective) -> None:
        """Raise ``ValueError`` if there are no residual terms, or the objective is tilted."""
        if objective.tilted:
            raise ValueError(
                f"{type(self.solver).__name__} minimises sums of squares, but cycles add a linear "
                "term to the objectives of coarse levels: smoothers must be Optax transformations, "
                'or the cycle must have coarse="block"'
            )
        if not objective.terms:
            raise ValueError(
                f"{type(self.solver).__name__} minimises residuals: terms must be given, for "
                "instance terms=problem.terms"
            )

    def step(
        self,
        objective: Objective,
        params: Any,
        rest: Any,
        state: Any,
        batch: tuple[Any, ...],
        key: PRNGKeyArray | None,
    ) -> tuple[Any, Any, Any, Float[Array, ""]]:
        """One step; variables that are not parameters stay as they are."""
        bind, points = objective.bind(rest, batch)
        params, state, value = self.solver.step(objective.terms, bind, params, state, points)
        return params, rest, state, value


def as_smoother(method: Any) -> Smoother:
    """A smoother from an Optax transformation, a least-squares solver, or a smoother.

    Raises:
        TypeError: if ``method`` is none of these.
    """
    if isinstance(method, optax.GradientTransformation):
        return GradientSmoother(method)
    if isinstance(method, GradientSmoother | LeastSquaresSmoother):
        return method
    if hasattr(method, "init") and hasattr(method, "step"):
        return method if hasattr(method, "check") else LeastSquaresSmoother(method)
    raise TypeError(
        "a smoother must be an optax.GradientTransformation or have init and step, got "
        f"{method!r} of type {type(method).__name__}"
    )


__all__ += ["as_smoother"]


def initial_state(smoother: Smoother, model: nnx.Module) -> Any:
    """State of a smoother for a model's parameters."""
    return jax.jit(smoother.init)(nnx.state(model, nnx.Param))
