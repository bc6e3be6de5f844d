"""What ``Monitor(progress=True)`` shows: a bar per level on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from opifex.training.multilevel.monitor import LevelProgress, Monitor, Phase

__all__ = ["LiveDisplay", "PlainDisplay", "progress_display"]

_WIDE = 110  # columns from which metrics and speed fit beside the bar


def duration(seconds: float) -> str:
    """Seconds as people read them: ``under 1 s``, ``8 s``, ``3:05 min``, ``2:10 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    unit, name = (60, "min") if seconds < 3600 else (3600, "h")
    rest = int(seconds % unit) * 60 // unit
    return f"{int(seconds // unit)}:{rest:02d} {name}"


def values(progress: LevelProgress) -> str:
    """Loss and metrics."""
    named = {"loss": float(progress.losses[-1]), **progress.metrics}
    return "  ".join(f"{name} {value:.3e}" for name, value in named.items())


def speed(progress: LevelProgress) -> str:
    """Steps per second, and the time left."""
    parts = []
    if progress.steps_per_second is not None:
        parts.append(f"{progress.steps_per_second:.3g} steps/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(parts)


class PlainDisplay:
    """One line per evaluation interval, and one when a level compiles: for pipes and log files.

    Args:
        num_levels: number of levels.
        console: where to print.
    """

    def __init__(self, num_levels: int, console: Console) -> None:
        self._finest = num_levels - 1
        self._console = console
        self._compiled: set[int] = set()

    def __enter__(self) -> PlainDisplay:
        """Nothing to prepare."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to clear away."""

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def on_phase(self, phase: Phase, level: int) -> None:
        """Say that a level compiles, see `RunObserver.on_phase`."""
        if phase == "compiling" and level not in self._compiled:
            self._compiled.add(level)
            self._print(f"compiling level {level} of 0..{self._finest}")

    def on_progress(self, progress: LevelProgress) -> None:
        """One line, see `RunObserver.on_progress`."""
        cycle = f"cycle {progress.cycle}  " if progress.cycle else ""
        self._print(
            f"{cycle}level {progress.level} of 0..{self._finest}  "
            f"epoch {progress.epoch}/{progress.max_epochs}  {values(progress)}  {speed(progress)}"
        )


class LiveDisplay:
    """One bar per visited level, and what the run is doing; time goes on while nothing else does.

    Args:
        num_levels: number of levels.
        console: where to draw.
    """

    def __init__(self, num_levels: int, console: Console) -> None:
        self._finest = num_levels - 1
        self._bars: dict[tuple[int, int], TaskID] = {}
        self._cycle = 0
        self._wide = console.width >= _WIDE
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20 if self._wide else 10),
            TextColumn("{task.fields[epochs]}"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._now = self._progress.add_task("", total=None, epochs="", state="")

    def __enter__(self) -> LiveDisplay:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing; the bars stay, the line of the phase goes."""
        self._progress.update(self._now, visible=False)
        self._progress.stop()

    def on_phase(self, phase: Phase, level: int) -> None:
        """Say what the run is doing, see `RunObserver.on_phase`."""
        self._progress.reset(self._now, description=f"{phase} level {level}", total=None)

    def on_progress(self, progress: LevelProgress) -> None:
        """Move the bar of the level, see `RunObserver.on_progress`."""
        if progress.cycle != self._cycle:
            # Bars of earlier cycles would fill the screen.
            for bar in self._bars.values():
                self._progress.remove_task(bar)
            self._bars, self._cycle = {}, progress.cycle
        visit = (progress.cycle, progress.level)
        if visit not in self._bars:
            name = f"level {progress.level} of 0..{self._finest}"
            self._bars[visit] = self._progress.add_task(name, total=1, epochs="", state="")
        text = values(progress)
        if self._wide or not progress.metrics:
            text += "  " + speed(progress)
        self._progress.update(
            self._bars[visit],
            total=progress.max_epochs,
            completed=progress.epoch,
            epochs=f"{progress.epoch}/{progress.max_epochs}",
            state=text,
        )
        self._progress.update(self._now, state=speed(progress))
        if progress.last:
            self._progress.stop_task(self._bars[visit])


@contextmanager
def progress_display(
    monitor: Monitor, num_levels: int, console: Console | None = None
) -> Iterator[Monitor]:
    """The monitor, with a display among its observers while the block runs if it asks for one.

    Args:
        monitor: the monitor.
        num_levels: number of levels.
        console: where to show it; by default the standard output.
    """
    if not monitor.progress:
        yield monitor
        return
    console = console or Console()
    kind = LiveDisplay if console.is_terminal else PlainDisplay
    with kind(num_levels, console) as display:
        yield replace(monitor, observers=[*monitor.observers, display])
