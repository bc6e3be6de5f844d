"""A place in a source of batches, to which reading can return."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opifex.core.optional import optional_module

__all__ = ["Cursor"]


class Cursor:
    """Reads a source on and on, and knows where it is.

    Iterators that can say where they are (those of Grain: ``get_state`` and ``set_state``) are asked;
    other iterables are counted, and read again from their start.

    Args:
        source: a Grain dataset, an iterable, or an iterator.
    """

    def __init__(self, source: Any) -> None:
        self._again = _beginning(source)
        self._iterator: Iterator[Any] = source if self._again is None else self._again()
        self._passes = self._count = 0

    @property
    def returns(self) -> bool:
        """Whether reading can return to an earlier place."""
        return self._again is not None or self._knows_its_place

    @property
    def is_iterator(self) -> bool:
        """Whether the source is an iterator, which others may read on."""
        return self._again is None

    @property
    def _knows_its_place(self) -> bool:
        return hasattr(self._iterator, "get_state") and hasattr(self._iterator, "set_state")

    def read(self) -> Any:
        """The next batch.

        Raises:
            StopIteration: if an iterator has ended, or a pass over a source has no batch.
        """
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._again is None or self._count == 0:
                raise
            self._iterator, self._count = self._again(), 0
            self._passes += 1
            batch = next(self._iterator)
        self._count += 1
        return batch

    def place(self) -> dict[str, Any]:
        """Where it is, as plain values that JSON can hold."""
        place: dict[str, Any] = {"passes": self._passes, "count": self._count}
        if self._knows_its_place:
            place["state"] = _plain(self._iterator.get_state())  # type: ignore[attr-defined]
        return place

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Return to a place, or go on to one.

        Args:
            place: from `place`, perhaps of another process.
        """
        if place == self.place():
            return
        if self._again is not None:
            self._iterator = self._again()
        if "state" in place:
            self._iterator.set_state(_raw(place["state"]))  # type: ignore[attr-defined]
        else:
            for _ in range(place["count"]):
                next(self._iterator)
        self._passes, self._count = place["passes"], place["count"]


def _beginning(source: Any) -> Callable[[], Iterator[Any]] | None:
    """What begins to read a source; ``None`` for an iterator, which has begun."""
    if isinstance(source, Iterator):
        return None
    if not hasattr(source, "to_iter_dataset"):
        return lambda: iter(source)
    # A Grain dataset whose elements can be asked for by number: repeated, it is shuffled anew in
    # every pass.
    grain = optional_module("grain", "data", "reading a Grain dataset")
    # The stream has a thread of its own already, and more of them cost more than they bring where
    # reading is not slow; users who have slow disks give `to_iter_dataset` what they want.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    endless = source if len(source) >= sys.maxsize else source.repeat()
    return lambda: iter(endless.to_iter_dataset(options))


def _plain(state: Any) -> Any:
    """The state of an iterator as JSON would give it back, which no later reading changes."""
    if isinstance(state, bytes):
        return {"base64": base64.b64encode(state).decode()}
    return json.loads(json.dumps({"json": state}))


def _raw(state: Mapping[str, Any]) -> Any:
    return base64.b64decode(state["base64"]) if "base64" in state else state["json"]
