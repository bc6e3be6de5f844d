"""Figures. Matplotlib is imported when a figure is asked for, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from opifex.core.checks import check_callable, check_nonnegative_int, check_positive_int
from opifex.problems import UNIT_SQUARE, Problem
from opifex.training.multilevel.history import History

__all__ = ["plot_history", "plot_solution"]

Axes = Any
"""A ``matplotlib.axes.Axes``."""


def _new_axes(columns: int) -> list[Axes]:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "figures need Matplotlib: pip install 'opifex-multilevel[viz]'"
        ) from error
    _, axes = plt.subplots(1, columns, figsize=(5 * columns, 4), layout="constrained")
    return list(np.atleast_1d(axes))


def plot_history(
    history: History,
    *,
    metric: str | None = None,
    ax: Axes | None = None,
    label: str | None = None,
    mark_transitions: bool = True,
) -> Axes:
    """Draw the loss, or a metric, over the work spent, on a logarithmic scale.

    Args:
        history: the record of a run.
        metric: name of an evaluated metric to draw instead of the loss.
        ax: axes to draw into; new ones by default.
        label: name of the curve in a legend.
        mark_transitions: draw a vertical line where the level changes.

    Returns:
        The axes.

    Raises:
        TypeError: if ``history`` is not a `History`.
        ValueError: if it holds no step, or no evaluation of ``metric``.
    """
    if not isinstance(history, History):
        raise TypeError(f"history must be a History, got {type(history).__name__}")
    if history.num_steps == 0:
        raise ValueError("history must hold at least one step, got an empty one")
    if metric is None:
        work, values = _loss_curve(history)
    else:
        work, values = _metric_curve(history, metric)
    if ax is None:
        (ax,) = _new_axes(1)
    (line,) = ax.plot(work, values, label=label, linewidth=1.2)
    if mark_transitions:
        for transition in history.transitions:
            ax.axvline(transition.work, color=line.get_color(), linestyle="--", linewidth=0.8)
            ax.annotate(
                f"level {transition.to_level}",
                (transition.work, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                rotation=90,
                va="top",
                fontsize="small",
                color=line.get_color(),
            )
    ax.set_yscale("log")
    ax.set_xlabel("work units (steps of the finest level)")
    ax.set_ylabel("loss" if metric is None else metric)
    if label is not None:
        ax.legend()
    return ax


def _loss_curve(history: History) -> tuple[np.ndarray, np.ndarray]:
    """The loss before each step, over the work spent before it."""
    columns = history.table()
    return np.concatenate([[0.0], columns["work"][:-1]]), columns["loss"]


def _metric_curve(history: History, metric: str) -> tuple[np.ndarray, np.ndarray]:
    known = [e for e in history.evaluations if metric in e.metrics]
    if not known:
        names = sorted({name for e in history.evaluations for name in e.metrics})
        raise ValueError(f"metric must be one of the evaluated ones {names}, got {metric!r}")
    return np.array([e.work for e in known]), np.array([e.metrics[metric] for e in known])


def plot_solution(
    reference: Problem | Callable[[Any], Any],
    model: Callable[[Any], Any],
    *,
    lower: Sequence[float] | None = None,
    upper: Sequence[float] | None = None,
    resolution: int = 101,
    component: int = 0,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw a model of two coordinates, and its error, on a grid.

    Args:
        reference: a problem with an exact solution, or that solution itself: points of shape (n, 2)
            to values of shape (n,) or (n, m).
        model: the model, called in the same way.
        lower: least coordinates of the rectangle; by default those of the problem's domain, or
            zero.
        upper: largest coordinates of the rectangle; by default those of the problem's domain, or
            one.
        resolution: grid points per axis.
        component: which output to draw, where there are several.
        axes: two axes to draw into; new ones by default.

    Returns:
        The axes of the solution and of the error (model minus reference, on a symmetric scale).

    Raises:
        TypeError: if ``reference`` is neither a `Problem` nor callable, or ``model`` is not callable.
        ValueError: if the rectangle is empty or not two-dimensional, or ``axes`` are not two.
    """
    domain = reference.domain if isinstance(reference, Problem) else UNIT_SQUARE
    exact = reference.exact if isinstance(reference, Problem) else reference
    check_callable("reference", exact)
    check_callable("model", model)
    check_positive_int("resolution", resolution)
    check_nonnegative_int("component", component)
    low = np.asarray(domain.lower if lower is None else lower, float)
    high = np.asarray(domain.upper if upper is None else upper, float)
    if low.shape != (2,) or high.shape != (2,) or not np.all(low < high):
        raise ValueError(
            f"lower and upper must be two coordinates each, lower below upper, got "
            f"{low.tolist()} and {high.tolist()}"
        )
    if axes is not None and len(axes) != 2:
        raise ValueError(f"axes must be two, got {len(axes)}")
    x = np.linspace(low[0], high[0], resolution)
    y = np.linspace(low[1], high[1], resolution)
    points = jnp.stack([a.ravel() for a in jnp.meshgrid(x, y, indexing="xy")], axis=-1)
    found = _on_grid(model, points, component, resolution)
    error = found - _on_grid(exact, points, component, resolution)
    left, right = axes if axes is not None else _new_axes(2)
    largest = float(np.max(np.abs(error))) or 1.0
    panels: list[tuple[Axes, np.ndarray, str, dict[str, Any]]] = [
        (left, found, "solution", {"cmap": "viridis"}),
        (right, error, "error", {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}),
    ]
    for ax, values, title, options in panels:
        mesh = ax.pcolormesh(x, y, values, shading="gouraud", **options)
        ax.figure.colorbar(mesh, ax=ax)
        ax.set_aspect("equal")
        ax.set_title(title)
        ax.set_xlabel("x")
        ax.set_ylabel("y")
    return [left, right]


def _on_grid(
    function: Callable[[Any], Any], points: Any, component: int, resolution: int
) -> np.ndarray:
    values = np.asarray(function(points)).reshape(resolution * resolution, -1)
    if component >= values.shape[1]:
        raise ValueError(f"component must be below {values.shape[1]}, got {component}")
    return values[:, component].reshape(resolution, resolution)
