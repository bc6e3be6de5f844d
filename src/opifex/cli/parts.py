"""The parts of a run: each is one call of ``fit``, with checkpoints of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opifex.cli.errors import CommandError
from opifex.cli.registry import make_cycle
from opifex.cli.run_folder import RunFolder
from opifex.cli.settings import RunSettings
from opifex.training.multilevel import Cascade, Cycle, History, saved_history

__all__ = ["Part", "history_so_far", "load_history", "parts_of"]


@dataclass(frozen=True)
class Part:
    """One call of ``fit``.

    Attributes:
        folder: of its checkpoints.
        epochs: per level, coarsest first; or of the finest level alone.
        cycle: the order of the levels.
        planned: epochs of every level from the beginning of the run to the end of this part.
    """

    folder: Path
    epochs: Sequence[int]
    cycle: Cycle
    planned: Sequence[int]


def parts_of(settings: RunSettings, folder: RunFolder) -> list[Part]:
    """What was planned, and then the further epochs on the finest level, in their order.

    Args:
        settings: the configuration.
        folder: the run folder of one seed.
    """
    planned = settings.level_epochs
    parts = [Part(folder.state / "1", planned, make_cycle(settings.strategy), planned)]
    for number, more in enumerate(settings.further_epochs, 2):
        *coarser, finest = parts[-1].planned
        planned = [*coarser, finest + more]
        parts.append(Part(folder.state / str(number), [more], Cascade(), planned))
    return parts


def history_so_far(folder: RunFolder) -> History | None:
    """The record of a run that is finished, goes on or was ended: that of its last part on disk.

    Args:
        folder: the run folder of one seed.

    Returns:
        The record; ``None`` where nothing is on disk yet.

    Raises:
        CommandError: if there are checkpoints of its last part, and none is good.
    """
    begun = [path for path in folder.state.glob("*") if path.name.isdigit()]
    try:
        for path in sorted(begun, key=lambda path: int(path.name), reverse=True):
            found = saved_history(path)
            if found is not None:
                return found
    except ValueError as error:
        raise CommandError(str(error)) from error
    return None


def load_history(folder: RunFolder) -> History:
    """The same, of a run that has got somewhere.

    Args:
        folder: the run folder of one seed.

    Raises:
        CommandError: if there is nothing, or nothing good.
    """
    found = history_so_far(folder)
    if found is None:
        raise CommandError(
            f"{folder.path} holds no checkpoint yet: the first one is written checkpoint_every seconds "
            "after the start, or when the run ends"
        )
    return found
