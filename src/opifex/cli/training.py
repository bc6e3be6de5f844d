"""Carrying out runs: all seeds of a configuration, and going on where one was interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from opifex.cli.configuration import settings_of
from opifex.cli.errors import CommandError, Interrupted
from opifex.cli.outputs import write_summary
from opifex.cli.run_folder import RunFolder, versions
from opifex.cli.run_loggers import check_loggers
from opifex.cli.seed_run import run_seed
from opifex.cli.settings import RunSettings
from opifex.cli.tasks import DataTask, TrainingTask, build_task, held_out_rows
from opifex.cli.yaml_document import YamlDocument, dump_yaml, read_yaml
from opifex.storage.files import replace_file

__all__ = ["resume_run", "start_run"]


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
        check_loggers(settings)
        if overwrite and folder.path.exists():
            folder.require()  # nothing but an earlier run is ever deleted
            shutil.rmtree(folder.path)
        folder.check_free()
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.given_configuration.write_text(document.text, encoding="utf-8")
        _write_resolved(task.settings, folder)
        folder.write_json("versions.json", versions())
        if isinstance(task, DataTask):
            folder.write_json("data.json", _data_facts(task))
        _run_seeds(task, folder, console, fresh=fresh)
    return folder


def resume_run(path: Path, console: Console, *, more: int = 0) -> RunFolder:
    """Go on with an interrupted run: with the seed that was at work, and those after it.

    Args:
        path: the run folder.
        console: where to show progress.
        more: further epochs on the finest level, for all seeds; a finished run then goes on, too.

    Returns:
        The run folder.

    Raises:
        CommandError: if there is nothing to go on with, or the checkpoints do not fit.
        Interrupted: by Ctrl-C.
    """
    folder = RunFolder(path).require()
    if folder.status == "finished" and not more:
        raise CommandError(
            f"{path} is finished: there is nothing to go on with; for further epochs on the finest "
            "level give --more EPOCHS"
        )
    document = read_yaml(folder.configuration)
    settings = settings_of(document, path).model_copy(update={"output": str(path)})
    with jax.enable_x64(settings.precision == "float64"):
        if more:
            settings = _prolonged(settings, folder, more)
        _run_seeds(build_task(settings), folder, console)
    return folder


def _prolonged(settings: RunSettings, folder: RunFolder, more: int) -> RunSettings:
    """The same run with a further part at its end, as if it had been interrupted before that."""
    # First the status: a run that is finished, by that, would never come to its new part.
    for seed in settings.seeds if len(settings.seeds) > 1 else []:
        folder.seed(seed).set_status("interrupted")
    folder.set_status("interrupted")
    settings = settings.model_copy(update={"further_epochs": [*settings.further_epochs, more]})
    _write_resolved(settings, folder)
    return settings


def _write_resolved(settings: RunSettings, folder: RunFolder) -> None:
    """Write the configuration with everything decided, from which a run is resumed."""
    text = dump_yaml(settings.model_dump(exclude_none=True))
    replace_file(folder.configuration, text.encode())


def _data_facts(task: DataTask) -> dict[str, Any]:
    """What was read, and which rows are never trained."""
    given, samples = task.settings.data, task.samples
    assert given is not None
    total = len(samples.inputs) + len(samples.held_out_inputs)
    return {
        "path": given.path,
        "inputs": samples.names[0],
        "outputs": samples.names[1],
        "samples": total,
        "input_shape": list(samples.inputs.shape[1:]),
        "output_shape": list(samples.outputs.shape[1:]),
        "held_out_rows": held_out_rows(total, given.held_out).tolist(),
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
            run_seed(task, seed, where, console, f"seed {seed}" if several else "")
    except (Interrupted, KeyboardInterrupt) as interrupt:
        folder.set_status("interrupted")
        raise Interrupted(folder.path) from interrupt
    except BaseException as error:
        folder.set_status("failed", reason=str(error))
        raise
    if several:
        write_summary(folder, settings.seeds)
    folder.set_status("finished")
