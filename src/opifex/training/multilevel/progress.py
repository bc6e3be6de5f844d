"""A progress bar over the levels of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from opifex.training.multilevel.monitor import LevelProgress, Monitor

__all__ = ["ProgressBar", "progress_bar"]


class ProgressBar:
    """One bar per visited level, with the loss and the latest metrics.

    Args:
        num_levels: number of levels.
    """

    def __init__(self, num_levels: int) -> None:
        self._num_levels = num_levels
        self._tasks: dict[tuple[int, int], TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
        )

    def start(self) -> None:
        """Begin to draw."""
        self._progress.start()

    def stop(self) -> None:
        """Stop drawing."""
        self._progress.stop()

    def update(self, progress: LevelProgress) -> None:
        """Show where the run stands."""
        visit = (progress.cycle, progress.level)
        if visit not in self._tasks:
            self._tasks[visit] = self._progress.add_task(
                f"level {progress.level} of 0..{self._num_levels - 1}",
                total=progress.max_epochs,
                state="",
            )
        values = {"loss": float(progress.losses[-1]), **progress.metrics}
        self._progress.update(
            self._tasks[visit],
            completed=progress.epoch,
            state="  ".join(f"{name} {value:.3e}" for name, value in values.items()),
        )


@contextmanager
def progress_bar(monitor: Monitor, num_levels: int) -> Iterator[Monitor]:
    """The monitor, with a bar among its callbacks while the block runs if it asks for one."""
    if not monitor.progress:
        yield monitor
        return
    bar = ProgressBar(num_levels)
    bar.start()
    try:
        yield replace(monitor, callbacks=[*monitor.callbacks, bar.update])
    finally:
        bar.stop()
