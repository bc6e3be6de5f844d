"""Where the time of a run goes: at every moment exactly one account is charged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


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
            account = self._open[-1]
            self.seconds[account] = self.seconds.get(account, 0.0) + now - self._since
        self._since = now

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
