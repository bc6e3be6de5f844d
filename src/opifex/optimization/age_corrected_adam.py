r"""Adam whose bias correction counts the steps of every single entry.

Adam's moments start at zero and are divided by $1 - \beta^t$, which makes up for the start (Kingma
and Ba, arXiv:1412.6980, section 3). One count $t$ serves all entries, because all are equally old.
After a transition they are not: new entries have moments of zero beside a large $t$, so nothing is
corrected any more, and their first step is $(1-\beta_1)/\sqrt{1-\beta_2} \approx 3.2$ learning rates
long. Here every entry has its own count, its *age*:

$$\hat m_i = m_i / (1 - \beta_1^{t_i}), \qquad \hat v_i = v_i / (1 - \beta_2^{t_i}).$$

Moments and ages move with the parameters from level to level and new entries start at zero in all
three, so that carried entries go on as if nothing had happened and each new one takes the first
steps of a fresh Adam. While all entries are equally old this is `optax.scale_by_adam` to rounding.

A fresh Adam is bold: its first steps have full length whatever the gradient, and those of all new
entries that feed one output agree in direction. Beside a trained network, whose loss is small, that
is a blow. With ``warm_up_steps`` the steps of an entry that was born later than the optimizer grow
linearly over that many steps of its own; entries that were there from the beginning never wait.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike

from opifex.core.checks import check_nonnegative, check_nonnegative_int, check_positive
from opifex.optimization.parameter_age import grow_older, initial_age

__all__ = ["AgeCorrectedAdamState", "scale_by_age_corrected_adam"]


class AgeCorrectedAdamState(NamedTuple):
    """Moments and ages, three trees like the parameters, and the age of the whole.

    Attributes:
        count: updates that the oldest entries have seen, a scalar int32.
        age: updates that each entry has seen, int32.
        mu: averages of the gradients (first moments).
        nu: averages of their squares (second moments).
    """

    count: Any
    age: Any
    mu: Any
    nu: Any


def _correct_bias(moments: Any, decay: ArrayLike, age: Any) -> Any:
    """Divide by the share of the average that is not its start."""
    if isinstance(decay, int | float):
        rate: Any = math.log(decay) if decay else -math.inf
    else:
        rate = jnp.log(decay)

    def correct(moment: Any, steps: Any) -> Any:
        if moment is None:  # a parameter without gradient
            return None
        # Not 1 - decay**steps: a power for every entry takes six times as long, and the difference
        # loses five of seven digits while b2**steps is near one. In bfloat16 it would even vanish.
        precise = jnp.promote_types(jnp.finfo(moment.dtype).dtype, jnp.float32)
        share = -jnp.expm1(rate * steps.astype(precise))
        return moment / share.astype(moment.dtype)

    return jax.tree.map(correct, moments, age, is_leaf=lambda leaf: leaf is None)


def _warmed_up(updates: Any, age: Any, count: Any, steps: ArrayLike) -> Any:
    """Shorten the updates of entries that are younger than the optimizer, and than ``steps``."""

    def warm(update: Any, own: Any) -> Any:
        if update is None:
            return None
        share = jnp.where(own < count, jnp.minimum(1.0, own / jnp.maximum(steps, 1)), 1.0)
        return update * share.astype(jnp.finfo(update.dtype).dtype)

    return jax.tree.map(warm, updates, age, is_leaf=lambda leaf: leaf is None)


def _check_decay(name: str, value: Any) -> None:
    # An injected hyperparameter arrives as an array, perhaps one without a value yet.
    if not isinstance(value, jax.Array) and not 0 <= check_nonnegative(name, value) < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")


def _check_dtype(name: str, value: Any) -> Any | None:
    if value is None:
        return None
    try:
        dtype = jax.dtypes.canonicalize_dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{name} must be a floating-point type or None, got {value!r}")
    return dtype


def scale_by_age_corrected_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: Any | None = None,
    *,
    warm_up_steps: ArrayLike = 0,
) -> optax.GradientTransformation:
    """Rescale gradients as Adam does, with a bias correction for the age of every entry.

    It takes the place of `optax.scale_by_adam` in any chain; with `optax.add_decayed_weights` behind
    it, for instance, the chain is AdamW.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        eps_root: added below the root.
        mu_dtype: dtype of the first moment; by default that of the parameters.
        warm_up_steps: number of its own steps over which an entry that was born after the first step,
            at a transition, reaches its full rate. Zero is none.

    Returns:
        An Optax transformation. Its state costs as much memory as three times the parameters.

    Raises:
        TypeError: if an argument is not a number, or ``warm_up_steps`` not an integer.
        ValueError: if a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from opifex.optimization import scale_by_age_corrected_adam
        >>> adam = optax.chain(scale_by_age_corrected_adam(), optax.scale_by_learning_rate(1e-3))
        >>> params = jnp.zeros(3)
        >>> updates, state = adam.update(jnp.ones(3), adam.init(params))
        >>> state[0].age.tolist()
        [1, 1, 1]
    """
    _check_decay("b1", b1)
    _check_decay("b2", b2)
    if not isinstance(eps, jax.Array):
        check_positive("eps", eps)
    if not isinstance(eps_root, jax.Array):
        check_nonnegative("eps_root", eps_root)
    dtype = _check_dtype("mu_dtype", mu_dtype)
    injected = isinstance(warm_up_steps, jax.Array)
    if not injected:
        check_nonnegative_int("warm_up_steps", warm_up_steps)

    def init(params: Any) -> AgeCorrectedAdamState:
        return AgeCorrectedAdamState(
            count=jnp.zeros((), jnp.int32),
            age=initial_age(params),
            mu=optax.tree.zeros_like(params, dtype=dtype),
            nu=optax.tree.zeros_like(params),
        )

    def update(
        updates: Any, state: AgeCorrectedAdamState, params: Any = None
    ) -> tuple[Any, AgeCorrectedAdamState]:
        del params
        count, age = optax.safe_increment(state.count), grow_older(state.age)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        scaled = jax.tree.map(
            lambda m, v: None if m is None else m / (jnp.sqrt(v + eps_root) + eps),
            _correct_bias(mu, b1, age),
            _correct_bias(nu, b2, age),
            is_leaf=lambda leaf: leaf is None,
        )
        if injected or warm_up_steps:
            scaled = _warmed_up(scaled, age, count, warm_up_steps)
        mu, nu = optax.tree.cast(mu, dtype), optax.tree.cast_like(nu, state.nu)
        return scaled, AgeCorrectedAdamState(count, age, mu, nu)

    return optax.GradientTransformation(init, update)
