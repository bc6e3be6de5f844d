"""One seed of a run: trained from its beginning, or from its newest checkpoint if it has one."""

from __future__ import annotations

import jax
from rich.console import Console

from opifex.cli.display import shown
from opifex.cli.errors import CommandError, Interrupted
from opifex.cli.outputs import last_words, price_rows, status_facts, write_tables
from opifex.cli.parts import Part, history_so_far, parts_of
from opifex.cli.registry import make_optimizer
from opifex.cli.run_folder import RunFolder
from opifex.cli.run_loggers import flat_settings, make_loggers
from opifex.cli.spectra import SpectraLog
from opifex.cli.tasks import TrainingTask
from opifex.loggers import Reporter, RunInfo
from opifex.training.errors import NonFiniteLossError
from opifex.training.multilevel import (
    CascadeTrainer,
    Checkpoints,
    Monitor,
    MultilevelConfig,
    MultilevelOptimizer,
    TransferError,
    prolongate,
    prolongate_preserving,
)
from opifex.training.objective import count_parameters

__all__ = ["run_seed"]


def run_seed(task: TrainingTask, seed: int, folder: RunFolder, console: Console, name: str) -> None:
    """Train, and leave checkpoints, tables and model in the folder.

    All parts are gone through: ``fit`` restores those that are complete, and goes on in the one that
    is not. So a run that was ended, by whatever, is afterwards the one that was not.

    Args:
        task: what is trained.
        seed: the seed.
        folder: the run folder of this seed.
        console: where to show progress.
        name: of the seed, for messages; empty if it is the only one.

    Raises:
        CommandError: if training fails, or the checkpoints do not fit.
        Interrupted: by Ctrl-C.
    """
    settings = task.settings
    folder.path.mkdir(parents=True, exist_ok=True)
    models = task.make_models(seed)
    parts = parts_of(settings, folder)
    trainer = CascadeTrainer(
        models,
        _optimizer(task, parts[0]),
        prolongate_preserving if settings.strategy.transfer == "preserving" else prolongate,
        config=MultilevelConfig(
            num_levels=len(models),
            level_epochs=settings.level_epochs,
            precision=None if settings.precision == settings.dtype else settings.precision,
        ),
    )
    with shown(console, name, [count_parameters(model) for model in models]) as display:
        so_far = history_so_far(folder)
        step = None if so_far is None else so_far.num_steps
        if so_far is not None and step:
            display.say(f"going on at level {so_far.stretches[-1].level} after {step} steps")
        spectra = SpectraLog(folder, task, step)
        info = RunInfo(_run_name(folder, seed, name), settings=flat_settings(settings))
        folder.set_status("running", seed=seed)
        try:
            loggers = make_loggers(settings, folder, step)
            with Reporter(loggers, trainer.history, info) as report:
                if step is None:
                    spectra.record(trainer.model)
                data = task.make_data(trainer.hierarchy, seed)
                for number, part in enumerate(parts):
                    _take_up(trainer, _optimizer(task, part))
                    trainer.fit(
                        task.loss,
                        data,
                        epochs=part.epochs,
                        batch_size=settings.batch_size,
                        cycle=part.cycle,
                        # Later parts go on with the stream of random numbers.
                        key=None if number else jax.random.key(seed),
                        evaluate=task.evaluate,
                        monitor=Monitor(
                            every=settings.evaluation_interval,
                            callbacks=[report, spectra],
                            observers=[display],
                        ),
                        checkpoint=Checkpoints(part.folder, every=settings.checkpoint_every),
                        resume="auto",
                    )
        except KeyboardInterrupt as interrupt:
            folder.set_status("interrupted", **status_facts(trainer))
            raise Interrupted(folder.path) from interrupt
        except (MemoryError, NonFiniteLossError, TransferError, TypeError, ValueError) as error:
            folder.set_status("failed", reason=str(error), **status_facts(trainer))
            raise CommandError(f"training failed: {error}") from error
        write_tables(folder, trainer.history)
        price_rows(folder, trainer.history)
        try:
            task.save_model(trainer.model, folder.model)
        except (ImportError, OSError, ValueError) as error:  # a checkpoint holds the model, too
            display.say(f"no model in {folder.model}: {error}")
        folder.set_status("finished", **status_facts(trainer))
        display.say(last_words(trainer.history))


def _optimizer(task: TrainingTask, part: Part) -> MultilevelOptimizer:
    """The method, with schedules that fall until the end of a part."""
    steps = [epochs * task.steps_per_epoch for epochs in part.planned]
    return make_optimizer(task.settings.optimizer, steps)


def _take_up(trainer: CascadeTrainer, optimizer: MultilevelOptimizer) -> None:
    """Let an optimizer with another schedule go on from the state of the present one."""
    optimizer.restore(trainer.model, trainer.optimizer.state, trainer.current_level)
    trainer.optimizer = optimizer


def _run_name(folder: RunFolder, seed: int, name: str) -> str:
    path = folder.path.resolve()
    return f"{path.parent.name}-seed-{seed}" if name else path.name
