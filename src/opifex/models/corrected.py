"""A frozen model plus a scaled, trainable correction, as multi-stage networks are built."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_positive

__all__ = ["CorrectedModel", "FrozenVariable", "freeze"]


class FrozenVariable(nnx.Variable):
    """A value that training does not change."""


def freeze(model: nnx.Module) -> nnx.Module:
    """A copy of a model that nothing changes any more.

    Its parameters become `FrozenVariable`, wherever they are kept (lists, dictionaries, tied to each
    other), and it is set to evaluation, so that batch statistics stay as they were trained.

    Args:
        model: the model; it is not changed.
    """
    copy = nnx.clone(model)
    copy.eval()
    frozen: dict[int, FrozenVariable] = {}
    for _, node in list(nnx.iter_graph(copy)):
        if isinstance(node, dict | list | nnx.List):
            entries: Any = node.items() if isinstance(node, dict) else enumerate(node)
            place = node.__setitem__
        elif isinstance(node, nnx.Pytree):
            entries = vars(node).items()
            place = functools.partial(setattr, node)
        else:
            continue
        for name, value in list(entries):
            if isinstance(value, nnx.Param):
                place(name, frozen.setdefault(id(value), FrozenVariable(value[...])))
    return copy


class CorrectedModel(nnx.Module):
    r"""$u(x) = u_0(x) + \epsilon\, c(x)$ with a frozen base $u_0$ and a trainable correction $c$.

    The correction's inputs may be scaled too: $c(\kappa x)$ has its natural frequencies raised by
    $\kappa$, which a network of a residual that oscillates needs (Wang and Lai, arXiv:2307.08934,
    section 2.3).

    Args:
        base: the model so far; a frozen copy is kept.
        correction: the model to train, of the same inputs and outputs.
        scale: $\epsilon$.
        input_scale: $\kappa$.

    Raises:
        ValueError: if a scale is not positive.
        TypeError: if a model is not an ``nnx.Module``.
    """

    def __init__(
        self,
        base: nnx.Module,
        correction: nnx.Module,
        scale: float = 1.0,
        *,
        input_scale: float = 1.0,
    ) -> None:
        for name, model in (("base", base), ("correction", correction)):
            if not isinstance(model, nnx.Module):
                raise TypeError(f"{name} must be an nnx.Module, got {type(model).__name__}")
        self.base: Any = freeze(base)
        self.correction: Callable[[Any], Any] = correction
        self.scale = FrozenVariable(jnp.asarray(check_positive("scale", scale)))
        self.input_scale = FrozenVariable(jnp.asarray(check_positive("input_scale", input_scale)))

    def __call__(self, x: Array) -> Array:
        """Evaluate the sum; ``x`` is whatever the two models take."""
        x = jnp.asarray(x)
        self.base.eval()  # whatever ``train()`` of the sum has set
        inner = self.input_scale[...].astype(x.dtype) * x
        return self.base(x) + self.scale[...].astype(x.dtype) * self.correction(inner)
