"""Training data of all levels, in the forms that `CascadeTrainer.fit` takes, and checked once."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import PRNGKeyArray

from opifex.core.checks import check_callable, check_positive_int
from opifex.training.loop import as_arrays, steps_per_epoch
from opifex.training.multilevel.streaming import Stream, Streamed, is_source
from opifex.training.objective import Objective, hashable, kept_program
from opifex.training.placement import LevelPlacement, Placement

Draw = Callable[[Any, tuple[Any, ...], PRNGKeyArray], tuple[Any, ...]]
"""``draw(model, data, key)``: new data of the same shapes. It is compiled."""

LevelData = tuple[Any, ...] | list[Any] | Callable[[int], Any] | Iterable[Any] | Streamed
"""A tuple of arrays, or a source of batches (`Streamed`), for all levels; a list with one of these per
level; or a function of the level."""

__all__ = [
    "Draw",
    "LevelData",
    "Prepared",
    "Resampled",
    "Sampling",
    "check_arity",
    "few_rows",
    "level_placements",
    "prepared_data",
    "redrawn",
    "spread_data",
    "without_copy",
]

# Share of the samples that an epoch may leave out without a word.
_LEFT_OUT = 0.1

# Rows that show what models make of the data.
_FEW = 4


@dataclass(frozen=True)
class Resampled:
    """Data that are drawn anew while a level trains; give it to ``fit`` in place of the data.

    Attributes:
        data: the first data, in any form that ``fit`` takes.
        draw: ``draw(model, data, key)`` returning new data of the same shapes, such as a
            `ResidualResampler`; compiled.
        every: epochs between two draws; by default the interval of the monitor.

    Raises:
        TypeError: if ``draw`` is not callable or ``every`` is not an integer.
        ValueError: if ``every`` is not positive.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from opifex.training.multilevel import Resampled
        >>> def uniform(model, data, key):
        ...     return (jax.random.uniform(key, data[0].shape),)
        >>> data = Resampled((jnp.zeros((100, 2)),), uniform, every=10)
        >>> data.draw(None, data.data, jax.random.key(0))[0].shape
        (100, 2)
    """

    data: LevelData
    draw: Draw
    every: int | None = None

    def __post_init__(self) -> None:
        check_callable("draw", self.draw)
        if self.every is not None:
            check_positive_int("every", self.every)


class Sampling(NamedTuple):
    """How the batches of a level are taken from its data.

    Attributes:
        batch_size: samples per step that are drawn, ``None`` where none are.
        steps_per_epoch: steps of one epoch.
        stream: number of the stream that the data are a window of; ``None`` where all are there.
        window: how many batches that is, which lie one after the other.
    """

    batch_size: int | None
    steps_per_epoch: int
    stream: int | None = None
    window: int | None = None


class Prepared(NamedTuple):
    """Data of all levels, checked.

    Attributes:
        arrays: one tuple per level: all data, or the first window of a stream.
        sampling: how batches are taken from them, for each level.
        streams: what is read while a level trains.
    """

    arrays: tuple[tuple[Any, ...], ...]
    sampling: tuple[Sampling, ...]
    streams: tuple[Stream, ...] = ()

    def close(self, batches: Sequence[int] = ()) -> None:
        """End all threads.

        Args:
            batches: taken from each stream, from where an iterator is then to be read on.
        """
        for number, stream in enumerate(self.streams):
            stream.close(batches[number] if batches else None)


def without_copy(leaf: Any) -> Any:
    """What lies in the memory of the host as NumPy sees it, without a copy; all else as it is.

    NumPy looks at numbers without a program, which a fresh process would have to compile.

    Args:
        leaf: an array. Those of another device are looked at there.
    """
    if not isinstance(leaf, jax.Array) or not isinstance(leaf.dtype, np.dtype):
        return leaf
    there = leaf.is_fully_addressable and all(one.platform == "cpu" for one in leaf.devices())
    return np.asarray(leaf) if there else leaf


def few_rows(data: tuple[Any, ...], count: int = _FEW) -> tuple[Any, ...]:
    """The first rows of the data of a level, by default enough to see what models make of them.

    Args:
        data: the arrays of the level.
        count: at most so many.
    """
    return jax.tree.map(lambda leaf: without_copy(leaf)[:count] if leaf.ndim else leaf, data)


def redrawn(draw: Draw, objective: Objective, params: Any, key: PRNGKeyArray) -> tuple[Any, ...]:
    """What a function makes of the data of an objective.

    Args:
        draw: the function.
        objective: the present objective, with all variables of the model.
        params: the present parameters.
        key: random key.

    Raises:
        ValueError: if the new data do not fit the compiled program of the level.
    """
    new = kept_program(_drawn, objective.structure, hashable(draw))(objective, params, key)
    found, wanted = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", data)
        for data in (new, objective.data)
    )
    if found != wanted:
        raise ValueError(f"draw must return data like that of the level, {wanted}, got {found}")
    return jax.block_until_ready(objective.at(data=new).placed().data)


def _drawn(draw: Draw, objective: Objective, params: Any, key: PRNGKeyArray) -> Any:
    return draw(objective.model(params), objective.data, key)


def prepared_data(
    data: LevelData, num_levels: int, batch_size: int | None, *, spread: bool = False
) -> Prepared:
    """The data of each level, checked. Levels that share their data share arrays and streams.

    Args:
        data: in any of the forms of `LevelData`.
        num_levels: number of levels.
        batch_size: samples per step, or ``None`` for all at every step.
        spread: leave the arrays where they are, since `spread_data` will take them to several devices:
            one of them may have no room for all.

    Raises:
        TypeError: if the data of a level are neither a tuple of arrays nor a source of batches.
        ValueError: if a list does not have one entry per level, a number is not finite or an integer
            too large for its type in JAX, mini-batches cannot be cut, or there is a ``batch_size`` for
            batches that are made already.

    Warns:
        UserWarning: if numbers in double precision are rounded to single precision, or batches
            leave out more than a tenth of the samples of each epoch.
    """
    names, given = _given(data, num_levels)
    found: dict[int, tuple[tuple[Any, ...], Sampling]] = {}
    streams: list[Stream] = []
    rounded: list[str] = []
    try:
        for name, entry in zip(names, given, strict=True):
            if id(entry) in found:
                continue
            if is_source(entry):
                stream = Stream(Streamed.of(entry), name)
                streams.append(stream)
                number = len(streams) - 1
                sampling = Sampling(None, stream.steps_per_epoch, number, stream.size)
                found[id(entry)] = stream.arrays if spread else stream.at(0)[0], sampling
                continue
            rounded += _check_values(name, entry)
            arrays = as_arrays(entry, _unmoved if spread else jnp.asarray)
            found[id(entry)] = arrays, Sampling(batch_size, steps_per_epoch(arrays, batch_size))
            _check_left_out(name, arrays, batch_size)
        if batch_size is not None and all(one.stream is not None for _, one in found.values()):
            raise ValueError(
                f"batch_size must be None where data yield batches, got {batch_size}: the source says "
                "how large they are, as in dataset.batch(32, drop_remainder=True)"
            )
    except BaseException:
        for stream in streams:
            stream.close()
        raise
    if rounded:
        warnings.warn(
            f"{', '.join(rounded)} in double precision: rounded to single, about seven digits, since "
            "JAX was not told otherwise; jax.config.update('jax_enable_x64', True) at the start of the "
            "program keeps all digits, .astype('float32') says that seven are meant",
            stacklevel=3,
        )
    arrays, samplings = zip(*(found[id(entry)] for entry in given), strict=True)
    return Prepared(arrays, samplings, tuple(streams))


def _given(data: LevelData, num_levels: int) -> tuple[list[str], list[Any]]:
    """What was given for each level, and how errors call it."""
    if is_source(data):
        return ["data"] * num_levels, [data] * num_levels
    if callable(data):
        names = [f"data({level})" for level in range(num_levels)]
        return names, [data(level) for level in range(num_levels)]
    if not isinstance(data, list):
        return ["data"] * num_levels, [data] * num_levels
    for i, entry in enumerate(data):
        if not isinstance(entry, tuple | list) and not is_source(entry):
            raise TypeError(
                f"data must be a tuple of arrays such as (x, y), got a list, which holds one tuple "
                f"per level; its entry {i} is {_described(entry)}"
            )
    if len(data) != num_levels:
        raise ValueError(
            f"data must have one tuple per level ({num_levels}) when it is a list, got {len(data)}"
        )
    return [f"data[{level}]" for level in range(num_levels)], data


def _unmoved(leaf: Any) -> Any:
    """An array of a type that JAX has, in the memory where it is."""
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufcV":  # V: the short floating-point types
        raise TypeError(f"got {leaf!r}")
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def level_placements(
    placement: Placement, data: Prepared, parameters: Sequence[int]
) -> tuple[LevelPlacement, ...]:
    """Where the arrays of each level lie.

    Args:
        placement: what the user asks for.
        data: of all levels.
        parameters: number of trainable numbers of each level.

    Raises:
        ValueError: if the samples of a level or of a batch cannot be cut into equal parts.
    """
    found = []
    for level, (arrays, sampling, size) in enumerate(
        zip(data.arrays, data.sampling, parameters, strict=True)
    ):
        rows = {
            "data" + jax.tree_util.keystr(path): leaf.shape[0] // (sampling.window or 1)
            for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
            if leaf.ndim
        }
        batch_size = sampling.batch_size
        samples = batch_size or max(rows.values(), default=0)
        place = placement.at(level, samples, size)
        wanted = f"a multiple of the {place.parts} parts, one or more per device, of level {level}"
        if batch_size is not None and batch_size % place.parts:
            raise ValueError(f"batch_size must be {wanted}, got {batch_size}")
        for name, count in rows.items():
            if count % place.parts:
                raise ValueError(f"{name} must have {wanted}, as its first axis, got {count} rows")
        found.append(place)
    return tuple(found)


def spread_data(data: Prepared, places: Sequence[LevelPlacement]) -> Prepared:
    """The data of all levels on their devices. What levels share in the same way lies there once.

    Args:
        data: of all levels.
        places: where the arrays of each level lie.
    """
    there: dict[tuple[int, PartitionSpec], tuple[Any, ...]] = {}
    keys = [
        (id(arrays), place.rows_spec) for arrays, place in zip(data.arrays, places, strict=True)
    ]
    for key, arrays, sampling, place in zip(keys, data.arrays, data.sampling, places, strict=True):
        if key not in there:
            stream = None if sampling.stream is None else data.streams[sampling.stream]
            there[key] = place.rows(arrays) if stream is None else stream.at(0, place)[0]
    return data._replace(arrays=tuple(there[key] for key in keys))


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"an array of shape {tuple(shape)}"


def _check_values(name: str, entry: Any) -> list[str]:
    """Raise where a number is not finite or does not fit; names of arrays that JAX will round."""
    if not isinstance(entry, tuple | list):
        return []  # not data at all, which is said later
    rounded = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tuple(entry)):
        label = name + jax.tree_util.keystr(path)
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
            continue
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            continue  # random keys
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            _check_finite(label, leaf)
        kept = (
            jax.dtypes.canonicalize_dtype(leaf.dtype) if leaf.dtype.kind in "iufc" else leaf.dtype
        )
        if kept == leaf.dtype:
            continue
        with np.errstate(over="ignore"):
            narrow = np.asarray(leaf).astype(kept)
        if np.array_equal(narrow, leaf):
            continue
        if leaf.dtype.kind in "iu" or not np.all(np.isfinite(narrow)):
            raise ValueError(
                f"{label} must fit into {np.dtype(kept).name}, the type that JAX gives to "
                f"{leaf.dtype.name} while jax_enable_x64 is off, got numbers up to "
                f"{np.max(np.abs(leaf))}"
            )
        rounded.append(label)
    return rounded


def _check_finite(label: str, leaf: Any) -> None:
    leaf = without_copy(leaf)
    library: Any = jnp if isinstance(leaf, jax.Array) else np
    finite = library.isfinite(leaf)
    if bool(library.all(finite)):
        return
    found = np.argwhere(~np.asarray(finite))
    where = f" at row {found[0][0]}" if np.ndim(leaf) else ""
    if np.ndim(leaf) > 1:
        where += f" (index {tuple(map(int, found[0]))})"
    value = np.asarray(leaf)[tuple(found[0])]
    raise ValueError(
        f"{label} must be finite, got {value}{where}; {len(found)} of its {np.size(leaf)} numbers are "
        "not finite"
    )


def _check_left_out(name: str, data: tuple[Any, ...], batch_size: int | None) -> None:
    if batch_size is None:
        return
    samples = jax.tree.leaves(data)[0].shape[0]
    left_out = samples % batch_size
    if left_out > _LEFT_OUT * samples:
        warnings.warn(
            f"batch_size={batch_size} leaves out {left_out} of the {samples} samples of {name} in each "
            "epoch, other ones each time; a divisor leaves out none",
            stacklevel=4,
        )


def check_arity(loss: Any, data: tuple[tuple[Any, ...], ...]) -> None:
    """Raise unless a loss can be called with a model and the data of each level.

    Args:
        loss: a loss function, or a tuple of residual terms.
        data: the arguments after the model, for each level.

    Raises:
        ValueError: naming how many arrays the loss takes, and how many there are.
    """
    if isinstance(loss, tuple):
        names = [term.name for term in loss]
        for entry in data:
            if len(entry) != len(names):
                raise ValueError(
                    f"data must hold one array of points per residual term ({names}), got "
                    f"{_arrays(len(entry))}"
                )
        return
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # builtins without a signature
        return
    key = {"key": None} if Objective(loss, None).takes_key else {}
    for entry in data:
        try:
            signature.bind(None, *entry, **key)
        except TypeError as error:
            names = [
                name
                for name, parameter in signature.parameters.items()
                if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
                and name not in key
            ]
            raise ValueError(
                f"loss_fn must take the model and the {_arrays(len(entry))} of data, it takes "
                f"({', '.join(names)}): {error}"
            ) from error


def _arrays(number: int) -> str:
    return "1 array" if number == 1 else f"{number} arrays"
