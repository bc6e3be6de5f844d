"""Where the rows of a run go: its tables, and what the configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opifex.cli.errors import CommandError
from opifex.cli.run_folder import RunFolder
from opifex.cli.settings import RunSettings
from opifex.loggers import (
    Logger,
    MLflowLogger,
    TableLogger,
    TensorBoardLogger,
    TrackioLogger,
    WandbLogger,
)

__all__ = ["check_loggers", "flat_settings", "make_loggers"]


def check_loggers(settings: RunSettings) -> None:
    """Find out before anything is trained that a package is missing.

    Raises:
        CommandError: if one is.
    """
    try:
        make_loggers(settings, RunFolder(Path(settings.output)))
    except ImportError as error:
        raise CommandError(f"loggers: {error}") from error


def make_loggers(settings: RunSettings, folder: RunFolder, step: int | None = None) -> list[Logger]:
    """The loggers of a run.

    Args:
        settings: the configuration.
        folder: the run folder of one seed.
        step: the step from which a run goes on: later rows are dropped. ``None`` drops all.

    Raises:
        ImportError: if a package is missing.
    """
    makers: dict[str, Any] = {
        "tensorboard": lambda: TensorBoardLogger(folder.events),
        "trackio": TrackioLogger,
        "wandb": lambda: WandbLogger(folder.path / "wandb"),
        "mlflow": lambda: MLflowLogger(folder.path / "mlflow"),
    }
    return [TableLogger(folder.path, keep_until=step), *(makers[n]() for n in settings.loggers)]


def flat_settings(settings: RunSettings) -> dict[str, Any]:
    """Settings as one level of names: ``optimizer.name``."""
    flat: dict[str, Any] = {}
    for name, value in settings.model_dump(exclude_none=True).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": entry for inner, entry in value.items()}
        else:
            flat[name] = value
    return flat
