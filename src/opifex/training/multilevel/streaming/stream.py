"""Reading ahead: windows of a few batches, the next one read while the present one is trained."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from opifex.training.interrupt import waited
from opifex.training.multilevel.streaming.cursor import Cursor
from opifex.training.multilevel.streaming.streamed import Streamed
from opifex.training.placement import LevelPlacement

__all__ = ["Stream"]

_WINDOW_BYTES = 32 * 2**20
_MOST_BATCHES = 64
# Places that are remembered; before them, reading starts at the beginning again.
_PLACES = 256


class _Window(NamedTuple):
    """Batches that follow one another.

    Attributes:
        number: of the window; all have as many batches.
        batches: that are there: fewer, where the source has ended.
        arrays: with the samples of all batches along their first axis.
        there: the arrays on the device, and the placement that they have there.
    """

    number: int
    batches: int
    arrays: tuple[Any, ...]
    there: tuple[tuple[Any, ...], LevelPlacement | None]


def _unchecked() -> None:
    """Nobody asks for an interrupt."""


class Stream:
    """The batches of a source by number, read in windows by a thread ahead of the training.

    Args:
        given: the source, and how to read it.
        name: how errors call it.

    Attributes:
        steps_per_epoch: batches that count as one epoch.
        size: batches of a window.

    Raises:
        TypeError: if a batch is not a tuple of arrays.
        ValueError: if there is no batch, or the first ones are not of equal shapes and types, or hold
            numbers that are not finite.
    """

    def __init__(self, given: Streamed, name: str = "data") -> None:
        self._name, self._cursor = name, Cursor(given.source)
        self._places = {0: self._cursor.place()}
        self._layout: tuple[Any, list[tuple[tuple[int, ...], np.dtype, np.dtype]]] | None = None
        try:
            first = self._batch(self._cursor.read(), 0)
        except StopIteration:
            raise ValueError(f"{name} must yield at least one batch, got none") from None
        leaves = jax.tree.leaves(first)
        self.steps_per_epoch = given.epoch
        size = given.batches_at_once
        if size is None:
            total = max(1, sum(leaf.nbytes for leaf in leaves))
            size = max(1, min(_WINDOW_BYTES // total, _MOST_BATCHES, given.epoch))
        self.size = size
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading")
        # The context of the caller, which the thread does not have.
        probe = jax.device_put(np.zeros(1, bool))
        self._context = next(iter(probe.devices())), bool(jax.config.read("jax_enable_x64"))
        self._placement: LevelPlacement | None = None
        self._present = self._read(0, first)
        self._coming: tuple[int, Future[_Window]] | None = None

    @property
    def returns(self) -> bool:
        """Whether earlier batches can be read again."""
        return self._cursor.returns

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The batches of the present window one after the other, in the memory of the host."""
        return self._present.arrays

    def at(
        self,
        number: int,
        placement: LevelPlacement | None = None,
        check: Callable[[], None] = _unchecked,
    ) -> tuple[tuple[Any, ...], int]:
        """The window with a batch, on the device, and how many batches it has from there on.

        Args:
            number: of the batch.
            placement: where samples lie, ``None`` where one device has all.
            check: called several times a second while there is nothing to do but wait.

        Raises:
            ValueError: if the source ends before this batch, cannot be read again from an earlier one,
                or yields what does not fit.
        """
        window, offset = divmod(number, self.size)
        if window != self._present.number:
            self._present = self._wait(window, check)
        left = self._present.batches - offset
        if left <= 0:
            raise ValueError(
                f"{self._name} ended after {window * self.size + self._present.batches} batches, and "
                "more are planned: plan fewer epochs, or give a source that can be read again"
            )
        self._placement = placement
        if placement != self._present.there[1]:
            there = self._on_devices(self._present.arrays, placement), placement
            self._present = self._present._replace(there=there)
        self._read_ahead()
        return self._present.there[0], left

    def position(self, number: int) -> dict[str, Any]:
        """Where the window of a batch begins, as plain values.

        Args:
            number: of the batch, in a window that was read, the one behind it, or one restored.
        """
        window = number // self.size
        return {"window": window, "place": self._places[window]}

    def restore(self, position: dict[str, Any]) -> None:
        """Know of a place that another process has found.

        Args:
            position: from `position`.
        """
        self._places[position["window"]] = position["place"]

    def close(self, number: int | None = None) -> None:
        """End the thread; an iterator that knows its place is set to the first batch not used.

        Args:
            number: of that batch; ``None`` leaves the source where it is.
        """
        self._executor.shutdown(wait=True, cancel_futures=True)
        if number is None or not self._cursor.is_iterator or not self.returns:
            return
        with suppress(Exception):  # the source may be what has failed
            position = self.position(number)
            self._cursor.go_to(position["place"])
            for _ in range(number % self.size):
                self._cursor.read()

    def _wait(self, number: int, check: Callable[[], None]) -> _Window:
        if self._coming is None or self._coming[0] != number:
            with suppress(Exception):  # of a window that nobody needs
                if self._coming is not None:
                    waited(self._coming[1], check)
            self._coming = number, self._executor.submit(self._seek, number)
        coming, self._coming = self._coming[1], None
        return waited(coming, check)

    def _read_ahead(self) -> None:
        if self._coming is None and self._present.batches == self.size:
            number = self._present.number + 1
            self._coming = number, self._executor.submit(self._seek, number)

    def _seek(self, number: int) -> _Window:
        """Read a window, wherever the source is now."""
        near = max(known for known in self._places if known <= number)
        if not self.returns and self._cursor.place() != self._places[near]:
            raise ValueError(f"{self._name} cannot be read again: its source is an iterator")
        self._cursor.go_to(self._places[near])
        for known in range(near, number):
            self._read(known)
        return self._read(number)

    def _read(self, number: int, first: Any = None) -> _Window:
        """Read the window that begins where the source is.

        Args:
            number: of the window.
            first: its first batch, where that was read already.
        """
        batches = [] if first is None else [first]
        while len(batches) < self.size:
            try:
                batch = self._cursor.read()
            except StopIteration:
                break
            batches.append(self._batch(batch, number * self.size + len(batches)))
        if len(batches) == self.size:
            self._places[number + 1] = self._cursor.place()
            while len(self._places) > _PLACES:
                del self._places[sorted(self._places)[1]]
        # The last window of a source that ends has the shape of all others, too.
        filled = [*batches, *[batches[-1]] * (self.size - len(batches))] if batches else []
        arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *filled) if filled else ()
        # Where several devices share them, they are cut by the caller: processes do it in step.
        there = self._on_devices(arrays, None) if self._placement is None else ()
        return _Window(number, len(batches), arrays, (there, None))

    def _batch(self, given: Any, number: int) -> tuple[Any, ...]:
        """A batch as arrays of the types that JAX has, all batches alike."""
        name = f"batch {number} of {self._name}"
        if not isinstance(given, tuple | list):
            raise TypeError(
                f"{name} must be a tuple of arrays, got {type(given).__name__}; yield (x,) for one array"
            )
        batch = tuple(given)
        leaves, structure = jax.tree.flatten(batch)
        arrays = [np.asarray(leaf) for leaf in leaves]
        if self._layout is None:
            self._layout = _layout(name, structure, arrays)
        wanted, kinds = self._layout
        found = [(array.shape, array.dtype) for array in arrays]
        if structure != wanted or found != [(shape, dtype) for shape, dtype, _ in kinds]:
            shown = [f"{dtype}{list(shape)}" for shape, dtype, _ in kinds]
            raise ValueError(
                f"{name} must be like the first, {', '.join(shown)}, got "
                f"{', '.join(f'{dtype}{list(shape)}' for shape, dtype in found)}; Grain leaves out a "
                "batch that is not full with batch(..., drop_remainder=True)"
            )
        return jax.tree.unflatten(
            structure,
            [
                _narrowed(name, array, kept)
                for array, (_, _, kept) in zip(arrays, kinds, strict=True)
            ],
        )

    def _on_devices(
        self, arrays: tuple[Any, ...], placement: LevelPlacement | None
    ) -> tuple[Any, ...]:
        if placement is None:
            device, double = self._context
            with jax.default_device(device), jax.enable_x64(double):
                return jax.device_put(arrays)
        parts = placement.parts

        def cut(leaf: np.ndarray) -> np.ndarray:
            """The rows of each part in one piece: as many of every batch as of every other."""
            blocks = leaf.reshape(self.size, parts, -1, *leaf.shape[1:])
            return np.swapaxes(blocks, 0, 1).reshape(leaf.shape)

        return placement.rows(jax.tree.map(cut, arrays))


def _layout(name: str, structure: Any, arrays: list[np.ndarray]) -> Any:
    """Structure, and for each array shape, type, and the type that JAX has for it.

    Raises:
        TypeError: if an array does not hold numbers.
        ValueError: if there is none, or one without samples.
    """
    for array in arrays:
        if array.dtype.kind not in "biufcV":  # V: the short floating-point types
            raise TypeError(f"{name} must hold arrays of numbers, got dtype {array.dtype}")
    if not arrays or any(array.shape[:1] in ((), (0,)) for array in arrays):
        raise ValueError(
            f"{name} must hold arrays with samples along their first axis, got shapes "
            f"{[array.shape for array in arrays]}"
        )
    canonical = jax.dtypes.canonicalize_dtype
    return structure, [(a.shape, a.dtype, np.dtype(canonical(a.dtype))) for a in arrays]


def _narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype, copy=False)
    inexact = jax.numpy.issubdtype(dtype, jax.numpy.inexact)
    if inexact and not np.all(np.isfinite(narrow)):
        raise ValueError(f"{name} must hold finite numbers, got NaN or infinity")
    if not inexact and narrow.dtype != array.dtype and not np.array_equal(narrow, array):
        raise ValueError(f"{name} must fit into {dtype}, the type that JAX gives to {array.dtype}")
    return narrow
