"""What a fine level starts from: the coarse function, exactly or nearly, with units that learn at once.

Two parts, each with the same networks and points for all starts and no test data in any choice:

- ``Levenberg-Marquardt``: Helmholtz with wave number 1 and two half-waves, trial functions, tanh
  networks of widths (10, 10) and (20, 20) in float64, 400 points, 22 steps on the coarse level and 40 on
  the fine one. In a start that preserves the function the Jacobian of what feeds the new units is zero.
  ``alone`` is the fine network from its own start.
- ``Adam``: Poisson, widths (64, 64, 64) in two levels, `MultilevelAdam` 1e-3, 600 and 1400 steps on 1000
  points; the loss is the geometric mean of the last 100.

Starts: ``preserving``; shares of the fine model's values for the outgoing weights of new units (1 is
copy and pad); and ``chosen``, new units improved by 30 steps of ascent of the gradient of their outgoing
weights, with shares 0 and 0.1. Seeds are none of those on which anything was chosen.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from common import command, median, parser, write_results
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import Helmholtz, Poisson
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    MultilevelConfig,
    PlasticProlongation,
    create_network_hierarchy,
    prolongate_preserving,
)
from opifex.viz import comparison_table

STARTS: dict[str, Any] = {
    "preserving": prolongate_preserving,
    "share 0.1": PlasticProlongation(0.1),
    "share 0.3": PlasticProlongation(0.3),
    "share 1": PlasticProlongation(1.0),
    "chosen": PlasticProlongation(0.0, ascent_steps=30),
    "chosen, share 0.1": PlasticProlongation(0.1, ascent_steps=30),
}


def second_order(start: str, seed: int) -> dict[str, Any]:
    """One cascade with Levenberg-Marquardt, or the fine network alone."""
    with jax.enable_x64(True):
        problem = Helmholtz(wave_number=1.0, half_waves=2)
        points = problem.sample_points(jax.random.key(seed), 400, 4, method="sobol")[:1]
        models = [
            problem.trial_function(
                MLP(2, 1, [width] * 2, param_dtype=jnp.float64, rngs=nnx.Rngs(seed + width))
            )
            for width in (10, 20)
        ]
        alone = start == "alone"
        trainer = CascadeTrainer(
            models[1:] if alone else models,
            LevenbergMarquardt(),
            None if alone else STARTS[start],
            config=MultilevelConfig(
                num_levels=1 if alone else 2, level_epochs=[40] if alone else [22, 40]
            ),
        )
        history = trainer.fit(problem.terms[:1], points)
        error = float(problem.relative_l2_error(trainer.get_current_model()))
        return {"seed": seed, "loss": float(history.losses[-1]), "error": error}


def first_order(start: str, seed: int) -> dict[str, Any]:
    """One cascade with Adam, or the fine network alone for all its steps."""
    problem = Poisson()
    models = create_network_hierarchy(2, 1, [64] * 3, 2, rngs=nnx.Rngs(seed))
    alone = start == "alone"
    trainer = CascadeTrainer(
        models[1:] if alone else models,
        MultilevelAdam(1e-3),
        None if alone else STARTS[start],
        config=MultilevelConfig(
            num_levels=1 if alone else 2, level_epochs=[1400] if alone else [600, 1400]
        ),
    )
    history = trainer.fit(problem.loss, problem.sample_points(jax.random.key(seed), 1000, 100))
    return {
        "seed": seed,
        "loss": float(np.exp(np.mean(np.log(history.losses[-100:])))),
        "error": float(problem.relative_l2_error(trainer.get_current_model())),
    }


PARTS = {"Levenberg-Marquardt": second_order, "Adam": first_order}


def main() -> None:
    """All starts on all seeds."""
    options = parser(__doc__)
    options.set_defaults(seeds=[200, 201, 202, 203, 204])
    seeds = options.parse_args().seeds
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    rows = []
    for part, run in PARTS.items():
        runs[part] = {}
        for start in ("alone", *STARTS):
            runs[part][start] = entries = [run(start, seed) for seed in seeds]
            print(part, start, entries, flush=True)
            rows.append(
                {
                    "method": part,
                    "start": start,
                    "median loss": median([entry["loss"] for entry in entries]),
                    "median error": median([entry["error"] for entry in entries]),
                    "largest error": max(entry["error"] for entry in entries),
                }
            )
    Console().print(comparison_table(rows))
    write_results("plasticity", command=command(), rows=rows, runs=runs)


if __name__ == "__main__":
    main()
