r"""Fields on coarser grids: restriction, its counterpart, and a grid per level.

A level with few Fourier modes needs a coarse grid only, and its cost falls with the number of grid
points. Fields are moved by one small matrix per axis, $R$ of shape (coarse, fine), so that every
method works in any number of dimensions and its properties can be read off the matrix. Plain
subsampling is not among them: it folds high frequencies onto low ones.

Where the points of an axis of $n$ lie (``grid_kind``) decides what a method may do:

- ``"periodic"``, at $j / n$. ``"spectral"``: the Fourier coefficients $|k| < \lceil n_c / 2
  \rceil$ are kept, all others dropped (an unpaired Nyquist frequency too). Exact on kept
  frequencies; $R = (n_c / n) P^T$ with $P$ the trigonometric interpolation.
- ``"cell"``, at $(j + 1/2) / n$. ``"average"``: means over coarse cells, parts of cells by their
  share. Conservative, keeps signs and bounds, $R = (n_c / n) P^T$ with $P$ the piecewise constant
  interpolation; of second order as point values where grids nest. ``"cosine"``: cosine coefficients
  $k < n_c$ are kept. Exact on them, spectrally accurate for fields with zero normal derivative, of
  first order at the boundary otherwise, and it overshoots at jumps.
- ``"vertex"``, at $j / (n - 1)$, boundary included. ``"full-weighting"``: means weighted by the
  hat functions of the coarse grid, the stencil $(1, 2, 1) / 4$ when the spacing doubles, with
  boundary values kept as they are. Of second order, exact on linear fields; on fields that vanish
  at the boundary $R = (h / h_c) P^T$ with $P$ linear interpolation, if the grids nest (Briggs,
  Henson, McCormick, A Multigrid Tutorial, 2000, chapter 3). ``"cosine"``: as above, with the
  cosines of the vertices.

Grids nest if a whole number of fine cells makes a coarse one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from opifex.core.checks import (
    check_array,
    check_choice,
    check_positive,
    check_positive_int,
    check_sequence,
)
from opifex.models import FNO
from opifex.models.fno import check_axes, check_fields

__all__ = [
    "GRID_KINDS",
    "ResolutionLevel",
    "coarsest_grid",
    "grids_nest",
    "interpolate_field",
    "interpolation_matrix",
    "resolution_hierarchy",
    "restrict_field",
    "restriction_matrix",
]

GRID_KINDS = ("periodic", "cell", "vertex")
"""Where the n points of an axis lie: at j / n, (j + 1/2) / n, or j / (n - 1) with the boundary."""

METHODS = {
    "periodic": ("auto", "spectral"),
    "cell": ("auto", "average", "cosine"),
    "vertex": ("auto", "full-weighting", "cosine"),
}

_MANY_CHANNELS = 8
"""More are rare in fields, so that as many as grid points are taken for a forgotten axis."""

Matrix = Float[np.ndarray, "rows columns"]

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


def grids_nest(fine: int, coarse: int, grid_kind: str) -> bool:
    """Whether a whole number of fine cells makes a coarse cell.

    Args:
        fine: number of points of the finer axis.
        coarse: number of points of the coarser axis.
        grid_kind: ``"periodic"``, ``"cell"`` or ``"vertex"``.

    Raises:
        ValueError: if ``grid_kind`` is unknown.
    """
    if check_choice("grid_kind", grid_kind, GRID_KINDS) == "vertex":
        return coarse > 1 and (fine - 1) % (coarse - 1) == 0
    return fine % coarse == 0


def _choose(grid_kind: str, method: str, fine: int, coarse: int) -> str:
    check_choice("grid_kind", grid_kind, GRID_KINDS)
    if method not in METHODS[grid_kind]:
        raise ValueError(
            f"method must be one of {list(METHODS[grid_kind])} on a {grid_kind} grid, "
            f"got {method!r}"
        )
    if method != "auto":
        return method
    if grid_kind == "cell":
        # Means over cells that do not nest weigh neighbours unevenly and lose an order.
        return "average" if grids_nest(fine, coarse, grid_kind) else "cosine"
    return {"periodic": "spectral", "vertex": "full-weighting"}[grid_kind]


def _check_sizes(fine: int, coarse: int, grid_kind: str) -> None:
    check_positive_int("fine", fine)
    check_positive_int("coarse", coarse)
    least = 2 if grid_kind == "vertex" else 1
    if not least <= coarse <= fine:
        raise ValueError(
            f"a {grid_kind} axis of {fine} points restricts to {least} up to {fine} points, "
            f"got {coarse}"
        )


def _points(n: int, grid_kind: str) -> np.ndarray:
    j = np.arange(n)
    return {"periodic": j / n, "cell": (j + 0.5) / n, "vertex": j / max(n - 1, 1)}[grid_kind]


def _waves(to: int, source: int, bandwidth: int) -> Matrix:
    """Truncate the Fourier series of ``source`` values to ``|k| < bandwidth``, evaluate."""
    k = 2 * np.pi * np.arange(1, bandwidth)
    rows, columns = (np.outer(_points(n, "periodic"), k) for n in (to, source))
    paired = np.cos(rows) @ np.cos(columns).T + np.sin(rows) @ np.sin(columns).T
    return (1 + 2 * paired) / source


def _cosines(to: int, source: int, bandwidth: int, grid_kind: str) -> Matrix:
    """Truncate the cosine series of ``source`` values to ``k < bandwidth``, evaluate."""
    k = np.arange(bandwidth)
    analysis = np.cos(np.pi * np.outer(k, _points(source, grid_kind)))
    if grid_kind == "vertex":
        # The trapezoidal rule; the highest cosine of the grid has twice the norm of the others.
        analysis[:, [0, -1]] *= 0.5
        weight = np.where((k == 0) | (k == source - 1), 1.0, 2.0) / (source - 1)
    else:
        weight = np.where(k == 0, 1.0, 2.0) / source
    return np.cos(np.pi * np.outer(_points(to, grid_kind), k)) @ (weight[:, None] * analysis)


def _overlaps(fine: int, coarse: int) -> Matrix:
    """Lengths of the intersections of coarse cells (rows) with fine ones."""
    coarse_edges, fine_edges = np.arange(coarse + 1) / coarse, np.arange(fine + 1) / fine
    upper = np.minimum(coarse_edges[1:, None], fine_edges[None, 1:])
    lower = np.maximum(coarse_edges[:-1, None], fine_edges[None, :-1])
    # Edges of nested grids agree up to rounding only; such slivers are no overlap.
    lengths = upper - lower
    return np.where(lengths > 1e-12, lengths, 0.0)


def _hats(points: np.ndarray, n: int) -> Matrix:
    """Values of the ``n`` hat functions (columns) of a vertex grid at points (rows)."""
    distance = np.abs(points[:, None] - _points(n, "vertex")[None, :])
    return np.maximum(0.0, 1.0 - (n - 1) * distance)


def _full_weighting(fine: int, coarse: int) -> Matrix:
    if grids_nest(fine, coarse, "vertex"):
        matrix = _hats(_points(fine, "vertex"), coarse).T * ((coarse - 1) / (fine - 1))
    else:
        # The integral of hat times piecewise linear interpolant, exact by Gauss's two-point rule on
        # the intervals between the points of both grids.
        edges = np.union1d(_points(fine, "vertex"), _points(coarse, "vertex"))
        middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
        nodes = np.concatenate([middle - half / np.sqrt(3), middle + half / np.sqrt(3)])
        weights = np.concatenate([half, half])
        matrix = (coarse - 1) * _hats(nodes, coarse).T @ (weights[:, None] * _hats(nodes, fine))
    matrix[[0, -1]] = 0.0
    matrix[0, 0] = matrix[-1, -1] = 1.0
    return matrix


@lru_cache(maxsize=256, typed=True)
def restriction_matrix(
    fine: int, coarse: int, grid_kind: str = "periodic", method: str = "auto"
) -> Matrix:
    """The matrix of shape (coarse, fine) that restricts values along one axis.

    Every row sums to one, so that constants are kept. Equal sizes give the identity.

    Args:
        fine: number of points before.
        coarse: number of points after, at most ``fine``.
        grid_kind: ``"periodic"``, ``"cell"`` or ``"vertex"``.
        method: ``"spectral"`` (periodic), ``"average"`` (cell), ``"full-weighting"`` (vertex) or
            ``"cosine"`` (cell or vertex); ``"auto"`` is ``"spectral"``, ``"full-weighting"``, or on
            cells ``"average"`` if the grids nest, else ``"cosine"``.

    Raises:
        ValueError: if ``grid_kind`` is unknown, ``method`` is not one of its methods, or ``coarse``
            is out of range.
        TypeError: if a size is not an integer.
    """
    chosen = _choose(grid_kind, method, fine, coarse)
    _check_sizes(fine, coarse, grid_kind)
    if fine == coarse:
        matrix = np.eye(fine)
    elif chosen == "spectral":
        matrix = _waves(coarse, fine, (coarse + 1) // 2)
    elif chosen == "cosine":
        matrix = _cosines(coarse, fine, coarse, grid_kind)
    elif chosen == "average":
        matrix = coarse * _overlaps(fine, coarse)
    else:
        matrix = _full_weighting(fine, coarse)
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=256, typed=True)
def interpolation_matrix(
    fine: int, coarse: int, grid_kind: str = "periodic", method: str = "auto"
) -> Matrix:
    """The matrix of shape (fine, coarse) that belongs to a restriction, in the other direction.

    Trigonometric for ``"spectral"``, by cosines for ``"cosine"``, piecewise constant for
    ``"average"``, piecewise linear for ``"full-weighting"``. Arguments and errors are those of
    `restriction_matrix`.
    """
    chosen = _choose(grid_kind, method, fine, coarse)
    _check_sizes(fine, coarse, grid_kind)
    if fine == coarse:
        matrix = np.eye(fine)
    elif chosen == "spectral":
        matrix = _waves(fine, coarse, (coarse + 1) // 2)
    elif chosen == "cosine":
        matrix = _cosines(fine, coarse, coarse, grid_kind)
    elif chosen == "average":
        matrix = fine * _overlaps(fine, coarse).T
    else:
        matrix = _hats(_points(fine, "vertex"), coarse)
    matrix.flags.writeable = False
    return matrix


def _per_axis(name: str, value: str | Sequence[str], axes: int) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) * axes
    check_sequence(name, value)
    if len(value) != axes:
        raise ValueError(f"{name} must be one string or one per axis ({axes}), got {list(value)}")
    return tuple(value)


def _check_shapes(field: Array | np.ndarray, shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, Sequence | np.ndarray):
        raise TypeError(f"shape must be a sequence of integers, got {shape!r}")
    target = tuple(check_positive_int(f"shape[{i}]", n) for i, n in enumerate(shape))
    if not target or np.ndim(field) != len(target) + 2:
        raise ValueError(
            f"field must have shape (batch, *spatial, channels) with one spatial axis per entry of "
            f"shape={target}, got {np.shape(field)}"
        )
    return target


def _apply(field: AnyArray, matrices: Sequence[Matrix]) -> AnyArray:
    """Multiply every spatial axis with its matrix; integers become floating-point numbers."""
    for axis, matrix in enumerate(matrices, start=1):
        if matrix.shape[0] == matrix.shape[1]:
            continue
        if isinstance(field, np.ndarray):
            dtype = np.result_type(field.dtype, np.float32)
            product = np.tensordot(field.astype(dtype), matrix.astype(dtype), axes=(axis, 1))
            field = np.moveaxis(product, -1, axis)
        else:
            dtype = jnp.result_type(field.dtype, jnp.float32)
            product = jnp.tensordot(
                field.astype(dtype),
                jnp.asarray(matrix, dtype),
                axes=(axis, 1),
                precision=lax.Precision.HIGHEST,
            )
            field = jnp.moveaxis(product, -1, axis)
    return field


def restrict_field(
    field: AnyArray,
    shape: Sequence[int],
    *,
    grid_kind: str | Sequence[str] = "periodic",
    method: str | Sequence[str] = "auto",
) -> AnyArray:
    """Fields on a coarser grid.

    Args:
        field: shape (batch, *spatial, channels), a NumPy or a JAX array.
        shape: points per axis of the coarser grid, at most those of ``field``.
        grid_kind: where the points lie, for all axes or one per axis: ``"periodic"`` at j / n,
            ``"cell"`` at (j + 1/2) / n, ``"vertex"`` at j / (n - 1) with the boundary.
        method: how to restrict, for all axes or one per axis: ``"spectral"`` (periodic), ``"average"``
            (cell), ``"full-weighting"`` (vertex), ``"cosine"`` (cell or vertex); ``"auto"`` is
            ``"spectral"``, ``"full-weighting"``, or on cells ``"average"`` if the grids nest, else
            ``"cosine"``.

    Returns:
        Fields of shape (batch, *shape, channels), of the kind of array that was given. An axis
        whose size does not change is left as it is.

    Raises:
        ValueError: if the shapes do not fit, or a grid kind or method is not allowed.
        TypeError: if a size is not an integer.
    """
    target = _check_shapes(field, shape)
    kinds = _per_axis("grid_kind", grid_kind, len(target))
    methods = _per_axis("method", method, len(target))
    axes = zip(field.shape[1:-1], target, kinds, methods, strict=True)
    return _apply(field, [restriction_matrix(*axis) for axis in axes])


def interpolate_field(
    field: AnyArray,
    shape: Sequence[int],
    *,
    grid_kind: str | Sequence[str] = "periodic",
    method: str | Sequence[str] = "auto",
) -> AnyArray:
    """Fields on a finer grid; the counterpart of `restrict_field`.

    Args:
        field: shape (batch, *spatial, channels), a NumPy or a JAX array.
        shape: points per axis of the finer grid, at least those of ``field``.
        grid_kind: where the points lie, for all axes or one per axis; see `restrict_field`.
        method: the restriction whose counterpart is meant, for all axes or one per axis; see
            `restrict_field`.

    Returns:
        Fields of shape (batch, *shape, channels), of the kind of array that was given.

    Raises:
        ValueError: if the shapes do not fit, or a grid kind or method is not allowed.
        TypeError: if a size is not an integer.
    """
    target = _check_shapes(field, shape)
    kinds = _per_axis("grid_kind", grid_kind, len(target))
    methods = _per_axis("method", method, len(target))
    axes = zip(target, field.shape[1:-1], kinds, methods, strict=True)
    return _apply(field, [interpolation_matrix(*axis) for axis in axes])


def coarsest_grid(
    modes: int | Sequence[int],
    finest_shape: Sequence[int],
    *,
    oversampling: float = 2.0,
    grid_kind: str | Sequence[str] = "periodic",
    nested: bool = True,
) -> tuple[int, ...]:
    r"""The coarsest grid on which a level with given modes can be trained.

    The frequencies $|k| < m$ need $2m - 1$ points. The activation makes frequencies that the layer
    did not have, and on a grid of that size they fold back onto the kept ones; ``oversampling``
    times as many points leave room for them.

    Args:
        modes: number of modes, one for all axes or one per axis.
        finest_shape: points per axis of the finest grid.
        oversampling: factor of at least one. Where the finest grid has fewer points than this
            asks for, it is used as it is.
        grid_kind: where the points lie, for all axes or one per axis.
        nested: round up to a size whose cells are made of whole cells of the finest grid, which
            restricts best; otherwise take the smallest size.

    Returns:
        Points per axis.

    Raises:
        ValueError: if the finest grid is too coarse for the modes, ``oversampling`` is below one,
            or ``modes`` does not have one entry per axis.
        TypeError: if a number of modes or a size is not an integer.
    """
    if not isinstance(finest_shape, Sequence | np.ndarray):
        raise TypeError(f"finest_shape must be a sequence of integers, got {finest_shape!r}")
    finest = tuple(check_positive_int(f"finest_shape[{i}]", n) for i, n in enumerate(finest_shape))
    kinds = _per_axis("grid_kind", grid_kind, len(finest))
    if check_positive("oversampling", oversampling) < 1:
        raise ValueError(f"oversampling must be at least 1, got {oversampling!r}")
    if isinstance(modes, Sequence):
        if len(modes) != len(finest):
            raise ValueError(f"modes must have {len(finest)} entries, got {tuple(modes)}")
        per_axis = tuple(check_positive_int(f"modes[{i}]", m) for i, m in enumerate(modes))
    else:
        per_axis = (check_positive_int("modes", modes),) * len(finest)
    grid = []
    for axis, (m, n, kind) in enumerate(zip(per_axis, finest, kinds, strict=True)):
        if n < 2 * m - 1:
            raise ValueError(
                f"finest_shape has {n} points on axis {axis}, too coarse for modes={m}, "
                f"which need {2 * m - 1}"
            )
        least = 2 if kind == "vertex" else 1
        needed = min(n, max(least, math.ceil(oversampling * (2 * m - 1))))
        sizes = range(needed, n + 1)
        grid.append(next(s for s in sizes if grids_nest(n, s, kind)) if nested else needed)
    return tuple(grid)


class ResolutionLevel(NamedTuple):
    """The data of one level.

    Attributes:
        modes: modes of the level, as given; ``None`` where a model has none.
        shape: points per axis.
        inputs: input fields on that grid, shape (samples, *shape, channels).
        outputs: output fields on that grid.
    """

    modes: int | Sequence[int] | None
    shape: tuple[int, ...]
    inputs: Array | np.ndarray
    outputs: Array | np.ndarray


def _modes_of(level: Any) -> Any:
    if isinstance(level, FNO):
        return level.modes
    return None if isinstance(level, nnx.Module) else level


def resolution_hierarchy(
    inputs: AnyArray,
    outputs: AnyArray,
    modes: Sequence[nnx.Module | int | Sequence[int]],
    *,
    shapes: Sequence[Sequence[int]] | None = None,
    oversampling: float = 2.0,
    grid_kind: str | Sequence[str] | None = None,
    input_method: str | Sequence[str] = "auto",
    output_method: str | Sequence[str] = "auto",
    nested: bool = True,
) -> list[ResolutionLevel]:
    """The data of every level, each on the grid that its modes need, coarsest first.

    Args:
        inputs: input fields on the finest grid, shape (samples, *spatial, channels).
        outputs: output fields on the same grid.
        modes: the models of all levels, coarsest first, or their modes: each one number or one per
            axis.
        shapes: grid of every level, which models without modes (all but `FNO`) need; by default
            `coarsest_grid` for all but the finest level, which has the given fields themselves.
        oversampling: passed to `coarsest_grid`.
        grid_kind: where the points lie; by default where the models say, or ``"cell"`` without models.
        input_method: how inputs are restricted, see `restrict_field`.
        output_method: how outputs are restricted.
        nested: passed to `coarsest_grid`.

    Returns:
        One `ResolutionLevel` per entry of ``modes``.

    Raises:
        ValueError: if ``modes`` is empty, inputs and outputs differ in samples or grid or do not fit
            the models, the models differ in their kind of grid, ``shapes`` does not have one entry
            per level or is missing for models without modes, fields lack an axis that modes or shapes
            describe, a grid is too coarse for its modes, or an argument of the restriction is not
            allowed.
        TypeError: if fields do not hold numbers, or a size is not an integer.

    Example:
        >>> import numpy as np
        >>> from opifex.training.multilevel import resolution_hierarchy
        >>> fields = np.zeros((10, 64, 1))
        >>> levels = resolution_hierarchy(fields, fields, modes=[4, 8, 16])
        >>> [level.inputs.shape for level in levels]
        [(10, 16, 1), (10, 32, 1), (10, 64, 1)]
    """
    check_sequence("modes", modes)
    if shapes is not None:
        check_sequence("shapes", shapes)
    if len(modes) == 0:
        raise ValueError("modes must name at least one level, got an empty sequence")
    inputs, outputs = check_array("inputs", inputs), check_array("outputs", outputs)
    models = [level for level in modes if isinstance(level, FNO)]
    for model in models:
        check_fields(inputs, model.spatial_dims, model.input_dim, name="inputs")
        check_fields(outputs, model.spatial_dims, model.output_dim, name="outputs")
    if grid_kind is None:
        kinds = {model.grid_kind for model in models} or {"cell"}
        if len(kinds) > 1:
            raise ValueError(f"models must have the same grid_kind, got {sorted(kinds)}")
        (grid_kind,) = kinds
    kept: list[Any] = [_modes_of(level) for level in modes]
    without = [type(level).__name__ for level, m in zip(modes, kept, strict=True) if m is None]
    if shapes is None and without:
        raise ValueError(
            f"shapes must name the grid of every level, since {without[0]} has no modes"
        )
    for name, fields in (("inputs", inputs), ("outputs", outputs)):
        if fields.ndim < 3:
            raise ValueError(
                f"{name} must have shape (samples, *spatial, channels), got {fields.shape}; add the "
                f"axis of channels: {name}[..., None]"
            )
    if inputs.shape[:-1] != outputs.shape[:-1]:
        raise ValueError(
            f"inputs and outputs must have the same shape (samples, *spatial) before the channels, "
            f"got {inputs.shape} and {outputs.shape}"
        )
    for described in (*kept, *(shapes or ())):
        if not isinstance(described, int | np.integer | None):
            check_axes(inputs, len(described), name="inputs")
    if inputs.shape == outputs.shape and inputs.shape[-1] == inputs.shape[-2] > _MANY_CHANNELS:
        warnings.warn(
            f"inputs and outputs of shape {inputs.shape} are read as {inputs.shape[-1]} channels on "
            f"a grid {inputs.shape[1:-1]}; if the last axis is one of the grid, add an axis of "
            "channels: fields[..., None]",
            stacklevel=2,
        )
    finest = inputs.shape[1:-1]
    if shapes is None:
        options: dict[str, Any] = {
            "oversampling": oversampling,
            "grid_kind": grid_kind,
            "nested": nested,
        }
        grids = [coarsest_grid(m, finest, **options) for m in kept[:-1]]
        coarsest_grid(kept[-1], finest, **options)
        grids.append(finest)
    else:
        grids = [tuple(shape) for shape in shapes]
        if len(grids) != len(modes):
            raise ValueError(
                f"shapes must have one entry per level ({len(modes)}), got {len(grids)}"
            )
        for m, shape in zip(kept, grids, strict=True):
            if m is not None:
                coarsest_grid(m, shape, oversampling=1.0, grid_kind=grid_kind)
    return [
        ResolutionLevel(
            modes=m,
            shape=shape,
            inputs=restrict_field(inputs, shape, grid_kind=grid_kind, method=input_method),
            outputs=restrict_field(outputs, shape, grid_kind=grid_kind, method=output_method),
        )
        for m, shape in zip(kept, grids, strict=True)
    ]
