"""The models that a configuration asks for, from coarse to fine."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from opifex.cli.registry import ACTIVATIONS
from opifex.cli.settings import RunSettings
from opifex.models import FNO, MLP

__all__ = ["decide_modes", "make_networks", "make_operators"]

_MOST_MODES = 16


def make_networks(settings: RunSettings, inputs: int, outputs: int, seed: int) -> list[MLP]:
    """Perceptrons of all levels.

    Args:
        settings: the configuration.
        inputs: number of inputs.
        outputs: number of outputs.
        seed: of their parameters.
    """
    hierarchy, rngs = settings.hierarchy, nnx.Rngs(seed)
    return [
        MLP(
            inputs,
            outputs,
            size,
            activation=ACTIVATIONS[hierarchy.activation],
            param_dtype=jnp.dtype(settings.dtype),
            rngs=rngs,
        )
        for size in hierarchy.sizes or _coarsened(settings, hierarchy.hidden, round)
    ]


def decide_modes(settings: RunSettings, grid: tuple[int, ...]) -> RunSettings:
    """The settings with the modes decided, one number per axis.

    Args:
        settings: the configuration.
        grid: points along each axis.

    Raises:
        ValueError: if modes are given for another number of axes.
    """
    given = settings.hierarchy.modes
    if settings.hierarchy.sizes is not None:
        modes = settings.hierarchy.sizes[-1]
    elif given is None:
        modes = [max(1, min(_MOST_MODES, points // 4)) for points in grid]
    else:
        modes = [given] * len(grid) if isinstance(given, int) else given
    if len(modes) != len(grid):
        raise ValueError(
            f"hierarchy.modes (or sizes) must have one entry per axis of the grid {list(grid)}, "
            f"got {modes}"
        )
    return settings.updated("hierarchy", modes=modes)


def make_operators(
    settings: RunSettings, inputs: int, outputs: int, grid_kind: str, seed: int
) -> list[FNO]:
    """Fourier neural operators of all levels.

    Args:
        settings: the configuration, with modes decided.
        inputs: channels of the inputs.
        outputs: channels of the outputs.
        grid_kind: where the points lie.
        seed: of their parameters.
    """
    hierarchy, rngs = settings.hierarchy, nnx.Rngs(seed)
    modes = hierarchy.modes
    assert isinstance(modes, list)
    return [
        FNO(
            tuple(size),
            hierarchy.width,
            input_dim=inputs,
            output_dim=outputs,
            num_layers=hierarchy.layers,
            spatial_dims=len(modes),
            grid_kind=grid_kind,
            param_dtype=jnp.dtype(settings.dtype),
            rngs=rngs,
        )
        for size in hierarchy.sizes or _coarsened(settings, modes, int)
    ]


def _coarsened(settings: RunSettings, finest: list[int], rounded: Any) -> list[list[int]]:
    """Sizes of every level, coarsest first."""
    hierarchy = settings.hierarchy
    return [
        [max(1, rounded(n * hierarchy.coarsening**times)) for n in finest]
        for times in range(hierarchy.levels - 1, -1, -1)
    ]
