"""One seed of a run: trained from its beginning, or from its saved state if it has one."""

from __future__ import annotations

import jax
from rich.console import Console

from opifex.cli.display import shown
from opifex.cli.errors import CommandError, Interrupted
from opifex.cli.outputs import last_words, status_facts, write_tables
from opifex.cli.registry import make_cycle, make_optimizer
from opifex.cli.run_folder import RunFolder
from opifex.cli.run_loggers import flat_settings, make_loggers
from opifex.cli.spectra import SpectraLog
from opifex.cli.state_saver import StateSaver, cycles_left, epochs_left, go_on
from opifex.cli.tasks import TrainingTask
from opifex.loggers import Reporter, RunInfo
from opifex.training.errors import NonFiniteLossError
from opifex.training.multilevel import (
    CascadeTrainer,
    Monitor,
    MultilevelConfig,
    TransferError,
    prolongate,
    prolongate_preserving,
)
from opifex.training.objective import count_parameters

__all__ = ["run_seed"]


def run_seed(task: TrainingTask, seed: int, folder: RunFolder, console: Console, name: str) -> None:
    """Train, and leave state, tables and model in the folder.

    Args:
        task: what is trained.
        seed: the seed.
        folder: the run folder of this seed.
        console: where to show progress.
        name: of the seed, for messages; empty if it is the only one.

    Raises:
        CommandError: if training fails, or the saved state does not fit.
        Interrupted: by Ctrl-C.
    """
    settings = task.settings
    folder.path.mkdir(parents=True, exist_ok=True)
    models = task.make_models(seed)
    planned = settings.level_epochs
    trainer = CascadeTrainer(
        models,
        make_optimizer(settings.optimizer, [n * task.steps_per_epoch for n in planned]),
        prolongate_preserving if settings.strategy.transfer == "preserving" else prolongate,
        config=MultilevelConfig(
            num_levels=len(models),
            level_epochs=planned,
            precision=None if settings.precision == settings.dtype else settings.precision,
        ),
    )
    with shown(console, name, [count_parameters(model) for model in models]) as display:
        start = go_on(folder.state, trainer, planned, display)
        epochs, cycles = epochs_left(settings, start), cycles_left(settings, start)
        saver = StateSaver(folder.state, trainer, start.cycles_done)
        spectra = SpectraLog(folder, task, start.step)
        info = RunInfo(_run_name(folder, seed, name), settings=flat_settings(settings))
        folder.set_status("running", seed=seed)
        try:
            loggers = make_loggers(settings, folder, start.step)
            with Reporter(loggers, trainer.history, info) as report:
                if start.step == 0:
                    spectra.record(trainer.model)
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
                            callbacks=[report, spectra, saver],
                            observers=[display],
                        ),
                    )
        except KeyboardInterrupt as interrupt:
            display.say("interrupted: saving the state")
            saver.save()
            folder.set_status("interrupted", **status_facts(trainer))
            raise Interrupted(folder.path) from interrupt
        except (MemoryError, NonFiniteLossError, TransferError, TypeError, ValueError) as error:
            saver.save()
            folder.set_status("failed", reason=str(error), **status_facts(trainer))
            raise CommandError(f"training failed: {error}") from error
        saver.save(complete=True)
        write_tables(folder, trainer.history)
        try:
            task.save_model(trainer.model, folder.model)
        except (ImportError, OSError, ValueError) as error:  # the state holds the model, too
            display.say(f"no model in {folder.model}: {error}")
        folder.set_status("finished", **status_facts(trainer))
        display.say(last_words(trainer.history))


def _run_name(folder: RunFolder, seed: int, name: str) -> str:
    path = folder.path.resolve()
    return f"{path.parent.name}-seed-{seed}" if name else path.name
