r"""Overlapping patches of a box with smooth windows that add up to one."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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

    Attributes:
        centres: of the patches, shape (number of patches, dim), last axis fastest.
        half_widths: of every patch, shape (dim,).
    """

    def __init__(self, bounds: np.ndarray, patches: Sequence[int]) -> None:
        self._lower, self._width = bounds[:, 0], (bounds[:, 1] - bounds[:, 0]) / np.asarray(patches)
        self._patches = tuple(patches)
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
