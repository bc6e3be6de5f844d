"""A table of inputs and outputs without a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from opifex.cli.tasks.data_task import DataTask
from opifex.cli.tasks.hierarchies import make_networks

__all__ = ["TableTask"]


class TableTask(DataTask):
    """Arrays (samples, features), fitted by perceptrons.

    Args:
        settings: the configuration.
        given: its section on the data.
    """

    table = True

    def make_hierarchy(self, seed: int) -> Sequence[nnx.Module]:
        """Networks."""
        return make_networks(self.settings, self.inputs.shape[-1], self.outputs.shape[-1], seed)

    def compare(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """Mean square in units of the outputs' own spread: the learning rate knows no units."""
        spread = 1.0 if self.scaling is None else self.scaling[1].deviation
        return jnp.mean(((self.output_of(model, inputs) - outputs) / spread) ** 2)

    def relative_error(self, found: Any, outputs: Any) -> Any:
        """The relative error of all samples together, which single ones near zero do not spoil."""
        return jnp.linalg.norm(found - outputs) / jnp.linalg.norm(outputs)
