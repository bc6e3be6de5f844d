"""Poisson's equation by a cascade of networks, against the finest network alone.

Both runs use the same optimizer, the same points and the same budget, counted in work units: steps
of the finest network. Run it with ``make demo``; it takes less than a minute on two slow cores, most
of it compilation, and writes ``outputs/poisson_cascade.png``.

The long form is ``make compare`` (`poisson_comparison.py`): larger networks, more epochs, and a third
run, which shows what second-order smoothers make of the same idea: a cascade of much smaller networks
in float64, every level solved by Levenberg-Marquardt; its work units are steps of its own finest
network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console

from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import Poisson
from opifex.training.multilevel import (
    CascadeTrainer,
    History,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    create_network_hierarchy,
)
from opifex.viz import comparison_table, history_table, plot_history, plot_solution


@dataclass(frozen=True)
class Settings:
    """Everything the result depends on."""

    hidden_dims: tuple[int, ...] = (64, 64)
    num_levels: int = 3
    coarsening_factor: float = 0.5
    level_epochs: tuple[int, ...] = (400, 500, 800)
    learning_rate: float = 2e-3
    interior_points: int = 500
    boundary_points: int = 60
    seed: int = 0
    small_hidden_dims: tuple[int, ...] = (16, 16)
    small_level_epochs: tuple[int, ...] = ()
    small_interior_points: int = 600
    name: str = "poisson_cascade"


QUICK = Settings(
    hidden_dims=(16, 16),
    level_epochs=(30, 30, 30),
    interior_points=100,
    small_hidden_dims=(6,),
    small_level_epochs=(4, 4),
    small_interior_points=60,
)


@dataclass(frozen=True)
class Result:
    """One finished run."""

    name: str
    model: nnx.Module
    history: History
    error: float

    def row(self) -> dict[str, Any]:
        """The run's line in the table."""
        return {
            "run": self.name,
            "error": self.error,
            "work": self.history.work,
            "training s": self.history.seconds,
            "compiling s": self.history.compile_seconds,
            "total s": self.history.wall_seconds,
        }


ROW_FORMATS = {
    "error": ".2e",
    "work": ".0f",
    "training s": ".1f",
    "compiling s": ".1f",
    "total s": ".1f",
}


def train(name: str, settings: Settings, models: list[nnx.Module], epochs: Sequence[int]) -> Result:
    """Train a hierarchy, of one or more levels, on the same points with the same optimizer."""
    problem = Poisson()
    points = problem.sample_points(
        jax.random.key(settings.seed), settings.interior_points, settings.boundary_points
    )
    trainer = CascadeTrainer(
        models,
        MultilevelAdam(settings.learning_rate),
        config=MultilevelConfig(num_levels=len(models), level_epochs=list(epochs)),
    )
    history = trainer.fit(
        problem.loss,
        points,
        evaluate=lambda model: {"error": problem.relative_l2_error(model)},
        monitor=Monitor(progress=True),
    )
    return Result(name, trainer.model, history, history.evaluations[-1].metrics["error"])


def hierarchy(settings: Settings) -> list[nnx.Module]:
    """Networks of growing width, coarsest first."""
    return list(
        create_network_hierarchy(
            input_dim=2,
            output_dim=1,
            base_hidden_dims=settings.hidden_dims,
            num_levels=settings.num_levels,
            coarsening_factor=settings.coarsening_factor,
            rngs=nnx.Rngs(settings.seed),
        )
    )


def cascade(settings: Settings, earlier: list[Result]) -> Result:
    """The cascade; its work is the budget of the others."""
    return train("Adam cascade", settings, hierarchy(settings), settings.level_epochs)


def finest_alone(settings: Settings, earlier: list[Result]) -> Result:
    """The finest network for the same work."""
    budget = round(earlier[0].history.work)
    return train("Adam, finest alone", settings, hierarchy(settings)[-1:], [budget])


def least_squares_cascade(settings: Settings, earlier: list[Result]) -> Result:
    """A cascade of small networks in double precision, solved by Levenberg-Marquardt."""
    problem = Poisson()
    name = "Levenberg-Marquardt cascade"
    with jax.enable_x64(True):
        models = create_network_hierarchy(
            input_dim=2,
            output_dim=1,
            base_hidden_dims=settings.small_hidden_dims,
            num_levels=len(settings.small_level_epochs),
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(settings.seed),
        )
        trainer = CascadeTrainer(models, LevenbergMarquardt())
        history = trainer.fit(
            problem.terms,
            problem.sample_points(
                jax.random.key(settings.seed),
                settings.small_interior_points,
                settings.small_interior_points // 5,
                method="sobol",
            ),
            epochs=settings.small_level_epochs,
            evaluate=lambda model: {"error": problem.relative_l2_error(model)},
            monitor=Monitor(progress=True),
        )
        return Result(name, trainer.model, history, history.evaluations[-1].metrics["error"])


Run = Callable[[Settings, list[Result]], Result]


def runs(settings: Settings) -> list[Run]:
    """What is run, in order."""
    least_squares: list[Run] = [least_squares_cascade] if settings.small_level_epochs else []
    return [cascade, finest_alone, *least_squares]


def draw(results: Sequence[Result], path: Path) -> None:
    """Loss and error over work for all runs; solution and error of the first."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (losses, errors), below = figure.subplots(2, 2)
    for number, result in enumerate(results):
        for ax, metric in ((losses, None), (errors, "error")):
            plot_history(
                result.history,
                metric=metric,
                ax=ax,
                label=result.name,
                mark_transitions=number == 0,
            )
    explain_peak(losses, results[0].history)
    errors.set_ylabel("relative L2 error")
    solution, error = plot_solution(Poisson(), results[0].model, axes=list(below))
    solution.set_title(f"solution ({results[0].name})")
    error.set_title("its error")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def explain_peak(ax: Any, history: History) -> None:
    """Say at the highest one why the loss rises for some steps where a level begins."""
    columns = history.table()
    peaks = []
    for change in history.transitions:
        after = columns["loss"][change.step : change.step + 50]
        peak = change.step + int(np.argmax(after))
        peaks.append((columns["loss"][peak] / after[0], peak))
    rise, peak = max(peaks, default=(1.0, 0))
    if rise <= 1:
        return
    ax.annotate(
        "A new level begins with the same function.\nIts new units begin with a fresh Adam, whose\n"
        "first steps are as long as the learning rate,\nhowever small the gradient: a short peak.",
        (columns["work"][peak], columns["loss"][peak]),
        xytext=(0.25, 0.52),
        textcoords="axes fraction",
        fontsize="small",
        arrowprops={"arrowstyle": "->"},
    )


def report(console: Console, results: Sequence[Result]) -> None:
    """Print the tables, and when the first run reached what the second ended with."""
    for result in results:
        console.print(history_table(result.history, title=result.name))
    console.print(
        comparison_table(
            [r.row() for r in results],
            title="Results (error: relative L2, against the analytic solution)",
            formats=ROW_FORMATS,
        )
    )
    first, second = results[0], results[1]
    reached = first.history.first_below("error", second.error)
    if reached is None:
        console.print(f"{first.name} did not reach the error of {second.name}.")
    else:
        console.print(
            f"{first.name} reached the final error of {second.name} ({second.error:.2e}) after "
            f"{reached.work:.0f} of {second.history.work:.0f} work units and {reached.seconds:.1f} "
            f"of {second.history.seconds:.1f} training seconds."
        )


def main(
    epochs: Sequence[int] | None = None,
    quick: bool = False,
    folder: str = "outputs",
    settings: Settings | None = None,
) -> list[Result]:
    """Run everything, print the tables and draw the figure.

    Args:
        epochs: epochs of each level, instead of those in `Settings`.
        quick: tiny networks and few epochs, to see that everything works.
        folder: where the figure goes.
        settings: all settings, instead of those of the short demonstration.

    Returns:
        The finished runs in order.
    """
    console = Console()
    start = time.perf_counter()
    settings = QUICK if quick else settings or Settings()
    if epochs is not None:
        settings = Settings(**{**asdict(settings), "level_epochs": tuple(epochs)})
    if settings == Settings():
        console.print("This takes less than a minute on two cores; the long one is `make compare`.")
    console.print(settings)
    results: list[Result] = []
    for run in runs(settings):
        results.append(run(settings, results))
    report(console, results)
    path = Path(folder) / f"{settings.name}.png"
    draw(results, path)
    console.print(f"Figure: {path}. All this took {time.perf_counter() - start:.0f} s.")
    return results


if __name__ == "__main__":
    main()
