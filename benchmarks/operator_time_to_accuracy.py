"""Seconds to a given error for Fourier neural operators: a cascade against its finest network alone.

The cascade grows the modes and the grid together: a level with few modes trains on fields restricted
to a coarse grid. Each level starts from half the rate of the one before. Every reported error is
measured on held-out samples on the *finest* grid, whatever the level.

Coarse levels pass over the samples many times for little work, and fit them by heart before the
finest grid is reached, if there are few. Where the operator commutes with the symmetries of the
square, both sides therefore train on a random one of the eight images of each mini-batch.

Both sides use Adam with a cosine schedule in the same compiled loop with the same data, batch size
and precision; the rate is chosen for each from one grid on validation samples and networks of another
seed. The target is the test error that the finest network alone ends with after its full budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from common import compare_runs, final, median_ratios, parser, start_cold, write_results
from opifex.core.metrics import relative_l2
from opifex.data import (
    FieldNormalizer,
    OperatorData,
    generate_burgers_operator_data,
    generate_darcy_data,
)
from opifex.models import FNO
from opifex.training.multilevel import (
    CascadeTrainer,
    History,
    Monitor,
    MultilevelConfig,
    MultilevelOptimizer,
    OnTransition,
    resolution_hierarchy,
)
from opifex.viz import comparison_table

TUNING_SEED = 100
CONSOLE = Console(width=160)


@dataclass(frozen=True)
class Case:
    """One operator with the budgets of both sides."""

    name: str
    train: int
    validation: int
    test: int
    modes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    alone_epochs: int
    cascade_epochs: tuple[int, ...]
    grid_kind: str
    viscosity: float = 0.1
    square_symmetries: bool = False
    level_rates: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    width: int = 32
    num_layers: int = 4
    batch_size: int = 16
    on_transition: OnTransition = "restart"
    tuning_fraction: float = 1.0
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    schedules: tuple[str, ...] = ("cosine",)

    @property
    def spatial_dims(self) -> int:
        """Number of space dimensions."""
        return len(self.shapes[-1])

    def generate(self) -> OperatorData:
        """All samples, in the order train, validation, test."""
        samples = self.train + self.validation + self.test
        if self.name.startswith("burgers"):
            return generate_burgers_operator_data(
                samples,
                self.shapes[-1][0],
                viscosity=self.viscosity,
                num_steps=400,
                progress=True,
            )
        return generate_darcy_data(samples, self.shapes[-1][0], progress=True)


CASES = {
    "burgers": Case(
        "burgers",
        train=512,
        validation=100,
        test=200,
        modes=(16, 32, 64, 64),
        shapes=((64,), (128,), (256,), (512,)),
        alone_epochs=60,
        cascade_epochs=(60, 30, 20, 4),
        grid_kind="periodic",
    ),
    "burgers-fronts": Case(
        "burgers-fronts",
        train=512,
        validation=100,
        test=200,
        modes=(16, 32, 64, 64),
        shapes=((64,), (128,), (256,), (512,)),
        alone_epochs=60,
        cascade_epochs=(60, 40, 30, 4),
        grid_kind="periodic",
        viscosity=0.01,
    ),
    "darcy": Case(
        "darcy",
        train=1000,
        validation=50,
        test=100,
        modes=(6, 8, 12, 12),
        shapes=((16, 16), (32, 32), (64, 64), (128, 128)),
        alone_epochs=12,
        cascade_epochs=(10, 10, 5, 1),
        grid_kind="cell",
        square_symmetries=True,
        width=16,
        tuning_fraction=0.25,
        rates=(3e-3, 1e-2, 2e-2, 4e-2),
    ),
}


def adam(rate: float, schedule: str, steps: int) -> optax.GradientTransformation:
    """Adam with one of the schedules."""
    if schedule == "constant":
        return optax.adam(rate)
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def random_image(inputs: Any, outputs: Any, key: Any) -> tuple[Any, Any]:
    """Fields of shape (samples, n, n, channels) under one random symmetry of the square.

    Two reflections and a transposition, each with probability one half, make all eight equally
    likely. Reflections map the centres of cells onto each other.
    """
    reflect_rows, reflect_columns, transpose = jax.random.bernoulli(key, shape=(3,))

    def image(field: Any) -> Any:
        field = jnp.where(reflect_rows, field[:, ::-1], field)
        field = jnp.where(reflect_columns, field[:, :, ::-1], field)
        return jnp.where(transpose, jnp.swapaxes(field, 1, 2), field)

    return image(inputs), image(outputs)


class Experiment:
    """The data of a case, normalised and restricted, and how to train on them."""

    def __init__(self, case: Case, data: OperatorData | None = None) -> None:
        self.case = case
        inputs, outputs = data or case.generate()
        self.normalizer = FieldNormalizer.fit(outputs[: case.train])
        inputs = FieldNormalizer.fit(inputs[: case.train]).normalize(inputs).astype(np.float32)
        borders = np.cumsum([case.train, case.validation, case.test])
        parts = [slice(0, borders[0]), slice(*borders[:2]), slice(*borders[1:])]
        self.train, self.validation, self.test = (
            OperatorData(inputs[part], outputs[part]) for part in parts
        )
        self.levels = resolution_hierarchy(
            *self.train, case.modes, shapes=case.shapes, grid_kind=case.grid_kind
        )

    def loss(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """Mean relative error of the samples."""
        return relative_l2(self.normalizer.denormalize(model(inputs)), outputs)

    def loss_of_image(self, model: Any, inputs: Any, outputs: Any, key: Any) -> Any:
        """The same for a random image of the samples under the symmetries of the square."""
        return self.loss(model, *random_image(inputs, outputs, key))

    def error(self, data: OperatorData) -> Callable[[Any], Any]:
        """The metric on held-out samples on the finest grid, in slices that fit the cache."""
        parts = max(1, len(data.inputs) // 25)
        inputs = jnp.asarray(np.stack(np.array_split(data.inputs, parts)))
        outputs = jnp.asarray(np.stack(np.array_split(data.outputs, parts)))

        def measure(model: Any) -> Any:
            graph, state = nnx.split(model)
            return {
                "error": jnp.mean(
                    jax.lax.map(
                        lambda pair: self.loss(nnx.merge(graph, state), *pair), (inputs, outputs)
                    )
                )
            }

        return measure

    def fit(
        self,
        levels: Sequence[int],
        epochs: Sequence[int],
        rate: float,
        schedule: str,
        seed: int,
        error: Callable[[Any], Any],
    ) -> History:
        """Train the given levels one after the other."""
        start_cold()
        case = self.case
        models = [
            FNO(
                case.modes[level],
                case.width,
                num_layers=case.num_layers,
                spatial_dims=case.spatial_dims,
                # Boundary values break translation invariance: the network must know where it is.
                append_coordinates=case.grid_kind != "periodic",
                grid_kind=case.grid_kind,
                rngs=nnx.Rngs(1000 * level + seed),
            )
            for level in levels
        ]
        steps_per_epoch = case.train // case.batch_size
        optimizer = MultilevelOptimizer(
            [
                adam(share * rate, schedule, n * steps_per_epoch)
                for share, n in zip(case.level_rates, epochs, strict=False)
            ],
            on_transition=case.on_transition,
        )
        trainer = CascadeTrainer(
            models,
            optimizer,
            config=MultilevelConfig(
                num_levels=len(models), level_epochs=list(epochs), compile_ahead=False
            ),
        )
        return trainer.fit(
            self.loss_of_image if case.square_symmetries else self.loss,
            [(self.levels[level].inputs, self.levels[level].outputs) for level in levels],
            batch_size=case.batch_size,
            key=jax.random.key(seed),
            evaluate=error,
            monitor=Monitor(every=1),
        )

    def alone(self, rate: float, schedule: str, seed: int, error: Any, share: float = 1) -> History:
        """The finest network for a share of its budget."""
        finest = len(self.case.modes) - 1
        epochs = max(1, round(share * self.case.alone_epochs))
        return self.fit([finest], [epochs], rate, schedule, seed, error)

    def cascade(
        self, rate: float, schedule: str, seed: int, error: Any, share: float = 1
    ) -> History:
        """All levels for a share of their budgets."""
        epochs = [max(1, round(share * n)) for n in self.case.cascade_epochs]
        return self.fit(range(len(self.case.modes)), epochs, rate, schedule, seed, error)


def tune(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Rate and schedule of each side, by validation error after a share of the budget."""
    case = experiment.case
    error = experiment.error(experiment.validation)
    trials = []
    for side, run in (("alone", experiment.alone), ("cascade", experiment.cascade)):
        for rate in case.rates:
            for schedule in case.schedules:
                history = run(rate, schedule, TUNING_SEED, error, case.tuning_fraction)
                best = min(e.metrics["error"] for e in history.evaluations)
                trials.append(
                    {
                        "side": side,
                        "rate": rate,
                        "schedule": schedule,
                        "error": final(history),
                        "lowest_error": best,
                        "seconds": history.seconds,
                    }
                )
                CONSOLE.print(trials[-1])
    alone, cascade = (
        min((t for t in trials if t["side"] == side), key=lambda t: t["error"])
        for side in ("alone", "cascade")
    )
    return alone, cascade, trials


def compare(experiment: Experiment, seeds: Sequence[int]) -> dict[str, Any]:
    """Tune both sides, then run all seeds."""
    best_alone, best_cascade, trials = tune(experiment)
    error = experiment.error(experiment.test)
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        one = experiment.alone(best_alone["rate"], best_alone["schedule"], seed, error)
        many = experiment.cascade(best_cascade["rate"], best_cascade["schedule"], seed, error)
        runs.append({"seed": seed, **compare_runs(one, many)})
        shown = [{k: v for k, v in r.items() if not k.startswith("curve")} for r in runs]
        CONSOLE.print(comparison_table(shown, title=experiment.case.name))
    return {
        "settings": {k: v for k, v in vars(experiment.case).items() if k != "name"},
        "tuning": trials,
        "alone": best_alone,
        "cascade": best_cascade,
        "runs": runs,
        "median": median_ratios(runs),
    }


def options() -> argparse.Namespace:
    """Command line."""
    made = parser(__doc__)
    made.add_argument("--operator", choices=sorted(CASES), default="burgers")
    made.add_argument("--quick", action="store_true", help="a few epochs, to see that it runs")
    return made.parse_args()


def main() -> None:
    """Run one operator."""
    given = options()
    case = CASES[given.operator]
    if given.quick:
        epochs = tuple(2 for _ in case.modes)
        case = replace(case, alone_epochs=2, cascade_epochs=epochs, rates=(1e-3,))
    result = compare(Experiment(case), given.seeds)
    CONSOLE.print(f"{result['median']}")
    if not given.quick:
        write_results(f"operator_{given.operator}", **result)


if __name__ == "__main__":
    main()
