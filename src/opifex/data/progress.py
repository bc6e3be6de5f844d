"""A progress bar around a loop, or none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.progress import Progress

__all__ = ["track"]

Item = TypeVar("Item")


def track(
    items: Iterable[Item], description: str, *, visible: bool, total: int | None = None
) -> Iterator[Item]:
    """Iterate over ``items`` under a Rich progress bar.

    Args:
        items: what to iterate over.
        description: text beside the bar.
        visible: show the bar; otherwise the items pass through.
        total: number of items, if ``items`` has no length.
    """
    if not visible:
        yield from items
        return
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with Progress() as progress:
        yield from progress.track(items, total=total, description=description)
