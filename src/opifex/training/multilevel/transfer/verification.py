r"""The check that a transfer keeps the function it promises to keep.

A prolongation that preserves the function rests on what is inferred of a model from one trace
(`opifex.training.multilevel.transfer.inference`), or on what the author of a transfer thought. Where
either is wrong, the fine model starts from another function, and nothing but a worse result would tell.
So both models are evaluated at a few inputs.

How far apart may they be? Both are the same sums with zeros added, rounded in another order: the
difference is a modest multiple of what one rounding error in every parameter and every input does.
That is measured: parameters and inputs of the coarse model are changed by the relative size of one
rounding error, with random signs, and the output moves by $d$ (a random probe of the condition number
as in stochastic arithmetic; Parker, Monte Carlo Arithmetic, UCLA CSD-970002, 1997). With the output
$y$ and the machine epsilon $\epsilon$ of the least precise number that occurs,

$$c\,(d + \epsilon \max |y|), \qquad c = \min(100, 0.05 / \epsilon),$$

is allowed. Deep networks, outputs that nearly cancel and Fourier transforms have their own $d$; the
factor $c$ is 100 but for bfloat16, where a hundred rounding errors would be all of the output. A layer
that is read wrongly differs by as much as the output itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import wraps
from inspect import isfunction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_module
from opifex.training.multilevel.transfer.placements import placed_like
from opifex.training.multilevel.transfer.tracing import evaluated, evaluation, path_text

__all__ = ["TransferError", "function_difference", "verify_transfer"]

_SAMPLES = 3
_MOST_SIGNS = 65537  # larger parameters repeat them, with a period that is a prime


class TransferError(ValueError):
    """A transfer did not keep the function that it promised to keep."""


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _float_types(jaxpr: Any) -> Iterator[Any]:
    """The floating-point types in which a program computes."""
    for variable in (*jaxpr.outvars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)):
        dtype = getattr(variable.aval, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
            yield jnp.finfo(dtype).dtype
    for equation in jaxpr.eqns:
        asked = jax.tree.leaves(equation.params.get("precision"))
        if any(precision != jax.lax.Precision.HIGHEST for precision in asked):
            yield jnp.finfo(jnp.bfloat16).dtype  # a layer that asks for fast products
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _float_types(inner)


def _random_signs(tree: Any) -> np.ndarray:
    """Rows of -1 and 1, enough for every leaf of a tree; the first row is zero: no change."""
    leaves = jax.tree.leaves(tree)
    length = min(_MOST_SIGNS, max((jnp.size(leaf) for leaf in leaves), default=0)) + len(leaves)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (1 + _SAMPLES, length))
    signs[0] = 0
    return signs


def _perturbed(tree: Any, signs: np.ndarray, dtype: Any) -> Any:
    """A tree whose numbers have a relative error of one epsilon, with the given signs.

    Made by NumPy, like the transfers themselves: each shape would be compiled for a handful of uses.
    """
    leaves, structure = jax.tree.flatten(tree)
    eps = float(jnp.finfo(dtype).eps)

    def change(number: int, leaf: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            # What depends on random keys has no value to compare: let it move.
            data = np.asarray(jax.random.key_data(leaf)) + signs[0].astype(np.uint32)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if not _is_float(leaf):
            return leaf
        # In the precision of the computation, in which alone so small a change can be seen.
        precise = jnp.promote_types(jnp.result_type(leaf), dtype)
        window = signs[number : number + _MOST_SIGNS]  # of each leaf another one
        change = 1 + eps * np.resize(window, jnp.shape(leaf)).astype(precise)
        values = np.asarray(leaf).astype(precise) * change.astype(precise)
        return placed_like(values, leaf) if isinstance(leaf, jax.Array) else values

    return jax.tree.unflatten(structure, [change(i, leaf) for i, leaf in enumerate(leaves)])


def _distance(
    samples: Sequence[np.ndarray], fine: np.ndarray, dtype: Any
) -> tuple[float, float, float]:
    """How far an output is from the coarse one, how far it may be, and the output's size.

    Sample 0 is the coarse output; the others are those of the perturbed coarse model.
    """
    coarse, eps = samples[0], float(jnp.finfo(dtype).eps)
    with np.errstate(invalid="ignore"):  # numbers that are none are part of what is compared
        same = (coarse == fine) | (np.isnan(coarse) & np.isnan(fine))
        difference = np.max(np.where(same, 0, np.abs(coarse - fine)), initial=0)
        moved, size = (
            np.max(np.where(np.isfinite(a), a, 0), initial=0)
            for a in (np.abs(np.stack(samples[1:]) - coarse), np.abs(coarse))
        )
    allowed = min(100.0, 0.05 / eps) * (moved + eps * size)
    return float(np.inf if np.isnan(difference) else difference), float(allowed), float(size)


def _excess(distance: tuple[float, float, float]) -> float:
    difference, allowed, _ = distance
    if difference == 0:
        return 0.0
    return difference / allowed if allowed > 0 else np.inf


def _arrays(output: Any) -> list[Array]:
    """The arrays of numbers in an output."""
    leaves = [leaf for leaf in jax.tree.leaves(output) if isinstance(leaf, jax.Array)]
    return [leaf for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)]


def _numbers(arrays: list[Array]) -> list[np.ndarray]:
    """Arrays on the host, as precise as can be; integers too become floating-point numbers."""
    return [
        np.asarray(leaf).astype(np.complex128 if jnp.iscomplexobj(leaf) else np.float64)
        for leaf in arrays
    ]


def _precision(evaluations: Any, states: Any, inputs: tuple[Any, ...]) -> Any:
    """The least precise floating-point type in which one of two models computes."""
    types = [
        dtype
        for evaluation, state in zip(evaluations, states, strict=True)
        for dtype in _float_types(evaluation.trace(state, inputs).jaxpr.jaxpr)
    ]
    return max(types, key=lambda dtype: float(jnp.finfo(dtype).eps), default=jnp.float32)


def _measured(graphdefs: Any, states: Any, inputs: tuple[Any, ...]) -> tuple[float, float, float]:
    """Difference, allowed difference and size of the output that differs most."""
    coarse, fine = evaluations = [evaluation(graphdef) for graphdef in graphdefs]
    dtype = _precision(evaluations, states, inputs)
    tree = states[0], inputs
    samples = [
        _numbers(_arrays(coarse(*_perturbed(tree, row, dtype)))) for row in _random_signs(tree)
    ]
    outputs = _numbers(_arrays(fine(states[1], inputs)))
    shapes = [[leaf.shape for leaf in leaves] for leaves in (samples[0], outputs)]
    if shapes[0] != shapes[1] or not outputs:
        raise TransferError(
            f"the models must have outputs of the same shapes, got {shapes[0]} on the coarse and "
            f"{shapes[1]} on the fine level"
        )
    distances = [
        _distance(of_one, output, dtype)
        for of_one, output in zip(zip(*samples, strict=True), outputs, strict=True)
    ]
    return max(distances, key=_excess)


def function_difference(
    coarse_graphdef: Any,
    coarse_state: Any,
    fine_graphdef: Any,
    fine_state: Any,
    inputs: tuple[Any, ...],
) -> tuple[float, float]:
    """How far apart two models are at some inputs, and how far apart rounding may set them.

    One compiled evaluation per model, kept for models of the same structure. The models are evaluated
    without dropout and with running averages.

    Args:
        coarse_graphdef: graph definition of the coarse model, as ``nnx.split`` returns it.
        coarse_state: its variables.
        fine_graphdef: graph definition of the fine model.
        fine_state: its variables.
        inputs: arguments of both models.

    Returns:
        The largest difference of an output, infinite where only one of the two is a number, and the
        difference that rounding allows. Of several outputs, those of the one that is worst.

    Raises:
        TransferError: if the outputs differ in shape, or hold no array.
    """
    difference, allowed, _ = _measured(
        (coarse_graphdef, fine_graphdef), (coarse_state, fine_state), inputs
    )
    return difference, allowed


_Records = dict[tuple[str, int], tuple[type, list[np.ndarray]]]
"""Label and number of a call to the class of its layer and the arrays it returned."""


def _listen(module: nnx.Module, name: str, records: _Records) -> None:
    """Let a module record what its public methods return, by a subclass of its own."""
    layer = type(module)

    def recording(label: str, method: Any) -> Any:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = method(self, *args, **kwargs)
            arrays = _arrays(output)
            if not any(isinstance(array, jax.core.Tracer) for array in arrays):
                number = sum(known == label for known, _ in records)
                records[label, number] = layer, _numbers(arrays)
            return output

        return call

    methods = {
        attribute: recording(name if attribute == "__call__" else f"{name}.{attribute}", value)
        for base in reversed(layer.__mro__)
        if issubclass(base, nnx.Module) and base is not nnx.Module
        for attribute, value in vars(base).items()
        if isfunction(value) and (attribute == "__call__" or not attribute.startswith("_"))
    }
    metaclass: Any = type(layer)
    object.__setattr__(module, "__class__", metaclass(layer.__name__, (layer,), methods))


def _record(graphdef: Any, state: Any, inputs: tuple[Any, ...]) -> _Records:
    """What every layer of a copy of a model returns, in the order in which the calls end."""
    model = nnx.merge(graphdef, state, copy=True)
    records: _Records = {}
    for path, module in list(nnx.iter_modules(model)):
        _listen(module, path_text(path), records)
    evaluated(model, inputs)
    return records


def _coarse_block(fine: np.ndarray, coarse: np.ndarray) -> np.ndarray | None:
    """Where a coarse output is found in the fine one: of an axis that grows the nearest entries."""
    shapes = list(zip(coarse.shape, fine.shape, strict=False))
    grown = [axis for axis, (n, m) in enumerate(shapes) if n != m]
    if fine.ndim != coarse.ndim or any(n > m for n, m in shapes):
        return None
    if len(grown) != 1:
        return fine[tuple(slice(n) for n in coarse.shape)]
    rows = [
        np.moveaxis(array, grown[0], 0).reshape(array.shape[grown[0]], -1)
        for array in (coarse, fine)
    ]
    with np.errstate(invalid="ignore"):
        distances = [np.max(np.abs(rows[1] - row), axis=1, initial=0) for row in rows[0]]
    nearest = np.argmin(np.nan_to_num(distances, nan=np.inf), axis=1)
    return np.take(fine, nearest, grown[0])


def _first_difference(graphdefs: Any, states: Any, inputs: tuple[Any, ...]) -> str | None:
    """The first layer, in the order in which calls end, whose coarse and fine outputs differ."""
    dtype = _precision([evaluation(graphdef) for graphdef in graphdefs], states, inputs)
    coarse = [
        _record(graphdefs[0], *_perturbed((states[0], inputs), row, dtype))
        for row in _random_signs((states[0], inputs))
    ]
    fine = _record(graphdefs[1], states[1], inputs)
    for call, (layer, _) in coarse[0].items():
        if not all(call in records for records in (*coarse, fine)):
            continue
        samples = zip(*(records[call][1] for records in coarse), strict=True)
        for arrays, output in zip(samples, fine[call][1], strict=False):
            block = _coarse_block(output, arrays[0])
            if block is not None:
                difference, allowed, _ = _distance(arrays, block, dtype)
                if difference > allowed:
                    return f"{call[0]} ({layer.__name__})"
    return None


def verify_transfer(coarse_model: nnx.Module, fine_model: nnx.Module, *inputs: Any) -> None:
    """Raise unless two models compute the same function at some inputs, to rounding.

    `CascadeTrainer.fit` does this at each transition whose transfer has the attribute
    ``preserves_function = True``.

    Args:
        coarse_model: model of the coarser level.
        fine_model: the model that a transfer made of it.
        *inputs: arguments of both models; a few rows are enough. Models are called without dropout
            and with running averages, and are not changed.

    Raises:
        TransferError: if the outputs differ by more than rounding explains, see
            `opifex.training.multilevel.transfer.verification`. The message says by how much, and names
            the first layer whose output differs, as far as the outputs of layers can be compared.
        TypeError: if a model is not an ``nnx.Module``, or an input is no array of numbers.
        ValueError: if an input does not fit into the numbers of JAX, or the models do not take it.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import (
        ...     create_network_hierarchy, prolongate_preserving, verify_transfer
        ... )
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> verify_transfer(coarse, prolongate_preserving(coarse, fine), jnp.ones((3, 2)))
        >>> verify_transfer(coarse, fine, jnp.ones((3, 2)))
        Traceback (most recent call last):
        opifex...TransferError: the transfer does not preserve the function: ...
    """
    check_module("coarse_model", coarse_model)
    check_module("fine_model", fine_model)
    try:
        inputs = jax.tree.map(jnp.asarray, inputs)
    except OverflowError as error:
        raise ValueError(f"inputs must fit into the numbers of JAX: {error}") from error
    graphdefs, states = zip(*map(nnx.split, (coarse_model, fine_model)), strict=True)
    difference, allowed, size = _measured(graphdefs, states, inputs)
    if difference <= allowed:
        return
    try:
        layer = _first_difference(graphdefs, states, inputs)
    except Exception:  # a model that cannot be listened to must not hide what was found
        layer = None
    where = (
        f"the first layer whose output differs is {layer}"
        if layer
        else "the outputs of all layers that can be compared agree"
    )
    raise TransferError(
        f"the transfer does not preserve the function: outputs, of size {size:.3g}, differ by "
        f"{difference:.3g}, and rounding explains {allowed:.3g}; {where}"
    )
