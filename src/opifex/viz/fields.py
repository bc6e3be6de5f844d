"""Fields on grids and their errors, in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from opifex.core.checks import check_callable, check_nonnegative_int, check_positive_int
from opifex.problems import Box, Problem
from opifex.viz.style import PALETTE, Axes, new_axes

__all__ = ["component_on_grid", "domain_of", "exact_of", "plot_fields", "plot_solution"]

# Beyond this ratio of its sides a rectangle is stretched to fill its panel.
_LARGEST_ASPECT = 3.0
_NAMES = ("x", "y", "z")
# Pairs of coordinates of the three slices through a box, and the coordinate that each holds fixed.
_SLICES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))


def plot_solution(
    reference: Problem | Callable[[Any], Any],
    model: Callable[[Any], Any],
    *,
    lower: Sequence[float] | None = None,
    upper: Sequence[float] | None = None,
    resolution: int = 101,
    component: int = 0,
    axes: Sequence[Axes] | None = None,
    coordinates: Sequence[str] = _NAMES,
) -> list[Axes]:
    """Draw a model of one, two or three coordinates, and its error, on a grid.

    Args:
        reference: a problem with an exact solution, or that solution itself: points of shape (n, dim)
            to values of shape (n,) or (n, m).
        model: the model, called in the same way.
        lower: least coordinates of the box, which decide the dimension; by default those of the
            problem's domain, or zero.
        upper: largest coordinates of the box; by default those of the problem's domain, or one.
            Without ``lower`` and ``upper`` a function is drawn on the unit square.
        resolution: grid points per axis.
        component: which output to draw, where there are several.
        axes: axes to draw into, as many as `plot_fields` returns; new ones by default.
        coordinates: names of the coordinates.

    Returns:
        The axes of the solution and of the error (model minus reference, on a symmetric scale), see
        `plot_fields`.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if ``reference`` is neither a `Problem` nor callable, or ``model`` is not callable.
        ValueError: if the box is empty or of more than three dimensions, ``axes`` are too few or too
            many, or there is no such ``component``.
    """
    exact = exact_of(reference)
    check_callable("model", model)
    check_positive_int("resolution", resolution)
    check_nonnegative_int("component", component)
    domain = domain_of(reference, lower, upper)
    grids = [np.linspace(a, b, resolution) for a, b in zip(domain.lower, domain.upper, strict=True)]
    found, wanted = (component_on_grid(function, grids, component) for function in (model, exact))
    return plot_fields(
        found,
        wanted,
        lower=domain.lower,
        upper=domain.upper,
        axes=axes,
        coordinates=coordinates,
    )


def plot_fields(
    found: Any,
    reference: Any,
    *,
    lower: Sequence[float] | None = None,
    upper: Sequence[float] | None = None,
    axes: Sequence[Axes] | None = None,
    coordinates: Sequence[str] = _NAMES,
) -> list[Axes]:
    """Draw a field on a grid and its error: of a neural operator, for instance, on a test sample.

    In one dimension the left panel holds both curves and the right one their difference. In two
    dimensions both panels are maps. In three dimensions the upper row holds the field on the three
    slices through the middle of the box, and the lower row the error there.

    Args:
        found: the field, shape (n,), (n, m) or (n, m, k), one axis per coordinate, with values at both
            ends of each axis.
        reference: what it should be, of the same shape.
        lower: least coordinates of the box, zero by default.
        upper: largest coordinates of the box, one by default.
        axes: two axes to draw into, or six in three dimensions; new ones by default.
        coordinates: names of the coordinates.

    Returns:
        The axes: two, or six in three dimensions. Errors (found minus reference) have a symmetric
        scale.

    Raises:
        ImportError: if Matplotlib is not installed.
        ValueError: if shapes do not match, have more than three axes or fewer than two points along
            one; if the box is empty or of another dimension, or ``axes`` or ``coordinates`` are not as
            many as needed.

    Example:
        >>> import numpy as np
        >>> from opifex.viz import plot_fields
        >>> x = np.linspace(0, 1, 9)
        >>> field, error = plot_fields(x**2, x)
        >>> error.get_lines()[-1].get_ydata().min().item()
        -0.25
    """
    values, wanted = np.asarray(found), np.asarray(reference)
    if values.shape != wanted.shape:
        raise ValueError(
            f"found and reference must have the same shape, got {values.shape} and {wanted.shape}"
        )
    if values.ndim not in (1, 2, 3) or min(values.shape) < 2:
        raise ValueError(
            f"found must have one to three axes of at least 2 points each, got {values.shape}"
        )
    dim = values.ndim
    box = _box([0.0] * dim if lower is None else lower, [1.0] * dim if upper is None else upper)
    if box.dim != dim:
        raise ValueError(
            f"lower and upper must have {dim} coordinates for found of shape {values.shape}, got "
            f"{box.dim}"
        )
    if len(coordinates) < dim:
        raise ValueError(f"coordinates must be {dim} names, got {list(coordinates)}")
    needed = 6 if dim == 3 else 2
    if axes is not None and len(axes) != needed:
        word = {2: "two", 6: "six"}[needed]
        raise ValueError(f"axes must be {word}, got {len(axes)}")
    panels = list(axes) if axes is not None else new_axes(needed // 3 or 1, 3 if dim == 3 else 2)
    grids = [
        np.linspace(a, b, n) for a, b, n in zip(box.lower, box.upper, values.shape, strict=True)
    ]
    if dim == 1:
        _curves(panels, grids[0], values, wanted, coordinates[0])
    elif dim == 2:
        _maps(panels, grids, values, values - wanted, coordinates)
    else:
        _slices(panels, grids, values, values - wanted, coordinates)
    return panels


def _curves(
    panels: list[Axes], x: np.ndarray, values: np.ndarray, wanted: np.ndarray, name: str
) -> None:
    left, right = panels
    left.plot(x, wanted, color=PALETTE[4], linewidth=3, label="reference")
    left.plot(x, values, color=PALETTE[0], linewidth=1.2, label="found")
    left.legend()
    right.axhline(0.0, color="0.6", linewidth=0.8)
    right.plot(x, values - wanted, color=PALETTE[1], linewidth=1.2)
    for ax, title in ((left, "solution"), (right, "error")):
        ax.set_title(title)
        ax.set_xlabel(name)
        ax.set_xlim(x[0], x[-1])


def _maps(
    panels: list[Axes],
    grids: list[np.ndarray],
    values: np.ndarray,
    error: np.ndarray,
    names: Sequence[str],
) -> None:
    for ax, field, title, options in (
        (panels[0], values, "solution", {"cmap": "viridis"}),
        (panels[1], error, "error", _symmetric(error)),
    ):
        mesh = _map(ax, grids[0], grids[1], field, names, options)
        ax.figure.colorbar(mesh, ax=ax)
        ax.set_title(title)


def _slices(
    panels: list[Axes],
    grids: list[np.ndarray],
    values: np.ndarray,
    error: np.ndarray,
    names: Sequence[str],
) -> None:
    cuts = [(values, a, b, c) for a, b, c in _SLICES] + [(error, a, b, c) for a, b, c in _SLICES]
    # One scale for all slices of a row, so that they can be compared.
    scales = (
        {"cmap": "viridis", "vmin": float(np.nanmin(values)), "vmax": float(np.nanmax(values))},
        _symmetric(error),
    )
    for i, (ax, (field, a, b, fixed)) in enumerate(zip(panels, cuts, strict=True)):
        middle = len(grids[fixed]) // 2
        cut = np.take(field, middle, axis=fixed)
        mesh = _map(ax, grids[a], grids[b], cut, (names[a], names[b]), dict(scales[i // 3]))
        what = "solution" if i < 3 else "error"
        ax.set_title(f"{what}, {names[fixed]} = {grids[fixed][middle]:.3g}")
        if i % 3 == 2:
            ax.figure.colorbar(mesh, ax=panels[i - 2 : i + 1])


def _symmetric(error: np.ndarray) -> dict[str, Any]:
    finite = np.abs(error[np.isfinite(error)])
    largest = float(np.max(finite, initial=0.0)) or 1.0
    return {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}


def _map(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    field: np.ndarray,
    names: Sequence[str],
    options: dict[str, Any],
) -> Any:
    """A map of a field whose first axis is ``x``; pictures have it horizontal."""
    # In a vector file a mesh of ten thousand triangles would be slow to show.
    mesh = ax.pcolormesh(x, y, field.T, shading="gouraud", rasterized=True, **options)
    width, height = x[-1] - x[0], y[-1] - y[0]
    if 1 / _LARGEST_ASPECT <= width / height <= _LARGEST_ASPECT:
        ax.set_aspect("equal")
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    return mesh


def exact_of(reference: Problem | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The solution that a problem knows, or the function itself.

    Raises:
        TypeError: if it is neither.
    """
    exact = reference.exact if isinstance(reference, Problem) else reference
    check_callable("reference", exact)
    return exact


def domain_of(
    reference: Any, lower: Sequence[float] | None = None, upper: Sequence[float] | None = None
) -> Box:
    """The box that is drawn: what is given, else the problem's domain, else a unit cube.

    Args:
        reference: a problem, or anything else, which has no domain.
        lower: least coordinates.
        upper: largest coordinates.

    Raises:
        ValueError: if the box is empty or of more than three dimensions.
    """
    dim = len(lower if lower is not None else upper if upper is not None else (0, 0))
    low: Sequence[float] = (0.0,) * dim
    high: Sequence[float] = (1.0,) * dim
    if isinstance(reference, Problem):
        low, high = reference.domain.lower, reference.domain.upper
    return _box(low if lower is None else lower, high if upper is None else upper)


def _box(lower: Sequence[float], upper: Sequence[float]) -> Box:
    low, high = np.asarray(lower, float), np.asarray(upper, float)
    if low.ndim != 1 or low.shape != high.shape or not 1 <= len(low) <= 3 or not np.all(low < high):
        raise ValueError(
            f"lower and upper must be one to three coordinates each, lower below upper, got "
            f"{low.tolist()} and {high.tolist()}"
        )
    return Box(tuple(low.tolist()), tuple(high.tolist()))


def component_on_grid(
    function: Callable[[Any], Any], grids: Sequence[np.ndarray], component: int = 0
) -> np.ndarray:
    """One output of a function on a tensor grid.

    Args:
        function: points of shape (n, dim) to values of shape (n,) or (n, m).
        grids: coordinates along each axis.
        component: which output.

    Returns:
        Shape of the grid, one axis per coordinate.

    Raises:
        ValueError: if the function has no such output, or not one row per point.
    """
    shape = tuple(len(grid) for grid in grids)
    points = np.stack([a.ravel() for a in np.meshgrid(*grids, indexing="ij")], axis=-1)
    values = np.asarray(function(jnp.asarray(points)))
    if values.ndim not in (1, 2) or len(values) != len(points):
        raise ValueError(
            f"a function must return one row per point, {len(points)} in all, got shape "
            f"{values.shape}"
        )
    values = values.reshape(len(points), -1)
    if component >= values.shape[1]:
        raise ValueError(f"component must be below {values.shape[1]}, got {component}")
    return values[:, component].reshape(shape)
