"""Pictures of the model on a grid, kept while it trains, for spectra and animations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from opifex.core.checks import check_callable, check_nonnegative_int, check_positive_int
from opifex.problems import Box, Problem
from opifex.training.multilevel.monitor import LevelProgress
from opifex.viz.fields import component_on_grid

__all__ = ["Snapshot", "SnapshotRecorder"]


@dataclass(frozen=True)
class Snapshot:
    """The model on a grid at one moment.

    Attributes:
        level: level at which the model was; 0 is the coarsest.
        epoch: epochs done during this visit of the level.
        cycle: number of the cycle, zero for a cascade.
        values: what was recorded, one axis per coordinate.
    """

    level: int
    epoch: int
    cycle: int
    values: np.ndarray


class SnapshotRecorder:
    """A callback that keeps the model's values on a grid at the end of every evaluation interval.

    The grid has the *centres* of equal cells, which suits the sine, cosine and Fourier series of
    `error_spectra` alike.

    Args:
        domain: a problem, whose domain is taken, or a box of one to three dimensions.
        resolution: cells per axis: one number for all axes, or one for each.
        component: which output of the model to keep.
        field: ``field(model, points)``, points of shape (n, dim) to values of shape (n,) or (n, m); by
            default the model itself. It may be a residual, for instance.

    Attributes:
        snapshots: what was kept, in order.
        grids: coordinates along each axis.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is out of range, or the domain has more than three dimensions.

    Example:
        >>> from opifex.problems import Box
        >>> from opifex.viz import SnapshotRecorder
        >>> recorder = SnapshotRecorder(Box((0.0,), (1.0,)), resolution=4)
        >>> recorder.record(lambda points: points**2)
        >>> recorder.snapshots[0].values.tolist()
        [0.015625, 0.140625, 0.390625, 0.765625]

        In a run: ``trainer.fit(..., monitor=Monitor(callbacks=[recorder]))``.
    """

    def __init__(
        self,
        domain: Problem | Box,
        *,
        resolution: int | Sequence[int] = 64,
        component: int = 0,
        field: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        box = domain.domain if isinstance(domain, Problem) else domain
        if not isinstance(box, Box):
            raise TypeError(f"domain must be a Problem or a Box, got {type(domain).__name__}")
        if box.dim > 3:
            raise ValueError(f"domain must have one to three dimensions, got {box.dim}")
        if isinstance(resolution, str) or not isinstance(resolution, int | Sequence):
            raise TypeError(
                f"resolution must be an integer or a sequence of integers, got {resolution!r}"
            )
        cells = [resolution] * box.dim if isinstance(resolution, int) else list(resolution)
        if len(cells) != box.dim:
            raise ValueError(f"resolution must be {box.dim} numbers, got {cells}")
        for i, n in enumerate(cells):
            check_positive_int(
                "resolution" if isinstance(resolution, int) else f"resolution[{i}]", n
            )
        if field is not None:
            check_callable("field", field)
        self.domain = box
        self.component = check_nonnegative_int("component", component)
        self.grids = tuple(
            a + (b - a) * (np.arange(n) + 0.5) / n
            for a, b, n in zip(box.lower, box.upper, cells, strict=True)
        )
        self.snapshots: list[Snapshot] = []
        self._field = field

    def __repr__(self) -> str:
        shape = " x ".join(str(len(grid)) for grid in self.grids)
        return f"SnapshotRecorder({len(self.snapshots)} snapshots on {shape} cells)"

    def __call__(self, progress: LevelProgress) -> None:
        """Keep the present model's values; never ends the run."""
        self.record(
            progress.model, level=progress.level, epoch=progress.epoch, cycle=progress.cycle
        )

    def record(self, model: Any, *, level: int = 0, epoch: int = 0, cycle: int = 0) -> None:
        """Keep a model's values: that of the start, for instance, which no callback sees.

        Args:
            model: the model.
            level: its level.
            epoch: epochs done on the level.
            cycle: number of the cycle.

        Raises:
            ValueError: if the model does not return one row per point, or has too few outputs.
        """
        field = self._field
        function = model if field is None else lambda points: field(model, points)
        self.snapshots.append(Snapshot(level, epoch, cycle, self.on_grid(function)))

    def on_grid(self, function: Callable[[Any], Any]) -> np.ndarray:
        """A function on the recorder's grid, in the shape of `Snapshot.values`.

        Args:
            function: points of shape (n, dim) to values of shape (n,) or (n, m).

        Raises:
            ValueError: if it does not return one row per point, or has too few outputs.
        """
        return component_on_grid(function, self.grids, self.component)

    def reference(self, reference: Any) -> np.ndarray:
        """What the values should be, on the grid.

        Args:
            reference: a problem with an exact solution, a function of points, an array of the grid's
                shape, or ``None`` for zero (of residuals).

        Raises:
            TypeError: if it is none of these.
            ValueError: if an array has another shape.
        """
        if reference is None:
            return np.zeros([len(grid) for grid in self.grids])
        if isinstance(reference, Problem):
            return self.on_grid(reference.exact)
        if callable(reference):
            return self.on_grid(reference)
        if not isinstance(reference, np.ndarray | jnp.ndarray):
            raise TypeError(
                "reference must be a Problem, a function, an array or None, got "
                f"{type(reference).__name__}"
            )
        array = np.asarray(reference)
        shape = tuple(len(grid) for grid in self.grids)
        if array.shape != shape:
            raise ValueError(
                f"reference must have the shape of the grid, {shape}, got {array.shape}"
            )
        return array
