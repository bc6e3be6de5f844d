"""Seconds to an error where samples cost more than training: solver, correction and network together.

The operator from the initial velocity of a gas to its state after shocks formed (`gas_dynamics.py`), in
one or two dimensions (``--dimensions``). A network sees the means on coarse cells, whatever the solver
did. The rival is one network on samples of *one* solver, the best choice of solver and number of
samples; ours is the same network on cheap samples that were corrected with few dear ones. How many of
each is an entry, as the number of samples is one for the rival; or `allocate_samples` says so for a
budget of solving and training corrections, and then the clock counts comparing the levels, too. The
samples on which they are compared are the first ones of the training set and are not solved again.

The rules are those of `race.py`: all entries are tried on a seed of their own and judged on validation
samples; the low target is 1.2 times the lowest error with which any rival ends, the high one three
times that; each side sends the entry that was there first to five other seeds, judged on test samples.
Only entries count that end 7 % below the target on the tuning seed, for either side: test errors are
larger than validation errors here, and others would miss the target. (The reserve was set after a run
in one dimension with a smaller one, in which ours had missed on the first seed.) A rival that misses it
all the same counts as if it had reached it at the end of its run; if ours misses, its ratio is zero.

Clocks count processor seconds of one thread: solving, measuring the levels, training with compilation,
until the target is first reached. Validation and test samples were solved on finer cells than all
others. Solved samples are the same for all seeds and kept on disk with the seconds they took; a cold
solver's compilation is counted, and so are the samples that fill its last batch.

Finished runs are added to the file given as ``--runs`` and not repeated when it is given again: the
whole takes one to two hours on one core.
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
from gas_dynamics import Gas, GasData, solve
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

TRAINING, VALIDATION, TEST = 1, 2, 3
COMPARED = 8
"""Samples on which the levels are compared."""
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


@dataclass(frozen=True, eq=False)
class Study:
    """What is raced.

    Attributes:
        results: name of the file.
        gas: whose motion is learnt.
        pool: samples that are there of each solver, by its cells per side, coarsest first.
        validation: samples.
        test: samples.
        modes: of the networks, along each axis.
        width: of the networks.
        correction_modes: of the networks that correct samples, along each axis.
        correction_width: of those.
        correction_seconds: that a correction takes to compile, train and apply, on the tuning seed.
        singles: entries of the rival.
        ours: entries with corrected samples.
    """

    results: str
    gas: Gas
    pool: dict[int, int]
    validation: int
    test: int
    modes: int
    width: int
    correction_modes: int
    correction_width: int
    correction_seconds: float
    singles: tuple[Entry, ...]
    ours: tuple[Entry, ...]

    @property
    def cells(self) -> tuple[int, ...]:
        """Of the solvers, per side."""
        return tuple(self.pool)

    def network(self, rngs: nnx.Rngs) -> FNO:
        """From velocity to density, momentum and energy."""
        return self._network(self.modes, self.width, 0, rngs)

    def correction_network(self, rngs: nnx.Rngs) -> FNO:
        """From velocity and cheap fields to their differences from dear ones."""
        fields = self.gas.dimensions + 2
        return self._network(self.correction_modes, self.correction_width, fields, rngs)

    def _network(self, modes: int, width: int, more: int, rngs: nnx.Rngs) -> FNO:
        axes = self.gas.dimensions
        return FNO(
            (modes,) * axes,
            width,
            input_dim=axes + more,
            output_dim=axes + 2,
            spatial_dims=axes,
            grid_kind="periodic",
            rngs=rngs,
        )


@cache
def pool(study: Study, cells: int) -> GasData:
    """All samples of a solver."""
    return solve(study.gas, study.pool[cells], cells, TRAINING)


def solving_seconds(study: Study, cells: int, count: int) -> float:
    """Processor seconds of so many samples in full batches, without compilation."""
    batch = study.gas.batch(cells)
    return -(-count // batch) * batch * pool(study, cells).seconds


def first_batches(study: Study, cells: int) -> int:
    """Samples in the full batches that hold those on which the levels are compared."""
    batch = study.gas.batch(cells)
    return -(-COMPARED // batch) * batch


@cache
def compared(study: Study) -> tuple[SampleLevels, float]:
    """The levels on the first samples of each, and the processor seconds with all compilation."""
    start = time.process_time()
    found = [
        gas_dynamics.computed(study.gas, first_batches(study, cells), cells, TRAINING)
        for cells in study.cells
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

    def __init__(self, study: Study, first_solved: bool) -> None:
        self.study = study
        self.seconds = 0.0
        self.first_solved = first_solved

    def __call__(self, level: int, num_samples: int, seed: int) -> OperatorData:
        """The first samples; ``seed`` seeds networks here."""
        del seed
        cells = self.study.cells[level]
        data = pool(self.study, cells)
        first = first_batches(self.study, cells) if self.first_solved else 0
        self.seconds += solving_seconds(self.study, cells, max(0, num_samples - first))
        return OperatorData(data.inputs[:num_samples], data.outputs[:num_samples])


def allocation(study: Study, entry: Entry) -> SampleAllocation:
    """What the entry says, or what is proposed for its budget, at most what is there."""
    if entry.mix:
        levels = tuple(study.cells.index(cells) for cells, _ in entry.mix)
        return SampleAllocation(levels, tuple(count for _, count in entry.mix))
    found = allocate_samples(
        compared(study)[0], entry.budget, correction_seconds=study.correction_seconds
    )
    counts = [
        min(count, study.pool[study.cells[i]])
        for i, count in zip(found.levels, found.counts, strict=True)
    ]
    return SampleAllocation(found.levels, tuple(counts))


def samples(study: Study, entry: Entry, seed: int) -> tuple[OperatorData, float, dict[str, Any]]:
    """Training samples, the processor seconds that they took, and how they were made."""
    if entry.cells:
        data = pool(study, entry.cells)
        chosen = OperatorData(data.inputs[: entry.count], data.outputs[: entry.count])
        parts = {
            "solving": solving_seconds(study, entry.cells, entry.count),
            "solver's compilation": compilation(study, entry.cells),
        }
        return chosen, sum(parts.values()), {"parts": parts}
    kept, plan = Kept(study, first_solved=not entry.mix), allocation(study, entry)
    start = time.process_time()
    made = correct_samples(
        kept, plan, study.correction_network, steps=entry.correction_steps, seed=seed
    )
    parts = {
        "solving": kept.seconds,
        "corrections": time.process_time() - start,
    }
    if entry.mix:
        parts["solver's compilation"] = sum(compilation(study, cells) for cells, _ in entry.mix)
    else:
        parts["comparing the levels, with compilation"] = compared(study)[1]
    return (
        made.data,
        sum(parts.values()),
        {
            "parts": parts,
            "allocation": {
                study.cells[i]: n for i, n in zip(plan.levels, plan.counts, strict=True)
            },
            "corrections": [
                {
                    "cells": study.cells[c.level],
                    "difference": c.difference,
                    "error": c.error,
                    "seconds": c.seconds,
                }
                for c in made.corrections
            ],
        },
    )


@cache
def compilation(study: Study, cells: int) -> float:
    """Processor seconds to compile a solver."""
    return gas_dynamics.compilation_seconds(study.gas, cells)


@cache
def reference(study: Study, which: str) -> GasData:
    """Samples to be judged on."""
    count, seed = {"validation": (study.validation, VALIDATION), "test": (study.test, TEST)}[which]
    return solve(study.gas, count, study.gas.reference_cells, seed)


def run(study: Study, entry: Entry, seed: int, which: str) -> dict[str, Any]:
    """Make the samples, train, and measure on the way."""
    start_cold()
    data, seconds, made = samples(study, entry, seed)
    inputs, outputs = FieldNormalizer.fit(data.inputs), FieldNormalizer.fit(data.outputs)
    judged = reference(study, which)
    fields = inputs.normalize(judged.inputs)
    # Scaled as the first samples of the dearest solver, the same for all entries.
    scale = FieldNormalizer.fit(pool(study, study.cells[-1]).outputs[:COMPARED])
    target = np.asarray(scale.normalize(judged.outputs))

    def error(model: Any, fields: Any) -> jax.Array:
        return relative_l2(scale.normalize(outputs.denormalize(model(fields))), target)

    compiled = nnx.jit(error)
    network = study.network(nnx.Rngs(seed))
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

    def __init__(self, study: Study, path: Path | None) -> None:
        self.study = study
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
            self.found[name] = run(self.study, entry, seed, which)
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


def singles(*choices: tuple[int, int, int]) -> tuple[Entry, ...]:
    """Entries of the rival: cells, samples and steps of each."""
    return tuple(Entry(cells, count, 0.0, steps) for cells, count, steps in choices)


def mixes(steps: int, *mixes: tuple[tuple[int, int], ...]) -> tuple[Entry, ...]:
    """Entries with corrected samples: cells and samples of each solver."""
    return tuple(Entry(0, 0, 0.0, steps, mix) for mix in mixes)


LINE = Study(
    results="sample_cost",
    gas=gas_dynamics.LINE,
    pool={128: 8192, 256: 2048, 512: 4096, 1024: 4096},
    validation=32,
    test=64,
    modes=24,
    width=32,
    correction_modes=32,
    correction_width=24,
    correction_seconds=9.0,
    singles=singles(
        *((128, count, 2000) for count in (512, 2048)),
        *((256, 512, steps) for steps in (2000, 4000)),
        (256, 2048, 4000),
        (512, 512, 4000),
        *((512, count, steps) for count in (1024, 2048) for steps in (4000, 8000)),
        *((512, count, 8000) for count in (3072, 4096)),
        (1024, 512, 4000),
        *((1024, 1024, steps) for steps in (4000, 8000)),
        (1024, 1536, 8000),
        *((1024, 2048, steps) for steps in (4000, 8000)),
        *((1024, count, 8000) for count in (4096, 3072)),
    ),
    ours=(
        Entry(0, 0, 100.0, 8000),
        *mixes(
            8000,
            ((256, 2048), (1024, 128)),
            ((256, 1536), (1024, 96)),
            ((256, 2048), (512, 192), (1024, 32)),
            ((128, 2048), (512, 384), (1024, 64)),
        ),
        *mixes(2000, ((128, 512), (512, 32))),
        *mixes(
            8000,
            ((256, 2048), (512, 320), (1024, 48)),
            ((256, 1536), (512, 256), (1024, 48)),
        ),
        Entry(0, 0, 0.0, 8000, ((256, 2048), (1024, 320)), 1000),
    ),
)
SQUARE = Study(
    results="sample_cost_square",
    gas=gas_dynamics.SQUARE,
    pool={32: 4096, 64: 1024, 128: 1536},
    validation=24,
    test=48,
    modes=8,
    width=32,
    correction_modes=8,
    correction_width=24,
    correction_seconds=25.0,
    singles=singles(
        (32, 1024, 1000),
        (64, 256, 500),
        (64, 512, 1000),
        (64, 1024, 2000),
        (128, 256, 1000),
        (128, 512, 1500),
        *((128, 768, steps) for steps in (2000, 4500)),
        *((128, 1024, steps) for steps in (2000, 3000)),
        *((128, 1536, steps) for steps in (2000, 3000, 4500)),
    ),
    ours=(
        *mixes(
            3000,
            ((32, 2048), (64, 384), (128, 96)),
            ((32, 4096), (64, 512), (128, 128)),
            ((32, 4096), (64, 768), (128, 192)),
            ((64, 1024), (128, 192)),
        ),
        *mixes(
            4500,
            ((64, 1024), (128, 96)),
            ((64, 1024), (128, 64)),
            ((64, 768), (128, 64)),
        ),
        *mixes(500, ((32, 512), (64, 32))),
        Entry(0, 0, 500.0, 3000),
    ),
)
STUDIES = {1: LINE, 2: SQUARE}


def choose(found: dict[Entry, dict[str, Any]], target: float) -> Entry:
    """The first at the target of the entries with a reserve; without one, that which ended lowest."""

    def key(entry: Entry) -> tuple[float, float]:
        result = outcome(found[entry], target)
        when = result["seconds"] if result["final_error"] <= target / RESERVE else None
        return (float("inf") if when is None else when, result["final_error"])

    return min(found, key=key)


def tune(side: str, entries: tuple[Entry, ...], runs: Runs) -> dict[Entry, dict[str, Any]]:
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
    options.add_argument("--dimensions", type=int, choices=STUDIES, default=1, help="of space")
    given = options.parse_args()
    study = STUDIES[given.dimensions]
    done = Runs(study, given.runs)
    tuned = {
        "single": tune("single", study.singles, done),
        "corrected": tune("corrected", study.ours, done),
    }
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
        study.results,
        # The file of runs is one of a machine.
        command=f"python benchmarks/sample_cost.py --dimensions {given.dimensions}",
        solvers=[
            {"cells": cells, "seconds_per_sample": pool(study, cells).seconds, "pool": count}
            for cells, count in study.pool.items()
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
