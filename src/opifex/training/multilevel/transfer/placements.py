"""Where the parameters of a coarse model sit in those of a fine one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from opifex.training.multilevel.transfer.tracing import Path

__all__ = ["Mask", "Placement", "TransferPlan", "entries", "indices", "placed_like", "replaced"]

Indices = range | tuple[int, ...]
"""Fine index of every coarse one; a range where they follow each other."""


def indices(array: np.ndarray) -> Indices:
    """Indices as something that can be compared and hashed.

    Args:
        array: the indices.
    """
    numbers = tuple(int(i) for i in array)
    start = numbers[0] if numbers else 0
    run = range(start, start + len(numbers))
    return run if numbers == tuple(run) else numbers


@dataclass(frozen=True)
class Mask:
    """An array of bools that can be compared and hashed.

    Attributes:
        shape: its shape, 1 along axes on which nothing depends.
        packed: its bits.
    """

    shape: tuple[int, ...]
    packed: bytes

    @classmethod
    def of(cls, mask: np.ndarray) -> Mask:
        """Pack an array."""
        return cls(mask.shape, np.packbits(mask).tobytes())

    @cached_property
    def array(self) -> np.ndarray:
        """The array."""
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8))
        return bits[: int(np.prod(self.shape, dtype=int))].reshape(self.shape).astype(bool)


@dataclass(frozen=True)
class Placement:
    """Where one coarse parameter sits inside its fine counterpart.

    Attributes:
        index: fine index of every coarse one, axis by axis.
        coarse_shape: shape of the coarse parameter.
        fine_shape: shape of the fine parameter.
        fan_in: for each axis whether a product runs over it, so that its growth adds terms to a sum.
        zeros: new entries that have to be zero, so that the function is preserved.
        sources: for each axis the fine index whose entries each fine index repeats, where it has to.
        scale: fine over coarse value of old entries, where the code divides by a size that grows.
        scaled: the entries that have this factor; all of them, if it is ``None``.
    """

    index: tuple[Indices, ...]
    coarse_shape: tuple[int, ...]
    fine_shape: tuple[int, ...]
    fan_in: tuple[bool, ...] = ()
    zeros: Mask | None = None
    sources: tuple[Indices | None, ...] = ()
    scale: float = 1.0
    scaled: Mask | None = None

    @classmethod
    def in_front(cls, coarse: Sequence[int], fine: Sequence[int]) -> Placement:
        """That of a parameter of two shapes whose new entries are appended."""
        return cls(tuple(map(range, coarse)), tuple(coarse), tuple(fine), (False,) * len(fine))

    @cached_property
    def block(self) -> Any:
        """Index of the coarse entries in the fine array."""
        if all(isinstance(of_axis, range) for of_axis in self.index):
            return tuple(slice(i[0], i[-1] + 1) if i else slice(0) for i in self.index)
        return np.ix_(*map(np.array, self.index))

    @property
    def grows(self) -> bool:
        """Whether the fine parameter has entries without a coarse counterpart."""
        return self.coarse_shape != self.fine_shape

    @cached_property
    def old(self) -> np.ndarray:
        """For every fine entry whether it has a coarse counterpart."""
        mask = np.zeros(self.fine_shape, bool)
        mask[self.block] = True
        return mask

    @cached_property
    def factors(self) -> float | np.ndarray:
        """Fine over coarse value of the old entries: one number, or one for each."""
        if self.scaled is None or self.scale == 1:
            return self.scale
        whole = np.broadcast_to(self.scaled.array, self.fine_shape)
        return np.where(whole[self.block], self.scale, 1.0)

    def copy_and_pad(self, coarse: Array, fine: Array) -> Array:
        """Fine array with the coarse entries in place, of its own dtype and sharding."""
        return _with_entries(fine, self.block, coarse, self.factors)

    def preserve(self, coarse: Array, fine: Array) -> Array:
        """Like `copy_and_pad`, with zeros where an old output would read something new."""
        emptied = fine if self.zeros is None else without(fine, self.zeros)
        placed = self.copy_and_pad(coarse, emptied)
        for axis, sources in enumerate(self.sources):
            if sources is not None:
                placed = _repeated(placed, np.array(sources), axis)
        return placed

    def truncate(self, fine: Array, coarse: Array, *, dual: bool = False) -> Array:
        """The coarse entries of a fine array, with dtype and sharding of the coarse array.

        Args:
            fine: the fine array.
            coarse: the coarse array.
            dual: whether the entries are those of a gradient, which a factor multiplies where it
                divides parameters.
        """
        factors = self.factors if dual else 1 / self.factors
        if _traced(fine, coarse):
            taken = jnp.asarray(fine)[self.block]
            return jnp.asarray(taken if self.scale == 1 else taken * factors, coarse.dtype)
        array = np.asarray(fine)[self.block]
        if self.scale != 1:
            array = array.astype(np.result_type(array, np.float64)) * factors
        return placed_like(array.astype(coarse.dtype), coarse)


def without(array: Array, mask: Mask) -> Array:
    """A copy of an array with zeros where a mask is set.

    Args:
        array: the array.
        mask: the mask.
    """
    if _traced(array):
        return jnp.where(mask.array, jnp.zeros((), array.dtype), array)
    result = np.array(array)
    result[np.broadcast_to(mask.array, result.shape)] = 0
    return placed_like(result, array)


def _repeated(array: Array, sources: np.ndarray, axis: int) -> Array:
    if _traced(array):
        return jnp.take(array, sources, axis)
    return placed_like(np.take(np.asarray(array), sources, axis), array)


def _traced(*arrays: Any) -> bool:
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def _with_entries(array: Array, block: Any, values: Any, factors: float | np.ndarray) -> Array:
    """A copy of an array with some entries replaced.

    A transfer happens once per level, on shapes that never come back: outside of compiled code the
    entries are written by NumPy, since compiling a scatter for each parameter costs more than all else.
    """
    if _traced(array, values):
        factored = values if np.all(factors == 1) else values * factors
        return array.at[block].set(jnp.asarray(factored, array.dtype))
    result = np.array(array)
    given: Any = np.asarray(values)
    if np.any(factors != 1):
        given = given.astype(np.result_type(given, np.float64)) * factors
    result[block] = given.astype(result.dtype)
    return placed_like(result, array)


def placed_like(values: np.ndarray, like: Array) -> Array:
    """Values on the devices of another array, and bound to them only if that one is.

    A program that was compiled for arrays which are bound to no device would be compiled once more
    for arrays that are.

    Args:
        values: the values.
        like: the array whose place they take.
    """
    return jax.device_put(values, like.sharding if like.committed else None)


@dataclass(frozen=True)
class TransferPlan(Mapping[Path, Placement]):
    """Where every variable of a coarse model sits inside a fine one.

    A mapping from the path of a variable to its `Placement`. Plans of equal content are equal and
    have the same hash: a plan can be a static argument of a compiled function, and its methods
    can be traced there.

    Attributes:
        placements: pairs of a path and its placement. Fine variables without a coarse counterpart
            (added layers) are absent.
        added_zeros: paths of variables that only the fine model has, and where they have to be zero.
        obstacles: why the fine model cannot compute the coarse model's function; empty if it can.
    """

    placements: tuple[tuple[Path, Placement], ...]
    added_zeros: tuple[tuple[Path, Mask], ...] = ()
    obstacles: tuple[str, ...] = ()

    @cached_property
    def _by_path(self) -> dict[Path, Placement]:
        return dict(self.placements)

    def __getitem__(self, path: Path) -> Placement:
        return self._by_path[path]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)

    def prolong(self, coarse_tree: Any, fine_tree: Any) -> Any:
        """A tree like ``fine_tree`` with the entries of ``coarse_tree`` in place.

        Args:
            coarse_tree: an ``nnx.State`` like the parameters, or other variables, of the coarse
                model.
            fine_tree: the same of the fine model; what has no coarse counterpart, and all dtypes,
                stay.
        """
        coarse, fine = entries(coarse_tree), entries(fine_tree)
        placed = {p: self[p].copy_and_pad(v, fine[p]) for p, v in coarse.items() if p in self}
        return replaced(fine_tree, fine | placed)

    def restrict(self, fine_tree: Any, coarse_tree: Any, *, dual: bool = False) -> Any:
        """A tree like ``coarse_tree`` with those entries of ``fine_tree`` that it also has.

        Args:
            fine_tree: an ``nnx.State`` like the parameters, or other variables, of the fine model.
            coarse_tree: the same of the coarse model; states of random number generators, which
                are not transferred, and all dtypes stay.
            dual: whether the trees are gradients, see `Placement.truncate`.
        """
        fine, coarse = entries(fine_tree), entries(coarse_tree)
        kept = {p: self[p].truncate(fine[p], v, dual=dual) for p, v in coarse.items() if p in self}
        return replaced(coarse_tree, coarse | kept)

    def preserve(self, coarse_tree: Any, fine_tree: Any) -> Any:
        """Like `prolong`, with zeros and repetitions so that the coarse function is preserved.

        Args:
            coarse_tree: all variables of the coarse model.
            fine_tree: all variables of the fine model.
        """
        coarse, fine = entries(coarse_tree), entries(fine_tree)
        values = {p: self[p].preserve(v, fine[p]) for p, v in coarse.items() if p in self}
        values |= {path: without(fine[path], mask) for path, mask in self.added_zeros}
        return replaced(fine_tree, fine | values)


def entries(tree: Any) -> dict[Path, Any]:
    """The arrays of an ``nnx.State`` by their paths.

    Args:
        tree: the state.
    """
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(tree)}


def replaced(tree: Any, values: dict[Path, Any]) -> Any:
    """An ``nnx.State`` with other arrays.

    Args:
        tree: the state.
        values: the array of each of its paths.
    """
    flat = [(path, leaf.replace(values[path])) for path, leaf in nnx.to_flat_state(tree)]
    return nnx.from_flat_state(flat)
