"""What a user's function measures of a model: checked, compiled, by name."""

from __future__ import annotations

import inspect
from typing import Any

import jax.numpy as jnp

from opifex.core.checks import check_callable
from opifex.training.multilevel.monitor import Metrics
from opifex.training.objective import Objective, hashable, kept_program

__all__ = ["check_evaluate", "metric_name", "metric_values"]


def check_evaluate(evaluate: Any) -> None:
    """Raise ``TypeError`` unless a function can be called with a model alone.

    Args:
        evaluate: what was given as the metric.
    """
    check_callable("evaluate", evaluate)
    try:
        signature = inspect.signature(evaluate)
    except (TypeError, ValueError):  # builtins without a signature
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"evaluate must take the model alone, it takes {signature}: {error}"
        ) from error


def metric_name(evaluate: Metrics) -> str:
    """The name of what a function measures: its own, or ``"metric"`` where it has none.

    Args:
        evaluate: the function; a ``lambda`` and an object that can be called have no name.
    """
    name = getattr(evaluate, "__name__", "")
    return name if isinstance(name, str) and name.isidentifier() else "metric"


def _measured(evaluate: Metrics, objective: Objective, params: Any) -> Any:
    return evaluate(objective.model(params))


def metric_values(evaluate: Metrics, objective: Objective, params: Any) -> dict[str, float]:
    """The metrics of a model, by name.

    Args:
        evaluate: ``evaluate(model)``: a scalar, or a dictionary of scalars.
        objective: knows the model, with all its other variables.
        params: parameters of the model.

    Raises:
        TypeError: if a value is ``None``.
        ValueError: if a value is no scalar.
    """
    found = kept_program(_measured, objective.structure, hashable(evaluate))(objective, params)
    named = found if isinstance(found, dict) else {metric_name(evaluate): found}
    for name, value in named.items():
        if value is None:
            raise TypeError(
                f"evaluate must return a scalar or a dictionary of scalars, got None for {name!r}"
            )
        if jnp.ndim(value) != 0:
            raise ValueError(
                f"evaluate must return a scalar or a dictionary of scalars, got shape "
                f"{jnp.shape(value)} for {name!r}"
            )
    return {name: float(value) for name, value in named.items()}
