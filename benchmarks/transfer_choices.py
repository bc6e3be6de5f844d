"""What to do at a transition: prolongation and optimizer state on the page's Poisson problem.

Hidden widths (128, 128, 128) in three levels, Adam 1e-3, 400 + 600 + 1000 steps on 1000 points, as
on the specification's page. Every choice starts from the same networks and points. ``mean``,
``max`` and ``fresh`` carry the state of ``optax.adam`` and say what second moments of new entries
start from; ``restart`` forgets it; ``own age`` carries it and corrects the bias of every entry by its
own age (`MultilevelAdam`); with ``one rate`` new entries also warm up and rates fall with the width. A
jump is the loss after a transition over the loss before it; the peak is the largest loss of the 100
steps after it, over the loss before it. The last loss is the geometric mean of
the last 100, since Adam with a constant rate leaves spikes. The seeds are none of those that other
benchmarks report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from common import command, final, median, parser, read_results, write_results
from opifex.problems import Poisson
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    MultilevelConfig,
    MultilevelOptimizer,
    create_network_hierarchy,
    prolongate,
    prolongate_preserving,
)
from opifex.viz import comparison_table

STEPS = (400, 600, 1000)


def adam(**options: Any) -> Callable[[], MultilevelOptimizer]:
    """Optax's Adam, one step count for all entries."""
    return lambda: MultilevelOptimizer(optax.adam(1e-3), **options)


CARRY = {"on_transition": "carry"}
ONE_RATE: dict[str, Any] = {"width_scaling": True, "warm_up_steps": 200}
CHOICES: dict[str, tuple[Any, Callable[[], MultilevelOptimizer]]] = {
    "preserving, one rate": (prolongate_preserving, lambda: MultilevelAdam(1e-3, **ONE_RATE)),
    "preserving, own age": (prolongate_preserving, lambda: MultilevelAdam(1e-3)),
    "preserving, restart": (prolongate_preserving, adam(on_transition="restart")),
    "preserving, fresh": (prolongate_preserving, adam(second_moment_start="fresh", **CARRY)),
    "preserving, mean": (prolongate_preserving, adam(second_moment_start="mean", **CARRY)),
    "preserving, max": (prolongate_preserving, adam(second_moment_start="max", **CARRY)),
    "copy and pad, own age": (prolongate, lambda: MultilevelAdam(1e-3)),
    "copy and pad, restart": (prolongate, adam(on_transition="restart")),
    "copy and pad, mean": (prolongate, adam(second_moment_start="mean", **CARRY)),
}


def run(transfer: Any, optimizer: MultilevelOptimizer, seed: int) -> dict[str, Any]:
    """One cascade."""
    problem = Poisson()
    trainer = CascadeTrainer(
        create_network_hierarchy(2, 1, [128] * 3, 3, rngs=nnx.Rngs(seed)),
        optimizer,
        transfer,
        config=MultilevelConfig(num_levels=3, level_epochs=list(STEPS), compile_ahead=False),
    )
    history = trainer.fit(
        problem.loss,
        problem.sample_points(jax.random.key(seed), 1000, 100),
        evaluate=lambda model: {"error": problem.relative_l2_error(model)},
    )
    losses = history.losses
    borders = np.cumsum(STEPS)[:-1]
    return {
        "seed": seed,
        "jumps": [float(losses[b] / losses[b - 1]) for b in borders],
        "peaks": [float(np.max(losses[b : b + 100]) / losses[b - 1]) for b in borders],
        "final_loss": float(np.exp(np.mean(np.log(losses[-100:])))),
        "final_error": final(history),
    }


def main() -> None:
    """All choices on all seeds; or some, where the others keep their last results."""
    options = parser(__doc__)
    options.set_defaults(seeds=[100, 101, 102])
    options.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    given = options.parse_args()
    seeds = given.seeds
    last = read_results("transfer_choices") or {"runs": {}, "command": command(), "rows": []}
    commands = {row["choice"]: row.get("command", last["command"]) for row in last["rows"]}
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, (transfer, make) in CHOICES.items():
        if name not in given.choices:
            if name in last["runs"]:
                runs[name] = last["runs"][name]
            continue
        commands[name] = command()
        runs[name] = [run(transfer, make(), seed) for seed in seeds]
        for entry in runs[name]:
            print(name, entry, flush=True)
    rows = [
        {
            "choice": name,
            "largest jump": max(max(entry["jumps"]) for entry in entries),
            "largest peak": max(max(entry["peaks"]) for entry in entries),
            "median final loss": median([entry["final_loss"] for entry in entries]),
            "median final error": median([entry["final_error"] for entry in entries]),
            "command": commands[name],
        }
        for name, entries in runs.items()
    ]
    Console().print(comparison_table(rows))
    write_results("transfer_choices", steps=STEPS, rows=rows, runs=runs)


if __name__ == "__main__":
    main()
