"""Final losses against learning rates: whether one level's best rate is that of the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opifex.core.checks import check_positive_numbers
from opifex.viz.style import Axes, level_colors, start_axes

__all__ = ["plot_rate_transfer"]


def plot_rate_transfer(
    rates: Sequence[float],
    losses_by_level: Mapping[Any, Sequence[float]] | Sequence[Sequence[float]],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the final loss against the learning rate, one curve per level, with its minimum marked.

    Where a rate transfers, the minima lie above each other (Yang et al. 2021, Tensor Programs V,
    arXiv:2203.03466, figure 1). Runs that diverged (loss not finite) are crosses at the upper edge.

    Args:
        rates: the learning rates, positive.
        losses_by_level: final losses, one per rate, of each level or width: by its name, or in the
            order of the levels.
        ax: axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if an argument has the wrong type.
        ValueError: if there is no rate or no level, numbers of losses do not match, a rate is not
            positive, or all runs of a level diverged.

    Example:
        >>> from opifex.viz import plot_rate_transfer
        >>> ax = plot_rate_transfer([1e-3, 1e-2], {"width 8": [0.5, 0.1], "width 16": [0.2, 0.3]})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['width 8, best 0.01', 'width 16, best 0.001']
    """
    if isinstance(rates, np.ndarray):
        rates = rates.tolist()
    chosen = np.array(check_positive_numbers("rates", rates))
    if isinstance(losses_by_level, Mapping):
        named = [(str(name), values) for name, values in losses_by_level.items()]
    elif isinstance(losses_by_level, str) or not isinstance(losses_by_level, Sequence | np.ndarray):
        raise TypeError(
            "losses_by_level must be a mapping or a sequence of sequences, got "
            f"{type(losses_by_level).__name__}"
        )
    else:
        named = [(f"level {level}", values) for level, values in enumerate(losses_by_level)]
    if not named:
        raise ValueError("losses_by_level must hold at least one level, got none")
    curves = []
    for name, values in named:
        losses = np.asarray(values, float)
        if losses.shape != chosen.shape:
            raise ValueError(
                f"losses_by_level[{name!r}] must hold one loss per rate, {len(chosen)}, got shape "
                f"{losses.shape}"
            )
        if not np.any(np.isfinite(losses)):
            raise ValueError(f"losses_by_level[{name!r}] must hold a finite loss, got {values}")
        curves.append((name, losses))
    ax = start_axes(ax)
    order = np.argsort(chosen)
    for (name, losses), color in zip(curves, level_colors(len(curves)), strict=True):
        finite = np.isfinite(losses)
        best = int(np.nanargmin(np.where(finite, losses, np.nan)))
        sorted_losses = np.where(finite, losses, np.nan)[order]
        ax.plot(
            chosen[order],
            sorted_losses,
            color=color,
            marker=".",
            linewidth=1.4,
            label=f"{name}, best {chosen[best]:.3g}",
        )
        ax.plot(
            [chosen[best]],
            [losses[best]],
            linestyle="none",
            marker="o",
            markersize=8,
            markerfacecolor="none",
            markeredgecolor=color,
            gid="best",
        )
        diverged = chosen[~finite]
        if len(diverged):
            ax.plot(
                diverged,
                np.full(len(diverged), 0.97),
                linestyle="none",
                marker="x",
                color=color,
                transform=ax.get_xaxis_transform(),
                gid="diverged",
            )
    ax.set_xscale("log")
    if all(np.all(losses[np.isfinite(losses)] > 0) for _, losses in curves):
        ax.set_yscale("log")
    ax.set_xlabel("learning rate")
    ax.set_ylabel("final loss")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small")
    return ax
