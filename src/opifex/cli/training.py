"""Carrying out runs: one seed, all seeds of a configuration, and going on where one was interrupted."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from opifex.cli.configuration import settings_of
from opifex.cli.display import RunDisplay, shown
from opifex.cli.errors import CommandError, Interrupted
from opifex.cli.model_files import write_model
from opifex.cli.outputs import write_tables
from opifex.cli.registry import make_cycle, make_optimizer
from opifex.cli.run_folder import RunFolder, versions
from opifex.cli.saved_state import (
    Position,
    Variables,
    has_state,
    read_position,
    restore,
    save_state,
)
from opifex.cli.settings import RunSettings
from opifex.cli.task import ERROR, TrainingTask, build_task, held_out_rows
from opifex.cli.yaml_document import YamlDocument, dump_yaml, read_yaml
from opifex.loggers import (
    Logger,
    MLflowLogger,
    Reporter,
    RunInfo,
    TableLogger,
    TensorBoardLogger,
    TrackioLogger,
    WandbLogger,
)
from opifex.training.errors import NonFiniteLossError
from opifex.training.multilevel import (
    CascadeTrainer,
    History,
    LevelProgress,
    Monitor,
    MultilevelConfig,
    TransferError,
    prolongate,
    prolongate_preserving,
)
from opifex.training.objective import count_parameters

__all__ = ["resume_run", "start_run"]

# Saving the state may take this share of the time, where evaluations follow each other closely.
_SAVING_SHARE = 0.1


def start_run(
    settings: RunSettings,
    document: YamlDocument,
    console: Console,
    *,
    overwrite: bool = False,
    fresh: bool = False,
) -> RunFolder:
    """Run a configuration with all its seeds.

    Args:
        settings: the configuration.
        document: the same as it was given.
        console: where to show progress.
        overwrite: replace what is in the output folder if it is an earlier run.
        fresh: forget compiled programs before every seed, so that none finds those of another.

    Returns:
        The run folder.

    Raises:
        CommandError: if the output folder is not free, the data do not fit, or training fails.
        Interrupted: by Ctrl-C.
    """
    folder = RunFolder(Path(settings.output))
    with jax.enable_x64(settings.precision == "float64"):
        task = build_task(settings)
        _check_loggers(settings)
        if overwrite and folder.path.exists():
            folder.require()  # nothing but an earlier run is ever deleted
            shutil.rmtree(folder.path)
        folder.check_free()
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.given_configuration.write_text(document.text, encoding="utf-8")
        folder.configuration.write_text(
            dump_yaml(task.settings.model_dump(exclude_none=True)), encoding="utf-8"
        )
        folder.write_json("versions.json", versions())
        if task.samples is not None and task.settings.data is not None:
            folder.write_json("data.json", _data_facts(task))
        _run_seeds(task, folder, console, fresh=fresh)
    return folder


def resume_run(path: Path, console: Console) -> RunFolder:
    """Go on with an interrupted run: with the seed that was at work, and those after it.

    Args:
        path: the run folder.
        console: where to show progress.

    Returns:
        The run folder.

    Raises:
        CommandError: if there is nothing to go on with, or the state does not fit.
        Interrupted: by Ctrl-C.
    """
    folder = RunFolder(path).require()
    if folder.status == "finished":
        raise CommandError(f"{path} is finished: there is nothing to go on with")
    document = read_yaml(folder.configuration)
    settings = settings_of(document, path).model_copy(update={"output": str(path)})
    with jax.enable_x64(settings.precision == "float64"):
        _run_seeds(build_task(settings), folder, console)
    return folder


def _data_facts(task: TrainingTask) -> dict[str, Any]:
    """What was read, and which rows are never trained."""
    assert task.samples is not None
    assert task.settings.data is not None
    total = len(task.samples.inputs) + len(task.samples.held_out_inputs)
    rows = held_out_rows(total, task.settings.data.held_out)
    return {
        "path": task.settings.data.path,
        "inputs": task.samples.names[0],
        "outputs": task.samples.names[1],
        "samples": total,
        "input_shape": list(task.samples.inputs.shape[1:]),
        "output_shape": list(task.samples.outputs.shape[1:]),
        "held_out_rows": rows.tolist(),
    }


def _run_seeds(
    task: TrainingTask, folder: RunFolder, console: Console, *, fresh: bool = False
) -> None:
    settings = task.settings
    several = len(settings.seeds) > 1
    for fact in task.facts:
        console.print(fact, soft_wrap=True, markup=False, highlight=False)
    folder.set_status("running")
    try:
        for seed in settings.seeds:
            where = folder.seed(seed) if several else folder
            if several and where.status == "finished":
                continue
            if fresh:
                jax.clear_caches()
            _run_seed(task, seed, where, console, f"seed {seed}" if several else "")
    except Interrupted as interrupt:
        folder.set_status("interrupted")
        raise Interrupted(folder.path) from interrupt
    except BaseException as error:
        folder.set_status("failed", reason=str(error))
        raise
    if several:
        _write_summary(folder, settings.seeds)
    folder.set_status("finished")


@dataclass(eq=False)
class _Saver:
    """A callback that saves the state at the end of every evaluation interval."""

    folder: RunFolder
    history: History
    num_levels: int
    cycles_before: int
    saved_at: float = 0.0
    cost: float = 0.0

    def __post_init__(self) -> None:
        self.calls_before = self.history.num_calls

    def __call__(self, progress: LevelProgress) -> None:
        # In the middle of a correction there is nothing whole to go on from.
        if progress.correcting:
            return
        started = time.monotonic()
        if not progress.last and started - self.saved_at < self.cost / _SAVING_SHARE:
            return
        snapshot = progress.snapshot()
        position = self.position(progress.level)
        variables = Variables(snapshot.params, snapshot.rest, snapshot.smoother)
        save_state(self.folder.state, variables, position, self.history)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - started

    def position(self, level: int, *, complete: bool = False) -> Position:
        """Where the run stands, by its record."""
        done = np.zeros(self.num_levels)
        for stretch in self.history.stretches:
            done[stretch.level] += len(stretch.losses) / stretch.steps_per_epoch
        ours = [s.cycle for s in self.history.stretches if s.call >= self.calls_before]
        present = ours[-1] if ours else 0
        cycles = max(0, present - (0 if complete else 1))
        return Position(
            level=level,
            # A part of an epoch is done again.
            epochs_done=[int(epochs + 1e-9) for epochs in done],
            cycles_done=self.cycles_before + cycles,
            step=self.history.num_steps,
        )


def _run_seed(
    task: TrainingTask, seed: int, folder: RunFolder, console: Console, name: str
) -> None:
    """Train one seed from its beginning, or from its saved state if it has one."""
    settings = task.settings
    folder.path.mkdir(parents=True, exist_ok=True)
    models = task.make_models(seed)
    levels = len(models)
    planned = settings.level_epochs
    trainer = CascadeTrainer(
        models,
        make_optimizer(settings.optimizer, [n * task.steps_per_epoch for n in planned]),
        prolongate_preserving if settings.strategy.transfer == "preserving" else prolongate,
        config=MultilevelConfig(num_levels=levels, level_epochs=planned),
    )
    with shown(console, name, [count_parameters(model) for model in models]) as display:
        start = _start(folder, trainer, planned, display)
        cycles = _cycles_left(settings, levels, start)
        saver = _Saver(folder, trainer.history, levels, start.cycles_done)
        info = RunInfo(_run_name(folder, seed, name), settings=_flat(settings))
        loggers = _make_loggers(settings, folder, start.step)
        folder.set_status("running", seed=seed)
        try:
            with Reporter(loggers, trainer.history, info) as report:
                epochs = _epochs_left(settings, planned, start)
                if any(epochs) and cycles:
                    trainer.fit(
                        task.loss,
                        task.make_data(trainer.hierarchy, seed),
                        epochs=epochs,
                        batch_size=settings.batch_size,
                        cycle=make_cycle(settings.strategy, cycles),
                        # Of its own for every part of a run: batches go on at random.
                        key=jax.random.fold_in(jax.random.key(seed), start.step),
                        evaluate=task.evaluate,
                        monitor=Monitor(
                            every=settings.evaluation_interval,
                            callbacks=[report, saver],
                            observers=[display],
                        ),
                    )
        except KeyboardInterrupt as interrupt:
            _save(folder, trainer, saver)
            folder.set_status("interrupted", **_facts(trainer))
            raise Interrupted(folder.path) from interrupt
        except (MemoryError, NonFiniteLossError, TransferError, TypeError, ValueError) as error:
            _save(folder, trainer, saver)
            folder.set_status("failed", reason=str(error), **_facts(trainer))
            raise CommandError(f"training failed: {error}") from error
        _save(folder, trainer, saver, complete=True)
        write_tables(folder, trainer.history)
        try:
            write_model(folder, trainer.model, task)
        except (ImportError, OSError, ValueError) as error:  # the state holds the model, too
            display.say(f"no model in {folder.model}: {error}")
        folder.set_status("finished", **_facts(trainer))
        display.say(_last_words(trainer))


def _epochs_left(settings: RunSettings, planned: Sequence[int], start: Position) -> list[int]:
    """Epochs for the rest of a run: from the present level on, or of all levels for cycles."""
    left = [max(0, n - done) for n, done in zip(planned, start.epochs_done, strict=True)]
    if settings.strategy.name in ("cascade", "finest"):
        return left[start.level :]
    return [max(1, n) for n in left]


def _cycles_left(settings: RunSettings, levels: int, start: Position) -> int:
    """Multigrid cycles for the rest of a run; zero if all are done."""
    cycles = settings.strategy.cycles
    if settings.strategy.name in ("v-cycle", "w-cycle"):
        return max(0, cycles - start.cycles_done)
    if settings.strategy.name == "full-multigrid":
        # Every level gets the same number, so that the present one gets its cycles again, shorter.
        return cycles if start.cycles_done < cycles * (levels - 1) or levels == 1 else 0
    return cycles


def _start(
    folder: RunFolder, trainer: CascadeTrainer, planned: Sequence[int], display: RunDisplay
) -> Position:
    """Take a trainer to where the run stands."""
    if not has_state(folder.state):
        return Position(0, [0] * len(planned), 0, 0)
    position = read_position(folder.state)
    with_optimizer = restore(folder.state, trainer)
    left = [max(0, n - d) for n, d in zip(planned, position.epochs_done, strict=True)]
    optimizer = "restored" if with_optimizer else "not saved: it starts afresh"
    display.say(
        f"going on at level {position.level} after {position.step} steps; the optimizer's state is "
        f"{optimizer}; epochs left per level: {left[position.level :]}; batches are drawn anew"
    )
    return position


def _save(
    folder: RunFolder, trainer: CascadeTrainer, saver: _Saver, *, complete: bool = False
) -> None:
    position = saver.position(trainer.current_level, complete=complete)
    save_state(folder.state, Variables.of(trainer), position, trainer.history)


def _facts(trainer: CascadeTrainer) -> dict[str, Any]:
    history = trainer.history
    facts: dict[str, Any] = {
        "level": trainer.current_level,
        "steps": history.num_steps,
        "work": history.work,
        "seconds": history.wall_seconds,
        "training_seconds": history.seconds,
        "compile_seconds": history.compile_seconds,
    }
    if history.num_steps:
        facts["loss"] = float(history.losses[-1])
    if history.evaluations and ERROR in history.evaluations[-1].metrics:
        facts[ERROR] = history.evaluations[-1].metrics[ERROR]
    return facts


def _last_words(trainer: CascadeTrainer) -> str:
    history = trainer.history
    words = [f"{history.num_steps} steps", f"loss {history.losses[-1]:.3e}"]
    if history.evaluations:
        words += [f"{n} {v:.3e}" for n, v in history.evaluations[-1].metrics.items()]
    words += [f"{history.work:.4g} work units", f"{history.wall_seconds:.1f} s"]
    return "finished: " + "  ".join(words)


def _run_name(folder: RunFolder, seed: int, name: str) -> str:
    path = folder.path.resolve()
    return f"{path.parent.name}-seed-{seed}" if name else path.name


def _flat(settings: RunSettings) -> dict[str, Any]:
    """Settings as one level of names: ``optimizer.name``."""
    flat: dict[str, Any] = {}
    for name, value in settings.model_dump(exclude_none=True).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": entry for inner, entry in value.items()}
        else:
            flat[name] = value
    return flat


def _check_loggers(settings: RunSettings) -> None:
    """Find out before anything is trained that a package is missing."""
    try:
        _make_loggers(settings, RunFolder(Path(settings.output)), 0)
    except ImportError as error:
        raise CommandError(f"loggers: {error}") from error


def _make_loggers(settings: RunSettings, folder: RunFolder, step: int) -> list[Logger]:
    makers: dict[str, Any] = {
        "tensorboard": lambda: TensorBoardLogger(folder.events),
        "trackio": TrackioLogger,
        "wandb": lambda: WandbLogger(folder.path / "wandb"),
        "mlflow": lambda: MLflowLogger(folder.path / "mlflow"),
    }
    return [TableLogger(folder.path, keep_until=step), *(makers[n]() for n in settings.loggers)]


def _write_summary(folder: RunFolder, seeds: Sequence[int]) -> None:
    """One row per seed, and medians over them."""
    columns = ("steps", "work", "seconds", "training_seconds", "compile_seconds", "loss", ERROR)
    rows = []
    for seed in seeds:
        facts = folder.seed(seed).read_json("status.json")
        rows.append({"seed": seed, **{n: facts[n] for n in columns if n in facts}})
    with (folder.path / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    medians = {n: float(np.median([row[n] for row in rows])) for n in rows[0] if n != "seed"}
    folder.write_json("summary.json", {"seeds": rows, "median": medians})
