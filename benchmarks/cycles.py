"""Cycles against a cascade against the finest network alone, in equal time.

Poisson, hidden widths (64, 64), three levels, Adam with a constant rate, 500 interior and 100
boundary points on every level, so that all minimise the same loss. Every strategy gets the time of
`BUDGET` steps of the finest network, in processor seconds of training and transfers (gradients and
line searches of cycles); its rate is the best of one grid on another seed and other points. The split
among levels is the same, one third of the time each, for all but the finest alone. Work units count
operations and flatter coarse levels, whose steps take longer than their operations say; they are shown
beside the seconds.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import optax
from flax import nnx
from rich.console import Console

from common import curve, median, parser, start_cold, write_results
from opifex.problems import Poisson, interior_points
from opifex.training.multilevel import (
    CascadeTrainer,
    FullMultigrid,
    History,
    MultilevelConfig,
    MultilevelOptimizer,
    VCycle,
    WCycle,
    create_network_hierarchy,
)
from opifex.training.stopwatch import Stopwatch
from opifex.viz import comparison_table

BUDGET = 2400  # steps of the finest network
CYCLES = 10
HIDDEN = (64, 64)
LEVELS = 3
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
TUNING_SEED = 100
STRATEGIES: dict[str, Any] = {
    "finest alone": None,
    "cascade": "cascade",
    "V-cycle": VCycle(cycles=CYCLES),
    "W-cycle": WCycle(cycles=CYCLES),
    "full multigrid": FullMultigrid(cycles=CYCLES),
    "V-cycle, Galerkin": VCycle(cycles=CYCLES, coarse="galerkin"),
}


def train(name: str, rate: float, epochs: list[int], seed: int, points: Any = None) -> History:
    """One run; without ``points`` the error is measured on the problem's grid."""
    start_cold()
    problem = Poisson()
    strategy = STRATEGIES[name]
    finest = create_network_hierarchy(2, 1, HIDDEN, 1, rngs=nnx.Rngs(seed))
    coarser = create_network_hierarchy(2, 1, HIDDEN, LEVELS, rngs=nnx.Rngs(1000 + seed))[:-1]
    models = finest if strategy is None else [*coarser, *finest]
    trainer = CascadeTrainer(
        models,
        MultilevelOptimizer(optax.adam(rate), on_transition="restart"),
        config=MultilevelConfig(num_levels=len(models), compile_ahead=False),
    )
    trainer.history.stopwatch = Stopwatch(time.process_time)
    return trainer.fit(
        problem.loss,
        problem.sample_points(jax.random.key(seed), 500, 100),
        epochs=epochs,
        cycle=strategy or "cascade",
        evaluate=lambda model: {"error": problem.relative_l2_error(model, points)},
    )


def errors_on_top(name: str, history: History) -> list[float]:
    """The errors of the finest network; that is what a Galerkin cycle trains on every level."""
    finest = max(e.level for e in history.evaluations)
    anywhere = name == "V-cycle, Galerkin"
    return [e.metrics["error"] for e in history.evaluations if anywhere or e.level == finest]


def last_loss(history: History) -> float:
    """Geometric mean of the last losses of the finest level; coarse ones have a linear term."""
    table = history.table()
    finest = table["loss"][table["level"] == max(table["level"])]
    return float(statistics.geometric_mean(finest[-20:]))


def last_error(name: str, history: History) -> float:
    """Geometric mean of the last tenth of these errors: a constant rate leaves spikes."""
    errors = errors_on_top(name, history)
    return float(statistics.geometric_mean(errors[-max(1, len(errors) // 10) :]))


def seconds_of_steps(history: History, level: int) -> float:
    """The median over the stretches of a level, for one step."""
    found = [s.seconds / len(s.losses) for s in history.stretches if s.level == level]
    return statistics.median(found)


def plan(name: str) -> list[int]:
    """Epochs per level that take the budget, found from the times of short runs."""
    alone = train("finest alone", RATES[0], [200], TUNING_SEED)
    budget = BUDGET * seconds_of_steps(alone, 0)
    if STRATEGIES[name] is None:
        return [BUDGET]
    history = train(name, RATES[0], [2 * CYCLES * 2**LEVELS] * LEVELS, TUNING_SEED)
    share = (budget - history.transfer_seconds) / LEVELS
    return [max(1, round(share / seconds_of_steps(history, level))) for level in range(LEVELS)]


def measure(name: str, seeds: list[int]) -> tuple[list[Any], list[Any]]:
    """Runs of one strategy at its best rate, and the errors that chose the rate."""
    check = interior_points(1000, Poisson().domain, key=jax.random.key(12345))
    epochs = plan(name)
    trials = []
    for rate in RATES:
        history = train(name, rate, epochs, TUNING_SEED, check)
        trials.append({"strategy": name, "rate": rate, "error": last_error(name, history)})
    rate = min(trials, key=lambda trial: trial["error"])["rate"]
    runs = []
    for seed in seeds:
        history = train(name, rate, epochs, seed)
        runs.append(
            {
                "strategy": name,
                "seed": seed,
                "rate": rate,
                "epochs": epochs,
                "work": history.work,
                "final_error": last_error(name, history),
                "lowest_error": min(errors_on_top(name, history)),
                "final_loss": last_loss(history),
                "seconds": history.seconds,
                "compile_seconds": history.compile_seconds,
                "transfer_seconds": history.transfer_seconds,
                "elapsed_seconds": history.elapsed_seconds,
                "curve": curve(history),
            }
        )
    return runs, trials


def main() -> None:
    """Tune on one seed, report on the others."""
    seeds = parser(__doc__).parse_args().seeds
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    trials: list[dict[str, Any]] = []
    for name in STRATEGIES:
        mine, tried = measure(name, seeds)
        runs += mine
        trials += tried
        rows.append(
            {
                "strategy": name,
                "rate": mine[0]["rate"],
                "steps per level": " ".join(map(str, mine[0]["epochs"])),
                "work": median([run["work"] for run in mine]),
                "final errors": ", ".join(f"{run['final_error']:.1e}" for run in mine),
                "median lowest error": median([run["lowest_error"] for run in mine]),
                "median final loss": median([run["final_loss"] for run in mine]),
                "seconds": median([run["seconds"] for run in mine]),
                "seconds with compilation and transfers": median(
                    [run["elapsed_seconds"] for run in mine]
                ),
            }
        )
        print(rows[-1], flush=True)
    Console(width=160).print(comparison_table(rows))
    write_results("cycles", rows=rows, runs=runs, trials=trials, rates=RATES, budget=BUDGET)


if __name__ == "__main__":
    main()
