"""An equation and its conditions, solved by networks or by trial functions around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.cli.registry import make_problem
from opifex.cli.settings import ProblemSettings, RunSettings
from opifex.cli.tasks.hierarchies import make_networks
from opifex.cli.tasks.task import ERROR, TrainingTask
from opifex.problems import Problem
from opifex.storage import save_model
from opifex.viz import SnapshotRecorder

__all__ = ["ProblemTask"]

# Cells per axis by the number of axes, for spectra.
_CELLS = {1: 256, 2: 64, 3: 20}


@dataclass(frozen=True)
class _ProblemError:
    """The error against the solution; equal for equal problems, by which programs are kept."""

    problem: Problem

    def __call__(self, model: Any) -> dict[str, Any]:
        return {ERROR: self.problem.relative_l2_error(model)}


class ProblemTask(TrainingTask):
    """A problem of `opifex.problems`.

    Args:
        settings: the configuration.
        given: its section on the problem.

    Attributes:
        problem: the problem.
        hard: whether a trial function meets the conditions.
    """

    def __init__(self, settings: RunSettings, given: ProblemSettings) -> None:
        super().__init__(settings, given.interior_points, "interior points")
        self.problem = problem = make_problem(given)
        self.hard = given.conditions == "hard"
        self.loss = problem.terms[:1] if self.hard else problem.terms
        self.evaluate = _ProblemError(problem)
        conditions = "met by a trial function" if self.hard else "terms of the loss"
        self.facts = (
            f"problem {given.name}: {given.interior_points} interior points, conditions are "
            f"{conditions}",
            "error: relative L2 error against the solution on a grid, not among the points",
        )
        self.waves = "cosine" if problem.input_dim in _CELLS else None
        self._given = given

    def make_hierarchy(self, seed: int) -> Sequence[nnx.Module]:
        """Networks, inside trial functions where conditions are hard."""
        problem = self.problem
        networks = make_networks(self.settings, problem.input_dim, problem.output_dim, seed)
        return [problem.trial_function(net) for net in networks] if self.hard else networks

    def make_data(self, models: Sequence[nnx.Module], seed: int) -> Any:
        """Points of every term, the same on all levels."""
        given, dtype = self._given, self.settings.dtype
        points = self.problem.sample_points(
            jax.random.key(seed),
            given.interior_points,
            given.boundary_points,
            method=given.sampling,
        )
        return tuple(jnp.asarray(part, dtype) for part in (points[:1] if self.hard else points))

    def save_model(self, model: nnx.Module, folder: Path) -> None:
        """Save a model, with its problem where that holds functions of it."""
        problem = self.problem if self.hard else None
        save_model(model, folder, weights="safetensors", problem=problem)

    def error_fields(self, model: Any) -> np.ndarray:
        """The error of the first component on the centres of equal cells."""
        recorder = SnapshotRecorder(self.problem, resolution=_CELLS[self.problem.input_dim])
        return (recorder.on_grid(model) - recorder.reference(self.problem))[None]
