"""One learning rate for all levels: peaks after transitions, errors, and the best rate of each width.

*Cascades* of three levels on two PINNs and two operators, all small, whose widths double: Adam with one
rate for all entries (``plain``) against ``MultilevelAdam(rate, width_scaling=True, warm_up_steps=200)``
(``scaled``), at several constant rates. Every step sees all data, so that the loss of one step can be
compared with that of the next. A peak is the largest loss of the `WINDOW` steps after a transition, over
the last loss before it. A constant rate makes Adam's loss spike by itself: ``without transition`` is the
same quotient where the coarse level goes on instead (two seeds). ``of the typical loss`` divides by the
geometric mean of the 100 losses before instead of the last one, which may be a lucky dip.

*Curves*: single networks of each width, trained at each rate from the start, with the factor of their
width and without. With the factor the best rate should be the same for all widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from common import command, median, parser, read_results, write_results
from opifex.core.metrics import relative_l2
from opifex.data import FieldNormalizer, generate_burgers_operator_data, generate_darcy_data
from opifex.optimization import (
    scale_by_age_corrected_adam,
    scale_by_width,
    set_width_factors,
)
from opifex.problems import Helmholtz, Poisson
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelConfig,
    MultilevelOptimizer,
    create_fno_hierarchy,
    create_multiscale_hierarchy,
    create_network_hierarchy,
)
from opifex.training.multilevel.transfer import parameter_path, rate_ratios
from opifex.training.smoother import Smoother, as_smoother
from opifex.viz import comparison_table

WINDOW = 200


def adam(width_scaling: bool, warm_up_steps: int) -> Smoother:
    """What `MultilevelAdam` is made of, with a rate that is data: one program serves all rates."""
    return as_smoother(
        optax.chain(
            scale_by_age_corrected_adam(warm_up_steps=warm_up_steps),
            optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=1.0),
            *([scale_by_width()] if width_scaling else []),
        )
    )


ARMS = {"plain": adam(False, 0), "scaled": adam(True, 200)}


@dataclass(frozen=True)
class Case:
    """A problem with a hierarchy for it.

    Attributes:
        hierarchy: from a seed to the models.
        loss: of a model and the data.
        data: from a seed to the data of all levels.
        error: of a model.
        steps: of each level.
        rates: of the cascades.
    """

    hierarchy: Callable[[int], list[Any]]
    loss: Callable[..., Any]
    data: Callable[[int], tuple[Any, ...]]
    error: Callable[[Any], Any]
    rates: Sequence[float]
    steps: tuple[int, ...] = (400, 600, 800)


def poisson() -> Case:
    """The page's problem on smaller networks and fewer points."""
    problem = Poisson()
    return Case(
        lambda seed: create_network_hierarchy(2, 1, [64] * 3, 3, rngs=nnx.Rngs(seed)),
        problem.loss,
        lambda seed: problem.sample_points(jax.random.key(seed), 300, 50),
        problem.relative_l2_error,
        (1e-3, 3e-3, 1e-2),
    )


def helmholtz() -> Case:
    """Three bands of sines."""
    problem = Helmholtz(boundary_weight=1e4)
    return Case(
        lambda seed: create_multiscale_hierarchy(
            2,
            1,
            [32],
            (5.0, 10.0, 20.0),
            bands=[3, 3, 3],
            coarsening_factor=0.5,
            rngs=nnx.Rngs(seed),
        ),
        problem.loss,
        lambda seed: problem.sample_points(jax.random.key(seed), 200, 100),
        problem.relative_l2_error,
        (3e-3, 1e-2, 3e-2),
    )


class Operator:
    """Samples of an operator, and the errors of models on them."""

    def __init__(self, inputs: Any, outputs: Any, train: int) -> None:
        self.inputs = FieldNormalizer.fit(inputs[:train]).normalize(inputs).astype(np.float32)
        self.outputs, self.train = outputs, train
        self.scale = FieldNormalizer.fit(outputs[:train])

    def loss(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """Mean relative error of samples."""
        return relative_l2(self.scale.denormalize(model(inputs)), outputs)

    def data(self, seed: int) -> tuple[Any, ...]:
        """The samples to train on."""
        del seed
        return jnp.asarray(self.inputs[: self.train]), jnp.asarray(self.outputs[: self.train])

    def error(self, model: Any) -> Any:
        """The loss of the other samples."""
        rest = slice(self.train, None)
        return self.loss(model, jnp.asarray(self.inputs[rest]), jnp.asarray(self.outputs[rest]))


def burgers() -> Case:
    """Modes and widths grow."""
    operator = Operator(*generate_burgers_operator_data(48, 32, viscosity=0.1), 16)
    return Case(
        lambda seed: create_fno_hierarchy(
            8,
            16,
            3,
            width_factor=0.5,
            num_layers=2,
            grid_kind="periodic",
            rngs=nnx.Rngs(seed),
        ),
        operator.loss,
        operator.data,
        operator.error,
        (1e-3, 3e-3, 1e-2),
        (300, 300, 400),
    )


def darcy() -> Case:
    """Modes and widths grow; the grid is coarse."""
    operator = Operator(*generate_darcy_data(48, 12), 16)
    return Case(
        lambda seed: create_fno_hierarchy(
            4, 8, 3, width_factor=0.5, num_layers=2, spatial_dims=2, rngs=nnx.Rngs(seed)
        ),
        operator.loss,
        operator.data,
        operator.error,
        (1e-3, 3e-3, 1e-2),
        (300, 300, 400),
    )


CASES = {
    "Poisson": poisson,
    "Helmholtz": helmholtz,
    "Burgers operator": burgers,
    "Darcy operator": darcy,
}


def typical(losses: np.ndarray) -> float:
    """The geometric mean of the last hundred losses."""
    return float(np.exp(np.mean(np.log(losses[-100:]))))


def trained(
    case: Case, arm: str, rate: float, seed: int, steps: Sequence[int]
) -> tuple[list[np.ndarray], CascadeTrainer]:
    """Losses of the levels, and the trainer."""
    models = case.hierarchy(seed)[: len(steps)]
    config = MultilevelConfig(num_levels=len(models), level_epochs=list(steps), compile_ahead=False)
    trainer = CascadeTrainer(models, MultilevelOptimizer(ARMS[arm]), config=config)
    trainer.optimizer.state = optax.tree.set(
        trainer.optimizer.state, learning_rate=jnp.float32(rate)
    )
    history = trainer.fit(case.loss, case.data(seed))
    return np.split(np.asarray(history.losses), np.cumsum(steps)[:-1]), trainer


@lru_cache
def error_program(error: Callable[[Any], Any]) -> Any:
    """The error of a model from its parts, compiled."""
    return jax.jit(lambda graph, state: error(nnx.merge(graph, state)), static_argnums=0)


def cascade(case: Case, arm: str, rate: float, seed: int, continued: bool) -> dict[str, Any]:
    """One cascade; and its coarse levels continued, if that is wanted."""
    levels, trainer = trained(case, arm, rate, seed, case.steps)
    errors = []
    for _ in range(5):  # the error of one step may be a spike
        trainer.fit(case.loss, case.data(seed), epochs=[20])
        errors.append(float(error_program(case.error)(*nnx.split(trainer.model))))
    peaks, typical_peaks, alone = [], [], []
    for level in (0, 1):
        before, after = levels[level], levels[level + 1]
        highest = float(np.max(after[:WINDOW]))
        peaks.append(highest / float(before[-1]))
        typical_peaks.append(highest / typical(before))
        if continued:
            longer = [*case.steps[:level], case.steps[level] + WINDOW]
            rest = trained(case, arm, rate, seed, longer)[0][level][case.steps[level] :]
            alone.append(float(np.max(rest)) / float(before[-1]))
    return {
        "seed": seed,
        "peaks": peaks,
        "peaks_of_typical": typical_peaks,
        "without_transition": alone,
        "final_loss": typical(levels[-1]),
        "final_error": float(np.exp(np.mean(np.log(errors)))),
    }


def row(problem: str, arm: str, rate: float, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a table shows of the seeds."""

    def largest(name: str) -> float:
        return max(value for run in runs for value in run[name])

    return {
        "problem": problem,
        "Adam": arm,
        "rate": rate,
        "largest peak": largest("peaks"),
        "of the typical loss": largest("peaks_of_typical"),
        "without transition": largest("without_transition"),
        "below 2": f"{sum(peak < 2 for run in runs for peak in run['peaks'])} of {2 * len(runs)}",
        "median final loss": median([run["final_loss"] for run in runs]),
        "median final error": median([run["final_error"] for run in runs]),
        "command": command(),
    }


CURVE_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CURVE_STEPS = 400


def final_losses(case: Case, seed: int) -> dict[bool, list[list[float]]]:
    """Final losses of single networks, with the factor of their width and without.

    One row for each level, one column for each rate.
    """
    models, data = case.hierarchy(seed), case.data(seed)
    method = optax.chain(optax.scale_by_adam(), scale_by_width())
    found: dict[bool, list[list[float]]] = {False: [], True: []}
    for model in models:
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def run(rate: Any, start: Any, graph: Any = graph, rest: Any = rest) -> Any:
            def step(carry: Any, _: Any) -> Any:
                params, state = carry
                value, grads = jax.value_and_grad(
                    lambda p: case.loss(nnx.merge(graph, p, rest), *data)
                )(params)
                updates, state = method.update(grads, state)
                moved = jax.tree.map(lambda p, u: p - rate * u, params, updates)
                return (moved, state), value

            return jax.lax.scan(step, start, None, CURVE_STEPS)[1]

        program = jax.jit(run)
        for scaled, rows in found.items():
            ratios = rate_ratios(models[0], model) if scaled else {}

            def factor(path: Any, ratios: Any = ratios) -> float:
                return float(ratios.get(parameter_path(path), 1.0))

            start = params, set_width_factors(method.init(params), factor)
            rows.append([typical(np.asarray(program(rate, start))) for rate in CURVE_RATES])
    return found


def curves(name: str, case: Case, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Medians over the seeds, one row for each level and way."""
    runs, found = [final_losses(case, seed) for seed in seeds], []
    for scaled in (False, True):
        losses = np.median([run[scaled] for run in runs], axis=0)
        for level, values in enumerate(losses):
            found.append(
                {
                    "problem": name,
                    "factor of the width": "yes" if scaled else "no",
                    "level": level,
                    **{f"{rate:g}": float(v) for rate, v in zip(CURVE_RATES, values, strict=True)},
                    "best rate": CURVE_RATES[int(np.nanargmin(values))],
                }
            )
    return found


def main() -> None:
    """All cases, or some; the others keep their last results."""
    options = parser(__doc__)
    options.set_defaults(seeds=[100, 101, 102, 103, 104])
    options.add_argument("--quick", action="store_true", help="one rate, to see that it runs")
    options.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    given = options.parse_args()
    results = read_results("one_rate") or {"rows": [], "curves": [], "runs": {}}
    for name in given.cases:
        case = CASES[name]()
        rows, runs = [], {}
        for rate in case.rates[:1] if given.quick else case.rates:
            for arm in ARMS:
                found = [
                    cascade(case, arm, rate, seed, number < 2)
                    for number, seed in enumerate(given.seeds)
                ]
                runs[f"{name}, {arm}, {rate:g}"] = found
                rows.append(row(name, arm, rate, found))
                print(rows[-1], flush=True)
        shown = [] if given.quick else curves(name, case, given.seeds[:2])
        for key, new in (("rows", rows), ("curves", shown)):
            results[key] = [r for r in results[key] if r["problem"] != name] + new
        results["runs"] |= runs
        for found in filter(None, (rows, shown)):
            Console(width=200).print(comparison_table(found))
        if not given.quick:
            write_results("one_rate", **{key: results[key] for key in ("rows", "curves", "runs")})


if __name__ == "__main__":
    main()
