"""Points of a run on disk: written beside the training, the newest good one read.

Of several processes the first alone knows the folder and the clock; the others do what it says, hand
over what they have of the arrays, and are told what was read.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from opifex.storage.archive import Archive, UnreadableError
from opifex.storage.trees import on_host
from opifex.training.multilevel.checkpointing.checkpoints import Checkpoints
from opifex.training.processes import Processes

__all__ = ["Recorder"]

Content = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Arrays by name, on any device, and plain values."""

_KIND = "opifex-multilevel checkpoint"


class Recorder:
    """Saves what it is offered, when it is time, in a thread.

    Args:
        checkpoints: where and how often.
        processes: those of the run, which call everything here together.

    Raises:
        OSError: if the folder cannot be made.
    """

    def __init__(self, checkpoints: Checkpoints, processes: Processes) -> None:
        self.folder = Path(checkpoints.folder)
        self._every, self._keep = checkpoints.every, checkpoints.keep
        self._processes = processes
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None
        self._saved_at = time.monotonic()
        self.empty = bool(processes.number(self._open))

    def _open(self) -> bool:
        """Open the folder; whether nothing was saved yet."""
        self._archive = Archive(self.folder, _KIND, self._keep)
        return not self._archive.numbers()

    def newest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and plain values of the newest good checkpoint; ``None`` if nothing was saved.

        Raises:
            ValueError: if there are checkpoints, and none is good.

        Warns:
            UserWarning: naming each checkpoint that is passed over.
        """
        here: dict[str, np.ndarray] = {}  # in the first process

        def describe() -> bytes:
            found = self._read()
            if found is None:
                return b"null"
            here.update(found[0])
            shapes = {name: [array.shape, str(array.dtype)] for name, array in here.items()}
            return json.dumps([shapes, found[1]]).encode()

        if not self._processes.several:
            return self._read()
        said = json.loads(self._processes.told(describe))
        if said is None:
            return None

        def told(name: str, shape: list[int], dtype: str) -> np.ndarray:
            numbers = self._processes.told(lambda: here[name].tobytes())
            return np.frombuffer(numbers, jnp.dtype(dtype)).reshape(shape)

        shapes, document = said
        return {name: told(name, *shapes[name]) for name in shapes}, document

    def _read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
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
        due = bool(self._processes.number(self._due))
        if due:
            self._start(content())
        return due

    def _due(self) -> bool:
        if self._saving is not None and self._saving.done():
            self._finish()
        return self._saving is None and time.monotonic() - self._saved_at >= self._every

    def close(self, content: Callable[[], Content] | None) -> None:
        """Save once more, wait until all is on disk, and end.

        Args:
            content: returns what to save, ``None`` if all is saved.

        Raises:
            OSError: or whatever else a save has raised.
        """
        try:
            self._processes.number(self._finish)
            if content is not None:
                self._start(content())
                self._processes.number(self._finish)
        finally:
            self.leave()

    def leave(self) -> None:
        """End, after what is being written, without a word to other processes."""
        self._executor.shutdown()
        if self._processes.first:
            self._archive.close()

    def _start(self, content: Content) -> None:
        leaves = {name: self._processes.whole(leaf) for name, leaf in content[0].items()}
        if self._processes.first:
            self._saving = self._executor.submit(self._save, leaves, content[1])

    def _finish(self) -> bool:
        """Wait for what is being written; whether there was anything."""
        saving, self._saving = self._saving, None
        if saving is None:
            return False
        saving.result()
        self._saved_at = time.monotonic()
        return True

    def _save(self, leaves: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        self._archive.write({name: on_host(leaf) for name, leaf in leaves.items()}, document)
