"""What is shown: a table on terminals, plain lines elsewhere."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from opifex.cli import display
from opifex.cli.display import PlainDisplay, shown
from opifex.training.multilevel import LevelProgress


def progress(level=1, epoch=3, last=False, **changes):
    given = {
        "level": level,
        "num_levels": 3,
        "cycle": 0,
        "epoch": epoch,
        "max_epochs": 9,
        "losses": np.array([1.0, 0.125]),
        "steps_per_epoch": 1,
        "metrics": {"error": 0.25},
        "get_model": lambda: None,
        "step_work": lambda level: 1.0,
        "step": 12,
        "work": 7.5,
        "seconds": 75.0,
        "steps_per_second": 31.4,
        "seconds_left": 4.2,
        "last": last,
    }
    return LevelProgress(**{**given, **changes})


def lines_of(act, **options):
    stream = io.StringIO()
    act(PlainDisplay(Console(file=stream, width=40), **options))
    return stream.getvalue().splitlines()


def test_a_line_holds_everything_and_is_not_broken():
    (line,) = lines_of(lambda shown: shown.on_progress(progress()))
    assert line == (
        "level 1 of 0..2  epoch 3/9  loss 1.250e-01  error 2.500e-01  31.4 steps/s  "
        "7.5 work units  1 min 15 s so far  4.2 s left"
    )


def test_what_is_not_known_has_a_dash():
    (line,) = lines_of(
        lambda shown: shown.on_progress(
            progress(steps_per_second=None, seconds_left=None, metrics={}, cycle=2)
        ),
        name="seed 4",
    )
    assert line.startswith("seed 4: level 1 of 0..2  cycle 2  epoch 3/9  loss 1.250e-01  - steps/s")
    assert line.endswith("- left")


def test_lines_come_once_a_second_but_for_the_last_of_a_level(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])

    def act(shown):
        for epoch in range(1, 10):
            now[0] += 0.4
            shown.on_progress(progress(epoch=epoch, last=epoch == 9))

    assert [line.split()[5] for line in lines_of(act)] == ["1/9", "4/9", "7/9", "9/9"]


def test_changes_of_what_is_done_are_told_once():
    def act(shown):
        for phase in ("compiling", "evaluating", "compiling", "training", "transferring"):
            shown.on_phase(phase, 0)

    assert lines_of(act) == ["compiling level 0", "transferring to level 0"]


def test_a_terminal_gets_a_table():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, legacy_windows=False)
    with shown(console, "seed 1", [10, 20, 30]) as live:
        live.on_phase("compiling", 0)
        live.say("a line that stays")
        live.on_progress(progress(level=0))
        live.on_phase("compiling", 1)
        live.on_progress(progress(level=1))
    text = stream.getvalue()
    assert "compiling" not in text.split("parameters")[-1]  # the last table, which stays
    for words in (
        "a line that stays",
        "parameters",
        "trained",
        "to come",
        "2.500e-01",
        "31.4",
        "7.5 work units",
        "4.2 s of training left",
    ):
        assert words in text, words


@pytest.mark.parametrize(("terminal", "kind"), [(True, "LiveDisplay"), (False, "PlainDisplay")])
def test_the_display_follows_the_output(terminal, kind):
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with shown(console, "", [1]) as found:
        assert type(found).__name__ == kind
