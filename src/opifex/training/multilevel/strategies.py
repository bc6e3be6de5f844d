"""The order in which levels are smoothed and transferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flax import nnx

from opifex.training.multilevel.run import CoarseObjective, MultilevelRun

__all__ = ["Cascade", "Strategy"]


class Strategy(Protocol):
    """Moves a run about. To write your own, give a class these three members."""

    @property
    def coarse_objective(self) -> CoarseObjective:
        """What coarse levels minimise."""
        ...

    def prepare(self, models: Sequence[nnx.Module], level: int) -> list[nnx.Module]:
        """The models to train, made from the trainer's, which stands on some level."""
        ...

    def __call__(self, run: MultilevelRun) -> None:
        """Do the whole run."""
        ...


@dataclass(frozen=True)
class Cascade:
    """Coarse to fine, once: smooth, prolongate, smooth, ..., and the finest level too."""

    @property
    def coarse_objective(self) -> CoarseObjective:
        """Every level minimises its own loss."""
        return "own"

    def prepare(self, models: Sequence[nnx.Module], level: int) -> list[nnx.Module]:
        """The models as they are."""
        return list(models)

    def __call__(self, run: MultilevelRun) -> None:
        """Start on the present level."""
        run.check_transfers()
        run.evaluate()
        while True:
            run.smooth()
            if run.stopped or run.level == run.finest:
                return
            run.prolongate()
            run.evaluate()
