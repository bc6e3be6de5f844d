"""The pictures of docs/pictures.md and the moving one of the README.

Three small experiments: Poisson's equation by a cascade and by its finest network alone (curves, time
line, transfer jumps, error maps), a function of four waves by frequency-aware networks (spectra,
animation), and the same function by networks of three widths at several learning rates. Run it with
``python examples/figures.py``; it writes into ``docs/images`` and takes one or two minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
from flax import nnx

mpl.use("Agg")

import matplotlib.pyplot as plt
from jaxtyping import Array

from opifex.models import TrialFunction
from opifex.problems import Box, Poisson, grid_points
from opifex.training.multilevel import (
    CascadeTrainer,
    History,
    Monitor,
    MultilevelAdam,
    create_multiscale_hierarchy,
    create_network_hierarchy,
)
from opifex.viz import (
    SnapshotRecorder,
    animate_solution,
    error_spectra,
    plot_history,
    plot_rate_transfer,
    plot_solution,
    plot_spectra,
    plot_spectral_history,
    plot_timeline,
    plot_transfer_jump,
)

SQUARE = Box((0.0, 0.0), (1.0, 1.0))
CUBE = Box((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Settings:
    """How long everything takes."""

    hidden_dims: tuple[int, ...] = (64, 64)
    poisson_epochs: tuple[int, ...] = (400, 400, 400)
    wave_epochs: tuple[int, ...] = (200, 200, 400)
    wave_points: int = 48
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    widths: tuple[int, ...] = (8, 16, 32)
    rate_epochs: int = 200
    dpi: int = 80


QUICK = Settings(
    hidden_dims=(8, 8),
    poisson_epochs=(6, 6, 6),
    wave_epochs=(6, 6, 6),
    wave_points=8,
    rates=(1e-3, 1e-2),
    widths=(4, 8),
    rate_epochs=5,
    dpi=50,
)


def product_of_sines(points: Array, half_waves: int) -> Array:
    """A wave that vanishes on the faces of the unit cube."""
    return jnp.prod(jnp.sin(half_waves * jnp.pi * points), axis=-1)


def waves(points: Array) -> Array:
    """Waves with 1, 3, 6 and 10 half-waves per side, the shorter the smaller."""
    return (
        product_of_sines(points, 1)
        + 0.5 * product_of_sines(points, 3)
        + 0.3 * product_of_sines(points, 6)
        + 0.2 * product_of_sines(points, 10)
    )


def two_waves(points: Array) -> Array:
    """Waves with one and two half-waves per side."""
    return product_of_sines(points, 1) + 0.3 * product_of_sines(points, 2)


def squared_error(model: Any, points: Array, values: Array) -> Array:
    """Mean square of the difference."""
    return jnp.mean((model(points)[..., 0] - values) ** 2)


def zero_on_the_edge(network: nnx.Module, scale: float) -> TrialFunction:
    """A network times a bubble, of inputs between plus and minus ``scale``."""
    return TrialFunction(
        network,
        offset=lambda x: jnp.zeros_like(x[..., :1]),
        factor=lambda x: jnp.prod(4 * x * (1 - x), axis=-1, keepdims=True),
        embed=lambda x: scale * (2 * x - 1),
    )


def poisson(models: Sequence[nnx.Module], epochs: Sequence[int]) -> CascadeTrainer:
    """Train a hierarchy of one or more levels on Poisson's equation."""
    problem = Poisson()
    trainer = CascadeTrainer(models, MultilevelAdam(1e-3))
    trainer.fit(
        problem.loss,
        problem.sample_points(jax.random.key(0), num_interior=300, num_boundary=60),
        epochs=epochs,
        evaluate=lambda model: {"error": problem.relative_l2_error(model)},
    )
    return trainer


def draw_poisson(settings: Settings, folder: Path) -> None:
    """Curves, time line, transfer jumps and error maps of one cascade."""
    models = create_network_hierarchy(2, 1, settings.hidden_dims, num_levels=3, rngs=nnx.Rngs(0))
    cascade = poisson(models, settings.poisson_epochs)
    alone = poisson(models[-1:], [round(cascade.history.work)])
    runs: dict[str, History] = {"cascade": cascade.history, "finest alone": alone.history}
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    # Seconds of training alone: the second run finds its program compiled by the first.
    for row, metric in enumerate((None, "error")):
        for column, over in enumerate(("work", "seconds")):
            plot_history(runs, metric=metric, over=over, ax=axes[row, column])
    save(figure, folder / "history.png", settings)
    save(plot_timeline(cascade.history).figure, folder / "timeline.png", settings)
    save(plot_transfer_jump(cascade.history).figure, folder / "transfer_jump.png", settings)
    save(plot_solution(Poisson(), cascade.model)[0].figure, folder / "error_map.png", settings)


def draw_waves(settings: Settings, folder: Path) -> None:
    """Spectra of the error over the levels, and the animation."""
    networks = create_multiscale_hierarchy(2, 1, [16, 16], (1.0, 3.0, 8.0), rngs=nnx.Rngs(0))
    models = [zero_on_the_edge(network, 3.0) for network in networks]
    points = grid_points((settings.wave_points,) * 2, SQUARE)
    recorder = SnapshotRecorder(SQUARE, resolution=48)
    recorder.record(models[0])
    CascadeTrainer(models, MultilevelAdam(5e-3)).fit(
        squared_error,
        (points, waves(points)),
        epochs=settings.wave_epochs,
        monitor=Monitor(every=max(1, settings.wave_epochs[0] // 10), callbacks=[recorder]),
    )
    spectra = error_spectra(recorder, waves, kind="sine")
    save(plot_spectra(spectra, largest=24).figure, folder / "spectra.png", settings)
    save(
        plot_spectral_history(spectra, largest=24).figure, folder / "spectral_history.png", settings
    )
    animate_solution(recorder, folder / "levels.gif", reference=waves, frames_per_second=6)


def draw_cube(settings: Settings, folder: Path) -> None:
    """Slices of a function of three coordinates, and of the error of a network."""
    (network,) = create_network_hierarchy(3, 1, [16, 16], num_levels=1, rngs=nnx.Rngs(0))
    model = zero_on_the_edge(network, 2.0)
    points = grid_points((9, 9, 9), CUBE)
    trainer = CascadeTrainer([model], MultilevelAdam(1e-2))
    trainer.fit(squared_error, (points, two_waves(points)), epochs=[2 * settings.rate_epochs])
    axes = plot_solution(
        two_waves, trainer.model, lower=CUBE.lower, upper=CUBE.upper, resolution=41
    )
    axes[0].figure.set_size_inches(9.0, 5.0)
    save(axes[0].figure, folder / "slices.png", settings)


def draw_rates(settings: Settings, folder: Path) -> None:
    """Final losses of three widths at several learning rates."""
    points = grid_points((24, 24), SQUARE)
    losses: dict[str, list[float]] = {}
    for width in settings.widths:
        losses[f"width {width}"] = []
        for rate in settings.rates:
            (network,) = create_network_hierarchy(
                2, 1, [width, width], num_levels=1, rngs=nnx.Rngs(0)
            )
            trainer = CascadeTrainer([zero_on_the_edge(network, 3.0)], MultilevelAdam(rate))
            history = trainer.fit(
                squared_error, (points, waves(points)), epochs=[settings.rate_epochs]
            )
            # The median of the last steps: one loss at a large rate says little.
            losses[f"width {width}"].append(float(jnp.median(history.losses[-20:])))
    save(plot_rate_transfer(settings.rates, losses).figure, folder / "rate_transfer.png", settings)


def save(figure: Any, path: Path, settings: Settings) -> None:
    """Write a figure and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=settings.dpi, metadata={"Software": None})
    plt.close(figure)
    print(path)


def main(quick: bool = False, folder: str = "docs/images") -> None:
    """Draw all pictures.

    Args:
        quick: tiny networks and few epochs, to see that everything works.
        folder: where the pictures go.
    """
    settings = QUICK if quick else Settings()
    for draw in (draw_poisson, draw_waves, draw_cube, draw_rates):
        draw(settings, Path(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the pictures of the documentation.")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few epochs")
    parser.add_argument("--folder", default="docs/images", help="where the pictures go")
    main(**vars(parser.parse_args()))
