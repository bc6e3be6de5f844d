"""Where the time of a run went, in the order in which it went there."""

from __future__ import annotations

import numpy as np

from opifex.training.multilevel.history import History
from opifex.viz.style import PALETTE, Axes, level_colors, start_axes
from opifex.viz.visits import check_history

__all__ = ["plot_timeline"]

# All accounts of a history, in the order of the rows from above.
_ACCOUNTS = (
    "training",
    "compilation",
    "transfer",
    "resampling",
    "reading",
    "balancing",
    "evaluation",
    "other",
)
# Bars of less than a pixel would vanish: each has at least this share of the time line.
_THINNEST = 0.0015


def plot_timeline(history: History, *, ax: Axes | None = None) -> Axes:
    """Draw what a run was doing when: training, compiling, transferring, evaluating.

    One row per account of the history, with its seconds and its share of the whole beside it; accounts
    that were never charged have no row. Training has the colour of the level. Time between calls of
    ``fit`` is left out.

    Compilation shows what a run *waited* for: what is compiled ahead, while an earlier level trains,
    costs no time of its own.

    Args:
        history: the record of a run.
        ax: axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if ``history`` is not a `History`.
        ValueError: if it holds no step, or was not timed, as one that was recorded by hand.
    """
    check_history("history", history)
    intervals = history.stopwatch.intervals
    if not intervals:
        raise ValueError("history must be timed, as those of fit are, got one without intervals")
    spent: dict[str, float] = {}
    for account, start, end in intervals:
        spent[account] = spent.get(account, 0.0) + end - start
    rows = [name for name in _ACCOUNTS if name in spent]
    rows += [name for name in spent if name not in _ACCOUNTS]
    total = intervals[-1].end
    levels = _training_levels(history)
    colors = level_colors(int(history.table()["level"].max()) + 1)
    ax = start_axes(ax)
    for row, name in enumerate(rows):
        height = row - 0.35, 0.7
        bars = [
            (i.start, max(i.end - i.start, _THINNEST * total))
            for i in intervals
            if i.account == name
        ]
        if name != "training":
            ax.broken_barh(bars, height, facecolors=PALETTE[1], linewidth=0.3, gid=name)
            continue
        for level in sorted(set(levels)):
            ours = [bar for bar, its in zip(bars, levels, strict=True) if its == level]
            ax.broken_barh(
                ours,
                height,
                facecolors=[colors[level]],
                linewidth=0.3,
                label=f"level {level}",
                gid=name,
            )
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, total)
    ax.set_xlabel("seconds of the run")
    ax.tick_params(axis="y", length=0)
    for row, name in enumerate(rows):
        ax.annotate(
            f"{spent[name]:.3g} s, {100 * spent[name] / total:.0f} %",
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    if "training" in rows:
        ax.legend(title="training", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6)
    return ax


def _training_levels(history: History) -> list[int]:
    """The level of each interval of training, by the training seconds spent until its middle."""
    columns = history.table()
    middles, trained = [], 0.0
    for account, start, end in history.stopwatch.intervals:
        if account == "training":
            middles.append(trained + (end - start) / 2)
            trained += end - start
    index = np.searchsorted(columns["seconds"], middles)
    return [int(level) for level in columns["level"][np.minimum(index, history.num_steps - 1)]]
