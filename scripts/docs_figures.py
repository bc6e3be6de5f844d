"""Draw the figures of the documentation into docs/figures/: ``make docs-figures``.

The pictures of the concepts are drawn from the library itself (cycles from their moves, transfers from a
prolongation), the decision figure from the results of the benchmarks. Text stays text in the SVG, so
that a test can compare what a figure says with what the results say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import NullLocator, ScalarFormatter

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"
sys.path.insert(0, str(ROOT / "benchmarks"))

import gains  # noqa: E402
from choices import Choice, choices  # noqa: E402
from opifex.models import MLP  # noqa: E402
from opifex.training.multilevel import (  # noqa: E402
    Cascade,
    Correct,
    Enter,
    FullMultigrid,
    Interpolate,
    Restrict,
    Smooth,
    VCycle,
    WCycle,
    prolongate_preserving,
)

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#888888"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "opifex",
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 11,
}


def bare(axes: Axes) -> None:
    """No frame and no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def levels() -> Figure:
    """Networks of growing width; new units have another colour."""
    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    for level, (axes, width) in enumerate(
        zip(figure.subplots(1, 3).tolist(), (2, 4, 8), strict=True)
    ):
        layers = [2, width, width, 1]
        places = [
            [(x, (i - (n - 1) / 2) * (1 if n > 1 else 0)) for i in range(n)]
            for x, n in enumerate(layers)
        ]
        for left, right in pairwise(places):
            for start in left:
                for end in right:
                    axes.plot(*zip(start, end, strict=True), color="#cccccc", lw=0.6, zorder=1)
        for x, layer in enumerate(places):
            for i, (_, y) in enumerate(layer):
                old = x in (0, 3) or level == 0 or len(layer) // 4 <= i < len(layer) * 3 // 4
                colour = BLUE if old else ORANGE
                axes.scatter([x], [y], s=70, color=colour, edgecolor="white", zorder=2)
        axes.set_ylim(-4.2, 4.2)
        axes.set_title(f"level {level}" + (" (coarsest)" if level == 0 else ""), fontsize=11)
        bare(axes)
    figure.supxlabel("blue: carried from the coarser level; orange: new", fontsize=10)
    return figure


def transfer() -> Figure:
    """The kernel of a hidden layer after a prolongation that keeps the function."""
    coarse = MLP(2, 1, [4, 4], rngs=nnx.Rngs(0))
    fine = MLP(2, 1, [8, 8], rngs=nnx.Rngs(1))
    grown = prolongate_preserving(coarse, fine)
    figure = Figure(figsize=(6.5, 3.1), layout="constrained")
    kernels = [m.hidden[1].dense.kernel[...] for m in (coarse, grown)]
    largest = float(np.max(np.abs(kernels[1])))
    for axes, kernel, title in zip(
        figure.subplots(1, 2).tolist(), kernels, ("coarse weights", "fine weights"), strict=True
    ):
        axes.imshow(kernel, cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("units made")
        axes.set_ylabel("units read")
        axes.set_xticks([])
        axes.set_yticks([])
    axes.axhline(3.5, color="black", lw=1)
    axes.axvline(3.5, color="black", lw=1)
    for x, y, text in ((1.5, 1.5, "carried"), (1.5, 5.5, "zero"), (5.5, 3.5, "random")):
        axes.text(
            x, y, text, ha="center", va="center", bbox={"fc": "white", "ec": "none", "pad": 2}
        )
    return figure


def path_of(cycle: object, num_levels: int, epochs: list[int] | None = None) -> list[int]:
    """The levels on which a cycle smooths, in their order."""
    found, level = [], 0
    for move in cycle.moves(num_levels, 0, epochs):  # type: ignore[attr-defined]
        assert isinstance(move, Smooth | Enter | Interpolate | Restrict | Correct)
        level = move.level
        if isinstance(move, Smooth):
            found.append(level)
    return found


def cycles() -> Figure:
    """Four cycles over three levels, as their moves say."""
    lengths = {"cycles": 1, "pre": 1, "post": 1, "coarsest": 1}
    drawn = {
        "cascade": path_of(Cascade(), 3, [1, 1, 1]),
        "V-cycle": path_of(VCycle(**lengths), 3),
        "W-cycle": path_of(WCycle(**lengths), 3),
        "full multigrid": path_of(FullMultigrid(**lengths), 3),
    }
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    for axes, (name, path) in zip(figure.subplots(2, 2).flat, drawn.items(), strict=True):
        axes.plot(path, color=GREY, lw=1.2, zorder=1)
        axes.scatter(range(len(path)), path, s=45, color=BLUE, zorder=2)
        axes.set_title(name, fontsize=11)
        axes.set_ylim(-0.4, 2.4)
        axes.set_xlim(-0.6, 12.6)
        bare(axes)
        axes.set_yticks([0, 1, 2], ["level 0", "level 1", "level 2"], fontsize=9)
        axes.tick_params(length=0)
    return figure


def decision() -> Figure:
    """Questions from the top; the first yes names the method, with what was measured."""
    asked = choices()
    figure = Figure(figsize=(7.4, 1.12 * len(asked)), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(-len(asked) + 0.35, 0.6)
    bare(axes)
    for row, choice in enumerate(asked):
        draw_choice(axes, -row, choice, last=row == len(asked) - 1)
    return figure


def draw_choice(axes: Axes, y: float, choice: Choice, *, last: bool) -> None:
    """One question, its method, and the way on."""

    def box(x: float, width: float, colour: str) -> None:
        axes.add_patch(
            FancyBboxPatch(
                (x, y - 0.36), width, 0.72, boxstyle="round,pad=0,rounding_size=0.12",
                facecolor="white", edgecolor=colour, linewidth=1.4,
            )
        )  # fmt: skip

    box(0.05, 3.75, BLUE)
    axes.text(1.92, y, choice.question, ha="center", va="center", fontsize=9.5)
    arrow = {"arrowstyle": "-|>", "color": GREY}
    axes.annotate("", (4.55, y), (3.82, y), arrowprops=arrow)
    axes.text(4.15, y + 0.08, "yes", ha="center", va="bottom", fontsize=9, color="#444444")
    if not last:
        axes.annotate("", (1.92, y - 0.64), (1.92, y - 0.36), arrowprops=arrow)
        axes.text(2.05, y - 0.5, "no", ha="left", va="center", fontsize=9, color="#444444")
    box(4.57, 5.38, GREEN)
    axes.text(4.75, y + 0.24, choice.method, va="center", fontsize=10, fontweight="bold")
    said = [str(found) for found in choice.measured]
    lines = [f"{choice.meaning}:", ";  ".join(said[:2]), ";  ".join(said[2:])]
    for line, text in enumerate(lines):
        axes.text(4.75, y + 0.08 - 0.15 * line, text, va="center", fontsize=7.6, color="#333333")


def scatter(axes: Axes, trials: list[tuple[str, float, float]], ours: str) -> None:
    """Errors over seconds of single networks and of our side, and what no single network beats."""
    single = [(seconds, error) for side, seconds, error in trials if side != ours]
    hierarchy = [(seconds, error) for side, seconds, error in trials if side == ours]
    best = np.array(gains.envelope(single))
    axes.step(best[:, 0], best[:, 1], where="post", color=BLUE, linewidth=1.0)
    axes.plot(*np.array(single).T, "o", color=BLUE, markersize=3.5, label="single networks")
    axes.plot(*np.array(hierarchy).T, "^", color=ORANGE, markersize=4.5, label="hierarchies")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(labelsize=7, which="both")
    axes.set_xlabel("seconds", fontsize=8)
    axes.set_ylabel("error", fontsize=8)


def trials() -> Figure:
    """What every network and every cascade of the tuning ended with, and when."""
    found = gains.trials()
    columns = 3
    count = -(-len(found) // columns)
    figure = Figure(figsize=(8.4, 2.3 * count), layout="constrained")
    panels = np.ravel(figure.subplots(count, columns, squeeze=False))
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    for axes, (problem, entries) in zip(panels, found.items(), strict=False):
        scatter(axes, entries, "cascade")
        axes.set_title(problem, fontsize=8.5)
    panels[0].legend(fontsize=7, frameon=False)
    return figure


def grid_growth() -> Figure:
    """Seconds to the target and their ratio over the finest grid."""
    races = gains.by_grid()
    grids = list(races)
    low = {grid: gains.of_race("", race) for grid, race in races.items()}
    figure = Figure(figsize=(7.4, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, colour, values in (
        ("best single network", BLUE, [low[grid].single for grid in grids]),
        ("cascade", ORANGE, [low[grid].ours for grid in grids]),
    ):
        seconds = [np.nan if value is None else value for value in values]
        left.loglog(grids, seconds, "o-", color=colour, label=label)
    left.set_ylabel("seconds to the target")
    left.yaxis.set_minor_formatter(ScalarFormatter())
    left.legend(fontsize=9, frameon=False)
    middle = np.array([low[grid].ratio["median"] or np.nan for grid in grids])
    lower = np.array([low[grid].ratio["lower_quartile"] or np.nan for grid in grids])
    right.errorbar(grids, middle, (middle - lower, 0 * middle), fmt="o-", color=GREEN, capsize=3)
    right.axhline(1.0, color=GREY, linewidth=0.8)
    right.set_xscale("log")
    right.set_ylim(bottom=0.0)
    right.set_ylabel("single / cascade")
    for axes in (left, right):
        axes.set_xlabel("points of the finest grid along an axis")
        axes.set_xticks(grids, [str(grid) for grid in grids])
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def sample_cost() -> Figure:
    """Errors over seconds, solving the samples included."""
    found = gains.samples()
    figure = Figure(figsize=(4.2 * len(found), 3.0), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(found), squeeze=False))
    for axes, (problem, entries) in zip(panels, found.items(), strict=True):
        scatter(axes, entries, "corrected")
        axes.set_title(problem, fontsize=8)
    panels[0].legend(fontsize=8, frameon=False)
    return figure


DRAWN: dict[str, Callable[[], Figure]] = {
    "trials": trials,
    "grid_growth": grid_growth,
    "sample_cost": sample_cost,
    "levels": levels,
    "transfer": transfer,
    "cycles": cycles,
    "decision": decision,
}


def draw(name: str, folder: Path = FIGURES) -> Path:
    """Draw one figure.

    Args:
        name: of a figure.
        folder: where to put it.

    Returns:
        The file.
    """
    with mpl.rc_context(STYLE):
        figure = DRAWN[name]()
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
    return path


if __name__ == "__main__":
    for each in sys.argv[1:] or DRAWN:
        print(draw(each).relative_to(ROOT))
