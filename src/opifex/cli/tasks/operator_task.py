"""An operator between fields on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from opifex.cli.settings import DataSettings, RunSettings
from opifex.cli.tasks.data_task import DataTask
from opifex.cli.tasks.hierarchies import decide_modes, make_operators
from opifex.core.metrics import relative_l2
from opifex.models import FNO
from opifex.training.multilevel import resolution_hierarchy

__all__ = ["OperatorTask"]

_WAVES = {"cell": "cosine", "periodic": "fourier"}
_FIELDS_OF_SPECTRA = 8


class OperatorTask(DataTask):
    """Pairs of fields, fitted by Fourier neural operators on coarser and coarser grids.

    Args:
        settings: the configuration.
        given: its section on the data.

    Raises:
        ValueError: if the data do not fit the configuration.
    """

    def __init__(self, settings: RunSettings, given: DataSettings) -> None:
        super().__init__(settings.updated("hierarchy", kind="fourier-operator"), given)
        self.settings = decide_modes(self.settings, self.samples.grid)
        self.waves = _WAVES.get(self.samples.grid_kind)
        self._compiled = nnx.jit(self.output_of)
        self.make_data(self.make_models(0), 0)  # what does not fit is found before writing begins

    def make_hierarchy(self, seed: int) -> Sequence[nnx.Module]:
        """Operators with more and more modes."""
        channels = self.inputs.shape[-1], self.outputs.shape[-1]
        return make_operators(self.settings, *channels, self.samples.grid_kind, seed)

    def make_data(self, models: Sequence[nnx.Module], seed: int) -> Any:
        """The fields on the grid of every level."""
        operators = [model for model in models if isinstance(model, FNO)]
        levels = resolution_hierarchy(self.inputs, self.outputs, operators)
        return [(level.inputs, level.outputs) for level in levels]

    def compare(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """The mean relative L2 error of a batch."""
        return relative_l2(self.output_of(model, inputs), outputs)

    def relative_error(self, found: Any, outputs: Any) -> Any:
        """The mean relative L2 error."""
        return relative_l2(found, outputs)

    def error_fields(self, model: Any) -> np.ndarray:
        """Errors in the first channel of a few samples, held-out ones where there are some."""
        inputs, outputs = self.samples.examples(_FIELDS_OF_SPECTRA)
        found = self._compiled(model, self.normalized(inputs))
        return np.asarray(found)[..., 0] - outputs[..., 0]
