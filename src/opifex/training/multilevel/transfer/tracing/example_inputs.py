"""Inputs with which two models can be traced, where nobody gave any.

Nothing is computed: a model is only asked whether it takes an array of some shape. Any input that both
models take will do, since the features that belong together do not depend on the data.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from opifex.training.multilevel.transfer.tracing.evaluation import evaluation
from opifex.training.multilevel.transfer.tracing.program import transferable

__all__ = ["accepted_inputs", "guessed_inputs"]

_SAMPLES = 3
_POINTS = (16, 64, 256)
_MOST_SIZES = 12
_MOST_GUESSES = 400


def _answer(model: nnx.Module, inputs: tuple[Any, ...]) -> list[tuple[int, ...]] | None:
    """Shapes of what a model returns, ``None`` if it does not take these arguments."""
    graphdef, state = nnx.split(model)
    try:
        answer = evaluation(graphdef).eval_shape(state, inputs)
    except Exception:  # whatever a model says to arguments it does not know
        return None
    return [leaf.shape for leaf in jax.tree.leaves(answer) if hasattr(leaf, "shape")]


def accepted_inputs(
    model_a: nnx.Module, model_b: nnx.Module, data: Sequence[Any]
) -> tuple[Any, ...] | None:
    """Arguments, out of some data, with which both models can be called; nothing is computed.

    Args:
        model_a: one model.
        model_b: the other model.
        data: arrays such as a loss gets them after the model: inputs first, then targets.

    Returns:
        The shortest beginning of ``data`` that both models accept and to which they answer in the same
        shapes; ``None`` if there is none.
    """
    for count in range(1, len(data) + 1):
        inputs = tuple(data[:count])
        answer = _answer(model_a, inputs)
        if answer and answer == _answer(model_b, inputs):
            return inputs
    return None


def _sizes(model: nnx.Module) -> list[int]:
    """Sizes that the last axis of an input may have: of the kernels first, then of all parameters."""
    variables = transferable(model)
    kernels = [v.shape[-2] for v in variables.values() if v.ndim >= 2]
    others = [size for v in variables.values() for size in v.shape]
    return list(dict.fromkeys([*kernels, *others, 1, 2, 3]))[:_MOST_SIZES]


def _shapes(model: nnx.Module) -> Iterator[Any]:
    sizes = _sizes(model)
    for size in sizes:
        yield jax.ShapeDtypeStruct((_SAMPLES, size), jnp.float32)
    for points, axes, size in itertools.product(_POINTS, (1, 2, 3), sizes):
        if points**axes <= 2**18:
            yield jax.ShapeDtypeStruct((_SAMPLES, *(points,) * axes, size), jnp.float32)
    for size in sizes:
        yield jax.ShapeDtypeStruct((size,), jnp.float32)
    yield jax.ShapeDtypeStruct((_SAMPLES,), jnp.int32)
    yield jax.ShapeDtypeStruct((_SAMPLES, _POINTS[0]), jnp.int32)


def _number_of_inputs(model: Any) -> int:
    try:
        parameters = inspect.signature(model.__call__).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))


def guessed_inputs(
    coarse: nnx.Module, fine: nnx.Module
) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """Shapes of arguments of both models, to which they answer alike; ``None`` if not found.

    The same arguments for both, if there are any, and answers of the same shapes. Else those of the
    fine model, or its answers, may have more features.

    Args:
        coarse: the smaller model.
        fine: the larger model.
    """
    number = _number_of_inputs(fine)
    single = list(_shapes(coarse))
    guesses: Iterator[tuple[Any, ...]] = (
        ((s,) for s in single) if number == 1 else itertools.product(single[:20], repeat=number)
    )
    larger: tuple[Any, Any] | None = None
    for guess in itertools.islice(guesses, _MOST_GUESSES):
        answer = _answer(coarse, guess)
        other = _answer(fine, guess) if answer else None
        if answer and answer == other:
            return guess, guess
        if larger is None and other and _fits(answer, other):
            larger = guess, guess
    if larger is None and number == 1:
        pairs = zip(single, _shapes(fine), strict=False)
        for one, two in itertools.islice(pairs, _MOST_GUESSES):
            answers = _answer(coarse, (one,)), _answer(fine, (two,))
            if answers[0] and answers[1] and _fits(*answers) and _fits([one.shape], [two.shape]):
                return (one,), (two,)
    return larger


def _fits(coarse: Any, fine: Any) -> bool:
    """Whether shapes are at least as large on the fine level."""
    return len(coarse) == len(fine) and all(
        len(c) == len(f) and all(n <= m for n, m in zip(c, f, strict=True))
        for c, f in zip(coarse, fine, strict=True)
    )
