"""In which precision a model is evaluated while it trains, apart from that of its parameters.

Inside the objective the model computes with rounded copies of its parameters and of what it is called
with, and hands back its values in the dtype that they would have had. All else, the formulas of the loss
and the mean over samples among it, stays in the dtype of parameters and data (mixed precision:
Micikevicius et al., ICLR 2018, arXiv:1710.03740, section 3.1).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from opifex.core.checks import check_choice
from opifex.core.dtypes import is_inexact

__all__ = [
    "PRECISIONS",
    "check_precision",
    "check_usable",
    "evaluated_in",
    "is_low",
    "restored",
    "rounded",
]

PRECISIONS = ("float32", "float64", "bfloat16")
"""What a model may compute in. The range of float16 is too small without scaling the loss."""


def check_precision(name: str, value: Any) -> str | None:
    """Return ``value``; raise unless it is ``None`` or one of `PRECISIONS`.

    Args:
        name: of the argument.
        value: its value.

    Raises:
        TypeError: if it is neither a string nor ``None``.
        ValueError: if it is another string.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {list(PRECISIONS)} or None, got {value!r}")
    return check_choice(name, value, PRECISIONS)


def check_usable(precision: str | None, model: nnx.Module) -> None:
    """Raise unless a model can be evaluated in a precision here and now.

    Args:
        precision: one of `PRECISIONS`, or ``None`` for what the model has.
        model: the model.

    Raises:
        ValueError: for float64 where JAX has no double precision, or if the model cannot be called,
            so that nobody knows what its inputs are.
    """
    if precision is None:
        return
    if precision == "float64" and jax.dtypes.canonicalize_dtype("float64") != "float64":
        raise ValueError(
            "precision='float64' needs double precision, which JAX was not told to use: write "
            "jax.config.update('jax_enable_x64', True) at the start of the program"
        )
    if not callable(model):
        raise ValueError(
            f"precision={precision!r} needs a model that can be called, and {type(model).__name__} has "
            "no __call__; set the dtype of its layers instead"
        )


def is_low(dtype: Any) -> bool:
    """Whether a floating-point dtype has less than the digits of single precision.

    Args:
        dtype: the dtype, or its name.
    """
    return bool(jnp.finfo(dtype).bits < 32)


def rounded(tree: Any, dtype: Any) -> Any:
    """The floating-point arrays of a tree in another dtype; integers and random keys as they are.

    Args:
        tree: any tree.
        dtype: a real dtype. Complex numbers get the complex dtype that goes with it, of which there is
            none below complex64.
    """

    def convert(leaf: Any) -> Any:
        if not is_inexact(leaf):
            return leaf
        kind = jnp.promote_types(dtype, jnp.complex64) if jnp.iscomplexobj(leaf) else dtype
        return jnp.asarray(leaf, kind)

    return jax.tree.map(convert, tree)


def restored(tree: Any, like: Any) -> Any:
    """A tree with the floating-point dtypes of another one, where both have the same structure.

    Args:
        tree: running statistics after an evaluation, say.
        like: the same before it.
    """
    structure: Any = jax.tree.structure(like)
    if jax.tree.structure(tree) != structure:
        return tree
    return jax.tree.map(
        lambda new, old: new.astype(old.dtype) if is_inexact(new) and is_inexact(old) else new,
        tree,
        like,
    )


def evaluated_in(model: nnx.Module, precision: str, like: Any) -> nnx.Module:
    """The same model, called in another precision; it is changed, and remains of its class.

    Args:
        model: a model of nobody else, whose parameters are already `rounded`.
        precision: what its inputs are rounded to.
        like: its parameters before. Its values get the dtype that these and the inputs promote to.
    """
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(like) if is_inexact(leaf)}
    kept = jnp.finfo(jnp.result_type(*dtypes)).dtype if dtypes else None
    # Past the attributes of Flax, which would look for variables in a class.
    object.__setattr__(model, "__class__", _computing(type(model), precision, kept))
    return model


@lru_cache(maxsize=256)
def _computing(kind: type, precision: str, kept: Any) -> type:
    """A class of models that round what they are called with, and give back what ``kept`` says."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [leaf for leaf in jax.tree.leaves((args, kwargs)) if is_inexact(leaf)]
        dtypes = [jnp.finfo(jnp.result_type(leaf)).dtype for leaf in given]
        args, kwargs = rounded((args, kwargs), jnp.dtype(precision))
        values = kind.__call__(self, *args, **kwargs)
        if kept is not None:
            dtypes.append(kept)
        return rounded(values, jnp.result_type(*dtypes)) if dtypes else values

    return type(kind.__name__, (kind,), {"__call__": call, "__doc__": kind.__doc__})
