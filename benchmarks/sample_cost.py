"""Seconds to an error where samples cost more than training: solver, correction and network together.

The operator from the initial velocity of a gas to its state after shocks formed (`gas_dynamics.py`).
A network sees 128 cells whatever the solver did. The rival is one network on samples of *one* solver,
the best choice of solver and number of samples; ours is the same network on cheap samples that were
corrected with few dear ones. How many of each is an entry, as the number of samples is one for the
rival; or `allocate_samples` says so for a budget of solving and training corrections, and then the clock
counts comparing the levels, too. The samples on which they are compared are the first ones of the
training set and are not solved again.

The rules are those of `race.py`: all entries are tried on a seed of their own and judged on validation
samples; the low target is 1.2 times the lowest error with which any rival ends, the high one three
times that; each side sends the entry that was there first to five other seeds, judged on test samples.
Only entries count that end 7 % below the target on the tuning seed, for either side: test errors are
larger than validation errors here, and others would miss the target. (The reserve was set after a run
with a smaller one, in which ours had missed on the first seed.) A rival that misses it all the same
counts as if it had reached it at the end of its run; if ours misses, its ratio is zero.

Clocks count processor seconds of one thread: solving, measuring the levels, training with compilation,
until the target is first reached. Validation and test samples were solved on 2048 cells. Solved samples
are the same for all seeds and kept on disk with the seconds they took; a cold solver's compilation is
counted, and so are the samples that fill its last batch.

Finished runs are added to the file given as ``--runs`` and not repeated when it is given again: the
whole takes about an hour on one core.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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
    Monitor,
    MultilevelConfig,
    MultilevelOptimizer,
)
from opifex.training.sample_levels import (
    SampleAllocation,
    SampleLevels,
    allocate_samples,
    compare_sample_levels,
    correct_samples,
)
from opifex.training.stopwatch import Stopwatch
from race import CONSOLE, HIGH, MARGIN, TUNING_SEED, advantage, quartiles

CELLS = (128, 256, 512, 1024)
POOL = {128: 8192, 256: 2048, 512: 4096, 1024: 4096}
"""Samples that are there of each solver."""
TRAINING, VALIDATION, TEST = 1, 2, 3
COMPARED = 8
"""Samples on which the levels are compared: a batch of the dearest solver."""
CORRECTION_SECONDS = 9.0
"""That a correction takes to compile, train and apply, as measured on the tuning seed."""
RESERVE = 1.07
"""Entries are chosen that end below the target divided by this."""
BATCH = 16
RATE = 3e-3


@dataclass(frozen=True)
class Entry:
    """Samples and training steps.

    Attributes:
        cells: of the solver of a single network; 0 for corrected samples.
        count: of its samples.
        budget: processor seconds of solving and learning corrections, for corrected samples.
        steps: of training.
        mix: cells and samples of each solver, for corrected samples without a budget.
        correction_steps: of training each correction.
    """

    cells: int
    count: int
    budget: float
    steps: int
    mix: tuple[tuple[int, int], ...] = ()
    correction_steps: int = 400

    @property
    def label(self) -> str:
        """In words."""
        if self.cells:
            return f"{self.count} samples on {self.cells} cells, {self.steps} steps"
        if self.mix:
            parts = ", ".join(f"{count} on {cells}" for cells, count in self.mix)
            steps = f"{self.correction_steps} and {self.steps} steps"
            return f"corrected samples, {parts} cells, {steps}"
        return f"corrected samples for {self.budget:.0f} s, {self.steps} steps"


@cache
def pool(cells: int) -> GasData:
    """All samples of a solver."""
    return solve(POOL[cells], cells, TRAINING)


def solving_seconds(cells: int, count: int) -> float:
    """Processor seconds of so many samples in full batches, without compilation."""
    batch = gas_dynamics.batch_of(cells)
    return -(-count // batch) * batch * pool(cells).seconds


@cache
def compared() -> tuple[SampleLevels, float]:
    """The levels on the first batch of each, and the processor seconds with the solvers' compilation."""
    start = time.process_time()
    found = [
        gas_dynamics.computed(gas_dynamics.batch_of(cells), cells, TRAINING) for cells in CELLS
    ]
    measured = compare_sample_levels(
        [OperatorData(data.inputs[:COMPARED], data.outputs[:COMPARED]) for data in found],
        [data.seconds for data in found],
    )
    return measured, time.process_time() - start


class Kept:
    """The solver of `correct_samples`, from the samples on disk, counting what they took.

    Attributes:
        seconds: of the samples so far.
        first_solved: whether the first batch of each level was solved before.
    """

    def __init__(self, first_solved: bool) -> None:
        self.seconds = 0.0
        self.first_solved = first_solved

    def __call__(self, level: int, num_samples: int, seed: int) -> OperatorData:
        """The first samples; ``seed`` seeds networks here."""
        del seed
        data = pool(CELLS[level])
        first = gas_dynamics.batch_of(CELLS[level]) if self.first_solved else 0
        self.seconds += solving_seconds(CELLS[level], max(0, num_samples - first))
        return OperatorData(data.inputs[:num_samples], data.outputs[:num_samples])


def correction_network(rngs: nnx.Rngs) -> FNO:
    """Velocity and three cheap fields to three differences."""
    return FNO(32, 24, input_dim=4, output_dim=3, grid_kind="periodic", rngs=rngs)


def allocation(entry: Entry) -> SampleAllocation:
    """What the entry says, or what is proposed for its budget, at most what is there."""
    if entry.mix:
        levels = tuple(CELLS.index(cells) for cells, _ in entry.mix)
        return SampleAllocation(levels, tuple(count for _, count in entry.mix))
    measured, _ = compared()
    found = allocate_samples(measured, entry.budget, correction_seconds=CORRECTION_SECONDS)
    counts = [
        min(count, POOL[CELLS[i]]) for i, count in zip(found.levels, found.counts, strict=True)
    ]
    return SampleAllocation(found.levels, tuple(counts))


def samples(entry: Entry, seed: int) -> tuple[OperatorData, float, dict[str, Any]]:
    """Training samples, the processor seconds that they took, and how they were made."""
    if entry.cells:
        data = pool(entry.cells)
        chosen = OperatorData(data.inputs[: entry.count], data.outputs[: entry.count])
        parts = {
            "solving": solving_seconds(entry.cells, entry.count),
            "solver's compilation": compilation(entry.cells),
        }
        return chosen, sum(parts.values()), {"parts": parts}
    kept, plan = Kept(first_solved=not entry.mix), allocation(entry)
    start = time.process_time()
    made = correct_samples(kept, plan, correction_network, steps=entry.correction_steps, seed=seed)
    parts = {
        "solving": kept.seconds,
        "corrections": time.process_time() - start,
    }
    if entry.mix:
        parts["solver's compilation"] = sum(compilation(cells) for cells, _ in entry.mix)
    else:
        parts["comparing the levels, with compilation"] = compared()[1]
    return (
        made.data,
        sum(parts.values()),
        {
            "parts": parts,
            "allocation": {CELLS[i]: n for i, n in zip(plan.levels, plan.counts, strict=True)},
            "corrections": [
                {
                    "cells": CELLS[c.level],
                    "difference": c.difference,
                    "error": c.error,
                    "seconds": c.seconds,
                }
                for c in made.corrections
            ],
        },
    )


@cache
def compilation(cells: int) -> float:
    """Processor seconds to compile a solver."""
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
    scale = FieldNormalizer.fit(pool(CELLS[-1]).outputs[:COMPARED])
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
    return {
        "seconds_before_training": seconds,
        "curve": [[e.elapsed_seconds, e.metrics["error"]] for e in history.evaluations],
        "all_training_seconds": history.elapsed_seconds,
        "final_error": final(history),
        "lowest_error": lowest(history),
        **made,
    }


class Runs:
    """Runs that are done, in a file with a line for each, if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.found[row["run"]] = row["found"]

    def __call__(self, entry: Entry, seed: int, which: str) -> dict[str, Any]:
        """A run, now or before."""
        name = f"{entry.label}, seed {seed}, {which}"
        if name not in self.found:
            self.found[name] = run(entry, seed, which)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"run": name, "found": self.found[name]}, default=float))
                    file.write("\n")
        return self.found[name]


def outcome(found: dict[str, Any], target: float) -> dict[str, Any]:
    """When a run reached a target, with and without its samples, and where it ended."""
    when = next((seconds for seconds, error in found["curve"] if error <= target), None)
    before = found["seconds_before_training"]
    return {
        **{key: value for key, value in found.items() if key != "curve"},
        "training_seconds": when,
        "seconds": None if when is None else before + when,
        "all_seconds": before + found["all_training_seconds"],
    }


SINGLE = [
    Entry(cells, count, 0.0, steps)
    for cells, count, choices in (
        (128, 512, (2000,)),
        (128, 2048, (2000,)),
        (256, 512, (2000, 4000)),
        (256, 2048, (4000,)),
        (512, 512, (4000,)),
        (512, 1024, (4000, 8000)),
        (512, 2048, (4000, 8000)),
        (512, 3072, (8000,)),
        (512, 4096, (8000,)),
        (1024, 512, (4000,)),
        (1024, 1024, (4000, 8000)),
        (1024, 1536, (8000,)),
        (1024, 2048, (4000, 8000)),
        (1024, 4096, (8000,)),
        (1024, 3072, (8000,)),
    )
    for steps in choices
]
OURS = [
    Entry(0, 0, 100.0, 8000),
    *(
        Entry(0, 0, 0.0, steps, mix)
        for mix, steps in (
            (((256, 2048), (1024, 128)), 8000),
            (((256, 1536), (1024, 96)), 8000),
            (((256, 2048), (512, 192), (1024, 32)), 8000),
            (((128, 2048), (512, 384), (1024, 64)), 8000),
            (((128, 512), (512, 32)), 2000),
            (((256, 2048), (512, 320), (1024, 48)), 8000),
            (((256, 1536), (512, 256), (1024, 48)), 8000),
        )
    ),
    Entry(0, 0, 0.0, 8000, ((256, 2048), (1024, 320)), 1000),
]


def choose(found: dict[Entry, dict[str, Any]], target: float) -> Entry:
    """The first at the target of the entries with a reserve; without one, that which ended lowest."""

    def key(entry: Entry) -> tuple[float, float]:
        result = outcome(found[entry], target)
        when = result["seconds"] if result["final_error"] <= target / RESERVE else None
        return (float("inf") if when is None else when, result["final_error"])

    return min(found, key=key)


def tune(side: str, entries: list[Entry], runs: Runs) -> dict[Entry, dict[str, Any]]:
    """Try all entries on the tuning seed."""
    found = {}
    for entry in entries:
        found[entry] = runs(entry, TUNING_SEED, "validation")
        shown = outcome(found[entry], 0.0)
        CONSOLE.print(
            f"{side}: {entry.label}: {shown['final_error']:.4f} after {shown['all_seconds']:.0f} s",
            {key: shown[key] for key in ("allocation", "corrections") if key in shown},
        )
    return found


def main() -> None:
    """Tune both sides, set the targets, run all seeds."""
    options = parser(__doc__)
    options.add_argument("--runs", type=Path, help="file of finished runs, made longer by this one")
    given = options.parse_args()
    done = Runs(given.runs)
    tuned = {"single": tune("single", SINGLE, done), "corrected": tune("corrected", OURS, done)}
    low = MARGIN * min(found["final_error"] for found in tuned["single"].values())
    targets = []
    for name, target in (("low", low), ("high", HIGH * low)):
        chosen = {side: choose(found, target) for side, found in tuned.items()}
        rows = []
        for seed in given.seeds:
            row: dict[str, Any] = {"seed": seed}
            for side, entry in chosen.items():
                row[side] = outcome(done(entry, seed, "test"), target)
            row["single_over_corrected"] = advantage(row["single"], row["corrected"], "seconds")
            rows.append(row)
            CONSOLE.print(
                {s: (row[s]["seconds"], round(row[s]["final_error"], 4)) for s in chosen},
                row["single_over_corrected"],
            )
        targets.append(
            {
                "name": name,
                "target": target,
                "entries": {side: entry.label for side, entry in chosen.items()},
                "runs": rows,
                "ratio": quartiles([row["single_over_corrected"] for row in rows]),
            }
        )
        CONSOLE.print(name, target, targets[-1]["entries"], targets[-1]["ratio"])
    write_results(
        "sample_cost",
        # The file of runs is one of a machine.
        command="python benchmarks/sample_cost.py",
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
