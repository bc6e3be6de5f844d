"""The log of a stopwatch tells the same as its totals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from opifex.training.stopwatch import Interval, Stopwatch


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_log_says_what_was_charged_when(clock: Clock) -> None:
    watch = Stopwatch(clock)
    with watch.charge("other"):
        clock.time += 1.0
        with watch.charge("training"):
            clock.time += 2.0
        clock.time += 0.5
    assert watch.intervals == (
        Interval("other", 0.0, 1.0),
        Interval("training", 1.0, 3.0),
        Interval("other", 3.0, 3.5),
    )


def test_the_log_stands_still_outside_and_joins_what_touches(clock: Clock) -> None:
    watch = Stopwatch(clock)
    for _ in range(2):
        with watch.charge("training"):
            clock.time += 1.0
            watch.read("training")
            clock.time += 1.0
        clock.time += 50.0
    assert watch.intervals == (Interval("training", 0.0, 4.0),)


def test_accounts_without_time_leave_no_trace(clock: Clock) -> None:
    watch = Stopwatch(clock)
    with watch.charge("other"):
        clock.time += 1.0
        with watch.charge("training"):
            pass
        clock.time += 1.0
    assert watch.intervals == (Interval("other", 0.0, 2.0),)


def test_the_log_can_be_read_while_an_account_is_open(clock: Clock) -> None:
    watch = Stopwatch(clock)
    with watch.charge("training"):
        clock.time += 3.0
        assert watch.intervals == (Interval("training", 0.0, 3.0),)


def test_intervals_add_up_to_the_accounts(clock: Clock) -> None:
    watch = Stopwatch(clock)
    rng = np.random.default_rng(0)
    names = ["training", "evaluation", "other"]
    with watch.charge("other"):
        for name in rng.choice(names, 50):
            with watch.charge(str(name)):
                clock.time += float(rng.integers(1, 9)) / 8  # exact in binary
    intervals = watch.intervals
    assert all(a.end == b.start for a, b in itertools.pairwise(intervals))
    for name in names:
        spent = sum(end - start for account, start, end in intervals if account == name)
        assert spent == watch.read(name)
    assert intervals[-1].end == watch.total


def test_a_further_time_line_replaces_the_one_it_begins_with(clock: Clock) -> None:
    """A run in two parts that is taken up: the record of the second holds that of the first, too."""
    first = [Interval("other", 0.0, 1.0), Interval("training", 1.0, 3.0)]
    second = [*first, Interval("other", 3.0, 4.0), Interval("training", 4.0, 9.0)]
    watch = Stopwatch(clock)
    for seconds, earlier in ((0.5, first), (0.25, second)):
        with watch.charge("other"):
            clock.time += seconds
            watch.resume(earlier)
    assert watch.intervals == (*second, Interval("other", 9.0, 9.75))
    assert watch.seconds == {"other": 2.75, "training": 7.0}
