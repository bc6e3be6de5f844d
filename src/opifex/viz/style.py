"""Colours, sizes and axes of all figures. Matplotlib is imported when a figure is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from opifex.core.checks import check_positive
from opifex.core.optional import optional_module

__all__ = [
    "PALETTE",
    "Axes",
    "band_color",
    "level_colors",
    "new_axes",
    "publication_style",
    "pyplot",
    "start_axes",
]

Axes = Any
"""A ``matplotlib.axes.Axes``."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of curves: the palette of Okabe and Ito (2008, Color Universal Design), which people
with any of the common colour vision deficiencies can tell apart. Its yellow is left out, since thin
yellow lines vanish on white paper."""

COLUMN_WIDTHS: Mapping[str, float] = {"single": 3.5, "onehalf": 5.0, "double": 7.2}
"""Inches: one column, one and a half, and both of the two-column journals."""

# Inches of one panel where no style says otherwise.
_PANEL = (5.0, 3.8)

# Width of the whole figure inside `publication_style`, in inches, and height of a panel over its width.
_publication: ContextVar[tuple[float, float] | None] = ContextVar("_publication", default=None)


def pyplot() -> Any:
    """The module ``matplotlib.pyplot``.

    Raises:
        ImportError: if Matplotlib is not installed; it names the extra.
    """
    return optional_module("matplotlib.pyplot", "viz", "drawing figures")


def level_colors(num_levels: int) -> list[tuple[float, float, float]]:
    """One colour per level, from dark (coarsest) to light, readable in grey too: ``cividis``.

    Args:
        num_levels: how many.
    """
    # The lightest end of the map is left out: it has too little contrast on white.
    shades = pyplot().get_cmap("cividis")(np.linspace(0.0, 0.85, max(num_levels, 1)))
    return [(float(r), float(g), float(b)) for r, g, b, _ in shades]


def band_color(level: int) -> str:
    """The grey of a level's background, the finer the darker, repeating after six levels."""
    return f"{0.955 - 0.045 * (level % 6):.3f}"


def new_axes(rows: int = 1, columns: int = 1) -> list[Axes]:
    """Axes of a new figure, row by row.

    Inside `publication_style` the figure is as wide as that says; otherwise every panel has the same
    size, however many there are.

    Args:
        rows: number of rows of panels.
        columns: number of columns of panels.
    """
    plt = pyplot()
    known = _publication.get()
    if known is None:
        size = (_PANEL[0] * columns, _PANEL[1] * rows)
    else:
        width, aspect = known
        size = (width, width / columns * aspect * rows)
    _, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    return list(axes.ravel())


def start_axes(ax: Axes | None) -> Axes:
    """The given axes, or new ones; the first curve in them is drawn in the first safe colour."""
    if ax is None:
        (ax,) = new_axes()
    if not ax.get_lines():
        ax.set_prop_cycle(color=list(PALETTE))
    return ax


@contextmanager
def publication_style(
    width: str | float = "single", *, aspect: float = 0.75, font_size: float = 8.0
) -> Iterator[None]:
    """Figures for a paper: made at the size at which they are printed, with letters to match.

    Figures made inside the block are as wide as the column, so that they are put into the paper
    unscaled. They are saved as vectors with embedded TrueType fonts (PDF unless the file name says
    otherwise) and rasters, where there are any, at 300 dots per inch.

    Args:
        width: of the figure: ``"single"``, ``"onehalf"`` or ``"double"`` column, or inches.
        aspect: height of a panel over its width.
        font_size: points; ticks and legends are one point smaller.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``width`` is another name, or a number is not positive.

    Example:
        >>> import matplotlib
        >>> from opifex.viz import publication_style
        >>> with publication_style("double"):
        ...     print(matplotlib.rcParams["figure.figsize"][0], matplotlib.rcParams["font.size"])
        7.2 8.0
    """
    if isinstance(width, str):
        if width not in COLUMN_WIDTHS:
            raise ValueError(f"width must be one of {list(COLUMN_WIDTHS)} or inches, got {width!r}")
        inches = COLUMN_WIDTHS[width]
    else:
        inches = check_positive("width", width)
    check_positive("aspect", aspect)
    size = check_positive("font_size", font_size)
    plt = pyplot()
    small = max(size - 1.0, 1.0)
    settings = {
        "figure.figsize": (inches, inches * aspect),
        "figure.dpi": 150.0,
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": small,
        "ytick.labelsize": small,
        "legend.fontsize": small,
        "legend.frameon": False,
        "axes.prop_cycle": plt.cycler(color=list(PALETTE)),
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.0,
        "lines.markersize": 3.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.width": 0.4,
        "ytick.minor.width": 0.4,
        "savefig.format": "pdf",
        "savefig.dpi": 300.0,
        "savefig.bbox": None,  # "tight" would change the width
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "svg.fonttype": "none",
    }
    token = _publication.set((inches, float(aspect)))
    try:
        with plt.rc_context(settings):
            yield
    finally:
        _publication.reset(token)
