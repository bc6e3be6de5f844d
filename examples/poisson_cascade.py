"""Poisson's equation by a cascade of networks, against the finest network alone.

Both runs use the same optimizer, the same points and the same budget, counted in work units: steps
of the finest network. A third run shows what second-order smoothers make of the same idea: a cascade
of much smaller networks in float64, every level solved by Levenberg-Marquardt; its work units are
steps of its own finest network. Run it with ``make demo``; it writes
``outputs/poisson_cascade.png``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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

    hidden_dims: tuple[int, ...] = (128, 128, 128)
    num_levels: int = 3
    coarsening_factor: float = 0.5
    level_epochs: tuple[int, ...] = (400, 600, 1000)
    learning_rate: float = 1e-3
    interior_points: int = 1000
    boundary_points: int = 100
    seed: int = 0
    small_hidden_dims: tuple[int, ...] = (16, 16)
    small_level_epochs: tuple[int, ...] = (60, 200)
    small_interior_points: int = 600


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


RUNS: list[Callable[[Settings, list[Result]], Result]] = [
    cascade,
    finest_alone,
    least_squares_cascade,
]


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
    errors.set_ylabel("relative L2 error")
    solution, error = plot_solution(Poisson(), results[0].model, axes=list(below))
    solution.set_title(f"solution ({results[0].name})")
    error.set_title("its error")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


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
    epochs: Sequence[int] | None = None, quick: bool = False, folder: str = "outputs"
) -> list[Result]:
    """Run everything, print the tables and draw the figure.

    Args:
        epochs: epochs of each level, instead of those in `Settings`.
        quick: tiny networks and few epochs, to see that everything works.
        folder: where the figure goes.

    Returns:
        The finished runs in order.
    """
    console = Console()
    settings = QUICK if quick else Settings()
    if epochs is not None:
        settings = Settings(**{**asdict(settings), "level_epochs": tuple(epochs)})
    console.print(settings)
    results: list[Result] = []
    for run in RUNS:
        results.append(run(settings, results))
    report(console, results)
    path = Path(folder) / "poisson_cascade.png"
    draw(results, path)
    console.print(f"Figure: {path}")
    return results


if __name__ == "__main__":
    main()
