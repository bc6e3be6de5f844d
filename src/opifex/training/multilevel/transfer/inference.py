"""The plan of a transfer between two models, inferred by tracing both.

Coarse and fine model run the same operations on arrays of other sizes. Which axes belong together, and
which parameters feed which sums, follows from these operations (`tracing`): no layer has to be
described. The idea is that of dependency graphs in structural pruning (Fang et al., arXiv:2301.12900),
turned around: there features are taken away together, here they are added.

A plan is kept for models of the same structure, so that the transfer of the parameters, that of the
optimizer's state and the cycles that go back and forth infer it once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx

from opifex.core.checks import check_module
from opifex.training.multilevel.transfer.placements import (
    Mask,
    Placement,
    TransferPlan,
    indices,
)
from opifex.training.multilevel.transfer.tracing import (
    Path,
    Preservation,
    StructureError,
    accepted_inputs,
    contracted_axes,
    correspondence,
    guessed_inputs,
    path_text,
    preservation,
    resolved,
    source_entries,
    trace,
    transferable,
)

__all__ = ["plan_transfer", "traced_with"]

Call = Callable[..., Any]
"""How to use a model: ``call(model, *inputs)``."""


@dataclass
class _Use:
    """How models are used where transfers between them are asked for, and plans for this use."""

    data: tuple[Any, ...] = ()
    loss: Call | None = None
    kept: dict[Any, TransferPlan] = field(default_factory=dict)


_use: ContextVar[_Use | None] = ContextVar("_use", default=None)
_kept: OrderedDict[Any, TransferPlan] = OrderedDict()
_MOST_KEPT = 64


@contextmanager
def traced_with(data: Sequence[Any], loss: Call | None = None) -> Iterator[None]:
    """Let `plan_transfer` trace models with these data, where it is given no inputs.

    Args:
        data: arrays or their shapes, as a loss gets them after the model.
        loss: ``loss(model, *data)``, which is traced if the model itself cannot be called.
    """
    token = _use.set(_Use(tuple(data), loss))
    try:
        yield
    finally:
        _use.reset(token)


def _leads_to_variable(model: nnx.Module, path: Path) -> bool:
    node: Any = model
    for part in path:
        try:
            node = node[part]
        except (TypeError, LookupError):  # an attribute
            node = getattr(node, str(part), None)
    return isinstance(node, nnx.Variable)


def _check_variables(
    coarse_model: nnx.Module, coarse: dict[Path, Any], fine: dict[Path, Any]
) -> None:
    for path, variable in coarse.items():
        name = path_text(path)
        if path not in fine:
            raise ValueError(f"{name} exists on the coarse level but not on the fine level")
        sizes = variable.shape, fine[path].shape
        if len(sizes[0]) != len(sizes[1]):
            raise ValueError(
                f"{name} has {len(sizes[0])} axes on the coarse level (shape {sizes[0]}) and "
                f"{len(sizes[1])} on the fine level (shape {sizes[1]}); they must agree"
            )
        for axis, (c, f) in enumerate(zip(*sizes, strict=True)):
            if f < c:
                raise ValueError(
                    f"{name} is larger on the coarse level than on the fine level along axis {axis}: "
                    f"{sizes[0]} against {sizes[1]}"
                )
    for path in fine:
        # The paths of a model name a tied variable once.
        if path not in coarse and _leads_to_variable(coarse_model, path):
            raise ValueError(
                f"{path_text(path)} is tied to another variable on the coarse level, but not on the "
                "fine level; tie both models in the same way"
            )


def plan_transfer(coarse_model: nnx.Module, fine_model: nnx.Module, *inputs: Any) -> TransferPlan:
    """Work out, for each variable that both models have, where the coarse one sits.

    Args:
        coarse_model: the smaller model.
        fine_model: the larger model, of the same kind.
        *inputs: arguments that both models take, arrays or ``jax.ShapeDtypeStruct``; nothing is
            computed with them. In `CascadeTrainer.fit` the data are used. Without any, inputs that
            both models take are looked for.

    Returns:
        The plan, for all variables but the states of random number generators. Parameters that a
        call of the model does not use keep their old entries in front.

    Raises:
        TypeError: if a model is not an ``nnx.Module``, or the two are of different classes.
        ValueError: if a layer of the coarse model is missing from the fine one or shrinks; if variables
            that are one and the same on the coarse level (tied layers) are two on the fine level; if
            the models run different operations, or no inputs were found that both take. The message
            names the layer or the line of the model.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy
        >>> from opifex.training.multilevel.transfer import plan_transfer
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> plan_transfer(coarse, fine)["output", "kernel"].index
        (range(0, 4), range(0, 1))
    """
    check_module("coarse_model", coarse_model)
    check_module("fine_model", fine_model)
    if type(coarse_model) is not type(fine_model):
        raise TypeError(
            f"coarse_model and fine_model must be of the same class, got "
            f"{type(coarse_model).__name__} and {type(fine_model).__name__}"
        )
    coarse, fine = transferable(coarse_model), transferable(fine_model)
    _check_variables(coarse_model, coarse, fine)
    if len(fine) == len(coarse) and all(v.shape == fine[p].shape for p, v in coarse.items()):
        return TransferPlan(
            tuple((path, Placement.in_front(v.shape, v.shape)) for path, v in coarse.items())
        )
    if inputs:
        return _kept_plan(coarse_model, fine_model, inputs, None)
    use = _use.get() or _Use()
    return _kept_plan(coarse_model, fine_model, use.data, use)


def _kept_plan(
    coarse_model: nnx.Module, fine_model: nnx.Module, inputs: tuple[Any, ...], use: _Use | None
) -> TransferPlan:
    models: tuple[Any, Any] = coarse_model, fine_model
    key = (
        *((nnx.graphdef(m), _shapes(transferable(m))) for m in models),
        _shapes(inputs),
        use is None,
    )
    try:
        hash(key)
    except TypeError:  # a list among the attributes of a module: nothing to keep a plan under
        return _inferred(*models, inputs, use)[0]
    for kept in (_kept, use.kept if use else {}):
        if key in kept:
            return kept[key]
    plan, by_loss = _inferred(*models, inputs, use)
    if by_loss and use is not None:
        use.kept[key] = plan
    else:
        _kept[key] = plan
        if len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return plan


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(_structs(tree))
    return structure, tuple(leaves)


def _inferred(
    coarse_model: nnx.Module, fine_model: nnx.Module, given: tuple[Any, ...], use: _Use | None
) -> tuple[TransferPlan, bool]:
    """The plan, and whether it holds for the present use only."""
    models: tuple[Any, Any] = coarse_model, fine_model
    if use is None:
        return _traced(*models, given, given), False
    first: StructureError | None = None
    guess = None
    if callable(models[0]):
        accepted = accepted_inputs(*models, given)
        if accepted is not None:
            try:
                return _traced(*models, accepted, accepted), False
            except StructureError as error:  # code that chooses by the size of its input, perhaps
                first = error
        guess = guessed_inputs(*models)
    if guess is not None:
        try:
            return _traced(*models, *guess), False
        except StructureError as error:
            raise first or error from None
    if first is not None:
        raise first
    if use.loss is not None:
        return _traced(*models, given, given, use.loss), True
    if not callable(models[0]):
        reason = f"{type(fine_model).__name__} cannot be called: nothing is known of its function"
        return _by_name(*models, reason), False
    raise ValueError(
        "inputs must be given: none were found that both models take, so that they can be traced; "
        f"what the coarse {type(coarse_model).__name__} takes, arrays or jax.ShapeDtypeStruct, "
        "goes behind the two models"
    )


def _by_name(coarse_model: nnx.Module, fine_model: nnx.Module, reason: str) -> TransferPlan:
    """The plan where nothing but names and shapes is known: old entries in front."""
    fine = transferable(fine_model)
    places = (
        (path, Placement.in_front(v.shape, fine[path].shape))
        for path, v in transferable(coarse_model).items()
    )
    return TransferPlan(tuple(places), obstacles=(reason,))


def _program(name: str, model: nnx.Module, inputs: tuple[Any, ...], call: Call | None) -> Any:
    try:
        return trace(model, inputs, call)
    except jax.errors.ConcretizationTypeError as error:
        raise StructureError(
            f"the {name} model decides by the values of its data, in Python, what to compute; such a "
            f"model cannot be traced (jax.lax.cond or jnp.where can be): {error}"
        ) from error
    except Exception as error:
        shapes = jax.tree.map(jax.numpy.shape, inputs)
        raise ValueError(
            f"inputs must be what both models take, got {shapes}, of which the {name} model says: "
            f"{error}"
        ) from error


def _structs(tree: Any) -> Any:
    def struct(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(jax.numpy.shape(leaf), jax.numpy.result_type(leaf))

    return jax.tree.map(struct, tree)


def _traced(
    coarse_model: nnx.Module,
    fine_model: nnx.Module,
    coarse_inputs: tuple[Any, ...],
    fine_inputs: tuple[Any, ...],
    call: Call | None = None,
) -> TransferPlan:
    programs = (
        _program("coarse", coarse_model, _structs(coarse_inputs), call),
        _program("fine", fine_model, _structs(fine_inputs), call),
    )
    try:
        found = correspondence(*programs)
    except StructureError as error:
        coarse, fine = (transferable(model) for model in (coarse_model, fine_model))
        if len(fine) > len(coarse) and all(v.shape == fine[p].shape for p, v in coarse.items()):
            # Layers are added, and nothing else: the places are known, but not the function.
            return _by_name(coarse_model, fine_model, str(error))
        raise StructureError(
            f"{error}. Models that differ in more than sizes need a transfer of their own "
            "(prolongate_fn=...)"
        ) from None
    needed = preservation(found)
    contracted = contracted_axes(found)
    placements = tuple(
        (path, _placement(path, found, needed, contracted)) for path in found.coarse.parameters
    )
    added = tuple(
        (path, Mask.of(mask))
        for path, mask in needed.zeros.items()
        if path not in found.coarse.parameters
    )
    return TransferPlan(placements, added, tuple(dict.fromkeys(needed.obstacles)))


def _placement(
    path: Path, found: Any, needed: Preservation, contracted: set[tuple[Path, int]]
) -> Placement:
    value = found.fine.parameters[path]
    maps = found.maps(value)
    sources: list[Any] = []
    for axis, term in enumerate(maps):
        groups = [group for a, group in needed.repeated.get(path, ()) if a == axis]
        sources.append(indices(source_entries(term, groups)) if groups else None)
    mask = needed.zeros.get(path)
    scale, scaled = needed.factors.get(path, (1.0, np.ones((), bool)))
    return Placement(
        tuple(indices(resolved(term)) for term in maps),
        found.coarse.parameters[path].shape,
        value.shape,
        tuple((path, axis) in contracted for axis in range(len(maps))),
        None if mask is None else Mask.of(np.broadcast_to(mask, _kept_axes(mask, value.shape))),
        tuple(sources) if any(s is not None for s in sources) else (),
        scale,
        None if scaled.all() else Mask.of(scaled),
    )


def _kept_axes(mask: np.ndarray, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a mask, with as many axes as the array that it is for."""
    return (1,) * (len(shape) - mask.ndim) + mask.shape
