"""Training data of all levels, in the forms that `CascadeTrainer.fit` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import PRNGKeyArray

from opifex.core.checks import check_callable, check_positive_int
from opifex.training.loop import as_arrays, steps_per_epoch

Draw = Callable[[Any, tuple[Any, ...], PRNGKeyArray], tuple[Any, ...]]
"""``draw(model, data, key)``: new data of the same shapes. It is compiled."""

LevelData = tuple[Any, ...] | list[tuple[Any, ...]] | Callable[[int], tuple[Any, ...]]
"""A tuple of arrays for all levels, a list with one tuple per level, or a function of the level."""

__all__ = ["Draw", "LevelData", "Resampled", "data_per_level"]


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


def data_per_level(
    data: LevelData, num_levels: int, batch_size: int | None
) -> tuple[tuple[Any, ...], ...]:
    """One tuple of device arrays per level. Levels that share their data share the arrays.

    Args:
        data: in any of the forms of `LevelData`.
        num_levels: number of levels.
        batch_size: samples per step, or ``None`` for all at every step.

    Raises:
        TypeError: if the data of a level are not a tuple of arrays.
        ValueError: if a list does not have one entry per level, or mini-batches cannot be cut.
    """
    if callable(data):
        given: list[Any] = [data(level) for level in range(num_levels)]
    elif isinstance(data, list):
        if len(data) != num_levels:
            raise ValueError(
                f"data must have one tuple per level ({num_levels}) when it is a list, "
                f"got {len(data)}"
            )
        given = data
    else:
        given = [data] * num_levels
    arrays: dict[int, tuple[Any, ...]] = {}
    for entry in given:
        if id(entry) not in arrays:
            arrays[id(entry)] = as_arrays(entry)
            steps_per_epoch(arrays[id(entry)], batch_size)
    return tuple(arrays[id(entry)] for entry in given)
