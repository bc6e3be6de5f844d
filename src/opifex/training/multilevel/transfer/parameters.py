r"""Transfer operators: pure maps between the parameters of two neighbouring levels.

Three maps share one description of how a layer grows (`opifex.training.multilevel.transfer.axes`):

* copy-and-pad, $P x_H = $ coarse entries in place, the rest as the fine model has them;
* truncation, $R x_h = $ the entries that have a coarse counterpart, so $R P = I$ exactly;
* function-preserving prolongation, which pads with zeros wherever an *old* output would read a
  *new* feature or mode. The fine model then computes the coarse function to rounding, while the
  rows that feed new units keep their random start: their outgoing weights see a gradient at once
  and no two new units are copies of each other (compare Net2Net, arXiv:1511.05641, section 2,
  whose copies are symmetric).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_module, check_positive
from opifex.models import SpectralConv
from opifex.training.multilevel.transfer.axes import FIXED, Axis, lookup_axes

ModelT = TypeVar("ModelT", bound=nnx.Module)
Transfer = Callable[[Any, Any], Any]
"""A map between levels: ``transfer(source_model, target_model) -> new target model``.

One that promises that the new model computes the source model's function says so by an attribute,
``transfer.preserves_function = True``; `verify_transfer` checks such a promise."""

Path = tuple[Any, ...]

__all__ = [
    "Placement",
    "Transfer",
    "TransferPlan",
    "layer_name",
    "placed_like",
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
    def fan_out_block(self) -> tuple[slice, ...]:
        """Index of every fine entry that contributes to an output the coarse model also has."""
        return tuple(
            place if axis.role == "fan-out" else slice(None)
            for axis, place in zip(self.axes, self.block, strict=True)
        )

    @property
    def grows(self) -> bool:
        """Whether the fine parameter has entries without a coarse counterpart."""
        return self.coarse_shape != self.fine_shape

    def copy_and_pad(self, coarse: Array, fine: Array) -> Array:
        """Fine array with the coarse entries in place, of its own dtype and sharding."""
        return _with_block(fine, self.block, coarse)

    def preserve(self, coarse: Array, fine: Array) -> Array:
        """Like `copy_and_pad`, with zeros where an old output would read something new."""
        return self.copy_and_pad(coarse, _with_block(fine, self.fan_out_block, 0))

    def truncate(self, fine: Array, coarse: Array) -> Array:
        """The coarse entries of a fine array, with dtype and sharding of the coarse array."""
        if _traced(fine, coarse):
            return jnp.asarray(fine[self.block], coarse.dtype)
        return placed_like(np.asarray(fine)[self.block].astype(coarse.dtype), coarse)


@dataclass(frozen=True)
class TransferPlan(Mapping[Path, Placement]):
    """Where every variable of a coarse model sits inside a fine one.

    A mapping from the path of a variable to its `Placement`. Plans of equal content are equal and
    have the same hash: a plan can be a static argument of a compiled function, and its methods
    can be traced there.

    Attributes:
        placements: pairs of a path and its placement. Fine variables without a coarse counterpart
            (added layers) are absent.
    """

    placements: tuple[tuple[Path, Placement], ...]

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
        coarse, fine = _entries(coarse_tree), _entries(fine_tree)
        placed = {p: self[p].copy_and_pad(v, fine[p]) for p, v in coarse.items() if p in self}
        return _replaced(fine_tree, fine | placed)

    def restrict(self, fine_tree: Any, coarse_tree: Any) -> Any:
        """A tree like ``coarse_tree`` with those entries of ``fine_tree`` that it also has.

        Args:
            fine_tree: an ``nnx.State`` like the parameters, or other variables, of the fine model.
            coarse_tree: the same of the coarse model; states of random number generators, which
                are not transferred, and all dtypes stay.
        """
        fine, coarse = _entries(fine_tree), _entries(coarse_tree)
        kept = {p: self[p].truncate(fine[p], v) for p, v in coarse.items() if p in self}
        return _replaced(coarse_tree, coarse | kept)


def _traced(*arrays: Any) -> bool:
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def _with_block(array: Array, block: tuple[slice, ...], values: Any) -> Array:
    """A copy of an array with one block replaced.

    A transfer happens once per level, on shapes that never come back: outside of compiled code the
    block is written by NumPy, since compiling a scatter for each parameter costs more than all else.
    """
    if _traced(array, values):
        return array.at[block].set(jnp.asarray(values, array.dtype))
    result = np.array(array)
    result[block] = np.asarray(values, result.dtype)
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


def layer_name(path: Path) -> str:
    """The path of a variable or module as text."""
    return ".".join(str(part) for part in path) or "the model itself"


def _owners(model: nnx.Module) -> dict[Path, type]:
    """The modules that may own variables; a list or dictionary belongs to the module around it."""
    return {
        path: type(module)
        for path, module in nnx.iter_modules(model)
        if not isinstance(module, nnx.List | nnx.Dict)
    }


def _owner(path: Path, owners: dict[Path, type]) -> Path:
    """Path of the module that a variable belongs to: the nearest one on the way up."""
    return next(path[:n] for n in reversed(range(len(path))) if path[:n] in owners)


def _transferable(model: nnx.Module) -> dict[Path, nnx.Variable]:
    """Every array variable but random keys and the states of random number generators."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    return {p: v for p, v in flat if not jnp.issubdtype(v[...].dtype, jax.dtypes.extended)}


def _leads_to_variable(model: nnx.Module, path: Path) -> bool:
    node: Any = model
    for part in path:
        try:
            node = node[part]
        except (TypeError, LookupError):  # an attribute
            node = getattr(node, str(part), None)
    return isinstance(node, nnx.Variable)


def _place(
    path: Path, owners: dict[Path, type], coarse: tuple[int, ...], fine: tuple[int, ...]
) -> Placement:
    name, above = layer_name(path), _owner(path, owners)
    layer = lookup_axes(owners[above])
    if len(coarse) != len(fine):
        raise ValueError(
            f"{name} has {len(coarse)} axes on the coarse level (shape {coarse}) and {len(fine)} "
            f"on the fine level (shape {fine}); they must agree"
        )
    try:
        axes = layer.axes(str(path[len(above)]), len(fine)) if layer is not None else None
    except ValueError as error:
        raise ValueError(f"{name} of {owners[above].__name__}: {error}") from None
    if axes is None:
        if coarse != fine:
            raise ValueError(
                f"{name} of {owners[above].__name__} grows from {coarse} to {fine}, but its axes are "
                "not described; register_axes tells the transfer what they mean"
            )
        return Placement((FIXED,) * len(fine), (0,) * len(fine), coarse, fine)
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


def plan_transfer(coarse_model: nnx.Module, fine_model: nnx.Module) -> TransferPlan:
    """Describe, for each variable that both models have, where the coarse one sits.

    Args:
        coarse_model: the smaller model.
        fine_model: the larger model, of the same kind.

    Returns:
        The plan, for all variables but the states of random number generators.

    Raises:
        TypeError: if an argument is not an ``nnx.Module``, or the two are of different classes.
        ValueError: if a layer of the coarse model is missing from the fine one, shrinks, or grows
            along an axis that cannot grow; or if variables that are one and the same on the coarse
            level (tied layers) are two on the fine level. The message names the layer.
    """
    check_module("coarse_model", coarse_model)
    check_module("fine_model", fine_model)
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
            f"{layer_name(missing[0])} exists on the coarse level but not on the fine level"
        )
    for path in fine:
        # The paths of a model name a tied variable once.
        if path not in coarse and _leads_to_variable(coarse_model, path):
            raise ValueError(
                f"{layer_name(path)} is tied to another variable on the coarse level, but not on the "
                "fine level; tie both models in the same way"
            )
    return TransferPlan(
        tuple((path, _place(path, owners, coarse[path].shape, fine[path].shape)) for path in coarse)
    )


def _with_variables(model: ModelT, state: Any) -> ModelT:
    return nnx.merge(nnx.graphdef(model), state, copy=True)


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

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy, prolongate
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> new = prolongate(coarse, fine)
        >>> bool((new.output.kernel[:4] == coarse.output.kernel[:]).all())
        True
        >>> bool((new.output.kernel[4:] == fine.output.kernel[4:]).all())
        True
    """
    plan = plan_transfer(coarse_model, fine_model)
    return _with_variables(fine_model, plan.prolong(nnx.state(coarse_model), nnx.state(fine_model)))


def restrict(fine_model: ModelT, coarse_model: ModelT) -> ModelT:
    """Truncate: the entries of ``fine_model`` that have a coarse counterpart.

    ``restrict(prolongate(c, f), c)`` has the dtypes, the sharding, the ties between layers and
    exactly the values of ``c``, and so has ``restrict(prolongate_preserving(c, f), c)``; provided
    that the dtypes of ``f`` hold the values of ``c``, which bfloat16 does not for float32.

    Args:
        fine_model: model of the finer level.
        coarse_model: model of the coarser level, which gives the structure.

    Returns:
        A new model with the structure of ``coarse_model``; neither argument is changed.

    Raises:
        TypeError: if an argument is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match; the message names the layer.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy, restrict
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> bool((restrict(fine, coarse).output.kernel[:] == fine.output.kernel[:4]).all())
        True
    """
    plan = plan_transfer(coarse_model, fine_model)
    state = plan.restrict(nnx.state(fine_model), nnx.state(coarse_model))
    return _with_variables(coarse_model, state)


def _identity_gates(fine_model: nnx.Module, added: set[Path]) -> dict[Path, Array]:
    """Zeros for the gates of added layers; an added layer without a gate is an error."""
    owners = _owners(fine_model)
    fine = _transferable(fine_model)
    gates: dict[Path, Array] = {}
    covered: list[Path] = []
    for path in added:
        above = _owner(path, owners)
        layer = lookup_axes(owners[above])
        if layer is not None and path[len(above)] in layer.identity_gates:
            gates[path] = _zeros(fine[path][...])
            covered.append(above)
    for path in added:
        if not any(path[: len(layer)] == layer for layer in covered):
            raise ValueError(
                f"{layer_name(path)} exists only on the fine level and has no gate that turns its layer "
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

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy, prolongate_preserving
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> new, x = prolongate_preserving(coarse, fine), jnp.ones((5, 2))
        >>> bool(jnp.allclose(new(x), coarse(x), atol=1e-4))
        True
    """
    plan = plan_transfer(coarse_model, fine_model)
    coarse, fine = _transferable(coarse_model), _transferable(fine_model)
    for path, place in plan.items():
        if place.grows and not place.width_preserving:
            raise ValueError(
                f"{layer_name(path)} belongs to a layer whose old outputs change when it grows from "
                f"{place.coarse_shape} to {place.fine_shape}; use prolongate"
            )
    values = {p: place.preserve(coarse[p][...], fine[p][...]) for p, place in plan.items()}
    values |= _identity_gates(fine_model, set(fine) - set(coarse))
    state = nnx.state(fine_model)
    return _with_variables(fine_model, _replaced(state, _entries(state) | values))


prolongate_preserving.preserves_function = True  # type: ignore[attr-defined]


def _entries(tree: Any) -> dict[Path, Any]:
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(tree)}


def _replaced(tree: Any, values: dict[Path, Any]) -> Any:
    flat = [(path, leaf.replace(values[path])) for path, leaf in nnx.to_flat_state(tree)]
    return nnx.from_flat_state(flat)


def _zeros(array: Array) -> Array:
    return _with_block(array, (slice(None),) * array.ndim, 0)


def _check_parameters(name: str, tree: Any, model_name: str, model: nnx.Module) -> None:
    """Raise unless a tree is like the parameters of a model."""
    check_module(model_name, model)
    if not isinstance(tree, nnx.State):
        raise TypeError(
            f"{name} must be an nnx.State like the parameters of {model_name}, got "
            f"{type(tree).__name__}"
        )
    found, wanted = (
        {path: jnp.shape(leaf) for path, leaf in _entries(state).items()}
        for state in (tree, nnx.state(model, nnx.Param))
    )
    for path in [*wanted, *found]:
        if found.get(path) != wanted.get(path):
            raise ValueError(
                f"{name} must be like the parameters of {model_name}, with {wanted.get(path)} at "
                f"{layer_name(path)}, got {found.get(path)}"
            )


def prolongate_correction(
    coarse_tree: Any, coarse_model: nnx.Module, fine_model: nnx.Module
) -> Any:
    """The linear prolongation $P$: a fine tree that holds a coarse one, and is zero elsewhere.

    Differences of parameters and search directions move this way.

    Args:
        coarse_tree: a tree like the parameters of ``coarse_model``.
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.

    Returns:
        A tree like the parameters of ``fine_model``.

    Raises:
        TypeError: if a model is not an ``nnx.Module``, the classes differ, or ``coarse_tree`` is no
            ``nnx.State``.
        ValueError: if the structures do not match; the message names the layer.
    """
    _check_parameters("coarse_tree", coarse_tree, "coarse_model", coarse_model)
    check_module("fine_model", fine_model)
    zeros = jax.tree.map(_zeros, nnx.state(fine_model, nnx.Param))
    return plan_transfer(coarse_model, fine_model).prolong(coarse_tree, zeros)


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

    Returns:
        A tree like the parameters of ``coarse_model``.

    Raises:
        TypeError: if a model is not an ``nnx.Module``, the classes differ, or ``fine_tree`` is no
            ``nnx.State``.
        ValueError: if the structures do not match, or ``scale`` is not positive.
    """
    scale = check_positive("scale", scale)
    _check_parameters("fine_tree", fine_tree, "fine_model", fine_model)
    plan = plan_transfer(coarse_model, fine_model)
    restricted = plan.restrict(fine_tree, nnx.state(coarse_model, nnx.Param))
    return jax.tree.map(lambda leaf: scale * leaf, restricted)


def _check_has_spectral_layers(name: str, model: nnx.Module) -> None:
    check_module(name, model)
    if not any(issubclass(owner, SpectralConv) for owner in _owners(model).values()):
        raise TypeError(
            f"{name} must contain SpectralConv layers, got a {type(model).__name__} without any"
        )


def prolongate_fno_modes(coarse_model: ModelT, fine_model: ModelT) -> ModelT:
    """`prolongate` for Fourier neural operators: each mode goes to its own frequency.

    Arguments, result and errors are those of `prolongate`.

    Raises:
        TypeError: also if a model has no `SpectralConv` layer.
        ValueError: if the structures do not match.
    """
    _check_has_spectral_layers("coarse_model", coarse_model)
    _check_has_spectral_layers("fine_model", fine_model)
    return prolongate(coarse_model, fine_model)


def restrict_fno_modes(fine_model: ModelT, coarse_model: ModelT) -> ModelT:
    """`restrict` for Fourier neural operators: drops the frequencies the coarse model lacks.

    Arguments, result and errors are those of `restrict`.

    Raises:
        TypeError: also if a model has no `SpectralConv` layer.
        ValueError: if the structures do not match.
    """
    _check_has_spectral_layers("fine_model", fine_model)
    _check_has_spectral_layers("coarse_model", coarse_model)
    return restrict(fine_model, coarse_model)
