"""The order in which levels are smoothed and transferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from opifex.training.multilevel.run import MultilevelRun

__all__ = ["Cascade", "Strategy"]


class Strategy(Protocol):
    """Moves a run about. To write your own, give a class these two members."""

    @property
    def tilted(self) -> bool:
        """Whether coarse objectives need a linear term."""
        ...

    def __call__(self, run: MultilevelRun) -> None:
        """Do the whole run."""
        ...


@dataclass(frozen=True)
class Cascade:
    """Coarse to fine, once: smooth, prolongate, smooth, ..., and the finest level too."""

    @property
    def tilted(self) -> bool:
        """Every level minimises the loss itself."""
        return False

    def __call__(self, run: MultilevelRun) -> None:
        """Start on the present level."""
        run.evaluate()
        while True:
            run.smooth()
            if run.stopped or run.level == run.finest:
                return
            run.prolongate()
            run.evaluate()
