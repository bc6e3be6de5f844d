"""Where the time of a run goes: at every moment exactly one account is charged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["Interval", "Stopwatch"]


class Interval(NamedTuple):
    """An uninterrupted stay in one account.

    Attributes:
        account: the account.
        start: seconds charged to all accounts before.
        end: seconds charged to all accounts by its end.
    """

    account: str
    start: float
    end: float


class Stopwatch:
    """Seconds by account; all accounts add up to the time inside the outermost `charge`.

    A nested account takes over from the one around it, so that nothing is counted twice and
    nothing falls between two accounts.

    Args:
        now: the clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._now = now
        self._open: list[str] = []
        self._since = 0.0
        self._intervals: list[Interval] = []
        # Where on the time line an earlier process ended.
        self._earlier = 0.0

    @contextmanager
    def charge(self, account: str) -> Iterator[None]:
        """Charge an account until the end of the block."""
        self._settle()
        self._open.append(account)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        now = self._now()
        if self._open:
            self._add(self._open[-1], now - self._since)
        self._since = now

    def _add(self, account: str, passed: float) -> None:
        self.seconds[account] = self.seconds.get(account, 0.0) + passed
        if passed <= 0:
            return
        start = end = self._intervals[-1].end if self._intervals else 0.0
        if self._intervals and self._intervals[-1].account == account:
            start = self._intervals.pop().start
        self._intervals.append(Interval(account, start, end + passed))

    def resume(self, earlier: Iterable[Interval]) -> None:
        """Put the time line of an earlier process before this one's.

        One that was put there before goes: the further one begins with it.

        Args:
            earlier: its `intervals`.
        """
        own = [
            (account, end - max(start, self._earlier))
            for account, start, end in self.intervals
            if end > self._earlier
        ]
        self._intervals, self.seconds = [], {}
        for account, start, end in earlier:
            self._add(account, end - start)
        self._earlier = self._intervals[-1].end if self._intervals else 0.0
        for account, passed in own:
            self._add(account, passed)

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """What was charged when, in order and without gaps.

        The time line is that of the accounts, which stands still outside of `charge`.
        """
        if self._open:
            self._settle()
        return tuple(self._intervals)

    @property
    def total(self) -> float:
        """Seconds of all accounts so far."""
        if self._open:
            self._settle()
        return sum(self.seconds.values())

    def read(self, account: str) -> float:
        """Seconds of an account so far; 0 if it was never charged."""
        if self._open:
            self._settle()
        return self.seconds.get(account, 0.0)
