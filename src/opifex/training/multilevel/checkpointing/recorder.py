"""Points of a run on disk: written beside the training, the newest good one read."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from opifex.storage.archive import Archive, UnreadableError
from opifex.storage.trees import on_host
from opifex.training.multilevel.checkpointing.checkpoints import Checkpoints

__all__ = ["Recorder"]

Content = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Arrays by name, on any device, and plain values."""

_KIND = "opifex-multilevel checkpoint"


class Recorder:
    """Saves what it is offered, when it is time, in a thread.

    Args:
        checkpoints: where and how often.

    Raises:
        ImportError: if Orbax is not installed.
        OSError: if the folder cannot be made.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.folder = Path(checkpoints.folder)
        self._every = checkpoints.every
        self._archive = Archive(self.folder, _KIND, checkpoints.keep)
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None
        self._saved_at = time.monotonic()

    @property
    def empty(self) -> bool:
        """Whether nothing was saved yet."""
        return not self._archive.numbers()

    def newest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and plain values of the newest good checkpoint; ``None`` if nothing was saved.

        Raises:
            ValueError: if there are checkpoints, and none is good.

        Warns:
            UserWarning: naming each checkpoint that is passed over.
        """
        reasons = []
        for number in self._archive.numbers():
            try:
                found = self._archive.read(number)
            except UnreadableError as error:
                reasons.append(str(error))
                continue
            if reasons:
                warnings.warn(
                    f"going on from checkpoint {number}, an older one: {'; '.join(reasons)}",
                    stacklevel=2,
                )
            return found
        if reasons:
            raise ValueError(
                f"{self.folder} holds no checkpoint that can be read: {'; '.join(reasons)}"
            )
        return None

    def offer(self, content: Callable[[], Content]) -> bool:
        """Save, if it is time and the last save is done.

        Args:
            content: returns what to save; called at once or not at all.

        Returns:
            Whether it is saved, or will be before anything else is.

        Raises:
            OSError: or whatever else the last save has raised.
        """
        if self._saving is not None and self._saving.done():
            self._finish()
        due = self._saving is None and time.monotonic() - self._saved_at >= self._every
        if due:
            self._start(content())
        return due

    def close(self, content: Callable[[], Content] | None) -> None:
        """Save once more, wait until all is on disk, and end.

        Args:
            content: returns what to save, ``None`` if all is saved.

        Raises:
            OSError: or whatever else a save has raised.
        """
        try:
            self._finish()
            if content is not None:
                self._start(content())
                self._finish()
        finally:
            self._executor.shutdown()
            self._archive.close()

    def _start(self, content: Content) -> None:
        self._saving = self._executor.submit(self._save, *content)

    def _finish(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()
            self._saved_at = time.monotonic()

    def _save(self, leaves: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        self._archive.write({name: on_host(leaf) for name, leaf in leaves.items()}, document)
