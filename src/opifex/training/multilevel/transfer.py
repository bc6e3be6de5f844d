r"""Transfer operators: pure maps between the parameters of two neighbouring levels.

Three maps share one description of how a layer grows (`opifex.training.multilevel.axes`):

* copy-and-pad, $P x_H = $ coarse entries in place, the rest as the fine model has them;
* truncation, $R x_h = $ the entries that have a coarse counterpart, so $R P = I$ exactly;
* function-preserving prolongation, which pads with zeros wherever an *old* output would read a
  *new* feature or mode. The fine model then computes the coarse function to rounding, while the
  rows that feed new units keep their random start: their outgoing weights see a gradient at once
  and no two new units are copies of each other (compare Net2Net, arXiv:1511.05641, section 2,
  whose copies are symmetric).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_positive
from opifex.models import SpectralConv
from opifex.training.multilevel.axes import Axis, lookup_axes

ModelT = TypeVar("ModelT", bound=nnx.Module)
Transfer = Callable[[Any, Any], Any]
"""A map between levels: ``transfer(source_model, target_model) -> new target model``."""

Path = tuple[Any, ...]

__all__ = [
    "Placement",
    "Transfer",
    "block_embedding",
    "plan_transfer",
    "prolongate",
    "prolongate_correction",
    "prolongate_fno_modes",
    "prolongate_preserving",
    "restrict",
    "restrict_fno_modes",
    "restrict_gradient",
]


@dataclass(frozen=True)
class Placement:
    """Where one coarse parameter sits inside its fine counterpart.

    Attributes:
        axes: meaning of each axis.
        start: first index of the coarse block on each axis.
        coarse_shape: shape of the coarse parameter.
        fine_shape: shape of the fine parameter.
        width_preserving: see `LayerAxes`.
    """

    axes: tuple[Axis, ...]
    start: tuple[int, ...]
    coarse_shape: tuple[int, ...]
    fine_shape: tuple[int, ...]
    width_preserving: bool = True

    @property
    def block(self) -> tuple[slice, ...]:
        """Index of the coarse entries in the fine array."""
        return tuple(slice(s, s + n) for s, n in zip(self.start, self.coarse_shape, strict=True))

    @property
    def written_block(self) -> tuple[slice, ...]:
        """Index of every fine entry that contributes to an output the coarse model also has."""
        return tuple(
            place if axis.role == "writes" else slice(None)
            for axis, place in zip(self.axes, self.block, strict=True)
        )

    @property
    def grows(self) -> bool:
        """Whether the fine parameter has entries without a coarse counterpart."""
        return self.coarse_shape != self.fine_shape

    def copy_and_pad(self, coarse: Array, fine: Array) -> Array:
        """Fine array with the coarse entries in place."""
        if not self.grows:
            return jnp.asarray(coarse, fine.dtype)
        return _with_block(fine, self.block, coarse)

    def preserve(self, coarse: Array, fine: Array) -> Array:
        """Like `copy_and_pad`, with zeros where an old output would read something new."""
        cleared = _with_block(fine, self.written_block, 0) if self.grows else fine
        return self.copy_and_pad(coarse, cleared)

    def truncate(self, fine: Array, dtype: Any) -> Array:
        """The coarse entries of a fine array."""
        if isinstance(fine, jax.core.Tracer):
            return jnp.asarray(fine[self.block], dtype)
        return jnp.asarray(np.asarray(fine)[self.block], dtype)


def _with_block(array: Array, block: tuple[slice, ...], values: Any) -> Array:
    """A copy of an array with one block replaced.

    A transfer happens once per level, on shapes that never come back: outside of compiled code the
    block is written by NumPy, since compiling a scatter for each parameter costs more than all else.
    """
    if isinstance(array, jax.core.Tracer) or isinstance(values, jax.core.Tracer):
        return array.at[block].set(jnp.asarray(values, array.dtype))
    result = np.array(array)
    result[block] = np.asarray(values, result.dtype)
    return jax.device_put(result, array.sharding)


def _name(path: Path) -> str:
    return ".".join(str(part) for part in path) or "the model itself"


def _owners(model: nnx.Module) -> dict[Path, type]:
    return {path: type(module) for path, module in nnx.iter_modules(model)}


def _transferable(model: nnx.Module) -> dict[Path, nnx.Variable]:
    """Every array variable but the states of random number generators."""
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return dict(nnx.to_flat_state(state))


def _place(path: Path, owner: type, coarse: tuple[int, ...], fine: tuple[int, ...]) -> Placement:
    name = _name(path)
    layer = lookup_axes(owner)
    axes = layer.axes(str(path[-1]), len(fine)) if layer is not None else None
    if len(coarse) != len(fine):
        raise ValueError(
            f"{name} has {len(coarse)} axes on the coarse level (shape {coarse}) and {len(fine)} "
            f"on the fine level (shape {fine}); they must agree"
        )
    if axes is None:
        if coarse != fine:
            raise ValueError(
                f"{name} of {owner.__name__} grows from {coarse} to {fine}, but its axes are not "
                "described; register_axes tells the transfer what they mean"
            )
        return Placement((Axis("fixed"),) * len(fine), (0,) * len(fine), coarse, fine)
    start = []
    for number, (axis, n_coarse, n_fine) in enumerate(zip(axes, coarse, fine, strict=True)):
        extra = n_fine - n_coarse
        if extra < 0:
            raise ValueError(
                f"{name} is larger on the coarse level than on the fine level along axis {number}: "
                f"{coarse} against {fine}"
            )
        if extra and axis.role == "fixed":
            raise ValueError(
                f"{name} has a fixed axis {number} whose size differs: {coarse} against {fine}"
            )
        if axis.centred and extra % 2:
            raise ValueError(
                f"{name} has a symmetric axis {number} that must grow by an even number of "
                f"entries: {coarse} against {fine}"
            )
        start.append(extra // 2 if axis.centred else 0)
    assert layer is not None
    return Placement(axes, tuple(start), coarse, fine, layer.width_preserving)


def plan_transfer(coarse_model: nnx.Module, fine_model: nnx.Module) -> dict[Path, Placement]:
    """Describe, for each variable that both models have, where the coarse one sits.

    Args:
        coarse_model: the smaller model.
        fine_model: the larger model, of the same kind.

    Returns:
        Variable path to `Placement`. Fine variables without a coarse counterpart (added layers)
        are absent.

    Raises:
        TypeError: if an argument is not an ``nnx.Module``, or the two are of different classes.
        ValueError: if a layer of the coarse model is missing from the fine one, shrinks, or grows
            along an axis that cannot grow; the message names the layer.
    """
    for name, model in (("coarse_model", coarse_model), ("fine_model", fine_model)):
        if not isinstance(model, nnx.Module):
            raise TypeError(f"{name} must be an nnx.Module, got {type(model).__name__}")
    if type(coarse_model) is not type(fine_model):
        raise TypeError(
            f"coarse_model and fine_model must be of the same class, got "
            f"{type(coarse_model).__name__} and {type(fine_model).__name__}"
        )
    coarse, fine = _transferable(coarse_model), _transferable(fine_model)
    owners = _owners(fine_model)
    missing = [path for path in coarse if path not in fine]
    if missing:
        raise ValueError(
            f"{_name(missing[0])} exists on the coarse level but not on the fine level"
        )
    return {
        path: _place(path, owners[path[:-1]], coarse[path].shape, fine[path].shape)
        for path in coarse
    }


def _rebuild(model: ModelT, values: dict[Path, Array]) -> ModelT:
    """A copy of ``model`` with some variables replaced; the original keeps its own."""
    graph, state = nnx.split(model)
    flat = [
        (
            path,
            variable.replace(values[path]) if path in values else variable.replace(variable[...]),
        )
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat), copy=True)


def prolongate(coarse_model: ModelT, fine_model: ModelT) -> ModelT:
    """Copy and pad: coarse entries in place, all other entries as ``fine_model`` has them.

    The result does **not** compute the coarse model's function: old units now also read new, random
    ones. `prolongate_preserving` does.

    Args:
        coarse_model: model of the coarser level.
        fine_model: model of the finer level, whose values fill the new entries.

    Returns:
        A new model with the structure of ``fine_model``; neither argument is changed.

    Raises:
        TypeError: if an argument is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match; the message names the layer.
    """
    plan = plan_transfer(coarse_model, fine_model)
    coarse, fine = _transferable(coarse_model), _transferable(fine_model)
    return _rebuild(
        fine_model,
        {p: place.copy_and_pad(coarse[p][...], fine[p][...]) for p, place in plan.items()},
    )


def restrict(fine_model: ModelT, coarse_model: ModelT) -> ModelT:
    """Truncate: the entries of ``fine_model`` that have a coarse counterpart.

    ``restrict(prolongate(c, f), c)`` has exactly the parameters of ``c``, and so has
    ``restrict(prolongate_preserving(c, f), c)``.

    Args:
        fine_model: model of the finer level.
        coarse_model: model of the coarser level, which gives the structure.

    Returns:
        A new model with the structure of ``coarse_model``; neither argument is changed.

    Raises:
        TypeError: if an argument is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match; the message names the layer.
    """
    plan = plan_transfer(coarse_model, fine_model)
    coarse, fine = _transferable(coarse_model), _transferable(fine_model)
    return _rebuild(
        coarse_model,
        {p: place.truncate(fine[p][...], coarse[p][...].dtype) for p, place in plan.items()},
    )


def _identity_gates(fine_model: nnx.Module, added: set[Path]) -> dict[Path, Array]:
    """Zeros for the gates of added layers; an added layer without a gate is an error."""
    owners = _owners(fine_model)
    fine = _transferable(fine_model)
    gates: dict[Path, Array] = {}
    covered: list[Path] = []
    for path in added:
        layer = lookup_axes(owners[path[:-1]])
        if layer is not None and path[-1] in layer.identity_gates:
            gates[path] = jnp.asarray(np.zeros(fine[path].shape, fine[path].dtype))
            covered.append(path[:-1])
    for path in added:
        if not any(path[: len(layer)] == layer for layer in covered):
            raise ValueError(
                f"{_name(path)} exists only on the fine level and has no gate that turns its layer "
                "into the identity, so the coarse function cannot be preserved; build the models "
                "with depth_gates=True or use prolongate"
            )
    return gates


def prolongate_preserving(coarse_model: ModelT, fine_model: ModelT) -> ModelT:
    """Prolongate so that the fine model computes the coarse model's function, to rounding.

    Covers growth in width, in Fourier modes, and in depth (for layers with an identity gate, such
    as those of ``MLP(depth_gates=True)``). Entries through which old outputs would read new features
    or modes start at zero; every other new entry keeps the value it has in ``fine_model``.

    Args:
        coarse_model: model of the coarser level.
        fine_model: model of the finer level, whose values start the incoming weights of new units.

    Returns:
        A new model with the structure of ``fine_model``; neither argument is changed.

    Raises:
        TypeError: if an argument is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match, or a layer cannot preserve the function (a
            feature normalisation that widens, an added layer without gate); names the layer.
    """
    plan = plan_transfer(coarse_model, fine_model)
    coarse, fine = _transferable(coarse_model), _transferable(fine_model)
    for path, place in plan.items():
        if place.grows and not place.width_preserving:
            raise ValueError(
                f"{_name(path)} belongs to a layer whose old outputs change when it grows from "
                f"{place.coarse_shape} to {place.fine_shape}; use prolongate"
            )
    values = {p: place.preserve(coarse[p][...], fine[p][...]) for p, place in plan.items()}
    values |= _identity_gates(fine_model, set(fine) - set(coarse))
    return _rebuild(fine_model, values)


def _entries(tree: Any) -> dict[Path, Any]:
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(tree)}


def _replaced(tree: Any, values: dict[Path, Any]) -> Any:
    flat = [(path, leaf.replace(values[path])) for path, leaf in nnx.to_flat_state(tree)]
    return nnx.from_flat_state(flat)


def prolongate_correction(
    coarse_tree: Any, coarse_model: nnx.Module, fine_model: nnx.Module
) -> Any:
    """The linear prolongation $P$: a fine tree that holds a coarse one, and is zero elsewhere.

    Differences of parameters and search directions move this way.

    Args:
        coarse_tree: a tree like the parameters of ``coarse_model``.
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.

    Raises:
        TypeError: if a model is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match; the message names the layer.
    """
    plan = plan_transfer(coarse_model, fine_model)
    coarse = _entries(coarse_tree)
    fine_params = nnx.state(fine_model, nnx.Param)
    padded = {}
    for path, leaf in _entries(fine_params).items():
        zeros = jnp.asarray(np.zeros(leaf.shape, leaf.dtype))
        padded[path] = plan[path].copy_and_pad(coarse[path], zeros) if path in coarse else zeros
    return _replaced(fine_params, padded)


def restrict_gradient(
    fine_tree: Any, coarse_model: nnx.Module, fine_model: nnx.Module, *, scale: float = 1.0
) -> Any:
    r"""The variational restriction $c P^T$: the entries of a fine tree with a coarse counterpart.

    Gradients, which are dual to parameters, move this way: $\langle P x, y \rangle =
    \langle x, P^T y \rangle$.

    Args:
        fine_tree: a tree like the parameters of ``fine_model``.
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.
        scale: the factor $c$.

    Raises:
        TypeError: if a model is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match, or ``scale`` is not positive.
    """
    check_positive("scale", scale)
    plan = plan_transfer(coarse_model, fine_model)
    fine = _entries(fine_tree)
    coarse_params = nnx.state(coarse_model, nnx.Param)
    values = {
        path: scale * plan[path].truncate(fine[path], leaf.dtype)
        for path, leaf in _entries(coarse_params).items()
    }
    return _replaced(coarse_params, values)


def block_embedding(coarse_model: nnx.Module, fine_model: nnx.Module) -> Callable[[Any, Any], Any]:
    """The map ``embed(block, params)`` that puts coarse parameters into a tree of fine ones.

    Raises:
        TypeError: if a model is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match; the message names the layer.
    """
    plan = plan_transfer(coarse_model, fine_model)

    def embed(block: Any, params: Any) -> Any:
        coarse, fine = _entries(block), _entries(params)
        placed = {path: plan[path].copy_and_pad(coarse[path], fine[path]) for path in coarse}
        return _replaced(params, fine | placed)

    return embed


def _check_has_spectral_layers(name: str, model: nnx.Module) -> None:
    if not isinstance(model, nnx.Module):
        raise TypeError(f"{name} must be an nnx.Module, got {type(model).__name__}")
    if not any(issubclass(owner, SpectralConv) for owner in _owners(model).values()):
        raise TypeError(
            f"{name} must contain SpectralConv layers, got a {type(model).__name__} without any"
        )


def prolongate_fno_modes(coarse_model: ModelT, fine_model: ModelT) -> ModelT:
    """`prolongate` for Fourier neural operators: each mode goes to its own frequency.

    Raises:
        TypeError: additionally, if a model has no `SpectralConv` layer.
    """
    _check_has_spectral_layers("coarse_model", coarse_model)
    _check_has_spectral_layers("fine_model", fine_model)
    return prolongate(coarse_model, fine_model)


def restrict_fno_modes(fine_model: ModelT, coarse_model: ModelT) -> ModelT:
    """`restrict` for Fourier neural operators: drops the frequencies the coarse model lacks.

    Raises:
        TypeError: additionally, if a model has no `SpectralConv` layer.
    """
    _check_has_spectral_layers("fine_model", fine_model)
    _check_has_spectral_layers("coarse_model", coarse_model)
    return restrict(fine_model, coarse_model)
