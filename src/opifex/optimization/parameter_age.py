r"""Learning rates that depend on the age of each single parameter entry.

After a transition a model holds entries that have been trained for a long time beside entries that
are new. `scale_by_parameter_age` gives each its own rate: it counts the updates that every entry has
seen, and multiplies its update by a schedule of that count. The counts form a tree like the
parameters, so they move from level to level as every other mirrored tree does: carried entries keep
their age, new entries start at zero. A warm-up schedule then warms up new entries only, and a
decaying one lets old entries move slowly while new ones learn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from opifex.core.checks import check_callable

__all__ = ["ParameterAgeState", "grow_older", "initial_age", "scale_by_parameter_age"]


class ParameterAgeState(NamedTuple):
    """Updates seen so far.

    Attributes:
        age: a tree like the parameters, with one int32 count per entry.
    """

    age: Any


def initial_age(params: Any) -> Any:
    """Ages of entries that have seen no update: integers, since bfloat16 cannot count beyond 256."""
    return optax.tree.zeros_like(params, dtype=jnp.int32)


def grow_older(age: Any) -> Any:
    """Ages after one more update; they stop at the largest integer."""
    return jax.tree.map(optax.safe_increment, age)


def scale_by_parameter_age(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Multiply each entry's update by a schedule of the number of updates it has seen.

    Chain it behind another transformation.

    Args:
        schedule: elementwise function of the age, an array of the shape of a parameter, to the
            factors. Optax's schedules qualify.

    Returns:
        An Optax transformation. Its state costs as much memory as the parameters.

    Raises:
        TypeError: if ``schedule`` is not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from opifex.optimization import scale_by_parameter_age
        >>> warm_up = optax.linear_schedule(0.0, 1.0, 100)
        >>> optimizer = optax.chain(optax.sgd(1.0), scale_by_parameter_age(warm_up))
        >>> updates, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
        >>> updates.tolist()  # the first update has age 0
        [-0.0, -0.0]
    """
    check_callable("schedule", schedule)

    def init(params: Any) -> ParameterAgeState:
        return ParameterAgeState(initial_age(params))

    def update(
        updates: Any, state: ParameterAgeState, params: Any = None
    ) -> tuple[Any, ParameterAgeState]:
        del params
        scaled = jax.tree.map(
            lambda update, age: update * jnp.asarray(schedule(age), update.dtype),
            updates,
            state.age,
        )
        return scaled, ParameterAgeState(grow_older(state.age))

    return optax.GradientTransformation(init, update)
