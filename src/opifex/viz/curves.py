"""Loss and metrics of runs over what was spent, with the levels behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opifex.core.checks import check_choice
from opifex.training.multilevel.history import History
from opifex.viz.style import Axes, band_color, start_axes
from opifex.viz.visits import OVER, before_steps, check_history, level_visits

__all__ = ["plot_history", "shade_levels"]

# With more visits than this the bands get a legend instead of a name each.
_NAMED_VISITS = 8
_CURVE, _CHANGE = "curve", "change of level"
# Shares of the axis that a band needs to be named "level 1", and to be named "1".
_ROOM_FOR_NAME, _ROOM_FOR_NUMBER = 0.12, 0.02


def plot_history(
    history: History | Mapping[str, History],
    *,
    metric: str | None = None,
    over: str = "work",
    ax: Axes | None = None,
    label: str | None = None,
    mark_transitions: bool = True,
) -> Axes:
    """Draw the loss, or a metric, over the work or the time spent, on a logarithmic scale.

    The levels are shaded in the background, the finer the darker. Only one run can own the
    background: the one that is drawn with its levels first. The legend says which, and in all others
    a dot marks each change of level. What coarse levels inside a cycle minimise is not the loss: the
    curve goes straight over their visits.

    Args:
        history: the record of a run; or several by name, which become the labels.
        metric: name of an evaluated metric to draw instead of the loss.
        over: ``"work"`` (work units), ``"seconds"`` (of training alone) or ``"elapsed_seconds"``
            (with compilation and transfers, without evaluations).
        ax: axes to draw into; new ones by default.
        label: name of the curve in the legend, for a single run.
        mark_transitions: show the levels.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if ``history`` is neither a `History` nor a mapping of some.
        ValueError: if it holds no step, or no evaluation of ``metric``; if ``over`` is something
            else, or ``label`` is given with several runs.

    Example:
        >>> import numpy as np
        >>> from opifex.training.multilevel import History
        >>> from opifex.viz import plot_history
        >>> history = History()
        >>> history.begin()
        >>> history.set_unit(4.0)
        >>> history.record_steps(0, np.array([3.0, 2.0]), seconds=0.1, operations=1.0)
        >>> history.record_steps(1, np.array([1.0, 0.5]), seconds=0.4, operations=4.0)
        >>> ax = plot_history({"cascade": history})
        >>> ax.get_lines()[0].get_xdata().tolist()
        [0.0, 0.25, 0.5, 1.5]
    """
    runs = _named_runs(history, label)
    check_choice("over", over, list(OVER))
    curves = [_curve(run, metric, over) for _, run in runs]  # checks, before anything is drawn
    ax = start_axes(ax)
    for (name, run), (x, y) in zip(runs, curves, strict=True):
        # A single point, such as one evaluation at the end, is no line.
        marker = "o" if len(x) == 1 else None
        (line,) = ax.plot(x, y, label=name, linewidth=1.4, marker=marker, gid=_CURVE)
        shaded = any(patch.get_gid() == "level" for patch in ax.patches)
        if not mark_transitions:
            continue
        if shaded:
            _mark_changes(ax, run, over, x, y, line.get_color())
        elif len({visit.level for visit in level_visits(run, over)}) > 1:
            shade_levels(ax, run, over=over, owner=name)
    drawn = np.concatenate(
        [np.asarray(line.get_ydata(), float) for line in ax.get_lines() if line.get_gid() == _CURVE]
    )
    # A logarithm would silently drop what is not positive.
    positive = not np.any(drawn[np.isfinite(drawn)] <= 0)
    ax.set_yscale("log" if positive else "linear")
    ax.set_xlabel(OVER[over])
    ax.set_ylabel("loss" if metric is None else metric)
    if ax.get_legend_handles_labels()[1]:
        # Losses fall, so that this corner is free; the strip above it holds the names of the levels.
        ax.legend(loc="upper right", bbox_to_anchor=(0.0, 0.0, 1.0, 0.93))
    return ax


def _named_runs(history: Any, label: str | None) -> list[tuple[str | None, History]]:
    if not isinstance(history, Mapping):
        return [(label, check_history("history", history))]
    if label is not None:
        raise ValueError(f"label must be None with several runs, which have names, got {label!r}")
    if not history:
        raise ValueError("history must hold at least one run, got an empty mapping")
    return [(str(name), check_history(f"history[{name!r}]", h)) for name, h in history.items()]


def _curve(history: History, metric: str | None, over: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss before each step, over what was spent before it; or a metric where it was evaluated."""
    if metric is None:
        own = history.table()["objective"] == "own"
        return before_steps(history, over)[:-1][own], history.losses[own]
    known = [e for e in history.evaluations if metric in e.metrics]
    if not known:
        names = sorted({name for e in history.evaluations for name in e.metrics})
        raise ValueError(f"metric must be one of the evaluated ones {names}, got {metric!r}")
    return (
        np.array([getattr(e, over) for e in known]),
        np.array([e.metrics[metric] for e in known]),
    )


def shade_levels(
    ax: Axes, history: History, *, over: str = "work", owner: str | None = None
) -> None:
    """Shade the levels of a run behind what is drawn, and name them.

    Args:
        ax: the axes.
        history: the record of a run.
        over: what the axis shows, see `plot_history`.
        owner: name of the run, which the legend then shows with the shades.

    Raises:
        TypeError: if ``history`` is not a `History`.
        ValueError: if it holds no step, or ``over`` is something else.
    """
    check_choice("over", over, list(OVER))
    visits = level_visits(check_history("history", history), over)
    length = visits[-1].end - visits[0].start
    in_legend = len(visits) > _NAMED_VISITS
    labels = _band_labels([visit.level for visit in visits], owner, in_legend)
    for visit, label in zip(visits, labels, strict=True):
        ax.axvspan(
            visit.start,
            visit.end,
            facecolor=band_color(visit.level),
            edgecolor="none",
            zorder=0,
            gid="level",
            label=label,
        )
        width = visit.end - visit.start
        if not in_legend and width >= _ROOM_FOR_NUMBER * length:
            ax.annotate(
                f"level {visit.level}" if width >= _ROOM_FOR_NAME * length else f"{visit.level}",
                ((visit.start + visit.end) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, -3),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize="small",
                color="0.3",
            )
    for visit in visits[1:]:
        ax.axvline(visit.start, color="white", linewidth=1.0, zorder=0.5, gid="border")
    ax.margins(x=0.0, y=0.1)  # bands fill the width, and their names have room


def _band_labels(levels: list[int], owner: str | None, in_legend: bool) -> list[str | None]:
    """What the legend says of each band: whose they are, or which level each is."""
    labels: list[str | None] = [None] * len(levels)
    behind = f" of {owner}" if owner else ""
    if in_legend:
        for level in sorted(set(levels)):
            labels[levels.index(level)] = f"level {level}{behind}"
    elif owner:
        labels[min(1, len(levels) - 1)] = f"levels{behind}"
    return labels


def _mark_changes(
    ax: Axes, history: History, over: str, x: np.ndarray, y: np.ndarray, color: Any
) -> None:
    """A dot where the curve enters another level."""
    starts = [visit.start for visit in level_visits(history, over)[1:]]
    if not starts:
        return
    if not any(line.get_label() == _CHANGE for line in ax.get_lines()):
        ax.plot([], [], linestyle="none", marker="o", markersize=4, color="0.4", label=_CHANGE)
    index = np.minimum(np.searchsorted(x, starts), len(x) - 1)
    ax.plot(x[index], y[index], linestyle="none", marker="o", markersize=4, color=color)
