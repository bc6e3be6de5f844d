"""A frozen model plus a scaled, trainable correction, as multi-stage networks are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_module, check_positive
from opifex.core.dtypes import as_input_of

__all__ = ["CorrectedModel", "FrozenVariable", "freeze"]


class FrozenVariable(nnx.Variable):
    """A value that training does not change."""


def freeze(model: nnx.Module) -> nnx.Module:
    """A copy of a model that nothing changes any more.

    Its parameters become `FrozenVariable`, wherever they are kept (lists, tuples, dictionaries, tied to
    each other), and it is set to evaluation, so that batch statistics stay as they were trained.

    Args:
        model: the model; it is not changed.

    Raises:
        TypeError: if it is no ``nnx.Module``.
    """
    check_module("model", model)
    copy = nnx.clone(model)
    copy.eval()
    for _, node in nnx.iter_graph(copy):
        if isinstance(node, nnx.Param):
            # In place, so that it does not matter where the parameter is kept, and how often.
            node.__class__ = FrozenVariable  # type: ignore[assignment]
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
            check_module(name, model)
        self.base: Any = freeze(base)
        self.correction: Callable[[Any], Any] = correction
        self.scale = FrozenVariable(jnp.asarray(check_positive("scale", scale)))
        self.input_scale = FrozenVariable(jnp.asarray(check_positive("input_scale", input_scale)))

    def __call__(self, x: Array) -> Array:
        """Evaluate the sum; ``x`` is an array that the two models take."""
        x = as_input_of(self.correction, x)
        self.base.eval()  # whatever ``train()`` of the sum has set
        inner = self.input_scale[...].astype(x.dtype) * x
        return self.base(x) + self.scale[...].astype(x.dtype) * self.correction(inner)
