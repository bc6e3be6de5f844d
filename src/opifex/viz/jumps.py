"""What a transfer does to the loss: how far it jumps, and when the jump is made up for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from opifex.core.checks import check_positive_int
from opifex.training.multilevel.history import History
from opifex.viz.style import Axes, level_colors, start_axes
from opifex.viz.visits import check_history, level_visits

__all__ = ["TransferJump", "plot_transfer_jump", "transfer_jumps"]


@dataclass(frozen=True)
class TransferJump:
    """The loss around one transition to a finer level.

    Attributes:
        from_level: level left.
        to_level: level entered.
        step: steps of the whole run before the first one on the finer level.
        before: last loss on the coarser level.
        after: first loss on the finer level.
        peak: largest loss among the first steps there. A transfer that preserves the function has
            ``after`` near ``before``, and yet the first steps may lead uphill: new parameters have
            no moments, and all that were there have others.
        regained_steps: steps on the finer level until the loss was, behind its peak, at most
            ``before`` again; zero if it never was above, ``None`` if that was not reached before the
            level changed.
        regained_work: the work units of these steps, or ``None``.
        regained_seconds: the training seconds of these steps, or ``None``.
    """

    from_level: int
    to_level: int
    step: int
    before: float
    after: float
    peak: float
    regained_steps: int | None
    regained_work: float | None
    regained_seconds: float | None

    @property
    def ratio(self) -> float:
        """First loss on the finer level over the last one on the coarser."""
        return self.after / self.before if self.before else float("inf")


def transfer_jumps(history: History, *, window: int = 1, within: int = 200) -> list[TransferJump]:
    """Loss before and after each transition to a finer level, its peak, and when that was made up for.

    A transfer that preserves the function has no jump, unless the two levels have different data:
    the losses of two grids or two sets of points differ by themselves. The loss is recorded before
    each step, so that ``before`` is one step older than the model that was transferred. Visits of
    coarser levels inside a cycle, whose objectives are others, are not transitions in this sense.

    Args:
        history: the record of a run.
        window: compare medians of so many losses instead of single ones, against the noise of
            mini-batches.
        within: look for the peak among so many steps behind the transition.

    Returns:
        One entry for each transition, in order; empty for a run on one level.
        ``comparison_table([asdict(jump) for jump in jumps])`` shows them as a table.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the history holds no step, or a number is not positive.

    Example:
        >>> import numpy as np
        >>> from opifex.training.multilevel import History
        >>> from opifex.viz import transfer_jumps
        >>> history = History()
        >>> history.record_steps(0, np.array([4.0, 1.0]), seconds=0.2, operations=1.0)
        >>> history.record_steps(1, np.array([2.0, 1.5, 0.9]), seconds=0.3, operations=4.0)
        >>> (jump,) = transfer_jumps(history)
        >>> jump.before, jump.after, jump.regained_steps
        (1.0, 2.0, 2)
    """
    visits = level_visits(check_history("history", history))
    check_positive_int("window", window)
    check_positive_int("within", within)
    columns = history.table()
    losses, own = columns["loss"], columns["objective"] == "own"
    work, seconds = (np.concatenate([[0.0], columns[name]]) for name in ("work", "seconds"))
    jumps = []
    for coarse, fine in itertools.pairwise(visits):
        if coarse.level >= fine.level or not (own[coarse.first] and own[fine.first]):
            continue
        before = float(np.median(losses[coarse.first : coarse.last][-window:]))
        later = _moving_median(losses[fine.first : fine.last], window)
        peak = float(np.max(later[:within]))
        top = int(np.argmax(later[:within])) if peak > before else 0
        low = np.flatnonzero(later[top:] <= before)
        steps = top + int(low[0]) if len(low) else None
        row = fine.first + (steps or 0)
        jumps.append(
            TransferJump(
                coarse.level,
                fine.level,
                fine.first,
                before,
                float(later[0]),
                peak,
                steps,
                None if steps is None else float(work[row] - work[fine.first]),
                None if steps is None else float(seconds[row] - seconds[fine.first]),
            )
        )
    return jumps


def _moving_median(values: np.ndarray, window: int) -> np.ndarray:
    """Medians of each value and those behind it, ``window`` in all; as many as there are at the end."""
    width = min(window, len(values))
    return np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=-1)


def plot_transfer_jump(
    history: History,
    *,
    steps: int = 100,
    window: int = 1,
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss around each transition to a finer level, relative to the last loss before it.

    A jump of one is none: the transfer kept the function. A peak behind it is the work of the first
    steps. One curve per transition; a dot shows where the loss was back at what it was before.

    Args:
        history: the record of a run.
        steps: how many steps to show before and after each transition; the peak is looked for there.
        window: compare medians of so many losses, see `transfer_jumps`; the curves show all losses.
        ax: axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if an argument has the wrong type.
        ValueError: if the history holds no transition to a finer level, or a number is not positive.
    """
    check_positive_int("steps", steps)
    jumps = transfer_jumps(history, window=window, within=steps)
    if not jumps:
        raise ValueError("history must hold a transition to a finer level, got none")
    losses = history.losses
    visits = {visit.first: visit for visit in level_visits(history)}
    previous = {visit.last: visit for visit in level_visits(history)}
    ax = start_axes(ax)
    ax.axhline(1.0, color="0.6", linewidth=0.8, zorder=1)
    ax.axvline(0.0, color="0.6", linewidth=0.8, zorder=1)
    for jump, color in zip(jumps, level_colors(len(jumps)), strict=True):
        first = max(previous[jump.step].first, jump.step - steps)
        last = min(visits[jump.step].last, jump.step + steps + 1)
        rows = np.arange(first, last)
        relative = losses[rows] / jump.before
        if jump.peak <= jump.before:
            end = "no peak"
        else:
            end = f"peak {jump.peak / jump.before:.3g}, "
            if jump.regained_steps is None:
                end += "not regained"
            else:
                end += f"regained after {jump.regained_steps} steps"
        text = f"level {jump.from_level} to {jump.to_level}: jump {jump.ratio:.3g}, {end}"
        ax.plot(rows - jump.step, relative, color=color, linewidth=1.4, label=text)
        if jump.regained_steps is not None and jump.regained_steps <= steps:
            at = jump.step + jump.regained_steps
            ax.plot([jump.regained_steps], [losses[at] / jump.before], marker="o", color=color)
    if np.all(losses > 0):
        ax.set_yscale("log")
    ax.set_xlabel("steps since the transfer")
    ax.set_ylabel("loss / last loss before the transfer")
    ax.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax
