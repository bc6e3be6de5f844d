"""What operators and tables have in common: samples of a file, their units, and the held-out error."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.cli.settings import DataSettings, RunSettings
from opifex.cli.tasks.samples import read_samples
from opifex.cli.tasks.task import ERROR, TrainingTask
from opifex.core.batches import in_batches
from opifex.data import FieldNormalizer
from opifex.models import NormalizedModel
from opifex.storage import save_model

__all__ = ["DataTask"]

_EVALUATED_AT_ONCE = 64


class DataTask(TrainingTask):
    """Pairs of a data file: trained in normalised inputs, judged in the units of the outputs.

    Args:
        settings: the configuration.
        given: its section on the data.

    Attributes:
        table: whether the samples have no grid.
        samples: the samples.
        scaling: normalizers of inputs and outputs; ``None`` where they are taken as they are.
        inputs: training inputs, normalised.
        outputs: training outputs, in their units.
    """

    table = False

    def __init__(self, settings: RunSettings, given: DataSettings) -> None:
        self.samples = samples = read_samples(given, table=self.table)
        count, held = len(samples.inputs), len(samples.held_out_inputs)
        super().__init__(
            settings.updated(
                "data",
                inputs=samples.names[0] if "," not in samples.names[0] else given.inputs,
                outputs=samples.names[1] if "," not in samples.names[1] else given.outputs,
                grid_kind=samples.grid_kind,
            ),
            count,
            f"training samples ({held} are held out)",
        )
        self._dtype = np.dtype(settings.dtype)
        self.scaling: tuple[FieldNormalizer, FieldNormalizer] | None = None
        if given.normalize:
            fit = FieldNormalizer.fit
            self.scaling = (
                fit(samples.inputs.astype(self._dtype)),
                fit(samples.outputs.astype(self._dtype)),
            )
        self.inputs = self.normalized(samples.inputs)
        self.outputs = samples.outputs.astype(self._dtype)
        self.loss = self.compare
        self.evaluate = self._held_out_error() if held else None
        left = 0 if settings.batch_size is None else count % settings.batch_size
        self.facts = (
            f"data {Path(given.path).name}: {samples.names[0]} -> {samples.names[1]}, "
            f"{count} training samples"
            + ("" if self.table else f" on a grid of {list(samples.grid)}"),
            f"held out: {held} of {count + held} samples, never trained; error is measured on them"
            if held
            else "held out: nothing, so that no error is measured (data.held_out)",
            *([f"each epoch leaves out {left} samples, another choice every time"] if left else []),
        )

    @abc.abstractmethod
    def compare(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """The loss on normalised inputs, with outputs in their units."""

    @abc.abstractmethod
    def relative_error(self, found: Any, outputs: Any) -> Any:
        """The error of outputs in their units."""

    def normalized(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs as the model takes them, in the precision of the run."""
        inputs = inputs.astype(self._dtype)
        if self.scaling is None:
            return inputs
        return self.scaling[0].normalize(inputs).astype(self._dtype)

    def output_of(self, model: Any, inputs: Any) -> Any:
        """What a model makes of normalised inputs, in the units of the outputs."""
        found = model(inputs)
        return found if self.scaling is None else self.scaling[1].denormalize(found)

    def make_data(self, models: Sequence[nnx.Module], seed: int) -> Any:
        """The training samples, the same on all levels."""
        return self.inputs, self.outputs

    def save_model(self, model: nnx.Module, folder: Path) -> None:
        """Save a model with the normalizers around it."""
        whole = model if self.scaling is None else NormalizedModel(model, *self.scaling)
        save_model(whole, folder, weights="safetensors")

    def _held_out_error(self) -> Callable[[Any], dict[str, Any]]:
        """The error on held-out samples, evaluated in pieces that fit into memory."""
        inputs = self.normalized(self.samples.held_out_inputs)
        outputs = self.samples.held_out_outputs.astype(self._dtype)
        at_once = len(inputs) if self.table else _EVALUATED_AT_ONCE

        def evaluate(model: Any) -> dict[str, Any]:
            found = jnp.concatenate(in_batches(partial(self.output_of, model), inputs, at_once))
            return {ERROR: self.relative_error(found, jnp.asarray(outputs))}

        return evaluate
