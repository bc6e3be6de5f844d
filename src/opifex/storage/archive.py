"""Numbered entries of named arrays and a document in a folder, written by Orbax and checked on reading.

Orbax makes an entry appear whole or not at all, and removes old ones. The document also holds what the
arrays are and a checksum of each, so that an entry that can be read is the one that was written.
"""

from __future__ import annotations

import importlib
import json
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["Archive", "UnreadableError", "checksum"]

_VERSION = 1


class UnreadableError(ValueError):
    """An entry that is damaged, of another program or of a newer release."""


def checksum(array: np.ndarray) -> int:
    """The CRC-32 of the numbers of an array."""
    return zlib.crc32(array.tobytes())


def _digest(document: Any) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())


class Archive:
    """Entries in a folder, of which the newest are kept.

    Of several processes the first one alone has it, and waits for no other: Orbax writes arrays of the
    host in that one only.

    Args:
        folder: where; made if it is not there.
        kind: what the entries are; those of another kind are refused.
        keep: how many.

    Raises:
        OSError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, kind: str, keep: int) -> None:
        # Imported here, since it takes a second, which runs without checkpoints need not wait.
        self._orbax: Any = importlib.import_module("orbax.checkpoint")
        self.folder, self._kind = folder.absolute(), kind
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manager = self._orbax.CheckpointManager(
            self.folder,
            options=self._orbax.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,  # not allowed with the next
                enable_async_checkpointing=False,
                multiprocessing_options=self._orbax.options.MultiprocessingOptions(
                    active_processes={0}
                ),
            ),
        )

    def numbers(self) -> list[int]:
        """The numbers of all complete entries, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def write(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> int:
        """Add an entry, and remove the oldest where there are too many.

        Args:
            arrays: values by name.
            document: plain values, what JSON can hold.

        Returns:
            The number of the entry.
        """
        number = max(self.numbers(), default=-1) + 1
        content = {
            "kind": self._kind,
            "version": _VERSION,
            "document": json.loads(json.dumps(document)),
            "arrays": {
                name: [list(array.shape), str(array.dtype), checksum(array)]
                for name, array in arrays.items()
            },
        }
        save = self._orbax.args
        self._manager.save(
            number,
            args=save.Composite(
                arrays=save.StandardSave({n: array for n, array in arrays.items() if array.size}),
                content=save.JsonSave({**content, "digest": _digest(content)}),
            ),
        )
        return number

    def read(self, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays and the document of an entry.

        Args:
            number: of the entry.

        Raises:
            UnreadableError: if it is damaged, of another kind or of a newer release.
        """
        where = self.folder / str(number)
        restore = self._orbax.args
        try:
            content = self._restored(number, content=restore.JsonRestore())
            digest = content.pop("digest")
            kind, version, entries = content["kind"], content["version"], content["arrays"]
        except Exception as error:  # whatever a damaged file makes Orbax raise
            raise UnreadableError(f"{where} is damaged: {_short(error)}") from error
        if kind != self._kind:
            raise UnreadableError(f"{where} is no {self._kind}, but a {kind!r}")
        if not isinstance(version, int) or version > _VERSION:
            raise UnreadableError(
                f"{where} is of version {version}, from a newer release; this one reads versions up "
                f"to {_VERSION}"
            )
        if digest != _digest(content):
            raise UnreadableError(f"{where} is damaged: its document has changed")
        empty = {n: np.empty(shape, jnp.dtype(dtype)) for n, (shape, dtype, _) in entries.items()}
        try:
            # Orbax saves no array of size zero.
            like = {name: array for name, array in empty.items() if array.size}
            arrays = self._restored(number, arrays=restore.StandardRestore(like))
            found = empty | {name: np.asarray(value) for name, value in arrays.items()}
        except Exception as error:
            raise UnreadableError(f"{where} is damaged: {_short(error)}") from error
        for name, (_, _, expected) in entries.items():
            if name not in found or checksum(found[name]) != expected:
                raise UnreadableError(f"{where} is damaged: {name} has changed")
        return found, content["document"]

    def _restored(self, number: int, **item: Any) -> Any:
        (name,) = item
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is restored is checked here
            found = self._manager.restore(number, args=self._orbax.args.Composite(**item))
        return found[name]

    def close(self) -> None:
        """Wait for what Orbax does in the background."""
        self._manager.close()


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}..."
