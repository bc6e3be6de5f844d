"""Ctrl-C that waits until the compiled program now running has returned its results."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from types import FrameType, TracebackType
from typing import Any, TypeVar

__all__ = ["Interruptible", "waited"]

Result = TypeVar("Result")


def waited(future: Future[Result], check: Callable[[], None]) -> Result:
    """What a future returns or raises.

    Args:
        future: the future.
        check: called several times a second until then.
    """
    while not future.done():
        try:
            return future.result(timeout=0.1)
        except TimeoutError:
            check()
    return future.result()


class Interruptible:
    """Within this context the first Ctrl-C is only noted; `asked` tells of it at a safe point.

    A second Ctrl-C is raised at once. Outside of the main thread, or where another handler than
    Python's own is installed, nothing changes. SIGTERM is treated likewise where a program has given it
    the handler of Ctrl-C (``signal.default_int_handler``).

    Args:
        terminable: whether SIGTERM is treated likewise also where it would end the process at once.
        decide: makes of what was noted here what is done about it: several processes stop together.
    """

    def __init__(self, *, terminable: bool = False, decide: Callable[[bool], bool] = bool) -> None:
        self._noted = False
        self._decide = decide
        self._terminable = terminable
        self._installed: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruptible:
        """Take over Python's handler."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                fatal = number == signal.SIGTERM and handler is signal.SIG_DFL
                if handler is signal.default_int_handler or (self._terminable and fatal):
                    self._installed[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give it back; an interrupt that nobody has checked for is raised now."""
        for number, handler in self._installed.items():
            signal.signal(number, handler)
        if kind is None and self.asked():
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted:
            signal.default_int_handler(number, frame)
        self._noted = True

    def asked(self) -> bool:
        """Whether Ctrl-C was pressed since this was asked last."""
        if not self._decide(self._noted):
            return False
        self._noted = False
        return True
