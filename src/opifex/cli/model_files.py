"""The trained model of a run folder: read, and exported for use elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from opifex.cli.configuration import settings_of
from opifex.cli.errors import CommandError
from opifex.cli.registry import make_problem
from opifex.cli.run_folder import RunFolder
from opifex.cli.settings import RunSettings
from opifex.cli.yaml_document import read_yaml
from opifex.storage import export_function, load_model

__all__ = ["export_run", "read_model", "run_settings"]

_PROGRAM = "model.jax_export"


def run_settings(folder: RunFolder) -> RunSettings:
    """The configuration of a run folder, with everything decided.

    Raises:
        CommandError: if it is no run folder.
        ConfigurationError: if its configuration was damaged.
    """
    folder.require()
    return settings_of(read_yaml(folder.configuration), folder.path.resolve())


def read_model(folder: RunFolder) -> Any:
    """The model of a run folder, in the units of the data.

    Raises:
        CommandError: if there is none.
    """
    if not (folder.model / "model.json").exists():
        raise CommandError(
            f"{folder.path} holds no model yet: its status is {folder.status or 'not begun'}"
        )
    try:
        return load_model(folder.model)
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(str(error)) from error


def _example_input(folder: RunFolder, settings: RunSettings) -> np.ndarray:
    """An input of the shape that the model takes, for one sample or point."""
    if settings.problem is not None:
        problem = make_problem(settings.problem)
        return np.zeros((1, problem.input_dim), settings.dtype)
    shape = folder.read_json("data.json").get("input_shape")
    if shape is None:
        raise CommandError(f"{folder.path} does not say the shape of its inputs (data.json)")
    return np.zeros((1, *shape), settings.dtype)


def export_run(folder: RunFolder, top: RunFolder, target: Path, kinds: list[str]) -> list[Path]:
    """Write the model for use elsewhere; it takes and gives the units of the data.

    Args:
        folder: the run folder of one seed.
        top: the folder with the configuration; the same one if there is one seed.
        target: where to write.
        kinds: of ``safetensors`` (weights by name, with the settings of the model) and ``jax`` (a
            compiled function, which needs JAX alone).

    Returns:
        The files.

    Raises:
        CommandError: if there is no model, or a package is missing.
    """
    settings = run_settings(top)
    written: list[Path] = []
    with jax.enable_x64(settings.precision == "float64"):
        model = read_model(folder)
        target.mkdir(parents=True, exist_ok=True)
        if "safetensors" in kinds:
            for source in sorted(folder.model.iterdir()):
                written.append(Path(shutil.copyfile(source, target / source.name)))
        if "jax" in kinds:
            example = _example_input(top, settings)
            try:
                written.append(export_function(model, example, target / _PROGRAM))
            except (ImportError, ValueError) as error:
                raise CommandError(f"export to jax: {error}") from error
    return written
