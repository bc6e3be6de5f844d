"""A polite request to end, by a scheduler or a shell, is heeded as Ctrl-C is.

``fit`` does so by itself. Here it is for all that is done before, between and after: the folder must not
say that a run goes on which has ended, nor a terminal stay without its cursor.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["terminable"]


@contextmanager
def terminable() -> Iterator[None]:
    """Within this context SIGTERM raises ``KeyboardInterrupt``, unless somebody else handles it."""
    free = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if free:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
