"""A run at a moment when it can be taken up again, as named arrays and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from opifex.storage.trees import named_leaves
from opifex.training.multilevel.history import Mark
from opifex.training.multilevel.state import RunState

__all__ = ["VISIT_PARTS", "Point", "Within", "versions"]

VISIT_PARTS = ("start", "params", "rest", "shift", "frame", "weights")
"""What changes from visit to visit of a coarser level; the rest follows from the cycle."""


def versions() -> dict[str, str]:
    """Of the packages that decide the numbers."""
    return {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}


@dataclass(frozen=True)
class Within:
    """Where a run is in the middle of smoothing a level.

    Attributes:
        steps: that are done, those that were skipped among them.
        losses: how many of the record's last losses belong to this visit.
        faults: that were mended.
        order: the present epoch's order of the samples.
    """

    steps: int
    losses: int
    faults: int
    order: Any


@dataclass(frozen=True)
class Point:
    """Everything that later steps depend on.

    Attributes:
        state: where the run stands.
        move: number of the move to carry out next.
        within: where it is in the middle of that; ``None`` if it begins.
        taken: steps of this run on each level.
        damping: factor of the steps on levels where there was a fault.
        last_loss: of the last step, ``None`` before the first.
        memories: of callbacks and criterion, in their order; ``None`` for one that keeps nothing.
        mark: how far the record has come.
        streams: batches taken from each stream of data, and where its source is then.
    """

    state: RunState
    move: int
    within: Within | None
    taken: Mapping[int, int]
    damping: Mapping[int, float]
    last_loss: float | None
    memories: Sequence[Mapping[str, Any] | None]
    mark: Mark
    streams: Sequence[Mapping[str, Any]] = ()

    def leaves(self, *, with_data: bool) -> dict[str, Any]:
        """All arrays by name, where they are.

        Args:
            with_data: whether the data have changed since the run began.
        """
        state = self.state
        found: dict[str, Any] = {}
        for number, level in enumerate(state.levels):
            for part in ("params", "rest", "smoother", "balance"):
                found |= named_leaves(f"level {number} {part}", getattr(level, part))
        for number, visit in enumerate(state.visits):
            for part in VISIT_PARTS:
                value = getattr(visit if hasattr(visit, part) else visit.objective, part)
                found |= named_leaves(f"visit {number} {part}", value)
        if with_data:
            found |= named_leaves("data", state.data)
        for number, memory in enumerate(self.memories):
            for name, value in (memory or {}).items():
                found |= named_leaves(f"memory {number} {name}", value)
        order = None if self.within is None else self.within.order
        return found | named_leaves("key", state.key) | named_leaves("order", order)

    def document(self) -> dict[str, Any]:
        """What is no array."""
        state, within = self.state, self.within
        return {
            "level": state.level,
            "parts": [
                {part: getattr(level, part) is not None for part in ("smoother", "balance")}
                for level in state.levels
            ],
            "visits": [visit.level for visit in state.visits],
            "move": self.move,
            "within": within and [within.steps, within.losses, within.faults],
            "taken": list(self.taken.items()),
            "damping": list(self.damping.items()),
            "last_loss": self.last_loss,
            "streams": list(self.streams),
        }
