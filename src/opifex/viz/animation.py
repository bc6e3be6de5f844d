"""The solution over the levels, as a moving picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from opifex.core.checks import check_positive, check_positive_int
from opifex.viz.snapshots import Snapshot, SnapshotRecorder
from opifex.viz.style import PALETTE, Axes, band_color, pyplot

__all__ = ["animate_solution", "spent_epochs"]

_NAMES = ("x", "y", "z")
# Decimal digits of the error map, below the largest error of the first picture.
_DIGITS = 5
# Colours of one frame: enough for smooth maps, and half the bytes of 256.
_COLORS = 128

Draw = Callable[[int], None]
"""Draws the snapshot of a number."""


def animate_solution(
    recorder: SnapshotRecorder,
    path: str | Path,
    *,
    reference: Any = None,
    frames_per_second: float = 8.0,
    max_frames: int = 60,
    width: float = 8.0,
    dpi: int = 80,
) -> Path:
    """Write an animated GIF of what was recorded: the solution while the levels take turns.

    In one dimension the curve moves over its reference; in two a map changes, with a map of the error
    beside it, in decimal digits; of three dimensions the slice through the middle of the last one is
    shown. With a reference the last panel has the root mean square error over the epochs, before the
    levels.

    Args:
        recorder: what was recorded, in order.
        path: file to write, with the ending ``.gif``; folders are made.
        reference: a problem with an exact solution, a function of points, or an array on the
            recorder's grid; without one neither errors nor their curve are shown.
        frames_per_second: how fast; the last frame stays two seconds.
        max_frames: leave snapshots out, evenly, if there are more; the last one stays.
        width: of the pictures, in inches.
        dpi: dots per inch.

    Returns:
        The path.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if an argument has the wrong type.
        ValueError: if nothing was recorded, ``path`` has another ending, a number is not positive, or
            an array has another shape than the grid.
    """
    if not isinstance(recorder, SnapshotRecorder):
        raise TypeError(f"recorder must be a SnapshotRecorder, got {type(recorder).__name__}")
    if not recorder.snapshots:
        raise ValueError("recorder must hold at least one snapshot, got none")
    file = Path(path)
    if file.suffix.lower() != ".gif":
        raise ValueError(f"path must end with .gif, got {str(path)!r}")
    check_positive("frames_per_second", frames_per_second)
    check_positive_int("max_frames", max_frames)
    check_positive("width", width)
    check_positive_int("dpi", dpi)
    exact = None if reference is None else recorder.reference(reference)
    pyplot()  # says which extra is missing
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    snapshots = recorder.snapshots
    panels = 1 if exact is None else 3 if len(recorder.grids) > 1 else 2
    figure = Figure(figsize=(width, width * (0.75, 0.42, 0.33)[panels - 1]), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    draws = [_solution_panels(axes, recorder, exact)]
    if exact is not None:
        draws.append(_error_curve(axes[-1], snapshots, exact))
    heading = figure.suptitle(" ")
    frames: list[np.ndarray] = []
    for index in _chosen(len(snapshots), max_frames):
        for draw in draws:
            draw(index)
        heading.set_text(f"level {snapshots[index].level}, epoch {snapshots[index].epoch}")
        figure.set_dpi(dpi)
        canvas.draw()
        if not frames:
            figure.set_layout_engine("none")  # else panels would move with the numbers
        frames.append(np.array(canvas.buffer_rgba())[..., :3])
    file.parent.mkdir(parents=True, exist_ok=True)
    duration = round(1000 / frames_per_second)
    images = _with_one_palette(frames)
    images[0].save(
        file,
        save_all=True,
        append_images=images[1:],
        duration=[duration] * (len(images) - 1) + [2000],
        loop=0,
        optimize=True,
    )
    return file


def _with_one_palette(frames: list[np.ndarray]) -> list[Any]:
    """The frames in the same few colours, so that nothing changes colour from one to the next.

    The colours of curves and levels are among them, however few pixels they have.
    """
    from PIL import Image, ImageColor

    kept = [ImageColor.getrgb(color) for color in (*PALETTE, "#FFFFFF", "#000000")]
    kept += [(round(255 * float(band_color(i))),) * 3 for i in range(6)]
    sample = np.concatenate([frames[i] for i in _chosen(len(frames), 4)])
    found = Image.fromarray(sample).quantize(_COLORS - len(kept)).getpalette() or []
    palette = np.array([value for color in kept for value in color] + found).reshape(-1, 3)
    palette = palette[:_COLORS]
    images = []
    for frame in frames:
        colors, where = np.unique(frame.reshape(-1, 3), axis=0, return_inverse=True)
        distances = np.sum((colors[:, None].astype(int) - palette) ** 2, axis=-1)
        indices = np.argmin(distances, axis=1).astype(np.uint8)[where.ravel()]
        image = Image.fromarray(indices.reshape(frame.shape[:2]))
        image.putpalette(palette.ravel().tolist())
        images.append(image)
    return images


def spent_epochs(snapshots: list[Snapshot]) -> np.ndarray:
    """Epochs of the whole run at each snapshot, all levels together.

    Args:
        snapshots: in order.

    Returns:
        Shape (len(snapshots),).
    """
    spent, before, last = [], 0, 0
    visit = None
    for snapshot in snapshots:
        here = (snapshot.level, snapshot.cycle)
        if here != visit or snapshot.epoch < last:
            before, visit = before + last, here
        last = snapshot.epoch
        spent.append(before + last)
    return np.array(spent)


def _chosen(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(count - 1, 0, min(count, most)).round()})


def _slice(values: np.ndarray) -> np.ndarray:
    return values[..., values.shape[-1] // 2] if values.ndim == 3 else values


def _solution_panels(
    axes: list[Axes], recorder: SnapshotRecorder, exact: np.ndarray | None
) -> Draw:
    """The field, and in two dimensions its error; the scales are the same for all snapshots."""
    fields = [_slice(s.values) for s in recorder.snapshots]
    wanted = None if exact is None else _slice(exact)
    shown = fields if wanted is None else [wanted]
    low = float(np.min([np.nanmin(f) for f in shown]))
    high = float(np.max([np.nanmax(f) for f in shown]))
    if len(recorder.grids) == 1:
        return _curve_panel(axes[0], recorder.grids[0], fields, wanted, (low, high))
    extent = [*recorder.domain.lower[:2], *recorder.domain.upper[:2]]
    extent = [extent[0], extent[2], extent[1], extent[3]]
    sides = (extent[1] - extent[0]) / (extent[3] - extent[2])
    options: dict[str, Any] = {
        "origin": "lower",
        "extent": extent,
        "aspect": "equal" if 1 / 3 <= sides <= 3 else "auto",
    }
    images = [axes[0].imshow(fields[0].T, cmap="viridis", vmin=low, vmax=high, **options)]
    axes[0].set_title("solution")
    if wanted is not None:
        top = np.log10(max(float(np.nanmax(np.abs(fields[0] - wanted))), np.finfo(float).tiny))
        images.append(
            axes[1].imshow(
                _digits(fields[0] - wanted), cmap="cividis", vmin=top - _DIGITS, vmax=top, **options
            )
        )
        axes[1].set_title("error (digits)")
    for ax, image in zip(axes, images, strict=False):
        ax.figure.colorbar(image, ax=ax, shrink=0.9)
        ax.set_xlabel(_NAMES[0])
        ax.set_ylabel(_NAMES[1])

    def draw(index: int) -> None:
        images[0].set_data(fields[index].T)
        if wanted is not None:
            images[1].set_data(_digits(fields[index] - wanted))

    return draw


def _digits(error: np.ndarray) -> np.ndarray:
    """The decimal logarithm of an error, its first axis horizontal."""
    return np.log10(np.maximum(np.abs(error), np.finfo(float).tiny)).T


def _curve_panel(
    ax: Axes,
    x: np.ndarray,
    fields: list[np.ndarray],
    wanted: np.ndarray | None,
    limits: tuple[float, float],
) -> Draw:
    if wanted is not None:
        ax.plot(x, wanted, color=PALETTE[4], linewidth=3, label="reference")
    (line,) = ax.plot(x, fields[0], color=PALETTE[0], linewidth=1.2, label="network")
    room = 0.1 * (limits[1] - limits[0]) or 1.0
    ax.set_ylim(limits[0] - room, limits[1] + (3 * room if wanted is not None else room))
    ax.set_xlim(x[0], x[-1])
    ax.set_xlabel(_NAMES[0])
    if wanted is not None:
        ax.legend(loc="upper right", ncols=2)
    return lambda index: line.set_ydata(fields[index])


def _error_curve(ax: Axes, snapshots: list[Snapshot], exact: np.ndarray) -> Draw:
    epochs = spent_epochs(snapshots)
    errors = np.array([np.sqrt(np.mean((s.values - exact) ** 2)) for s in snapshots])
    starts = [
        0,
        *(i for i in range(1, len(snapshots)) if snapshots[i].level != snapshots[i - 1].level),
    ]
    ends = [*(i - 1 for i in starts[1:]), len(snapshots) - 1]
    left = float(epochs[0])
    for start, end in zip(starts, ends, strict=True):
        level, right = snapshots[start].level, float(epochs[end])
        ax.axvspan(left, right, facecolor=band_color(level), edgecolor="none", zorder=0)
        if right > left:
            ax.annotate(
                f"{level}",
                ((left + right) / 2, 0.98),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontsize="small",
                color="0.3",
            )
        left = right
    positive = np.where(errors > 0, errors, np.nan)
    (line,) = ax.plot(epochs, positive, color=PALETTE[0], linewidth=1.4)
    (dot,) = ax.plot(epochs[:1], positive[:1], marker="o", color=PALETTE[1])
    ax.set_yscale("log")
    ax.margins(x=0.0, y=0.12)
    ax.set_xlabel("epochs")
    ax.set_title("error (RMS)")

    def draw(index: int) -> None:
        line.set_data(epochs[: index + 1], positive[: index + 1])
        dot.set_data(epochs[index : index + 1], positive[index : index + 1])

    ax.set_xlim(epochs[0], max(epochs[-1], epochs[0] + 1))
    ax.set_ylim(*ax.get_ylim())  # of the whole curve, however much of it is drawn
    return draw
