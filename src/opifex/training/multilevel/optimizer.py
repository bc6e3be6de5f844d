"""Optimizers that keep their state and follow a model from level to level."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from opifex.core.checks import (
    check_callable,
    check_choice,
    check_nonnegative_int,
    check_positive,
)
from opifex.optimization import (
    scale_by_age_corrected_adam,
    scale_by_width,
    set_width_factors,
    width_factors,
)
from opifex.training.multilevel.transfer import (
    NotAffineError,
    SecondMomentStart,
    Transfer,
    leaves_by_path,
    parameter_path,
    rate_ratios,
    same_method,
    transfer_optimizer_state,
)
from opifex.training.objective import conjugate_gradient
from opifex.training.smoother import GradientSmoother, Smoother, as_smoother, initial_state

OnTransition = Literal["carry", "restart"]
"""What happens to a state at a transition: it follows its parameters, or a fresh one takes its
place, with all moments, counts and schedules at their start."""

__all__ = ["MultilevelAdam", "MultilevelOptimizer", "OnTransition"]


def _params(model: nnx.Module) -> nnx.State:
    return nnx.state(model, nnx.Param)


def _apply(smoother: GradientSmoother, grads: Any, params: Any, state: Any, extra: Any) -> Any:
    return smoother.apply(conjugate_gradient(grads), params, state, **extra)


_compiled_apply = jax.jit(_apply, static_argnums=0)


class MultilevelOptimizer:
    """A method of minimisation with its state, able to follow a model from level to level.

    A trainer owns its optimizer: the state changes with every step of the trainer, and one object
    cannot serve two trainers.

    Args:
        transformation: any Optax transformation, or a least-squares solver such as
            `LevenbergMarquardt`; or one of these per level, coarsest first. With one per level
            schedules restart on every level, and where neighbours are different methods the finer
            one starts with a fresh state.
        second_moment_start: see `SecondMomentStart`. States of `scale_by_age_corrected_adam` need
            no such choice and are not affected.
        on_transition: see `OnTransition`.

    Attributes:
        state: the state, ``None`` before `init`.
        level: number of transitions so far.

    Raises:
        TypeError: if ``transformation`` is none of these.
        ValueError: if a sequence is empty, or ``second_moment_start`` or ``on_transition`` is
            unknown.

    Example:
        >>> import optax
        >>> from opifex.training.multilevel import MultilevelOptimizer
        >>> optimizer = MultilevelOptimizer(optax.chain(optax.clip(1.0), optax.sgd(0.1)))
        >>> optimizer.level
        0
    """

    def __init__(
        self,
        transformation: Any,
        *,
        second_moment_start: SecondMomentStart = "fresh",
        on_transition: OnTransition = "carry",
    ) -> None:
        # A transformation is a named tuple, and so a sequence too; a name is one mistake, not many.
        sequence = isinstance(transformation, Sequence) and not isinstance(transformation, str)
        single = hasattr(transformation, "init") or not sequence
        per_level = (transformation,) if single else tuple(transformation)
        if len(per_level) == 0:
            raise ValueError("transformation must not be an empty sequence")
        check_choice("second_moment_start", second_moment_start, get_args(SecondMomentStart))
        check_choice("on_transition", on_transition, get_args(OnTransition))
        self._per_level = tuple(as_smoother(method) for method in per_level)
        self.restart_schedules = not single
        self.second_moment_start: SecondMomentStart = second_moment_start
        self.on_transition: OnTransition = on_transition
        self.state: Any = None
        self.level = 0
        self._model: nnx.Module | None = None
        self._owned = False

    @property
    def num_methods(self) -> int | None:
        """Number of levels that have a method of their own; ``None`` if one serves all."""
        return len(self._per_level) if self.restart_schedules else None

    def smoother_at(self, level: int) -> Smoother:
        """The method of a level; the last one serves all finer levels."""
        return self._per_level[min(level, len(self._per_level) - 1)]

    def claim(self) -> None:
        """Become part of a trainer.

        Raises:
            ValueError: if this object already belongs to one.
        """
        if self._owned:
            raise ValueError(
                "optimizer already belongs to another trainer, whose state it holds; give each "
                f"trainer its own, for instance a new {type(self).__name__}(...)"
            )
        self._owned = True

    def init(self, model: nnx.Module) -> Any:
        """Start afresh for a model, on level 0; returns and keeps the state.

        Raises:
            TypeError: if ``model`` is not an ``nnx.Module``.
        """
        if not isinstance(model, nnx.Module):
            raise TypeError(f"model must be an nnx.Module, got {type(model).__name__}")
        self._model = model
        self.level = 0
        self.state = initial_state(self.smoother_at(0), _params(model))
        return self.state

    def update(self, model: nnx.Module, grads: Any, **extra: Any) -> None:
        """Take one step, in place, like ``nnx.Optimizer.update``. Compiled once per level.

        Args:
            model: the model to change.
            grads: gradient with respect to its parameters, as ``nnx.grad`` returns it.
            **extra: extra arguments of the transformation (``value=loss``). A function among them
                (the ``value_fn`` of a line search, of the parameters' ``nnx.State``) makes this step
                run uncompiled.

        Raises:
            TypeError: if the level's method is a least-squares solver, which needs residuals.
            ValueError: if ``grads`` does not have the structure of the parameters.
        """
        if self.state is None or self._model is None:
            self.init(model)
        smoother = self.smoother_at(self.level)
        if not isinstance(smoother, GradientSmoother):
            raise TypeError(
                f"the method of level {self.level} needs residuals and cannot step with a gradient: "
                "use fit"
            )
        self._model = model
        params = _params(model)
        check_gradient(grads, params)
        apply = _apply if any(map(callable, extra.values())) else _compiled_apply
        new, self.state = apply(smoother, grads, params, self.state, extra)
        nnx.update(model, new)

    def resize_state(self, new_model: nnx.Module, transition_fn: Transfer) -> Any:
        """Move the state to the next level's model.

        Args:
            new_model: model of the next level, already holding its starting values.
            transition_fn: ``transition_fn(coarse_model, fine_model) -> fine_model``, the transfer
                that moved the parameters.

        Returns:
            The moved state, which is kept as well.

        Raises:
            TypeError: if an argument has the wrong type.
            RuntimeError: if there is no state yet.
        """
        if not isinstance(new_model, nnx.Module):
            raise TypeError(f"new_model must be an nnx.Module, got {type(new_model).__name__}")
        check_callable("transition_fn", transition_fn)
        if self.state is None or self._model is None:
            raise RuntimeError("resize_state needs a state: call init(model) first")
        self.state = self.moved_state(self.level, self.state, self._model, new_model, transition_fn)
        self.level += 1
        self._model = new_model
        return self.state

    def moved_state(
        self,
        level: int,
        state: Any,
        coarse_model: nnx.Module,
        fine_model: nnx.Module,
        transition_fn: Transfer,
    ) -> Any:
        """A state of level ``level`` moved to the next, without touching this object.

        Args:
            level: the level that the state comes from; 0 is the coarsest.
            state: the state there.
            coarse_model: model of that level.
            fine_model: model of the next level, already holding its starting values.
            transition_fn: the transfer that moved the parameters.

        Returns:
            The state for ``fine_model``.

        Warns:
            UserWarning: if the transfer is not linear in the coarse parameters: moments cannot
                follow it, so that the finer level starts with a fresh state.
        """
        moved = self._carried_state(level, state, coarse_model, fine_model, transition_fn)
        return _with_rates(moved, state, coarse_model, fine_model)

    def _carried_state(
        self,
        level: int,
        state: Any,
        coarse_model: nnx.Module,
        fine_model: nnx.Module,
        transition_fn: Transfer,
    ) -> Any:
        smoother, params = self.smoother_at(level + 1), _params(fine_model)
        if (
            self.on_transition == "restart"
            or getattr(transition_fn, "changes_structure", False)
            or not same_method(state, jax.eval_shape(smoother.init, params))
        ):
            return initial_state(smoother, params)
        try:
            return transfer_optimizer_state(
                smoother,
                state,
                coarse_model,
                fine_model,
                transition_fn,
                second_moment_start=self.second_moment_start,
                restart_schedules=self.restart_schedules,
            )
        except NotAffineError as error:
            warnings.warn(
                f"the optimizer starts afresh on level {level + 1}: {error}", stacklevel=3
            )
            return initial_state(smoother, params)

    def restore(self, model: nnx.Module, state: Any, level: int) -> None:
        """Take up the state of a run.

        Args:
            model: model of the level on which it ended.
            state: its state there; ``None`` starts a fresh one.
            level: the level.
        """
        self.level = level
        self._model = model
        fresh = state is None
        self.state = initial_state(self.smoother_at(level), _params(model)) if fresh else state


def _with_rates(
    state: Any, coarse_state: Any, coarse_model: nnx.Module, fine_model: nnx.Module
) -> Any:
    """A fine state with the factors of `scale_by_width`: the coarse ones, changed by the growth.

    They are set whatever else was carried, since a level that starts afresh is as wide as another.
    """
    before = {parameter_path(path): float(x) for path, x in width_factors(coarse_state).items()}
    if not before or not width_factors(state):
        return state
    ratios = rate_ratios(coarse_model, fine_model)

    def factor(path: Any) -> float:
        name = parameter_path(path)
        return before.get(name, 1.0) * ratios.get(name, 1.0)

    return set_width_factors(state, factor)


def check_gradient(grads: Any, params: Any) -> None:
    """Raise unless a gradient has the structure and shapes of the parameters.

    Args:
        grads: the gradient.
        params: the parameters.

    Raises:
        ValueError: naming the first difference.
    """
    given, wanted = leaves_by_path(grads), leaves_by_path(params)
    for path, leaf in wanted.items():
        if path not in given:
            raise ValueError(f"grads lacks the parameter {jax.tree_util.keystr(path)}")
        if jnp.shape(given[path]) != leaf.shape:
            raise ValueError(
                f"grads{jax.tree_util.keystr(path)} has shape {jnp.shape(given[path])}, the "
                f"parameter has {leaf.shape}"
            )
    surplus = [path for path in given if path not in wanted]
    if surplus:
        raise ValueError(f"grads has an unknown entry {jax.tree_util.keystr(surplus[0])}")


@lru_cache(maxsize=64)
def _adam(
    learning_rate: Any, b1: float, b2: float, eps: float, width_scaling: bool, warm_up_steps: int
) -> Smoother:
    """One object for equal settings, so that a second trainer finds its programs compiled."""
    return as_smoother(
        optax.chain(
            scale_by_age_corrected_adam(b1=b1, b2=b2, eps=eps, warm_up_steps=warm_up_steps),
            optax.scale_by_learning_rate(learning_rate),
            *([scale_by_width()] if width_scaling else []),
        )
    )


class MultilevelAdam(MultilevelOptimizer):
    """Adam whose moments follow their parameters, each corrected for its own age.

    On the first level it takes the steps of ``optax.adam``. At a transition carried entries go on
    as before and new ones begin with a fresh Adam of their own; see `scale_by_age_corrected_adam`.
    ``MultilevelAdam(rate, width_scaling=True, warm_up_steps=200)`` serves all levels with one rate and
    has no peak in the loss after a transition, or a small one.

    Args:
        learning_rate: step size, on the first level if ``width_scaling``; or an Optax schedule of the
            step count over the whole run.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        width_scaling: let the rates of kernels fall as one over their fan-in, beginning with one on
            the first level (`scale_by_width`), so that the rate that is right there is about right on
            all others.
        warm_up_steps: number of their own steps over which new entries reach their rate, so that they
            do not undo at once what the transfer has kept; zero is at once. Fewer than 200 where a
            level takes only a few hundred.
        on_transition: see `OnTransition`. After a restart nothing is carried, and nothing warms up.

    Raises:
        TypeError: if ``learning_rate`` is neither a number nor callable, ``width_scaling`` is not a
            bool, or ``warm_up_steps`` is not an integer.
        ValueError: if a number is out of range.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import (
        ...     MultilevelAdam, create_network_hierarchy, prolongate
        ... )
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> optimizer = MultilevelAdam(learning_rate=1e-3)
        >>> state = optimizer.init(coarse)
        >>> state = optimizer.resize_state(prolongate(coarse, fine), prolongate)
        >>> optimizer.level
        1
    """

    def __init__(
        self,
        learning_rate: float | optax.Schedule = 1e-3,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
        *,
        width_scaling: bool = False,
        warm_up_steps: int = 0,
        on_transition: OnTransition = "carry",
    ) -> None:
        if not callable(learning_rate):
            check_positive("learning_rate", learning_rate)
        if not isinstance(width_scaling, bool):
            raise TypeError(f"width_scaling must be a bool, got {width_scaling!r}")
        check_nonnegative_int("warm_up_steps", warm_up_steps)
        super().__init__(
            _adam(learning_rate, b1, b2, eps, width_scaling, warm_up_steps),
            on_transition=on_transition,
        )
