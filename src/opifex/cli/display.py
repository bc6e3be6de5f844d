"""What is shown while a run goes on: a table that is redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opifex.training.multilevel import LevelProgress, Phase, RunObserver

__all__ = ["LiveDisplay", "PlainDisplay", "RunDisplay", "shown"]

_DOING: dict[Phase, str] = {
    "compiling": "compiling",
    "training": "training",
    "transferring": "transferring to",
    "evaluating": "evaluating",
}
# A line at most so often, in seconds, but for the last one of a level.
_BETWEEN_LINES = 1.0
# Lines are for reading afterwards, too: phases that last no time are left out there.
_WORTH_A_LINE: frozenset[Phase] = frozenset({"compiling", "transferring"})


class RunDisplay(RunObserver, Protocol):
    """An observer that can also say something."""

    def say(self, line: str) -> None:
        """Show a line that stays."""
        ...


def duration(seconds: float | None) -> str:
    """Seconds in words for people.

    Example:
        >>> from opifex.cli.display import duration
        >>> duration(None), duration(4.2), duration(75), duration(7300)
        ('-', '4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _loss(progress: LevelProgress) -> str:
    return f"{float(progress.losses[-1]):.3e}" if len(progress.losses) else "-"


class PlainDisplay:
    """Lines about evaluations and about changes of what is done; no cursor movements.

    Evaluations that follow each other within a second are left out, but for the last of a level.

    Args:
        console: where to print.
        name: of the run, in front of every line; may be empty.
    """

    def __init__(self, console: Console, name: str = "") -> None:
        self._console = console
        self._prefix = f"{name}: " if name else ""
        self._phase: tuple[Phase, int] | None = None
        self._printed = -_BETWEEN_LINES

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(self._prefix + line, soft_wrap=True, markup=False, highlight=False)

    def on_phase(self, phase: Phase, level: int) -> None:
        """Say what takes the time now."""
        if phase in _WORTH_A_LINE and (phase, level) != self._phase:
            self._phase = phase, level
            self.say(f"{_DOING[phase]} level {level}")

    def on_progress(self, progress: LevelProgress) -> None:
        """Print where the run stands."""
        now = time.monotonic()
        if now - self._printed < _BETWEEN_LINES and not progress.last:
            return
        self._printed = now
        words = [f"level {progress.level} of 0..{progress.num_levels - 1}"]
        if progress.cycle:
            words.append(f"cycle {progress.cycle}")
        words += [f"epoch {progress.epoch}/{progress.max_epochs}", f"loss {_loss(progress)}"]
        words += [f"{name} {value:.3e}" for name, value in progress.metrics.items()]
        words += [
            f"{_number(progress.steps_per_second)} steps/s",
            f"{progress.work:.4g} work units",
            f"{duration(progress.seconds)} so far",
            f"{duration(progress.seconds_left)} left",
        ]
        self.say("  ".join(words))


class LiveDisplay:
    """A table with a row per level, redrawn in place; the clock runs between evaluations, too.

    Args:
        live: what redraws it.
        name: of the run, for the heading; may be empty.
        sizes: number of parameters of every level.
    """

    def __init__(self, live: Live, name: str, sizes: Sequence[int]) -> None:
        self._live, self._name, self._sizes = live, name, tuple(sizes)
        self._rows: dict[int, LevelProgress] = {}
        self._phase: tuple[Phase, int] | None = None
        self._since = self._started = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._live.console.print(line, markup=False, highlight=False)

    def on_phase(self, phase: Phase, level: int) -> None:
        """Note what is done now."""
        self._phase, self._since = (phase, level), time.monotonic()

    def on_progress(self, progress: LevelProgress) -> None:
        """Note where the run stands."""
        self._rows[progress.level] = progress
        self._latest = progress

    def end(self) -> None:
        """Nothing is done any more."""
        self._phase = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table as it is now."""
        del console, options
        yield Group(self._table(), Text(self._last_line(), style="dim"))

    def _table(self) -> Table:
        metrics = list(dict.fromkeys(n for row in self._rows.values() for n in row.metrics))
        table = Table(title=self._name or None, title_justify="left")
        for name in ("level", "parameters", "state", "epoch", "loss", *metrics, "steps/s"):
            table.add_column(name, justify="left" if name == "state" else "right")
        for level, size in enumerate(self._sizes):
            row = self._rows.get(level)
            cells = [str(level), str(size), self._state(level)]
            if row is None:
                cells += ["-"] * (3 + len(metrics))
            else:
                cells += [f"{row.epoch}/{row.max_epochs}", _loss(row)]
                cells += [
                    f"{row.metrics[name]:.3e}" if name in row.metrics else "-" for name in metrics
                ]
                cells.append(_number(row.steps_per_second))
            here = self._phase is not None and self._phase[1] == level
            table.add_row(*cells, style="bold" if here else None)
        return table

    def _state(self, level: int) -> str:
        if self._phase is not None and self._phase[1] == level:
            waited = time.monotonic() - self._since
            # Evaluations are too short to be read.
            phase = "training" if self._phase[0] == "evaluating" else self._phase[0]
            return phase if phase == "training" else f"{phase} {duration(waited)}"
        return "trained" if level in self._rows else "to come"

    def _last_line(self) -> str:
        words = [f"{duration(time.monotonic() - self._started)} so far"]
        latest = getattr(self, "_latest", None)
        if latest is not None:
            words = [f"{latest.work:.4g} work units", *words]
            words.append(f"{duration(latest.seconds_left)} of training left")
            if latest.cycle:
                words.insert(0, f"cycle {latest.cycle}")
        return "  ".join(words)


@contextmanager
def _live(console: Console, name: str, sizes: Sequence[int]) -> Iterator[RunDisplay]:
    with Live(console=console, refresh_per_second=4) as live:
        display = LiveDisplay(live, name, sizes)
        live.update(display)
        yield display
        display.end()


@contextmanager
def _plain(console: Console, name: str) -> Iterator[RunDisplay]:
    yield PlainDisplay(console, name)


def shown(console: Console, name: str, sizes: Sequence[int]) -> AbstractContextManager[RunDisplay]:
    """The display that suits where the output goes.

    Args:
        console: where to show it.
        name: name of the run; may be empty.
        sizes: number of parameters of every level.
    """
    return _live(console, name, sizes) if console.is_terminal else _plain(console, name)
