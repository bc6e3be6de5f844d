"""What a run needs of that which it trains."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from opifex.cli.settings import RunSettings
from opifex.storage import save_model

__all__ = ["ERROR", "TrainingTask"]

ERROR = "error"
"""Name of the error in rows, tables and figures."""


class TrainingTask(abc.ABC):
    """What is trained, for any seed.

    Args:
        settings: the configuration with everything decided.
        count: samples of an epoch.
        called: what they are, for the message.

    Attributes:
        settings: the same.
        steps_per_epoch: steps of an epoch.
        loss: what `CascadeTrainer.fit` minimises.
        evaluate: the error, or ``None`` where nothing is held out.
        facts: sentences that a user should know.
        waves: series for spectra of the error, see `opifex.viz.radial_spectrum`; ``None`` where there is
            no regular grid.

    Raises:
        ValueError: if a batch is larger than ``count``.
    """

    loss: Any
    evaluate: Callable[[Any], dict[str, Any]] | None = None
    facts: tuple[str, ...] = ()
    waves: str | None = None

    def __init__(self, settings: RunSettings, count: int, called: str) -> None:
        batch = settings.batch_size
        if batch is not None and batch > count:
            raise ValueError(f"batch_size must be at most the {count} {called}, got {batch}")
        self.settings = settings
        self.steps_per_epoch = 1 if batch is None else count // batch

    @abc.abstractmethod
    def make_hierarchy(self, seed: int) -> Sequence[nnx.Module]:
        """New models of all levels, coarsest first."""

    @abc.abstractmethod
    def make_data(self, models: Sequence[nnx.Module], seed: int) -> Any:
        """Data of all levels."""

    def make_models(self, seed: int) -> list[nnx.Module]:
        """New models of the levels that are trained, coarsest first."""
        models = list(self.make_hierarchy(seed))
        return models[-1:] if self.settings.strategy.name == "finest" else models

    def save_model(self, model: nnx.Module, folder: Path) -> None:
        """Save a trained model such that it takes and gives the units of the data.

        Raises:
            ImportError: if safetensors is not installed.
        """
        save_model(model, folder, weights="safetensors")

    def error_fields(self, model: Any) -> np.ndarray:
        """Errors on a regular grid, shape (samples, *grid), where there are ``waves``."""
        raise NotImplementedError(f"{type(self).__name__} has no regular grid")
