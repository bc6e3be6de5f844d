"""Seconds to an error where samples cost more than training: solver, correction and network together.

The operator from the initial velocity of a gas to its state after shocks formed (`gas_dynamics.py`).
A network sees 128 cells whatever the solver did. The rival is one network on samples of *one* solver,
the best choice of solver and number of samples; ours is the same network on cheap samples that were
corrected with few dear ones, as many of each as `allocate_samples` says for a budget.

The rules are those of `race.py`: all entries are tried on a seed of their own and judged on validation
samples; the low target is 1.2 times the lowest error with which any rival ends, the high one three
times that; each side sends the entry that was there first to five other seeds, judged on test samples.
Clocks count processor seconds of one thread: solving, measuring the levels, training with compilation,
until the target is first reached. Validation and test samples were solved on 2048 cells. Solved samples
are the same for all seeds and kept on disk with the seconds they took; a cold solver's compilation is
counted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import gas_dynamics
from common import final, lowest, parser, start_cold, write_results
from gas_dynamics import REFERENCE_CELLS, GasData, solve
from opifex.core.metrics import relative_l2
from opifex.data import FieldNormalizer, OperatorData
from opifex.models import FNO
from opifex.training.multilevel import (
    CascadeTrainer,
    History,
    Monitor,
    MultilevelConfig,
    MultilevelOptimizer,
)
from opifex.training.sample_levels import (
    SampleAllocation,
    allocate_samples,
    correct_samples,
    measure_sample_levels,
)
from opifex.training.stopwatch import Stopwatch
from race import CONSOLE, HIGH, MARGIN, TUNING_SEED, advantage, quartiles, reached

CELLS = (128, 256, 512, 1024)
POOL = {128: 4096, 256: 2048, 512: 1024, 1024: 1024}
"""Samples that are there of each solver."""
TRAINING, VALIDATION, TEST, PILOT_SEED = 1, 2, 3, 4
PILOT = 8
BATCH = 16
RATE = 3e-3


@dataclass(frozen=True)
class Entry:
    """Samples and training steps.

    Attributes:
        cells: of the solver of a single network; 0 for corrected samples.
        count: of its samples.
        budget: processor seconds of solving, for corrected samples.
        steps: of training.
    """

    cells: int
    count: int
    budget: float
    steps: int

    @property
    def label(self) -> str:
        """In words."""
        if self.cells:
            return f"{self.count} samples on {self.cells} cells, {self.steps} steps"
        return f"corrected samples for {self.budget:.0f} s, {self.steps} steps"


@cache
def pool(cells: int) -> GasData:
    """All samples of a solver."""
    return solve(POOL[cells], cells, TRAINING)


def solver(level: int, num_samples: int, seed: int) -> OperatorData:
    """Solves, without the samples kept on disk."""
    found = gas_dynamics.computed(num_samples, CELLS[level], seed)
    return OperatorData(found.inputs, found.outputs)


@cache
def pilot() -> tuple[Any, float]:
    """The measured levels, and the processor seconds of measuring them."""
    start = time.process_time()
    measured = measure_sample_levels(solver, len(CELLS), num_samples=PILOT, seed=PILOT_SEED)
    return measured, time.process_time() - start


class Kept:
    """The solver of `correct_samples`, from the samples on disk, counting what they took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, level: int, num_samples: int, seed: int) -> OperatorData:
        """The first samples; ``seed`` seeds networks here."""
        del seed
        data = pool(CELLS[level])
        self.seconds += num_samples * data.seconds
        return OperatorData(data.inputs[:num_samples], data.outputs[:num_samples])


def correction_network(rngs: nnx.Rngs) -> FNO:
    """Velocity and three cheap fields to three differences."""
    return FNO(32, 24, input_dim=4, output_dim=3, grid_kind="periodic", rngs=rngs)


def allocation(budget: float) -> SampleAllocation:
    """What is proposed, at most what is there."""
    found = allocate_samples(pilot()[0], budget)
    counts = [
        min(count, POOL[CELLS[i]]) for i, count in zip(found.levels, found.counts, strict=True)
    ]
    return SampleAllocation(found.levels, tuple(counts))


def samples(entry: Entry, seed: int) -> tuple[OperatorData, float, dict[str, Any]]:
    """Training samples, the processor seconds that they took, and how they were made."""
    if entry.cells:
        data = pool(entry.cells)
        chosen = OperatorData(data.inputs[: entry.count], data.outputs[: entry.count])
        return chosen, entry.count * data.seconds + compilation(entry.cells), {}
    kept, plan = Kept(), allocation(entry.budget)
    start = time.process_time()
    made = correct_samples(kept, plan, correction_network, seed=seed)
    seconds = time.process_time() - start + kept.seconds + pilot()[1]
    seconds += sum(compilation(CELLS[level]) for level in plan.levels)
    return (
        made.data,
        seconds,
        {
            "allocation": {CELLS[i]: n for i, n in zip(plan.levels, plan.counts, strict=True)},
            "pilot_seconds": pilot()[1],
            "solving_seconds": kept.seconds,
            "corrections": [
                {"cells": CELLS[c.level], "difference": c.difference, "error": c.error}
                for c in made.corrections
            ],
        },
    )


@cache
def compilation(cells: int) -> float:
    """Processor seconds to compile a solver for full batches."""
    return gas_dynamics.compilation_seconds(cells)


@cache
def reference(which: str) -> GasData:
    """Samples to be judged on."""
    return solve(
        *{"validation": (32, REFERENCE_CELLS, VALIDATION), "test": (64, REFERENCE_CELLS, TEST)}[
            which
        ]
    )


def run(entry: Entry, seed: int, which: str) -> dict[str, Any]:
    """Make the samples, train, and measure on the way."""
    start_cold()
    data, seconds, made = samples(entry, seed)
    inputs, outputs = FieldNormalizer.fit(data.inputs), FieldNormalizer.fit(data.outputs)
    judged = reference(which)
    fields = inputs.normalize(judged.inputs)
    # Scaled as the first samples of the dearest solver, the same for all entries.
    scale = FieldNormalizer.fit(pool(CELLS[-1]).outputs[:PILOT])
    target = np.asarray(scale.normalize(judged.outputs))

    def error(model: Any, fields: Any) -> jax.Array:
        return relative_l2(scale.normalize(outputs.denormalize(model(fields))), target)

    compiled = nnx.jit(error)
    network = FNO(24, 32, input_dim=1, output_dim=3, grid_kind="periodic", rngs=nnx.Rngs(seed))
    batch = min(BATCH, len(data.inputs))
    epochs = max(1, round(entry.steps * batch / len(data.inputs)))
    steps = epochs * (len(data.inputs) // batch)
    optimizer = MultilevelOptimizer(optax.adam(optax.cosine_decay_schedule(RATE, steps)))
    config = MultilevelConfig(num_levels=1, level_epochs=[epochs], compile_ahead=False)
    trainer = CascadeTrainer([network], optimizer, config=config)
    trainer.history.stopwatch = Stopwatch(time.process_time)
    history = trainer.fit(
        lambda model, x, y: relative_l2(model(x), y),
        (np.asarray(inputs.normalize(data.inputs)), np.asarray(outputs.normalize(data.outputs))),
        batch_size=batch,
        key=jax.random.key(seed),
        evaluate=lambda model: {"error": compiled(model, fields)},
        monitor=Monitor(every=max(1, epochs // 30)),
    )
    return {"seconds_before_training": seconds, "history": history, **made}


def outcome(found: dict[str, Any], target: float) -> dict[str, Any]:
    """When a run reached a target, with and without its samples, and where it ended."""
    history: History = found["history"]
    when = reached(history, target)
    before = found["seconds_before_training"]
    return {
        **{key: value for key, value in found.items() if key != "history"},
        "training_seconds": None if when is None else when[1],
        "seconds": None if when is None else before + when[1],
        "all_training_seconds": history.elapsed_seconds,
        "all_seconds": before + history.elapsed_seconds,
        "final_error": final(history),
        "lowest_error": lowest(history),
    }


SINGLE = [
    Entry(cells, count, 0.0, steps)
    for cells, count in (
        (256, 512),
        (256, 2048),
        (512, 256),
        (512, 512),
        (512, 1024),
        (1024, 128),
        (1024, 512),
        (1024, 1024),
    )
    for steps in (2000, 4000)
]
OURS = [Entry(0, 0, budget, steps) for budget in (40.0, 80.0, 160.0) for steps in (2000, 4000)]


def choose(found: dict[Entry, dict[str, Any]], target: float) -> Entry:
    """The entry that was at the target first; if none was, the one that ended lowest."""

    def key(entry: Entry) -> tuple[float, float]:
        result = outcome(found[entry], target)
        when = result["seconds"]
        return (float("inf") if when is None else when, result["final_error"])

    return min(found, key=key)


def tune(side: str, entries: list[Entry]) -> dict[Entry, dict[str, Any]]:
    """Try all entries on the tuning seed."""
    found = {}
    for entry in entries:
        found[entry] = run(entry, TUNING_SEED, "validation")
        shown = outcome(found[entry], 0.0)
        CONSOLE.print(
            f"{side}: {entry.label}: {shown['final_error']:.4f} after {shown['all_seconds']:.0f} s",
            {key: shown[key] for key in ("allocation", "corrections") if key in shown},
        )
    return found


def main() -> None:
    """Tune both sides, set the targets, run all seeds."""
    seeds = parser(__doc__).parse_args().seeds
    tuned = {"single": tune("single", SINGLE), "corrected": tune("corrected", OURS)}
    low = MARGIN * min(final(found["history"]) for found in tuned["single"].values())
    done: dict[tuple[Entry, int], dict[str, Any]] = {}
    targets = []
    for name, target in (("low", low), ("high", HIGH * low)):
        chosen = {side: choose(found, target) for side, found in tuned.items()}
        runs = []
        for seed in seeds:
            row: dict[str, Any] = {"seed": seed}
            for side, entry in chosen.items():
                if (entry, seed) not in done:
                    done[entry, seed] = run(entry, seed, "test")
                row[side] = outcome(done[entry, seed], target)
            row["single_over_corrected"] = advantage(row["single"], row["corrected"], "seconds")
            runs.append(row)
            CONSOLE.print(
                {s: (row[s]["seconds"], round(row[s]["final_error"], 4)) for s in chosen},
                row["single_over_corrected"],
            )
        targets.append(
            {
                "name": name,
                "target": target,
                "entries": {side: entry.label for side, entry in chosen.items()},
                "runs": runs,
                "ratio": quartiles([row["single_over_corrected"] for row in runs]),
            }
        )
        CONSOLE.print(name, target, targets[-1]["entries"], targets[-1]["ratio"])
    write_results(
        "sample_cost",
        solvers=[
            {"cells": cells, "seconds_per_sample": pool(cells).seconds, "pool": POOL[cells]}
            for cells in CELLS
        ],
        tuning=[
            {"side": side, "entry": entry.label, **outcome(found, 0.0)}
            for side, all_found in tuned.items()
            for entry, found in all_found.items()
        ],
        races=targets,
    )


if __name__ == "__main__":
    main()
