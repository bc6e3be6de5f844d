r"""Overlapping patches of a box with smooth windows that add up to one."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from opifex.core.checks import check_array, check_sizes

__all__ = ["PartitionOfUnity"]


class PartitionOfUnity:
    r"""Windows $\psi_p$ on a tensor grid of patches, $\sum_p \psi_p = 1$ on the box.

    Along an axis with $k$ patches the centres are those of $k$ equal cells, and a patch reaches to the
    centres of the neighbouring cells: its half width is the width of a cell. The windows are
    $(1 - s^2)^5$ in the local coordinate $s \in [-1, 1]$, which are four times differentiable, divided
    by their sum (Shepard). An axis with one patch has the window one.

    Args:
        bounds: of the box, shape (dim, 2).
        patches: number of patches along every axis.

    Raises:
        TypeError: if ``bounds`` does not hold real numbers, or ``patches`` is no sequence of integers.
        ValueError: if ``bounds`` has another shape, or a number of patches is not positive.

    Attributes:
        centres: of the patches, shape (number of patches, dim), last axis fastest.
        half_widths: of every patch, shape (dim,).
    """

    def __init__(self, bounds: np.ndarray, patches: Sequence[int]) -> None:
        patches = check_sizes("patches", patches)
        bounds = check_array("bounds", bounds, "dim 2", real=True)
        if bounds.shape != (len(patches), 2):
            raise ValueError(
                f"bounds must have shape ({len(patches)}, 2), one row per entry of patches, got "
                f"{bounds.shape}"
            )
        self._lower, self._width = bounds[:, 0], (bounds[:, 1] - bounds[:, 0]) / np.asarray(patches)
        self._patches = patches
        cells = np.stack(np.meshgrid(*map(np.arange, patches), indexing="ij"), axis=-1)
        self.centres = self._lower + (cells.reshape(-1, len(patches)) + 0.5) * self._width
        self.half_widths = np.where(np.asarray(patches) > 1, self._width, self._width / 2)

    @property
    def number(self) -> int:
        """How many patches there are."""
        return len(self.centres)

    def windows(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch patches"]:
        """Values of all windows at points, in the order of ``centres``."""
        product = jnp.ones((*x.shape[:-1], 1), x.dtype)
        for axis, count in enumerate(self._patches):
            if count == 1:
                continue
            cell = (x[..., axis] - self._lower[axis]) / self._width[axis]
            # Outside of the box the windows of its last patches go on, and would all end.
            cell = jnp.clip(cell, 0.0, count)
            local = cell[..., None] - (jnp.arange(count, dtype=x.dtype) + 0.5)
            bumps = jax.nn.relu(1 - local**2) ** 5
            along = bumps / jnp.sum(bumps, axis=-1, keepdims=True)
            product = (product[..., :, None] * along[..., None, :]).reshape(*x.shape[:-1], -1)
        return product
