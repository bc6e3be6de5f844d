"""What checkpoints cost: processor seconds of the same training with and without them.

A save every second, so that there are many of them; the difference to the run without, over the number
of saves, is the price of one, the thread that writes included. From that follows the share of the
training at one save every 30 seconds. Runs with and without take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from common import parser, write_results
from opifex.models import FNO, MLP
from opifex.problems import Poisson
from opifex.training.multilevel import CascadeTrainer, Checkpoints, History, Monitor

INTERVAL = 30.0


def pinn() -> tuple[Any, Any, Any]:
    """The page's finest network on Poisson's equation."""
    problem = Poisson()
    points = problem.sample_points(jax.random.key(0), 1000, 400)
    return MLP(2, 1, [128, 128, 128], rngs=nnx.Rngs(0)), problem.loss, points


def operator() -> tuple[Any, Any, Any]:
    """A Fourier operator with some millions of parameters."""
    inputs = jax.random.normal(jax.random.key(0), (8, 64, 64, 1))

    def loss(model: Any, fields: Any) -> Any:
        return jnp.mean((model(fields) - fields**2) ** 2)

    return FNO(12, 32, num_layers=4, spatial_dims=2, rngs=nnx.Rngs(0)), loss, (inputs,)


CASES: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], int]] = {
    "perceptron, 3 x 128": (pinn, 4000),
    "Fourier operator, 12 modes, width 32": (operator, 120),
}


def train(case: Callable[[], Any], steps: int, folder: Path | None) -> tuple[float, History, int]:
    """Processor seconds of a training, its record, and the number of saves."""
    model, loss, data = case()
    keeping: dict[str, Any] = {}
    if folder is not None:
        keeping["checkpoint"] = Checkpoints(folder, every=1.0, keep=2)
    trainer = CascadeTrainer([model], optax.adam(1e-3))
    began = time.process_time()
    history = trainer.fit(loss, data, epochs=[steps], monitor=Monitor(every=steps), **keeping)
    seconds = time.process_time() - began
    numbers = [] if folder is None else [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
    return seconds, history, max(numbers, default=-1) + 1


def main() -> None:
    """Both cases."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    rows = []
    for name, (case, steps) in CASES.items():
        train(case, 10, None)  # compiles what all runs share
        prices, saves, trained = [], [], []
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as folder:
                without, history, _ = train(case, steps, None)
                with_saves, _, count = train(case, steps, Path(folder))
            prices.append((with_saves - without) / count)
            saves.append(count)
            trained.append(history.seconds)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(case()[0], nnx.Param)))
        price = median(prices)
        rows.append(
            {
                "model": name,
                "MB of parameters": size / 1e6,
                "saves in a run": median(saves),
                "training, s": median(trained),
                "one save, s": price,
                "dearest of the rounds, s": max(prices),
                f"share at one in {INTERVAL:.0f} s": price / INTERVAL,
            }
        )
        print(rows[-1], flush=True)
    write_results("checkpoint_cost", rows=rows)


if __name__ == "__main__":
    main()
