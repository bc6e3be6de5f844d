"""Adam first, then L-BFGS with a line search, as one Optax transformation.

Adam makes progress on losses that are far from quadratic and needs no line search; once it stops
doing so, L-BFGS converges faster. The switch happens once, by a rule that uses the losses and
gradients so far, inside compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from opifex.core.checks import (
    check_callable,
    check_choice,
    check_nonnegative_int,
    check_positive,
    check_positive_int,
)

__all__ = ["HybridOptimizer", "HybridOptimizerConfig", "HybridOptimizerState"]

CRITERIA = ("loss-variance", "gradient-norm", "relative-improvement", "step")


@dataclass(frozen=True)
class HybridOptimizerConfig:
    r"""When to switch, and settings of the two methods.

    The loss criteria use the last ``window`` losses $l_1, \dots, l_w$ and are scale-free:

    - ``"loss-variance"``: switch when their variance is below ``variance_tolerance`` times their
      squared mean, which means that the loss has become flat or oscillates only weakly;
    - ``"relative-improvement"``: switch when the mean of the newer half is not lower than that of
      the older half by at least ``improvement_tolerance`` times the latter;
    - ``"gradient-norm"``: switch when the Euclidean norm of the gradient is below
      ``gradient_tolerance``;
    - ``"step"``: switch after ``switch_step`` steps of Adam.

    Attributes:
        learning_rate: of Adam; a number or an Optax schedule.
        criterion: ``"loss-variance"``, ``"relative-improvement"``, ``"gradient-norm"`` or ``"step"``.
        window: number of losses that the loss criteria use; they never switch before.
        variance_tolerance: variance of the losses, relative to their squared mean, below which
            ``"loss-variance"`` switches.
        improvement_tolerance: relative improvement below which ``"relative-improvement"`` switches.
        gradient_tolerance: Euclidean norm of the gradient below which ``"gradient-norm"`` switches.
        switch_step: number of steps of Adam after which ``"step"`` switches.
        min_adam_steps: no criterion but ``"step"`` switches before this many steps.
        max_adam_steps: switch after this many steps in any case; ``None`` for no such limit.
        memory_size: pairs of differences that L-BFGS keeps.
        max_line_search_steps: evaluations of the loss and its gradient per line search, at most.

    Raises:
        ValueError: if a number is out of range or ``criterion`` is unknown.
        TypeError: if a setting has the wrong type.
    """

    learning_rate: float | Callable[[Array], Array] = 1e-3
    criterion: str = "loss-variance"
    window: int = 50
    variance_tolerance: float = 1e-4
    improvement_tolerance: float = 1e-2
    gradient_tolerance: float = 1e-4
    switch_step: int = 1000
    min_adam_steps: int = 0
    max_adam_steps: int | None = None
    memory_size: int = 10
    max_line_search_steps: int = 20

    def __post_init__(self) -> None:
        if callable(self.learning_rate):
            check_callable("learning_rate", self.learning_rate)
        else:
            check_positive("learning_rate", self.learning_rate)
        check_choice("criterion", self.criterion, CRITERIA)
        if check_positive_int("window", self.window) < 2:
            raise ValueError(f"window must be at least 2, got {self.window!r}")
        check_positive("variance_tolerance", self.variance_tolerance)
        check_positive("improvement_tolerance", self.improvement_tolerance)
        check_positive("gradient_tolerance", self.gradient_tolerance)
        check_nonnegative_int("switch_step", self.switch_step)
        check_nonnegative_int("min_adam_steps", self.min_adam_steps)
        if self.max_adam_steps is not None:
            check_nonnegative_int("max_adam_steps", self.max_adam_steps)
            if self.max_adam_steps < self.min_adam_steps:
                raise ValueError(
                    f"max_adam_steps must be at least min_adam_steps={self.min_adam_steps}, "
                    f"got {self.max_adam_steps}"
                )
        check_positive_int("memory_size", self.memory_size)
        check_positive_int("max_line_search_steps", self.max_line_search_steps)

    @property
    def needs_loss(self) -> bool:
        """Whether the criterion uses losses."""
        return self.criterion in ("loss-variance", "relative-improvement")


class HybridOptimizerState(NamedTuple):
    """State of both methods, and what decides the switch.

    Attributes:
        adam: state of Adam.
        lbfgs: state of L-BFGS and its line search; its initial value until the switch.
        step: number of updates so far.
        losses: the last losses, shape (window,), oldest first; infinite where there is none yet.
        switched: whether the switch to L-BFGS has happened.
        switch_step: steps taken by Adam: grows until the switch.
    """

    adam: optax.OptState
    lbfgs: optax.OptState
    step: Int[Array, ""]
    losses: Float[Array, " window"]
    switched: Bool[Array, ""]
    switch_step: Int[Array, ""]


def _criterion_met(
    config: HybridOptimizerConfig, losses: Float[Array, " window"], grads: Any, step: Array
) -> Bool[Array, ""]:
    if config.criterion == "step":
        return step >= config.switch_step
    if config.criterion == "gradient-norm":
        met = optax.tree.norm(grads) < config.gradient_tolerance
    else:
        # Until the window is full it holds infinities, and no comparison below is true.
        full = jnp.all(jnp.isfinite(losses))
        seen = jnp.where(full, losses, 1.0)
        if config.criterion == "loss-variance":
            met = full & (jnp.var(seen) < config.variance_tolerance * jnp.mean(seen) ** 2)
        else:
            half = config.window // 2
            older, newer = jnp.mean(seen[:half]), jnp.mean(seen[-half:])
            met = full & (older - newer < config.improvement_tolerance * jnp.abs(older))
    return met & (step >= config.min_adam_steps)


class HybridOptimizer(optax.GradientTransformationExtraArgs):
    """Adam, then L-BFGS with Optax's zoom line search: an ordinary Optax transformation.

    ``update(grads, state, params, value=..., grad=..., value_fn=...)`` takes the extra arguments of
    `optax.lbfgs`: the loss at ``params``, the gradient there (``grads`` if left out), and the loss
    as a function of the parameters alone. The step at which a criterion is met is already one of
    L-BFGS.

    Compiled code contains both phases, so ``value_fn`` is needed there from the start. Outside
    ``jit`` it may be left out as long as Adam is at work; the loss criteria then need ``value``.

    Args:
        config: settings; ``None`` for the defaults.

    Raises:
        TypeError: if ``config`` is not a `HybridOptimizerConfig`.
        ValueError: by ``update``, if an extra argument that the phase or the criterion needs is
            missing.
    """

    def __new__(cls, config: HybridOptimizerConfig | None = None) -> Self:
        """Build the pair of functions of the transformation."""
        settings = HybridOptimizerConfig() if config is None else config
        if not isinstance(settings, HybridOptimizerConfig):
            raise TypeError(f"config must be a HybridOptimizerConfig, got {settings!r}")
        adam = optax.with_extra_args_support(optax.adam(settings.learning_rate))
        lbfgs = optax.lbfgs(
            memory_size=settings.memory_size,
            linesearch=optax.scale_by_zoom_linesearch(
                max_linesearch_steps=settings.max_line_search_steps,
                initial_guess_strategy="one",
            ),
        )

        def init(params: Any) -> HybridOptimizerState:
            leaves = jax.tree.leaves(params)
            dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
            return HybridOptimizerState(
                adam.init(params),
                lbfgs.init(params),
                jnp.zeros((), jnp.int32),
                jnp.full((settings.window,), jnp.inf, dtype),
                jnp.zeros((), bool),
                jnp.zeros((), jnp.int32),
            )

        def update(
            grads: Any,
            state: HybridOptimizerState,
            params: Any = None,
            *,
            value: Array | None = None,
            grad: Any = None,
            value_fn: Callable[[Any], Array] | None = None,
            **extra_args: Any,
        ) -> tuple[Any, HybridOptimizerState]:
            del extra_args
            grad = grads if grad is None else grad
            if value is None and value_fn is not None and params is not None:
                value = value_fn(params)
            if settings.needs_loss and value is None:
                raise ValueError(
                    f"value must be given: the criterion {settings.criterion!r} looks at the loss"
                )
            losses = state.losses
            if value is not None:
                newest = jnp.asarray(value, losses.dtype)
                losses = jnp.concatenate([losses[1:], newest[None]])
            switched = state.switched | _criterion_met(settings, losses, grad, state.step)
            if settings.max_adam_steps is not None:
                switched |= state.step >= settings.max_adam_steps

            def adam_step() -> tuple[Any, Any, Any]:
                updates, new = adam.update(grads, state.adam, params)
                return updates, new, state.lbfgs

            def lbfgs_step() -> tuple[Any, Any, Any]:
                updates, new = lbfgs.update(
                    grads, state.lbfgs, params, value=value, grad=grad, value_fn=value_fn
                )
                return updates, state.adam, new

            if value_fn is not None and params is not None:
                updates, adam_state, lbfgs_state = jax.lax.cond(switched, lbfgs_step, adam_step)
            elif isinstance(switched, jax.core.Tracer):
                raise ValueError(
                    "value_fn and params must be given: compiled code contains the L-BFGS phase, "
                    "whose line search evaluates the loss"
                )
            elif bool(switched):
                raise ValueError(
                    "value_fn and params must be given: L-BFGS is at work, and its line search "
                    "evaluates the loss"
                )
            else:
                updates, adam_state, lbfgs_state = adam_step()
            new_state = HybridOptimizerState(
                adam_state,
                lbfgs_state,
                state.step + 1,
                losses,
                switched,
                jnp.where(switched, state.switch_step, state.switch_step + 1),
            )
            return updates, new_state

        return super().__new__(cls, init, update)
