"""Hierarchies of models, coarsest first: level 0 is the coarsest. They know nothing of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from opifex.core.checks import (
    check_callable,
    check_fraction,
    check_not_empty,
    check_positive,
    check_positive_int,
    check_rngs,
    check_sizes,
)
from opifex.models import FNO, MLP, MultiscaleMLP
from opifex.models.mlp import Activation
from opifex.models.multiscale import check_frequencies
from opifex.training.objective import count_parameters

__all__ = [
    "Hierarchy",
    "create_depth_hierarchy",
    "create_fno_hierarchy",
    "create_hierarchy",
    "create_multiscale_hierarchy",
    "create_network_hierarchy",
]


class Hierarchy(list[Any]):
    """A list of models, coarsest first, that prints their sizes."""

    def __repr__(self) -> str:
        counts = map(count_parameters, self)
        rows = [
            f"  level {level}: {type(model).__name__}, {count} parameters"
            for level, (model, count) in enumerate(zip(self, counts, strict=True))
        ]
        return "\n".join([f"Hierarchy of {len(self)} levels, coarsest first", *rows])


def create_hierarchy(
    build: Callable[[Any, nnx.Rngs], nnx.Module], sizes: Sequence[Any], rngs: nnx.Rngs
) -> Hierarchy:
    """Models of your own class in several sizes, coarsest first.

    Args:
        build: ``build(size, rngs)`` returns the model of one level.
        sizes: what ``build`` gets for each level, coarsest first: a width, several numbers, a dictionary
            of settings, anything.
        rngs: random streams, the same for all levels, which draw from them one after the other.

    Returns:
        One model per entry of ``sizes``.

    Raises:
        TypeError: if ``build`` is not callable, ``sizes`` is not a sequence, ``rngs`` is not an
            ``nnx.Rngs``, or what ``build`` returns is no ``nnx.Module`` or of another class than the
            level before. An error in ``build`` says at which size.
        ValueError: if ``sizes`` is empty, or a level has fewer parameters than the one before it.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_hierarchy
        >>> class Network(nnx.Module):
        ...     def __init__(self, width, rngs):
        ...         self.hidden = nnx.Linear(2, width, rngs=rngs)
        ...         self.output = nnx.Linear(width, 1, rngs=rngs)
        ...     def __call__(self, x):
        ...         return self.output(jnp.tanh(self.hidden(x)))
        >>> create_hierarchy(Network, [8, 16], nnx.Rngs(0))
        Hierarchy of 2 levels, coarsest first
          level 0: Network, 33 parameters
          level 1: Network, 65 parameters
    """
    check_callable("build", build)
    check_not_empty("sizes", sizes)
    check_rngs("rngs", rngs)
    models = Hierarchy()
    for level, size in enumerate(sizes):
        try:
            model = build(size, rngs)
        except Exception as error:
            error.add_note(f"build(size, rngs) was called with sizes[{level}] = {size!r}.")
            raise
        if not isinstance(model, nnx.Module):
            raise TypeError(
                f"build must return an nnx.Module, got {type(model).__name__} for sizes[{level}] = "
                f"{size!r}; EquinoxModel and FunctionalModel of opifex.models make one of other models"
            )
        if models:
            _check_finer(models[-1], model, sizes[level - 1], size)
        models.append(model)
    return models


def _check_finer(coarse: nnx.Module, fine: nnx.Module, coarse_size: Any, fine_size: Any) -> None:
    if type(coarse) is not type(fine):
        raise TypeError(
            f"build must return models of one class, got {type(coarse).__name__} for {coarse_size!r} "
            f"and {type(fine).__name__} for {fine_size!r}"
        )
    counts = count_parameters(coarse), count_parameters(fine)
    if counts[0] > counts[1]:
        raise ValueError(
            f"sizes must be ordered from coarse to fine, got {coarse_size!r} with {counts[0]} "
            f"parameters before {fine_size!r} with {counts[1]}"
        )


def create_network_hierarchy(
    input_dim: int,
    output_dim: int,
    base_hidden_dims: Sequence[int],
    num_levels: int = 3,
    coarsening_factor: float = 0.5,
    activation: Activation = jnp.tanh,
    *,
    param_dtype: jnp.dtype | type = jnp.float32,
    rngs: nnx.Rngs,
) -> list[MLP]:
    """Multilayer perceptrons of growing width, coarsest first.

    Level ``l`` of ``L`` has widths ``round(w * coarsening_factor ** (L - 1 - l))``, at least one;
    the finest has exactly ``base_hidden_dims``.

    Args:
        input_dim: number of input coordinates.
        output_dim: number of output components.
        base_hidden_dims: hidden widths of the finest level.
        num_levels: number of levels.
        coarsening_factor: ratio of the widths of neighbouring levels, in (0, 1).
        activation: elementwise function of the hidden layers.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Returns:
        ``num_levels`` models.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is out of range.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy
        >>> create_network_hierarchy(2, 1, [64, 64], num_levels=3, rngs=nnx.Rngs(0))
        Hierarchy of 3 levels, coarsest first
          level 0: MLP, 337 parameters
          level 1: MLP, 1185 parameters
          level 2: MLP, 4417 parameters
    """
    check_positive_int("input_dim", input_dim)
    check_positive_int("output_dim", output_dim)
    widths = check_sizes("base_hidden_dims", base_hidden_dims)
    check_positive_int("num_levels", num_levels)
    check_fraction("coarsening_factor", coarsening_factor)
    check_callable("activation", activation)
    check_rngs("rngs", rngs)
    return Hierarchy(
        MLP(
            input_dim,
            output_dim,
            [max(1, round(w * coarsening_factor ** (num_levels - 1 - level))) for w in widths],
            activation=activation,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        for level in range(num_levels)
    )


def create_depth_hierarchy(
    input_dim: int,
    output_dim: int,
    hidden_dim: int,
    depths: Sequence[int],
    activation: Activation = jnp.tanh,
    *,
    param_dtype: jnp.dtype | type = jnp.float32,
    rngs: nnx.Rngs,
) -> list[MLP]:
    """Multilayer perceptrons of growing depth, coarsest first, with gated hidden layers.

    Args:
        input_dim: number of input coordinates.
        output_dim: number of output components.
        hidden_dim: width of every hidden layer.
        depths: number of hidden layers of each level, not decreasing.
        activation: elementwise function of the hidden layers.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Returns:
        One model per entry of ``depths``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is out of range or ``depths`` decreases.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_depth_hierarchy
        >>> models = create_depth_hierarchy(2, 1, 16, depths=[1, 2, 4], rngs=nnx.Rngs(0))
        >>> [len(model.hidden) for model in models]
        [1, 2, 4]
    """
    check_positive_int("hidden_dim", hidden_dim)
    sizes = check_sizes("depths", depths)
    if list(sizes) != sorted(sizes):
        raise ValueError(f"depths must not decrease from coarse to fine, got {list(sizes)}")
    check_callable("activation", activation)
    check_rngs("rngs", rngs)
    return Hierarchy(
        MLP(
            input_dim,
            output_dim,
            [hidden_dim] * depth,
            activation=activation,
            depth_gates=True,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        for depth in sizes
    )


def create_fno_hierarchy(
    base_modes: int | Sequence[int],
    width: int,
    num_levels: int = 3,
    reduction_factor: float = 2,
    *,
    input_dim: int = 1,
    output_dim: int = 1,
    num_layers: int = 4,
    activation: Activation = nnx.gelu,
    spatial_dims: int = 1,
    grid_kind: str = "cell",
    width_factor: float = 1.0,
    rngs: nnx.Rngs,
    **options: Any,
) -> list[FNO]:
    """Fourier neural operators with a growing number of modes, coarsest first.

    Level ``l`` of ``L`` keeps ``floor(m / reduction_factor ** (L - 1 - l))`` modes per axis, at
    least one; the finest keeps exactly ``base_modes``.

    Args:
        base_modes: modes per axis of the finest level (frequencies below this number are kept),
            one number for all axes or one per axis.
        width: number of channels of the finest level.
        num_levels: number of levels.
        reduction_factor: ratio of the modes of neighbouring levels, above one.
        input_dim: number of input fields.
        output_dim: number of output fields.
        num_layers: number of Fourier layers.
        activation: elementwise function between layers.
        spatial_dims: number of space dimensions: 1, 2 or 3.
        grid_kind: where the points of a grid lie: ``"cell"`` or ``"vertex"``, which give the networks
            the coordinates of the points as further inputs, or ``"periodic"``, which does not; see
            `FNO`.
        width_factor: ratio of the widths of neighbouring levels, in (0, 1]; 1 keeps the width.
        rngs: random streams; ``params`` is used.
        **options: further arguments of `FNO`.

    Returns:
        ``num_levels`` models.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is out of range.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_fno_hierarchy
        >>> models = create_fno_hierarchy(16, width=8, num_levels=3, num_layers=1, rngs=nnx.Rngs(0))
        >>> [model.modes for model in models]
        [(4,), (8,), (16,)]
    """
    check_positive_int("spatial_dims", spatial_dims)
    modes = (
        (check_positive_int("base_modes", base_modes),) * spatial_dims
        if isinstance(base_modes, int) or not isinstance(base_modes, Sequence)
        else check_sizes("base_modes", base_modes)
    )
    if len(modes) != spatial_dims:
        raise ValueError(
            f"base_modes must have spatial_dims={spatial_dims} entries, got {list(modes)}"
        )
    check_positive_int("width", width)
    check_positive_int("num_levels", num_levels)
    if check_positive("reduction_factor", reduction_factor) <= 1:
        raise ValueError(f"reduction_factor must be above 1, got {reduction_factor!r}")
    if check_positive("width_factor", width_factor) > 1:
        raise ValueError(f"width_factor must lie in (0, 1], got {width_factor!r}")
    check_rngs("rngs", rngs)

    def build(coarsenings: int) -> FNO:
        return FNO(
            tuple(max(1, int(m / reduction_factor**coarsenings)) for m in modes),
            max(1, round(width * width_factor**coarsenings)),
            input_dim=input_dim,
            output_dim=output_dim,
            num_layers=num_layers,
            activation=activation,
            spatial_dims=spatial_dims,
            grid_kind=grid_kind,
            rngs=rngs,
            **options,
        )

    return Hierarchy(build(num_levels - 1 - level) for level in range(num_levels))


def create_multiscale_hierarchy(
    input_dim: int,
    output_dim: int,
    hidden_dims: Sequence[int],
    frequencies: Sequence[float] = (1.0, 2.0, 4.0),
    *,
    bands: Sequence[int] | None = None,
    coarsening_factor: float = 1.0,
    activation: Activation = jnp.sin,
    fourier_features: int | None = None,
    spread_phases: bool = True,
    param_dtype: jnp.dtype | type = jnp.float32,
    rngs: nnx.Rngs,
) -> list[MultiscaleMLP]:
    """Frequency-aware networks with a growing number of bands, coarsest first.

    Level ``l`` has the ``l + 1`` lowest bands, or the ``bands[l]`` lowest; the finest has all. With
    Galerkin coarse objectives (``VCycle(coarse="galerkin")``) a coarse level is then the low bands of
    the finest network. With a ``coarsening_factor`` the
    bands widen from level to level, too; ``bands=[n, n, n]`` with a factor grows in width alone.

    Args:
        input_dim: number of input coordinates.
        output_dim: number of output components.
        hidden_dims: hidden widths of every band on the finest level.
        frequencies: factors of the inputs, increasing, one band each.
        bands: number of bands on each level, not decreasing; the last is ``len(frequencies)``.
            ``None`` adds one per level.
        coarsening_factor: ratio of the widths of neighbouring levels, in (0, 1]; 1 keeps them.
        activation: elementwise function of the hidden layers.
        fourier_features: number of fixed random waves in front of each band on every level, or
            ``None``; see `MultiscaleMLP`.
        spread_phases: see `FrequencyBand`.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Returns:
        One model per level.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is out of range, ``frequencies`` do not increase, or ``bands``
            decrease or do not end with all bands.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_multiscale_hierarchy
        >>> models = create_multiscale_hierarchy(2, 1, [16], (1.0, 4.0, 16.0), rngs=nnx.Rngs(0))
        >>> [model.frequencies for model in models]
        [(1.0,), (1.0, 4.0), (1.0, 4.0, 16.0)]
    """
    widths = check_sizes("hidden_dims", hidden_dims)
    values = check_frequencies(frequencies)
    counts = tuple(range(1, len(values) + 1)) if bands is None else check_sizes("bands", bands)
    if list(counts) != sorted(counts) or counts[-1] != len(values):
        raise ValueError(
            f"bands must not decrease and must end with len(frequencies)={len(values)}, "
            f"got {list(counts)}"
        )
    if check_positive("coarsening_factor", coarsening_factor) > 1:
        raise ValueError(f"coarsening_factor must lie in (0, 1], got {coarsening_factor!r}")
    check_rngs("rngs", rngs)
    return Hierarchy(
        MultiscaleMLP(
            input_dim,
            output_dim,
            [max(1, round(w * coarsening_factor ** (len(counts) - 1 - level))) for w in widths],
            frequencies=values[:count],
            activation=activation,
            fourier_features=fourier_features,
            spread_phases=spread_phases,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        for level, count in enumerate(counts)
    )
