"""The figures of a run: SVG for the report, PNG where asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from opifex.cli.errors import CommandError
from opifex.cli.model_files import read_model
from opifex.cli.parts import load_history
from opifex.cli.registry import make_problem
from opifex.cli.run_folder import RunFolder
from opifex.cli.settings import RunSettings
from opifex.cli.spectra import read_spectra
from opifex.cli.tasks import ERROR, read_samples
from opifex.training.multilevel import History
from opifex.viz import plot_fields, plot_history, plot_solution, plot_spectra, plot_timeline

__all__ = ["Figure", "draw_comparison", "draw_run"]


@dataclass(frozen=True)
class Figure:
    """A figure that was written.

    Attributes:
        name: name of its files without ending.
        caption: what it shows.
        svg: the SVG file.
    """

    name: str
    caption: str
    svg: Path


def draw_run(folder: RunFolder, settings: RunSettings, *, png: bool = False) -> list[Figure]:
    """Draw all figures of a run, as SVG.

    Args:
        folder: the folder of one seed.
        settings: its configuration, whose precision must be in force.
        png: write PNG files, too.

    Returns:
        The figures.

    Raises:
        CommandError: if there is nothing to draw, or Matplotlib is missing.
    """
    history = load_history(folder)
    if history.num_steps == 0:
        raise CommandError(f"{folder.path} holds no step yet: there is nothing to draw")
    measured = any(ERROR in evaluation.metrics for evaluation in history.evaluations)
    plots: list[tuple[str, str, Callable[[], Any]]] = [
        ("loss-over-work", "Loss over the work spent.", lambda: plot_history(history)),
    ]
    if measured:
        for over, words in (
            ("work", "work spent"),
            ("elapsed_seconds", "seconds, compilation too"),
        ):
            plots.append(
                (
                    f"error-over-{over.replace('_', '-')}",
                    f"Error over the {words}.",
                    partial(plot_history, history, metric=ERROR, over=over),
                )
            )
    spectra = read_spectra(folder)
    if spectra:
        caption = "Spectrum of the error at the start, and when each level ended."
        plots.append(("error-spectra", caption, lambda: plot_spectra(spectra)))
    plots.append(("timeline", "Where the time went.", lambda: plot_timeline(history)))
    if folder.model.exists():
        caption, plot = _solution(folder, settings)
        if plot is not None:
            plots.append(("solution", caption, plot))
    return [_written(folder.figures, name, caption, plot, png) for name, caption, plot in plots]


def draw_comparison(folder: Path, histories: dict[str, History]) -> list[Figure]:
    """Draw the errors of several runs together.

    Args:
        folder: where to write.
        histories: by name.

    Raises:
        CommandError: if Matplotlib is missing.
    """
    return [
        _written(
            folder,
            f"error-over-{over.replace('_', '-')}",
            f"Error over {over.replace('_', ' ')}, first seed of each.",
            partial(plot_history, histories, metric=ERROR, over=over),
        )
        for over in ("work", "elapsed_seconds")
    ]


def _solution(folder: RunFolder, settings: RunSettings) -> tuple[str, Callable[[], Any] | None]:
    """A picture of what was found, where it can be drawn."""
    model = read_model(folder)
    if settings.problem is not None:
        problem = make_problem(settings.problem)
        return "What was found, and its error.", lambda: plot_solution(problem, model)
    assert settings.data is not None
    if settings.hierarchy.kind == "network":
        return "", None
    samples = read_samples(settings.data)
    inputs, outputs = samples.examples(1)
    found = np.asarray(model(jnp.asarray(inputs, settings.dtype)))[0, ..., 0]
    which = "held-out" if len(samples.held_out_inputs) else "training"
    return (
        f"First output channel of the first {which} sample, and its error.",
        lambda: plot_fields(found, outputs[0, ..., 0]),
    )


def _written(
    folder: Path, name: str, caption: str, plot: Callable[[], Any], png: bool = True
) -> Figure:
    try:
        import matplotlib
    except ImportError as error:
        raise CommandError(
            "figures need Matplotlib: pip install 'opifex-multilevel[viz]'"
        ) from error
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    drawn = plot()
    figure = (drawn[0] if isinstance(drawn, list) else drawn).figure
    # No date in the file, so that equal runs give equal figures.
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    if png:
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    plt.close(figure)
    return Figure(name, caption, folder / f"{name}.svg")
