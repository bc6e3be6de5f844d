"""What `fit` takes in place of arrays: anything that yields batches."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opifex.core.checks import check_positive_int

__all__ = ["Streamed", "is_source"]

_NOT_A_SOURCE = (tuple, list, str, bytes, Mapping, set, frozenset)


def is_source(given: Any) -> bool:
    """Whether something yields batches, and is neither arrays nor a collection of them.

    Args:
        given: what was given as data.
    """
    if isinstance(given, Streamed):
        return True
    if isinstance(given, _NOT_A_SOURCE) or hasattr(given, "shape") or isinstance(given, type):
        return False
    return hasattr(given, "__iter__")


@dataclass(frozen=True)
class Streamed:
    """Batches that are read while a level trains; give it to ``fit`` in place of the data.

    ``fit`` takes the source itself, too, where nothing has to be said about it.

    Attributes:
        source: yields batches, each a tuple of arrays (or pytrees of them) with the samples along
            their first axis, all of the same shapes and types. A Grain dataset (``MapDataset``,
            ``IterDataset``, ``DataLoader``), another iterable, which is read again from its start when
            it ends, or an iterator, which is read on from where it stands.
        steps_per_epoch: batches that count as one epoch; by default ``len(source)``.
        batches_at_once: batches that are taken to the device together, while the ones before are
            trained; by default as many as make up 32 MiB, at most 64 and at most an epoch.

    Raises:
        TypeError: if ``source`` yields nothing, or a number is not an integer.
        ValueError: if a number is not positive, or ``steps_per_epoch`` is missing and ``source`` has no
            length.

    Example:
        >>> import numpy as np
        >>> from opifex.training.multilevel import Streamed
        >>> def batches():
        ...     for number in range(10):
        ...         yield (np.full((4, 2), number, np.float32),)
        >>> Streamed(batches(), steps_per_epoch=5).epoch
        5
    """

    source: Any
    steps_per_epoch: int | None = None
    batches_at_once: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Streamed) or not is_source(self.source):
            raise TypeError(
                "source must yield batches, such as a Grain dataset or an iterator, got "
                f"{self.source!r} of type {type(self.source).__name__}"
            )
        for name in ("steps_per_epoch", "batches_at_once"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name))
        if self.steps_per_epoch is None and self._length is None:
            raise ValueError(
                f"steps_per_epoch must be given, since source, a {type(self.source).__name__}, has no "
                "length: Streamed(source, steps_per_epoch=...)"
            )

    @classmethod
    def of(cls, given: Any) -> Streamed:
        """A source with what was said about it, or by itself."""
        return given if isinstance(given, cls) else cls(given)

    @property
    def epoch(self) -> int:
        """Batches that count as one epoch."""
        length = self.steps_per_epoch if self.steps_per_epoch is not None else self._length
        assert length is not None
        return length

    @property
    def _length(self) -> int | None:
        try:
            length = len(self.source)
        except (TypeError, OverflowError, NotImplementedError):
            return None
        return length if 0 < length < sys.maxsize else None
