"""Smoothers: what improves one level, step by step. The compiled loop runs any of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from opifex.core.checks import check_positive
from opifex.core.residuals import ResidualTerm
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
)
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.optimization.second_order.least_squares_method import LeastSquaresMethod
from opifex.optimization.second_order.memory import ProblemSize, available_bytes, check_memory
from opifex.training.objective import Objective, hashable, plain
from opifex.training.precision import is_low

__all__ = [
    "DampedSmoother",
    "GradientSmoother",
    "LeastSquaresSmoother",
    "LeastSquaresSolver",
    "PassingSmoother",
    "Smoother",
    "as_smoother",
    "initial_state",
    "moves_nothing",
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

    def check(self, objective: Objective, params: Any) -> None:
        """Raise if the method cannot work here; called before anything is compiled.

        Args:
            objective: what is to be minimised, with all leaves but the random key; arrays or their
                shapes. Its data are those of one step.
            params: trainable parameters of the level, or their shapes.

        Raises:
            ValueError: if the objective lacks what the method needs.
            MemoryError: if a step would not fit into the memory of the device.
        """
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

    def check(self, objective: Objective, params: Any) -> None:
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


@dataclass(frozen=True)
class DampedSmoother:
    """A smoother that goes a part of each of another one's steps, whose state it has.

    Attributes:
        smoother: the other one.
        factor: the part.
    """

    smoother: Smoother
    factor: float

    def init(self, params: Any) -> Any:
        """State of the other smoother."""
        return self.smoother.init(params)

    def check(self, objective: Objective, params: Any) -> None:
        """It works where the other one does."""
        self.smoother.check(objective, params)

    def step(
        self, objective: Objective, params: Any, state: Any
    ) -> tuple[Any, Any, Float[Array, ""], Any]:
        """A part of the step; see `Smoother.step`."""
        new, state, value, rest = self.smoother.step(objective, params, state)
        part = jax.tree.map(
            lambda a, b: a + jnp.asarray(self.factor, a.dtype) * (b - a), params, new
        )
        return part, state, value, rest


@dataclass(frozen=True)
class PassingSmoother:
    """A smoother that changes nothing, with the state of another one.

    Attributes:
        smoother: the other one.
    """

    smoother: Smoother

    def init(self, params: Any) -> Any:
        """State of the other smoother."""
        return self.smoother.init(params)

    def check(self, objective: Objective, params: Any) -> None:
        """It works everywhere."""

    def step(
        self, objective: Objective, params: Any, state: Any
    ) -> tuple[Any, Any, Float[Array, ""], Any]:
        """Nothing, with a loss of zero, which nobody has computed."""
        return params, state, jnp.zeros(()), objective.rest


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
        memory_limit: bytes that a step may take on each device, in addition to parameters, data and
            state; by default what it has, where that is known. Infinity is no limit. Solvers that have
            no ``step_memory`` are not judged.

    Raises:
        TypeError: if ``memory_limit`` is not a number.
        ValueError: if it is not positive.
    """

    solver: LeastSquaresSolver
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        if self.memory_limit is not None and self.memory_limit != math.inf:
            check_positive("memory_limit", self.memory_limit)

    def init(self, params: Any) -> Any:
        """State of the solver."""
        return self.solver.init(params)

    def check(self, objective: Objective, params: Any) -> None:
        """Raise if there are no residual terms, or shift, precision or memory do not allow a step.

        Args:
            objective: what is to be minimised; its data are those of one step.
            params: trainable parameters, or their shapes.

        Raises:
            ValueError: if there are no residual terms or points, the objective has a linear term, or
                the model is evaluated in less than single precision.
            MemoryError: if a step takes more bytes than there are.
        """
        name = type(self.solver).__name__
        if objective.shift is not None:
            raise ValueError(
                f"{name} minimises sums of squares, but a rediscretised coarse objective has a "
                'linear term: use Optax transformations, or a cycle with coarse="galerkin"'
            )
        if not objective.has_terms:
            raise ValueError(
                f"{name} minimises residuals: loss_fn must be a sequence of ResidualTerm, for "
                "instance problem.terms"
            )
        if objective.precision is not None and is_low(objective.precision):
            raise ValueError(
                f"{name} needs a Jacobian in single or double precision, got "
                f"precision={objective.precision!r}: use 'float32' or 'float64', or an Optax "
                "transformation"
            )
        limit = available_bytes() if self.memory_limit is None else self.memory_limit
        solver: Any = self.solver
        if limit is not None and hasattr(solver, "step_memory"):
            size, devices = _problem_size(objective, params), self._devices(objective)
            kept = math.ceil((size.intermediates or 0) / devices)
            size = size._replace(intermediates=kept, devices=devices)
            check_memory(solver, size, limit, _SOLVERS)

    def step(
        self, objective: Objective, params: Any, state: Any
    ) -> tuple[Any, Any, Float[Array, ""], Any]:
        """One step, see `Smoother.step`; variables that are not parameters stay as they are."""
        place, solver = objective.placement, self.solver
        if place is None or self._devices(objective) == 1:
            new = solver.step(objective.terms, objective.bind, params, state, objective.data)
            return *new, objective.rest
        step: Any = solver.step
        axes = place.data_axes

        def share(whole: Objective, points: Any, params: Any, state: Any) -> Any:
            return step(whole.terms, whole.bind, params, state, points, axes)

        # Each device works on the rows of its own points; the solver adds up what it needs of them.
        everywhere = PartitionSpec()
        shared = jax.shard_map(
            share,
            mesh=place.mesh,
            in_specs=(everywhere, place.rows_spec, everywhere, everywhere),
            out_specs=everywhere,
            check_vma=False,
        )
        return *shared(objective.at(data=()), objective.data, params, state), objective.rest

    def _devices(self, objective: Objective) -> int:
        """How many share the rows of the Jacobian."""
        place = objective.placement
        return place.devices if place and isinstance(self.solver, LeastSquaresMethod) else 1


# What is recommended where another solver does not fit, the most exact first.
_SOLVERS = (LevenbergMarquardt(), EnergyNaturalGradient(), MatrixFreeGaussNewton())


def _problem_size(objective: Objective, params: Any) -> ProblemSize:
    """How many parameters and residuals a step sees; nothing is computed."""
    leaves, structure = jax.tree.flatten((objective, params))
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _measured(structure, shapes, jnp.result_type(float))


@lru_cache(maxsize=64)
def _measured(structure: Any, shapes: tuple[Any, ...], default_dtype: Any) -> ProblemSize:
    """The size of a problem, which a run asks for more than once."""
    del default_dtype  # the computation may depend on it
    sizes = []

    def measure(objective: Objective, params: Any) -> None:
        sizes.append(FlatResiduals(objective.terms, objective.bind, params, objective.data).size)

    jax.eval_shape(measure, *jax.tree.unflatten(structure, shapes))
    return sizes[0]


def as_smoother(method: Any) -> Smoother:
    """A smoother from an Optax transformation, a least-squares solver, or a smoother.

    Args:
        method: one of these; a smoother is returned as it is.

    Raises:
        TypeError: if ``method`` is none of these.
    """
    if isinstance(method, type) and hasattr(method, "init"):
        raise TypeError(
            "transformation (optimizer) must be an object, got the class itself: write "
            f"{method.__name__}()"
        )
    if isinstance(method, optax.GradientTransformation):
        return GradientSmoother(optax.with_extra_args_support(method))
    if hasattr(method, "init") and hasattr(method, "step"):
        return method if hasattr(method, "check") else LeastSquaresSmoother(method)
    raise TypeError(
        "transformation (optimizer) must be an optax.GradientTransformation, a solver such as "
        f"LevenbergMarquardt(), or one of these per level, got {_short(method)} of type "
        f"{type(method).__name__}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:60]}..."


@lru_cache(maxsize=64)
def _init_program(smoother: Any) -> Any:
    return jax.jit(plain(smoother).init)


def initial_state(smoother: Smoother, params: Any) -> Any:
    """State of a smoother for its parameters, as one compiled program.

    Args:
        smoother: the smoother.
        params: the parameters.
    """
    return _init_program(hashable(smoother))(params)


@lru_cache(maxsize=64)
def _idle_steps_program(smoother: GradientSmoother) -> Any:
    transformation = plain(smoother).transformation

    def idle_steps(grads: Any, state: Any, params: Any, steps: Any) -> Any:
        def proceed(carry: tuple[Any, Any]) -> Any:
            taken, _ = carry
            return (taken >= 0) & (taken < steps)

        def body(carry: tuple[Any, Any]) -> tuple[Any, Any]:
            taken, state = carry
            updates, state = transformation.update(grads, state, params)
            moved = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates)]
            return jnp.where(jnp.any(jnp.stack(moved)), -1, taken + 1), state

        return jax.lax.while_loop(proceed, body, (jnp.zeros((), jnp.int32), state))[0] >= 0

    return jax.jit(idle_steps)


def moves_nothing(smoother: Smoother, params: Any, state: Any, steps: int) -> bool:
    """Whether an Optax transformation would leave all parameters as they are, whatever the gradient.

    The transformation alone takes the steps, with a gradient of ones, up to the first update that is
    not zero: a schedule that has ended at rate zero takes them all, one that warms up does not.

    Args:
        smoother: the smoother; other methods than Optax transformations always move something.
        params: the parameters.
        state: state of the smoother.
        steps: how many steps to look ahead.

    Returns:
        Whether all updates are zero. Transformations that need more than a gradient (the loss, say)
        cannot be asked, and count as moving.
    """
    if not isinstance(smoother, GradientSmoother) or not jax.tree.leaves(params):
        return False
    try:
        program = _idle_steps_program(hashable(smoother))
        return bool(program(jax.tree.map(jnp.ones_like, params), state, params, jnp.int32(steps)))
    except (TypeError, ValueError, KeyError, AttributeError):
        return False
