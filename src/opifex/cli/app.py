"""The commands.

Each imports what it needs when it is called, so that ``--help`` does not wait for JAX.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from opifex.cli.errors import CommandError, Interrupted, nearest
from opifex.cli.signals import terminable

if TYPE_CHECKING:
    from opifex.cli.comparison import Contestant
    from opifex.cli.run_folder import RunFolder
    from opifex.cli.settings import RunSettings
    from opifex.training.multilevel import History

__all__ = ["app"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it, and after SIGTERM."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Multilevel (coarse-to-fine) training of physics-informed networks and neural operators.",
)

Config = Annotated[Path, typer.Argument(help="The configuration, a YAML file.")]
Folder = Annotated[Path, typer.Argument(help="The run folder.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run folder, instead of the configuration's.")
]
Figures = Annotated[bool, typer.Option(help="Draw figures and write the report at the end.")]


class _PatientConsole(Console):
    """A console whose reader may leave, as ``head`` does: the run goes on and says no more."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except BrokenPipeError:  # older releases of Rich leave it to the caller
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console() -> Console:
    return _PatientConsole(highlight=False)


def _say(*lines: str) -> None:
    for line in lines:
        typer.echo(line)


@contextmanager
def _errors_for_people() -> Iterator[None]:
    """Errors of the user's as one message and exit code 2, Ctrl-C and SIGTERM as 130."""
    try:
        with terminable():
            yield
    except CommandError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {where}{error.strerror or error}", err=True)
        raise typer.Exit(2) from error
    except Interrupted as interrupt:
        typer.echo(f"interrupted: the state is saved; {interrupt}", err=True)
        raise typer.Exit(INTERRUPTED) from interrupt
    except KeyboardInterrupt as interrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from interrupt


def _with_output(settings: RunSettings, output: Path | None) -> RunSettings:
    return settings if output is None else settings.model_copy(update={"output": str(output)})


def _finish(folder: RunFolder, figures: bool) -> None:
    """Figures and report; what goes wrong with them does not undo the run."""
    from opifex.cli.report import write_report

    if figures:
        try:
            write_report(folder)
            _say(f"report: {folder.report}")
        except Exception as error:
            _say(f"no report: {error}")
    _say(f"run folder: {folder.path}")


@app.command()
def run(
    config: Config,
    output: Output = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace an earlier run in the output folder.")
    ] = False,
    figures: Figures = True,
) -> None:
    """Train what a configuration describes, and leave a run folder that describes itself."""
    from opifex.cli.configuration import load_settings
    from opifex.cli.training import start_run

    with _errors_for_people():
        settings, document = load_settings(config)
        folder = start_run(
            _with_output(settings, output), document, _console(), overwrite=overwrite
        )
        _finish(folder, figures)


@app.command()
def resume(
    folder: Folder,
    more: Annotated[
        int, typer.Option(help="Further epochs on the finest level, of finished runs too.", min=0)
    ] = 0,
    figures: Figures = True,
) -> None:
    """Go on with a run that was ended, from its newest checkpoint, or with a finished one for longer."""
    from opifex.cli.training import resume_run

    with _errors_for_people():
        _finish(resume_run(folder, _console(), more=more), figures)


@app.command()
def compare(
    configs: Annotated[list[Path], typer.Argument(help="Configurations; the first is the base.")],
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Strategies for the one configuration given, separated by commas; finest gets as "
            "much work as the first one spent."
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the comparison, and of runs of --strategies."
        ),
    ] = Path("comparison"),
    target: Annotated[
        float | None, typer.Option(help="Error to reach; by default the best that all reach.")
    ] = None,
    figures: Figures = True,
) -> None:
    """Run configurations or strategies side by side; ratio of their times to an equal error."""
    from opifex.cli.comparison import compare_histories, run_contestant
    from opifex.cli.drawing import draw_comparison
    from opifex.loggers.table_files import write_rows

    with _errors_for_people():
        contestants = _contestants(configs, strategies, output)
        console = _console()
        runs: dict[str, dict[int, History]] = {}
        for contestant in contestants:
            if strategies and contestant.name == "finest" and runs:
                contestant = _with_equal_work(contestant, runs[contestants[0].name])
            runs[contestant.name] = run_contestant(contestant, console)
        reached, rows = compare_histories(runs, target)
        write_rows(output / "comparison.csv", rows)
        _show_rows(console, rows, reached)
        if figures:
            try:
                draw_comparison(output, {name: next(iter(h.values())) for name, h in runs.items()})
            except Exception as error:
                _say(f"no figures: {error}")
        _say(f"comparison: {output / 'comparison.csv'}")


def _contestants(configs: list[Path], strategies: str | None, output: Path) -> list[Contestant]:
    from opifex.cli.comparison import Contestant, variants
    from opifex.cli.configuration import load_settings
    from opifex.cli.settings import StrategySettings

    contestants = []
    for config in configs:
        settings, document = load_settings(config)
        contestants.append(Contestant(config.stem, settings, document))
    if strategies is not None:
        if len(contestants) > 1:
            raise CommandError("--strategies goes with one configuration, got several")
        names = [name.strip() for name in strategies.split(",")]
        allowed = StrategySettings.model_fields["name"].annotation.__args__  # type: ignore[union-attr]
        for name in names:
            if name not in allowed:
                raise CommandError(f"--strategies: unknown {name!r}; {nearest(name, allowed)}")
        contestants = variants(contestants[0], names, output)
    names = [contestant.name for contestant in contestants]
    folders = [contestant.settings.output for contestant in contestants]
    for what, values in (("names", names), ("output folders", folders)):
        if len(set(values)) < len(values):
            raise CommandError(f"configurations must have different {what}, got {values}")
    return contestants


def _with_equal_work(contestant: Contestant, histories: dict[int, History]) -> Contestant:
    """The finest level alone with the work that another run spent: one unit is one step of it."""
    import numpy as np

    history = next(iter(histories.values()))
    finest = max(stretch.level for stretch in history.stretches)
    per_epoch = next(s.steps_per_epoch for s in history.stretches if s.level == finest)
    work = float(np.median([h.work for h in histories.values()]))
    epochs = [max(1, round(work / per_epoch))]
    settings = contestant.settings.model_copy(update={"epochs": epochs})
    return dataclasses.replace(contestant, settings=settings)


def _show_rows(console: Console, rows: list[dict[str, Any]], target: float) -> None:
    table = Table(
        title=f"time to error {target:.3e}; ratio: time of the first over that of the row"
    )
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "configuration" else "right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    if console.is_terminal:
        console.print(table)
        return
    _say(str(table.title))
    for row in rows:
        cells = (f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in row.items())
        _say("  ".join(cells))


@app.command()
def advise(
    config: Config,
    budget: Annotated[
        int, typer.Option(help="Work units to spend: steps of the finest level.", min=1)
    ] = 1000,
    error: Annotated[
        float, typer.Option(help="Relative error that is wanted, of operators.")
    ] = 0.01,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Processor seconds of the training; measuring takes at most 5 % of them."
        ),
    ] = None,
) -> None:
    """Propose levels and epochs by measurement, with reasons, as lines for the configuration."""
    from opifex.cli.advice import advise as advise_settings
    from opifex.cli.configuration import load_settings

    with _errors_for_people():
        settings, _ = load_settings(config)
        changes = advise_settings(
            settings,
            budget,
            Console(highlight=False, soft_wrap=True),
            error,
            seconds,
        )
        _say("", f"# for {config}:", changes.rstrip())


@app.command()
def plot(folder: Folder) -> None:
    """Draw the figures of a run, finished or not, into its folder, as SVG and PNG."""
    from opifex.cli.report import draw_folder
    from opifex.cli.run_folder import RunFolder

    with _errors_for_people():
        for figures in draw_folder(RunFolder(folder), png=True).values():
            for figure in figures:
                _say(f"{figure.svg}: {figure.caption}")


@app.command()
def report(folder: Folder) -> None:
    """Write the report of a run, finished or not: one HTML file with everything inside."""
    from opifex.cli.report import write_report
    from opifex.cli.run_folder import RunFolder

    with _errors_for_people():
        where = RunFolder(folder)
        write_report(where)
        _say(f"report: {where.report}")


@app.command()
def problems(
    methods: Annotated[bool, typer.Option("--methods", help="List methods instead.")] = False,
) -> None:
    """List problems with their parameters and defaults, or methods of minimisation."""
    from opifex.cli.registry import METHODS, PROBLEMS

    if methods:
        for name, method in METHODS.items():
            rate = (
                "" if method.learning_rate is None else f", learning_rate {method.learning_rate:g}"
            )
            _say(f"{name}: {method.summary}{rate}; options: {', '.join(method.options) or 'none'}")
        return
    for name, problem in PROBLEMS.items():
        title = (sys.modules[problem.__module__].__doc__ or "").strip().splitlines()[0]
        formula = (problem.__doc__ or "").strip().splitlines()[0]
        # Formulas are LaTeX in the documentation.
        formula = re.sub(r"[${}\\]", "", formula.replace(r"\times", "x"))
        _say(f"{name}: {title} {formula}")
        for field in dataclasses.fields(problem):  # type: ignore[arg-type]
            _say(f"    {field.name}: {field.default}")


@app.command()
def export(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; by default FOLDER/export.")
    ] = None,
    format: Annotated[
        str, typer.Option(help="safetensors, jax (a compiled function), or both.")
    ] = "both",
    seed: Annotated[int | None, typer.Option(help="Which seed, where there are several.")] = None,
) -> None:
    """Write the trained model for use elsewhere, with and without this library."""
    from opifex.cli.model_files import export_run, run_settings
    from opifex.cli.run_folder import RunFolder

    with _errors_for_people():
        allowed = ["safetensors", "jax", "both"]
        if format not in allowed:
            raise CommandError(f"--format: unknown {format!r}; {nearest(format, allowed)}")
        top = RunFolder(folder)
        settings = run_settings(top)
        if seed is not None and seed not in settings.seeds:
            raise CommandError(f"--seed must be one of {settings.seeds}, got {seed}")
        if seed is None and len(settings.seeds) > 1:
            raise CommandError(f"--seed must say which of {settings.seeds}")
        several = len(settings.seeds) > 1
        where = top.seed(seed) if several and seed is not None else top
        kinds = ["safetensors", "jax"] if format == "both" else [format]
        for path in export_run(where, top, output or where.path / "export", kinds):
            _say(str(path))


@app.command()
def init(
    config: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("config.yaml"),
    problem: Annotated[str | None, typer.Option(help="Name of a problem.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data: NPZ, HDF5, NetCDF or Zarr.")] = None,
    inputs: Annotated[str | None, typer.Option(help="Name of the array of inputs.")] = None,
    outputs: Annotated[str | None, typer.Option(help="Name of the array of outputs.")] = None,
    layout: Annotated[str | None, typer.Option(help="Layout of the data file.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the file if it is there.")] = False,
) -> None:
    """Write a commented configuration for a problem, or for one's own data."""
    from opifex.cli.example_config import data_config, problem_config

    with _errors_for_people():
        if problem is not None and data is not None:
            raise CommandError("give --problem or --data, not both")
        if config.exists() and not force:
            raise CommandError(f"{config} exists already: choose another name, or give --force")
        if data is not None:
            text = data_config(
                str(data), str(config), inputs=inputs, outputs=outputs, layout=layout
            )
        else:
            text = problem_config(problem or "poisson", str(config))
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(text, encoding="utf-8")
        _say(f"{config} is written; now: opifex-multilevel run {shlex.quote(str(config))}")
