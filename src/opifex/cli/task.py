"""From settings to what a trainer needs: models, data, loss, and the measure of the error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.cli.errors import CommandError, nearest
from opifex.cli.registry import ACTIVATIONS, make_problem
from opifex.cli.settings import DataSettings, HierarchySettings, RunSettings
from opifex.core.metrics import relative_l2
from opifex.data import FieldNormalizer, read_fields
from opifex.models import FNO, MLP
from opifex.problems import Problem
from opifex.training.multilevel import resolution_hierarchy

__all__ = ["Samples", "Scaling", "TrainingTask", "build_task", "held_out_rows", "read_samples"]

ERROR = "error"
"""Name of the error in rows, tables and figures."""

_MOST_MODES = 16
_EVALUATED_AT_ONCE = 64


@dataclass(frozen=True)
class Scaling:
    """Maps between the units of the data and those in which a model works.

    Attributes:
        inputs: of the inputs.
        outputs: of the outputs.
    """

    inputs: FieldNormalizer
    outputs: FieldNormalizer

    def as_dict(self) -> dict[str, dict[str, list[float]]]:
        """Mean and deviation of every channel, as plain values."""
        return {
            name: {
                "mean": np.asarray(part.mean, float).tolist(),
                "deviation": np.asarray(part.deviation, float).tolist(),
            }
            for name, part in (("inputs", self.inputs), ("outputs", self.outputs))
        }


@dataclass(frozen=True)
class Samples:
    """The samples of a data file, divided.

    Attributes:
        inputs: training inputs, shape (samples, *grid, channels) or (samples, features).
        outputs: training outputs, likewise.
        held_out_inputs: inputs that are never trained; may have no rows.
        held_out_outputs: their outputs.
        grid_kind: where the points lie.
        names: names of the arrays of inputs and outputs.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    held_out_inputs: np.ndarray
    held_out_outputs: np.ndarray
    grid_kind: str
    names: tuple[str, str]

    @property
    def grid(self) -> tuple[int, ...]:
        """Points along each axis; empty for tables."""
        return self.inputs.shape[1:-1]


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, for any seed.

    Attributes:
        settings: the configuration with everything decided.
        loss: what `CascadeTrainer.fit` minimises.
        evaluate: the error, or ``None`` where nothing is held out.
        facts: sentences that a user should know.
        steps_per_epoch: steps of an epoch.
        make_models: models by seed, coarsest first.
        make_data: data of all levels, by models and seed.
        problem: the problem, if it is one.
        samples: the data, if it is data.
        scaling: how data are scaled for the model, if they are.
    """

    settings: RunSettings
    loss: Any
    evaluate: Callable[[Any], dict[str, Any]] | None
    facts: tuple[str, ...]
    steps_per_epoch: int
    make_models: Callable[[int], list[nnx.Module]]
    make_data: Callable[[Sequence[nnx.Module], int], Any]
    problem: Problem | None = None
    samples: Samples | None = None
    scaling: Scaling | None = None


def build_task(settings: RunSettings) -> TrainingTask:
    """Everything but the seed.

    Args:
        settings: the configuration; its precision must be in force already.

    Raises:
        CommandError: if the data cannot be read, or do not fit the configuration.
    """
    try:
        if settings.problem is not None:
            return _problem_task(settings)
        return _data_task(settings)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise CommandError(str(error)) from error


def _dtype(settings: RunSettings) -> Any:
    return jnp.float64 if settings.precision == "float64" else jnp.float32


def _network_sizes(hierarchy: HierarchySettings) -> list[list[int]]:
    """Hidden widths of every level, coarsest first."""
    if hierarchy.sizes is not None:
        return hierarchy.sizes
    return [
        [max(1, round(w * hierarchy.coarsening**times)) for w in hierarchy.hidden]
        for times in range(hierarchy.levels - 1, -1, -1)
    ]


def _of_strategy(settings: RunSettings, models: list[nnx.Module]) -> list[nnx.Module]:
    return models[-1:] if settings.strategy.name == "finest" else models


def _networks(settings: RunSettings, inputs: int, outputs: int, seed: int) -> list[nnx.Module]:
    rngs = nnx.Rngs(seed)
    return [
        MLP(
            inputs,
            outputs,
            sizes,
            activation=ACTIVATIONS[settings.hierarchy.activation],
            param_dtype=_dtype(settings),
            rngs=rngs,
        )
        for sizes in _network_sizes(settings.hierarchy)
    ]


# -- equations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ProblemError:
    """The error against the solution; equal for equal problems, by which programs are kept."""

    problem: Problem

    def __call__(self, model: Any) -> dict[str, Any]:
        return {ERROR: self.problem.relative_l2_error(model)}


def _problem_task(settings: RunSettings) -> TrainingTask:
    given = settings.problem
    assert given is not None
    problem = make_problem(given)
    hard = given.conditions == "hard"

    def make_models(seed: int) -> list[nnx.Module]:
        networks = _networks(settings, problem.input_dim, problem.output_dim, seed)
        models = [problem.trial_function(net) for net in networks] if hard else networks
        return _of_strategy(settings, list(models))

    def make_data(models: Sequence[nnx.Module], seed: int) -> Any:
        points = problem.sample_points(
            jax.random.key(seed),
            given.interior_points,
            given.boundary_points,
            method=given.sampling,
        )
        arrays = tuple(jnp.asarray(part, _dtype(settings)) for part in points)
        return arrays[:1] if hard else arrays

    batch = settings.batch_size
    if batch is not None and batch > given.interior_points:
        raise ValueError(
            f"batch_size must be at most the {given.interior_points} interior points, got {batch}"
        )
    conditions = "met by a trial function" if hard else "terms of the loss"
    return TrainingTask(
        settings=settings,
        loss=problem.terms[:1] if hard else problem.terms,
        evaluate=_ProblemError(problem),
        facts=(
            f"problem {given.name}: {given.interior_points} interior points, conditions are "
            f"{conditions}",
            "error: relative L2 error against the solution on a grid, not among the points",
        ),
        steps_per_epoch=1 if batch is None else given.interior_points // batch,
        make_models=make_models,
        make_data=make_data,
        problem=problem,
    )


# -- data ----------------------------------------------------------------------------------------


def held_out_rows(samples: int, share: float) -> np.ndarray:
    """Rows that are held out: the same for every seed and every configuration of a file.

    Args:
        samples: number of samples.
        share: share to hold out, in [0, 1); at least one sample unless it is 0.

    Returns:
        Sorted row numbers.

    Raises:
        ValueError: if nothing is left to train.
    """
    count = 0 if share == 0 else max(1, round(share * samples))
    if count >= samples:
        raise ValueError(
            f"data.held_out={share} leaves nothing to train of {samples} samples: at least two are "
            "needed, or held_out: 0"
        )
    return np.sort(np.random.default_rng(0).permutation(samples)[:count])


def read_samples(settings: DataSettings, *, table: bool = False) -> Samples:
    """Read and divide the samples of a file.

    Args:
        settings: the data section.
        table: read arrays (samples, features), which have no grid.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it does not hold what is asked for.
        ImportError: if a package for its format is missing.
    """
    if not Path(settings.path).exists():
        raise FileNotFoundError(f"data.path: there is no file {settings.path}")
    kind: str | None = None
    if table:
        inputs, outputs, names = _read_table(settings)
    else:
        fields = read_fields(
            settings.path,
            inputs=settings.inputs,
            outputs=settings.outputs,
            layout=settings.layout,
        )
        inputs, outputs, kind = fields.inputs, fields.outputs, fields.grid_kind
        names = ", ".join(fields.input_names), ", ".join(fields.output_names)
    zero = ~np.any(outputs.reshape(len(outputs), -1), axis=1)
    if not table and np.any(zero):
        raise ValueError(
            f"{names[1]} must not vanish: the relative error of sample {int(np.argmax(zero))}, which "
            "is zero everywhere, has no meaning"
        )
    rows = held_out_rows(len(inputs), settings.held_out)
    trained = np.setdiff1d(np.arange(len(inputs)), rows)
    return Samples(
        inputs=inputs[trained],
        outputs=outputs[trained],
        held_out_inputs=inputs[rows],
        held_out_outputs=outputs[rows],
        grid_kind=settings.grid_kind or kind or "cell",
        names=names,
    )


def _read_table(settings: DataSettings) -> tuple[np.ndarray, np.ndarray, tuple[str, str]]:
    """Two arrays (samples, features) of an NPZ file; one of shape (samples,) gets its axis."""
    if Path(settings.path).suffix != ".npz":
        raise ValueError(
            f"data.path must be an .npz file with hierarchy.kind network, got {settings.path}"
        )
    usual = (("inputs", "outputs"), ("x", "y"), ("X", "y"), ("a", "u"))
    with np.load(settings.path) as file:
        pairs = [pair for pair in usual if set(pair) <= set(file.files)]
        default = pairs[0] if pairs else (None, None)
        names = (settings.inputs or default[0], settings.outputs or default[1])
        arrays = []
        for side, name in zip(("inputs", "outputs"), names, strict=True):
            if name is None or name not in file.files:
                told = f"got {name!r}" if name else "and no usual name is there"
                raise ValueError(
                    f"data.{side} must name an array of the file, {told}; "
                    f"{nearest(name or '', file.files)}"
                )
            values = np.asarray(file[name])
            values = values[:, None] if values.ndim == 1 else values
            if values.ndim != 2 or values.dtype.kind not in "fiub" or not len(values):
                raise ValueError(
                    f"data.{side}: {name} must hold numbers of shape (samples, features) with "
                    f"hierarchy.kind network, got {values.dtype} of shape {values.shape}"
                )
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"data.{side}: {name} must be finite, row {int(np.argmin(finite))} is not"
                )
            arrays.append(values.astype(values.dtype if values.dtype.kind == "f" else np.float32))
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(
            f"inputs and outputs must have equally many samples, got {len(arrays[0])} of {names[0]} "
            f"and {len(arrays[1])} of {names[1]}"
        )
    return arrays[0], arrays[1], (str(names[0]), str(names[1]))


def _data_task(settings: RunSettings) -> TrainingTask:
    assert settings.data is not None
    kind = settings.hierarchy.kind or "fourier-operator"
    settings = _updated(settings, "hierarchy", kind=kind)
    table = kind == "network"
    samples = read_samples(settings.data, table=table)  # type: ignore[arg-type]
    dtype = np.dtype(settings.precision)
    count, held = len(samples.inputs), len(samples.held_out_inputs)
    batch = settings.batch_size
    if batch is not None and batch > count:
        raise ValueError(
            f"batch_size must be at most the {count} training samples ({held} are held out), got "
            f"{batch}"
        )
    scaling = None
    if settings.data.normalize:  # type: ignore[union-attr]
        scaling = Scaling(
            FieldNormalizer.fit(samples.inputs.astype(dtype)),
            FieldNormalizer.fit(samples.outputs.astype(dtype)),
        )
    settings = _updated(
        settings,
        "data",
        inputs=samples.names[0] if "," not in samples.names[0] else settings.data.inputs,  # type: ignore[union-attr]
        outputs=samples.names[1] if "," not in samples.names[1] else settings.data.outputs,  # type: ignore[union-attr]
        grid_kind=samples.grid_kind,
    )
    if not table:
        settings = _with_modes(settings, samples)
    facts = [
        f"data {Path(settings.data.path).name}: {samples.names[0]} -> {samples.names[1]}, "  # type: ignore[union-attr]
        f"{count} training samples" + (f" on a grid of {list(samples.grid)}" if not table else ""),
        f"held out: {held} of {count + held} samples, never trained; error is measured on them"
        if held
        else "held out: nothing, so that no error is measured (data.held_out)",
    ]
    left = 0 if batch is None else count % batch
    if left:
        facts.append(f"each epoch leaves out {left} samples, another choice every time")

    def inputs_of(values: np.ndarray) -> np.ndarray:
        values = values.astype(dtype)
        return values if scaling is None else scaling.inputs.normalize(values).astype(dtype)

    def outputs_of(values: Any) -> Any:
        return values if scaling is None else scaling.outputs.denormalize(values)

    def loss(model: Any, inputs: Any, outputs: Any) -> Any:
        found = outputs_of(model(inputs))
        if not table:
            return relative_l2(found, outputs)
        # In units of the outputs' own spread, so that the learning rate does not depend on units.
        spread = 1.0 if scaling is None else scaling.outputs.deviation
        return jnp.mean(((found - outputs) / spread) ** 2)

    def make_models(seed: int) -> list[nnx.Module]:
        channels = samples.inputs.shape[-1], samples.outputs.shape[-1]
        made = (
            _networks(settings, *channels, seed)
            if table
            else _operators(settings, samples, *channels, seed)
        )
        return _of_strategy(settings, made)

    trained = inputs_of(samples.inputs), samples.outputs.astype(dtype)

    def make_data(models: Sequence[nnx.Module], seed: int) -> Any:
        del seed
        if table:
            return trained
        operators = [model for model in models if isinstance(model, FNO)]
        levels = resolution_hierarchy(*trained, operators)
        return [(level.inputs, level.outputs) for level in levels]

    evaluate = None
    if held:
        evaluate = _held_out_error(
            inputs_of(samples.held_out_inputs),
            samples.held_out_outputs.astype(dtype),
            outputs_of,
            table=table,
        )
    make_data(make_models(0), 0)  # what does not fit is found before anything is written
    return TrainingTask(
        settings=settings,
        loss=loss,
        evaluate=evaluate,
        facts=tuple(facts),
        steps_per_epoch=1 if batch is None else count // batch,
        make_models=make_models,
        make_data=make_data,
        samples=samples,
        scaling=scaling,
    )


def _updated(settings: RunSettings, section: str, **changes: Any) -> RunSettings:
    part = getattr(settings, section).model_copy(update=changes)
    return settings.model_copy(update={section: part})


def _with_modes(settings: RunSettings, samples: Samples) -> RunSettings:
    """The settings with the modes decided, one number per axis."""
    given, axes = settings.hierarchy.modes, len(samples.grid)
    if settings.hierarchy.sizes is not None:
        modes = settings.hierarchy.sizes[-1]
    elif given is None:
        modes = [max(1, min(_MOST_MODES, points // 4)) for points in samples.grid]
    else:
        modes = [given] * axes if isinstance(given, int) else given
    if len(modes) != axes:
        raise ValueError(
            f"hierarchy.modes (or sizes) must have one entry per axis of the grid "
            f"{list(samples.grid)}, got {modes}"
        )
    return _updated(settings, "hierarchy", modes=modes)


def _operators(
    settings: RunSettings, samples: Samples, inputs: int, outputs: int, seed: int
) -> list[nnx.Module]:
    hierarchy, rngs = settings.hierarchy, nnx.Rngs(seed)
    modes = hierarchy.modes
    assert isinstance(modes, list)
    sizes = hierarchy.sizes or [
        [max(1, int(m * hierarchy.coarsening**times)) for m in modes]
        for times in range(hierarchy.levels - 1, -1, -1)
    ]
    return [
        FNO(
            tuple(size),
            hierarchy.width,
            input_dim=inputs,
            output_dim=outputs,
            num_layers=hierarchy.layers,
            spatial_dims=len(samples.grid),
            grid_kind=samples.grid_kind,
            param_dtype=_dtype(settings),
            rngs=rngs,
        )
        for size in sizes
    ]


def _held_out_error(
    inputs: np.ndarray, outputs: np.ndarray, outputs_of: Callable[[Any], Any], *, table: bool
) -> Callable[[Any], dict[str, Any]]:
    """The relative L2 error on samples, evaluated in pieces that fit into memory."""
    starts = range(0, len(inputs), len(inputs) if table else _EVALUATED_AT_ONCE)

    def evaluate(model: Any) -> dict[str, Any]:
        found = jnp.concatenate(
            [outputs_of(model(inputs[i : i + starts.step])) for i in starts], axis=0
        )
        if table:
            return {ERROR: jnp.linalg.norm(found - outputs) / jnp.linalg.norm(outputs)}
        return {ERROR: relative_l2(found, jnp.asarray(outputs))}

    return evaluate
