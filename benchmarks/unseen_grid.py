"""Errors on grids that no training has seen, by what the training has seen.

Darcy's operator (two phases, the package's solver on 64 x 64), trained on grids of at most 16 x 16 and
used on 16, 32 and 64, where the last two are unseen. The ways to train, all for the same processor
seconds with the same network, rate and schedule:

- ``alone``: on 16 x 16;
- ``cascade``: on 8 x 8 for a third of the time, then on 16 x 16;
- ``both``: every step on the same samples on 8 x 8 and 16 x 16, the mean of the two errors as loss
  (Runfeldt et al. report that training on several resolutions repairs what networks do on unseen
  ones, arXiv:2510.06646);
- ``cascade, then both``: 8 x 8 for a third of the time, then both grids.

Inputs and outputs of a grid are means over its cells. Rates are tuned for every way on seed 100 by the
validation error on 16 x 16, the grid that training knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from common import median, parser, start_cold, write_results
from operator_time_to_accuracy import random_image
from opifex.core.metrics import relative_l2
from opifex.data import FieldNormalizer, generate_darcy_data
from opifex.models import FNO
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelConfig,
    MultilevelOptimizer,
    restrict_field,
)
from opifex.viz import comparison_table

CONSOLE = Console(width=140)
TRAIN, VALIDATION, TEST = 600, 100, 200
GRIDS = (8, 16, 32, 64)
KNOWN = 16
WIDTH, BATCH, TUNING_SEED = 24, 20, 100
RATES = (3e-3, 1e-2)


@dataclass(frozen=True)
class Way:
    """How to train.

    Attributes:
        grids: of every level; a level with several trains on all of them in every step.
        shares: of the time, one per level.
    """

    grids: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]


WAYS = {
    "alone": Way(((16,),), (1.0,)),
    "cascade": Way(((8,), (16,)), (1 / 3, 2 / 3)),
    "both": Way(((8, 16),), (1.0,)),
    "cascade, then both": Way(((8,), (8, 16)), (1 / 3, 2 / 3)),
}


@cache
def fields() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Normalised inputs and outputs on every grid, all samples."""
    data = generate_darcy_data(TRAIN + VALIDATION + TEST, GRIDS[-1], progress=True)
    found = {}
    for part in zip(*(_on_grids(values) for values in data), strict=True):
        (grid, inputs), (_, outputs) = part
        found[grid] = inputs, outputs
    return found


def _on_grids(values: np.ndarray) -> list[tuple[int, np.ndarray]]:
    scaled = np.asarray(FieldNormalizer.fit(values[:TRAIN]).normalize(values), np.float32)
    return [(n, restrict_field(scaled, (n, n), grid_kind="cell")) for n in GRIDS]


def loss(model: Any, *arrays: Any) -> Any:
    """The mean over the grids of the mean relative error, on random images of the samples."""
    *pairs, key = arrays
    errors = [
        relative_l2(model(inputs), outputs)
        for inputs, outputs in (
            random_image(pairs[2 * i], pairs[2 * i + 1], key) for i in range(len(pairs) // 2)
        )
    ]
    return sum(errors) / len(errors)


def losses(count: int) -> Callable[..., Any]:
    """The loss of so many grids, with the names of arguments that `fit` looks at."""
    if count == 1:
        return lambda model, a, b, key: loss(model, a, b, key)
    return lambda model, a, b, c, d, key: loss(model, a, b, c, d, key)


def network(seed: int) -> FNO:
    """The network of all levels."""
    return FNO(
        4, WIDTH, num_layers=4, spatial_dims=2, append_coordinates=True, grid_kind="cell",
        rngs=nnx.Rngs(seed),
    )  # fmt: skip


def train(level: tuple[int, ...], model: FNO, rate: float, epochs: int, seed: int) -> FNO:
    """One level."""
    arrays = [field[:TRAIN] for grid in level for field in fields()[grid]]
    schedule = optax.cosine_decay_schedule(rate, max(1, epochs * (TRAIN // BATCH)))
    CascadeTrainer(
        [model],
        MultilevelOptimizer(optax.adam(schedule)),
        config=MultilevelConfig(num_levels=1, level_epochs=[epochs]),
    ).fit(losses(len(level)), tuple(arrays), batch_size=BATCH, key=jax.random.key(seed))
    return model


@cache
def seconds_per_epoch(level: tuple[int, ...]) -> float:
    """Processor seconds of an epoch, without compilation."""
    found = []
    for epochs in (2, 12):
        start_cold()
        began = time.process_time()
        train(level, network(0), 1e-3, epochs, 0)
        found.append(time.process_time() - began)
    return (found[1] - found[0]) / 10


def errors(model: FNO, which: slice) -> dict[str, float]:
    """Relative errors on every grid."""
    found = {}
    for grid, (inputs, outputs) in fields().items():
        parts = [
            relative_l2(model(jnp.asarray(x)), jnp.asarray(y))
            for x, y in zip(
                np.array_split(inputs[which], 5), np.array_split(outputs[which], 5), strict=True
            )
        ]
        found[str(grid)] = float(np.mean([float(part) for part in parts]))
    return found


def run(way: Way, rate: float, budget: float, seed: int, which: slice) -> dict[str, float]:
    """Errors after training one way."""
    model = network(seed)
    for position, (level, share) in enumerate(zip(way.grids, way.shares, strict=True)):
        epochs = max(1, round(share * budget / seconds_per_epoch(level)))
        model = train(level, model, rate * 0.5**position, epochs, seed)
    return errors(model, which)


def main() -> None:
    """All ways."""
    options = parser(__doc__)
    options.add_argument("--budget", type=float, default=20.0, help="processor seconds of a run")
    given = options.parse_args()
    validation = slice(TRAIN, TRAIN + VALIDATION)
    test = slice(TRAIN + VALIDATION, None)
    rows = []
    for name, way in WAYS.items():
        tuned = {
            rate: run(way, rate, given.budget, TUNING_SEED, validation)[str(KNOWN)]
            for rate in RATES
        }
        rate = min(tuned, key=lambda value: tuned[value])
        runs = [run(way, rate, given.budget, seed, test) for seed in given.seeds]
        middle = {
            f"error on {grid} x {grid}": median([found[str(grid)] for found in runs])
            for grid in GRIDS
        }
        rows.append({"training": name, "rate": rate, **middle, "runs": runs})
        CONSOLE.print(rows[-1])
    write_results("unseen_grid", budget=given.budget, rows=rows)
    shown = [{k: str(v) for k, v in row.items() if k != "runs"} for row in rows]
    CONSOLE.print(comparison_table(shown))


if __name__ == "__main__":
    main()
