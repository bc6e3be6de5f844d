"""A commented configuration to start from: of a problem, or of one's own data."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

from opifex.cli.errors import CommandError, nearest
from opifex.cli.registry import PROBLEMS
from opifex.cli.settings import DataSettings
from opifex.cli.tasks import Samples, read_samples

__all__ = ["data_config", "problem_config"]

_ENDING = """\
seeds: [0] # several, for example [0, 1, 2], run one after the other
precision: {precision} # float32, float64 or bfloat16
output: {output} # the run folder
checkpoint_every: 30 # seconds; resume goes on from the newest checkpoint
loggers: [tensorboard] # also trackio, wandb, mlflow, where they are installed
"""

_STRATEGY = """\
strategy:
  name: cascade # or v-cycle, w-cycle, full-multigrid, finest (the finest level alone)
"""

_PROBLEM = """\
# Written by opifex-multilevel init. Run it with: opifex-multilevel run {file}
problem:
  name: {name} # opifex-multilevel problems lists them all
  parameters:
{parameters}
  interior_points: 500
  boundary_points: 100
  conditions: soft # soft: terms of the loss; hard: met whatever the parameters are

hierarchy: # level 0 is the coarsest
  levels: 3
  hidden: [32, 32] # widths of the finest level
  coarsening: 0.5 # ratio of the widths of neighbouring levels

{strategy}
optimizer:
  name: multilevel-adam # or adam, lbfgs, levenberg-marquardt, ...
  learning_rate: 2e-3
  schedule: constant # or cosine, over each level

epochs: [300, 300, 600] # per level, coarsest first
{ending}"""

_OPERATOR = """\
# Written by opifex-multilevel init. Run it with: opifex-multilevel run {file}
data: # {samples} samples on a grid of {grid}
  path: {path}
  inputs: {inputs} # {input_channels}
  outputs: {outputs} # {output_channels}
{layout}  held_out: 0.1 # share of the samples that is never trained; the error is measured there
  normalize: true
  grid_kind: {grid_kind} # where the points lie: cell, vertex (boundary included) or periodic

hierarchy: # level 0 is the coarsest
  kind: fourier-operator
  levels: {levels}
  modes: {modes} # of the finest level, per axis
  coarsening: 0.5 # ratio of the modes of neighbouring levels
  width: {width}
  layers: 4

{strategy}
optimizer:
  name: multilevel-adam
  learning_rate: 2e-3
  schedule: cosine # over each level; or constant

epochs: {epochs} # per level, coarsest first
batch_size: {batch_size}
{ending}"""

_TABLE = """\
# Written by opifex-multilevel init. Run it with: opifex-multilevel run {file}
data: # {samples} samples: {input_channels} to {output_channels}
  path: {path}
  inputs: {inputs}
  outputs: {outputs}
  held_out: 0.1 # share of the samples that is never trained; the error is measured there
  normalize: true

hierarchy: # level 0 is the coarsest
  kind: network
  levels: 3
  hidden: [64, 64] # widths of the finest level
  coarsening: 0.5 # ratio of the widths of neighbouring levels

{strategy}
optimizer:
  name: multilevel-adam
  learning_rate: 2e-3
  schedule: cosine # over each level; or constant

epochs: {epochs} # per level, coarsest first
batch_size: {batch_size}
{ending}"""


def problem_config(name: str, file: str) -> str:
    """A commented configuration for a problem of the library.

    Args:
        name: name of the problem.
        file: name of the file it goes to, for the comments.

    Raises:
        CommandError: if there is no such problem.
    """
    if name not in PROBLEMS:
        raise CommandError(f"unknown problem {name!r}; {nearest(name, PROBLEMS)}")
    fields = dataclasses.fields(PROBLEMS[name])  # type: ignore[arg-type]
    return _PROBLEM.format(
        file=shlex.quote(file),
        name=name,
        parameters="\n".join(f"    {field.name}: {field.default}" for field in fields),
        strategy=_STRATEGY,
        ending=_ENDING.format(precision="float32", output=f"runs/{name}"),
    )


def data_config(
    path: str,
    file: str,
    *,
    inputs: str | None = None,
    outputs: str | None = None,
    layout: str | None = None,
) -> str:
    """A commented configuration for a data file, with sizes that suit it.

    Args:
        path: the data file.
        file: the file the configuration goes to; its folder is where a relative path starts.
        inputs: name of the array of inputs, where the file leaves a choice.
        outputs: name of the array of outputs.
        layout: layout of the file, see `opifex.data.read_fields`.

    Raises:
        CommandError: if the file cannot be read as fields, nor as a table.
    """
    settings = DataSettings(path=path, inputs=inputs, outputs=outputs, layout=layout, held_out=0)
    samples, is_table = _samples(settings)
    count = len(samples.inputs)
    relative = os.path.relpath(Path(path).resolve(), Path(file).resolve().parent)
    called = "feature" if is_table else "channel"
    facts = {
        "file": shlex.quote(file),
        "path": relative,
        "samples": count,
        "inputs": _names(samples.names[0], inputs),
        "outputs": _names(samples.names[1], outputs),
        "input_channels": _counted(samples.inputs.shape[-1], called),
        "output_channels": _counted(samples.outputs.shape[-1], called),
        "batch_size": "null # all samples at every step" if count < 40 else min(20, count // 10),
        "epochs": [50, 50, 100],
        "strategy": _STRATEGY,
        "ending": _ENDING.format(
            precision="float64" if samples.inputs.dtype.itemsize == 8 and is_table else "float32",
            output=f"runs/{Path(path).stem}",
        ),
    }
    if is_table:
        return _TABLE.format(**facts)
    modes = [max(1, min(16 if len(samples.grid) < 3 else 8, n // 4)) for n in samples.grid]
    levels = min(3, max(1, min(modes).bit_length() - 1))
    facts |= {
        "grid": " x ".join(map(str, samples.grid)),
        "grid_kind": samples.grid_kind,
        "layout": "" if layout is None else f"  layout: {layout}\n",
        "levels": levels,
        "modes": modes,
        "width": 32 if len(samples.grid) < 3 else 16,
        "epochs": [50, 50, 100][-levels:],
    }
    return _OPERATOR.format(**facts)


def _samples(settings: DataSettings) -> tuple[Samples, bool]:
    """The samples, and whether they are a table: arrays (samples, features) without a grid."""
    try:
        return read_samples(settings), False
    except (ImportError, OSError, TypeError) as error:
        raise CommandError(str(error)) from error
    except ValueError as as_fields:
        if Path(settings.path).suffix != ".npz":
            raise CommandError(str(as_fields)) from as_fields
        try:
            return read_samples(settings, table=True), True
        except ValueError:
            # What is wrong with fields is the better message: tables are the rarer case.
            raise CommandError(str(as_fields)) from as_fields


def _counted(count: int, called: str) -> str:
    return f"{count} {called}{'' if count == 1 else 's'}"


def _names(found: str, given: str | None) -> str:
    """A name that the configuration can hold; ``null`` where several arrays make the channels."""
    return given or (found if "," not in found and "..." not in found else "null")
