"""The order in which levels are smoothed and transferred."""

from __future__ import annotations

from opifex.training.multilevel.run import MultilevelRun

__all__ = ["cascade"]


def cascade(run: MultilevelRun) -> None:
    """Coarse to fine, once: smooth, prolongate, smooth, ..., and the finest level too."""
    run.evaluate()
    while True:
        run.smooth()
        if run.stopped or run.level == run.finest:
            return
        run.prolongate()
        run.evaluate()
