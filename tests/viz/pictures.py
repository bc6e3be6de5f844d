"""The pictures that are compared with those in ``baseline``, from made-up runs.

After a change that is meant, look at what ``python tests/viz/pictures.py`` writes, and commit it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.testing.decorators import remove_ticks_and_titles

mpl.use("Agg")
sys.path.insert(0, str(Path(__file__).parent.parent))

import matplotlib.pyplot as plt

from opifex.problems import Box
from opifex.training.multilevel import History
from opifex.training.stopwatch import Stopwatch
from opifex.viz import (
    SnapshotRecorder,
    error_spectra,
    plot_fields,
    plot_history,
    plot_rate_transfer,
    plot_spectra,
    plot_spectral_history,
    plot_timeline,
    plot_transfer_jump,
    publication_style,
)

BASELINE = Path(__file__).parent / "baseline"
SETTINGS = {"font.family": "DejaVu Sans", "figure.dpi": 80, "savefig.dpi": 80}


def cascade() -> History:
    """Three levels with an error that falls, a peak behind each transfer, and a clock by hand."""
    time = [0.0]
    history = History(Stopwatch(lambda: time[0]))
    history.begin()
    history.set_unit(16.0)

    def charge(account: str, seconds: float) -> None:
        with history.stopwatch.charge(account):
            time[0] += seconds

    for level, steps in enumerate((60, 60, 40)):
        charge("compilation", 2.0 - 0.5 * level)
        price = 4.0**level
        for part in range(4):
            now = np.arange(steps // 4) + part * (steps // 4)
            losses = 10.0 ** -(level + now / steps)
            losses = losses * (1 + 4 * level * now * np.exp(-now / 3))
            seconds = price * 0.004 * steps
            charge("training", seconds)
            history.record_steps(level, losses, seconds, price)
            charge("evaluation", 0.15)
            history.record_evaluation(level, (part + 1) * steps / 4, {"error": losses[-1] ** 0.5})
        if level < 2:
            charge("transfer", 0.6)
            history.record_transition(level, level + 1)
    return history


def alone() -> History:
    """The finest level alone, for as much work as the cascade."""
    history = History()
    history.begin()
    history.set_unit(16.0)
    history.record_steps(0, 10.0 ** -np.linspace(0, 1.7, 60), 9.0, 16.0)
    return history


def recorder() -> SnapshotRecorder:
    """Three waves, of which each level takes one, above noise that is larger than rounding."""
    noise = 1e-3 * np.random.default_rng(0).normal(size=24 * 24)
    made = SnapshotRecorder(Box((0.0, 0.0), (1.0, 1.0)), resolution=24)
    for moment in range(9):
        sizes = [min(1.0, 4.0 ** (2 * i - moment)) for i in (1, 2, 3)]

        def model(points: Any, sizes: list[float] = sizes) -> Any:
            waves = [jnp.prod(jnp.sin(k * jnp.pi * points), axis=-1) for k in (1, 3, 9)]
            return noise + sum(size * wave for size, wave in zip(sizes, waves, strict=True))

        made.record(model, level=moment // 3, epoch=10 * (moment % 3 + 1))
    return made


def one_axes(draw: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: draw().figure


def curves() -> Any:
    _, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    plot_history({"cascade": cascade(), "finest alone": alone()}, ax=axes[0])
    plot_history(cascade(), metric="error", over="elapsed_seconds", ax=axes[1])
    return axes[0].figure


def fields(dim: int) -> Any:
    grids = np.meshgrid(*[np.linspace(0, 1, 21)] * dim, indexing="ij")
    wanted = np.prod([np.sin(np.pi * x) for x in grids], axis=0)
    figure = plot_fields(wanted + 0.01 * np.sin(9 * grids[0]), wanted)[0].figure
    figure.set_size_inches(6.0, 2.2 if dim < 3 else 3.2)  # smooth maps make large files
    return figure


def column() -> Any:
    with publication_style("single"):
        return plot_history({"cascade": cascade()}).figure


PICTURES: dict[str, Callable[[], Any]] = {
    "history": curves,
    "timeline": one_axes(lambda: plot_timeline(cascade())),
    "transfer_jump": one_axes(lambda: plot_transfer_jump(cascade(), steps=30)),
    "fields_1d": lambda: fields(1),
    "fields_2d": lambda: fields(2),
    "fields_3d": lambda: fields(3),
    "spectra": one_axes(lambda: plot_spectra(error_spectra(recorder(), kind="sine"), largest=16)),
    "spectral_history": one_axes(
        lambda: plot_spectral_history(error_spectra(recorder(), kind="sine"), largest=16)
    ),
    "rate_transfer": one_axes(
        lambda: plot_rate_transfer(
            [1e-4, 1e-3, 1e-2, 1e-1],
            {"width 16": [0.5, 0.1, 0.02, 0.3], "width 64": [0.3, 0.02, 0.01, np.inf]},
        )
    ),
    "publication": column,
}


def save(name: str, folder: Path) -> Path:
    """Draw a picture into a folder, without words and with panels in fixed places.

    Releases of Matplotlib and FreeType give letters other widths, to which the layout and thereby
    every curve would yield. What the words say is tested beside the data.
    """
    with mpl.rc_context(SETTINGS):
        figure = PICTURES[name]()
        figure.set_layout_engine("none")
        remove_ticks_and_titles(figure)
        for ax in figure.axes:
            if ax.get_legend() is not None:
                ax.get_legend().remove()
            for text in [ax.xaxis.label, ax.yaxis.label, *ax.texts]:
                text.set_text("")
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close("all")
    return path


if __name__ == "__main__":
    BASELINE.mkdir(exist_ok=True)
    for each in PICTURES:
        print(save(each, BASELINE))
