"""Optimizers that keep their state and follow a model from level to level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from opifex.core.checks import (
    check_callable,
    check_choice,
    check_positive,
)
from opifex.training.multilevel.age_corrected_adam import scale_by_age_corrected_adam
from opifex.training.multilevel.state_transfer import (
    SecondMomentStart,
    Transition,
    leaves_by_path,
    transfer_optimizer_state,
)

OnTransition = Literal["carry", "restart"]
"""What happens to a state at a transition: it follows its parameters, or a fresh one takes its
place, with all moments, counts and schedules at their start."""

__all__ = ["MultilevelAdam", "MultilevelOptimizer", "OnTransition"]


def _params(model: nnx.Module) -> nnx.State:
    return nnx.state(model, nnx.Param)


class MultilevelOptimizer:
    """An Optax transformation with its state, able to follow a model from level to level.

    Args:
        transformation: any Optax transformation, or one per level, coarsest first. With one per
            level, all must have the same structure of state (different schedules or rates of the
            same optimizer, say) and schedules restart on every level.
        second_moment_start: see `SecondMomentStart`. States of `scale_by_age_corrected_adam` need
            no such choice and are not affected.
        on_transition: see `OnTransition`.

    Attributes:
        state: the Optax state, ``None`` before `init`.
        level: number of transitions so far.

    Raises:
        TypeError: if ``transformation`` is neither.
        ValueError: if a sequence is empty, or ``second_moment_start`` or ``on_transition`` is
            unknown.
    """

    def __init__(
        self,
        transformation: optax.GradientTransformation | Sequence[optax.GradientTransformation],
        *,
        second_moment_start: SecondMomentStart = "fresh",
        on_transition: OnTransition = "carry",
    ) -> None:
        single = isinstance(transformation, optax.GradientTransformation)
        per_level = (transformation,) if single else transformation
        if isinstance(per_level, str) or not isinstance(per_level, Sequence):
            raise TypeError(
                "transformation must be an optax.GradientTransformation or a sequence of them, "
                f"got {transformation!r}"
            )
        if len(per_level) == 0:
            raise ValueError("transformation must not be an empty sequence")
        for entry in per_level:
            if not isinstance(entry, optax.GradientTransformation):
                raise TypeError(
                    f"transformation must consist of optax.GradientTransformation, got {entry!r}"
                )
        check_choice("second_moment_start", second_moment_start, get_args(SecondMomentStart))
        check_choice("on_transition", on_transition, get_args(OnTransition))
        self._per_level = tuple(optax.with_extra_args_support(entry) for entry in per_level)
        self.restart_schedules = not single
        self.second_moment_start: SecondMomentStart = second_moment_start
        self.on_transition: OnTransition = on_transition
        self.state: optax.OptState | None = None
        self.level = 0
        self._model: nnx.Module | None = None
        self._compiled = jax.jit(self._apply, static_argnums=0)

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The transformation of the current level."""
        return self.transformation_at(self.level)

    def transformation_at(self, level: int) -> optax.GradientTransformationExtraArgs:
        """The transformation of a level; the last one serves all finer levels."""
        return self._per_level[min(level, len(self._per_level) - 1)]

    def init(self, model: nnx.Module) -> optax.OptState:
        """Start afresh for a model, on level 0; returns and keeps the Optax state.

        Raises:
            TypeError: if ``model`` is not an ``nnx.Module``.
        """
        if not isinstance(model, nnx.Module):
            raise TypeError(f"model must be an nnx.Module, got {type(model).__name__}")
        self._model = model
        self.level = 0
        self.state = self.transformation.init(_params(model))
        return self.state

    def _apply(
        self, level: int, params: Any, grads: Any, state: Any, extra: dict[str, Any]
    ) -> tuple[Any, Any]:
        updates, state = self.transformation_at(level).update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    def update(self, model: nnx.Module, grads: Any, **extra: Any) -> None:
        """Take one step, in place, like ``nnx.Optimizer.update``. Compiled once per level.

        Args:
            model: the model to change.
            grads: gradient with respect to its parameters, as ``nnx.grad`` returns it.
            **extra: extra arguments of the transformation (``value=loss``). A function among them
                (the ``value_fn`` of a line search, of the parameters' ``nnx.State``) makes this step
                run uncompiled.

        Raises:
            ValueError: if ``grads`` does not have the structure of the parameters.
        """
        if self.state is None or self._model is None:
            self.init(model)
        self._model = model
        params = _params(model)
        check_gradient(grads, params)
        apply = self._apply if any(map(callable, extra.values())) else self._compiled
        new, self.state = apply(self.level, params, grads, self.state, extra)
        nnx.update(model, new)

    def resize_state(self, new_model: nnx.Module, transition_fn: Transition) -> optax.OptState:
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
        state: optax.OptState,
        coarse_model: nnx.Module,
        fine_model: nnx.Module,
        transition_fn: Transition,
    ) -> optax.OptState:
        """A state of level ``level`` moved to the next, without touching this object."""
        if self.on_transition == "restart":
            return self.transformation_at(level + 1).init(_params(fine_model))
        return transfer_optimizer_state(
            self.transformation_at(level + 1),
            state,
            coarse_model,
            fine_model,
            transition_fn,
            second_moment_start=self.second_moment_start,
            restart_schedules=self.restart_schedules,
        )

    def restore(self, model: nnx.Module, state: optax.OptState | None, level: int) -> None:
        """Take up the state of a run that ended on ``level``; ``None`` starts a fresh one."""
        self.level = level
        self._model = model
        self.state = self.transformation.init(_params(model)) if state is None else state


def check_gradient(grads: Any, params: Any) -> None:
    """Raise unless a gradient has the structure and shapes of the parameters.

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


class MultilevelAdam(MultilevelOptimizer):
    """Adam whose moments follow their parameters, each corrected for its own age.

    On the first level it takes the steps of ``optax.adam``. At a transition carried entries go on
    as before and new ones begin with a fresh Adam of their own; see `scale_by_age_corrected_adam`.

    Args:
        learning_rate: step size, or an Optax schedule of the step count over the whole run.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        on_transition: see `OnTransition`.

    Raises:
        TypeError: if ``learning_rate`` is neither a number nor callable.
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        learning_rate: float | optax.Schedule = 1e-3,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
        *,
        on_transition: OnTransition = "carry",
    ) -> None:
        if not callable(learning_rate):
            check_positive("learning_rate", learning_rate)
        super().__init__(
            optax.chain(
                scale_by_age_corrected_adam(b1=b1, b2=b2, eps=eps),
                optax.scale_by_learning_rate(learning_rate),
            ),
            on_transition=on_transition,
        )
