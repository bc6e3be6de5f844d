"""What is minimised, seen from inside compiled code: pure functions of a parameter tree."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_callable, check_sequence
from opifex.core.residuals import PointFunction, ResidualTerm, mean_square_loss

LossFunction = Callable[..., Any]
"""``loss_fn(model, *data)``, or ``loss_fn(model, *data, key=key)`` if it has such an argument."""

Embedding = Callable[[Any, Any], Any]
"""``embed(block, params)``: parameters of a larger model with a block of them replaced."""

__all__ = ["Embedding", "LossFunction", "Objective", "split_model", "value_and_gradient"]


def split_model(model: nnx.Module) -> tuple[Any, nnx.State, nnx.State]:
    """Structure, trainable parameters, and all other variables of a model."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graph, params, rest


class Objective:
    r"""A loss, and residuals where there are any, as pure functions of the parameters of one model.

    Args:
        structure: the graph definition of the model.
        loss_fn: ``loss_fn(model, *data)``; with an argument named ``key`` it also gets a fresh
            random key at every step. ``None`` takes the weighted mean square of ``terms``.
        terms: residual terms, for smoothers that need residuals rather than a scalar.
        tilted: subtract $\langle v, x \rangle$ from the loss, where the tilt $v$, a tree like the
            parameters $x$, is the first entry of the data.
        embed: the parameters are a block of a larger model, whose structure is ``structure``:
            ``embed(block, params)`` puts them into its parameters. The first entry of the data is
            then the pair of its parameters and its other variables, which stay as they are.

    Raises:
        TypeError: if ``loss_fn`` is not callable, or ``terms`` is not a sequence of `ResidualTerm`.
        ValueError: if there is neither a loss nor a term, or both ``tilted`` and ``embed`` are given.
    """

    def __init__(
        self,
        structure: Any,
        loss_fn: LossFunction | None = None,
        terms: Sequence[ResidualTerm] | None = None,
        *,
        tilted: bool = False,
        embed: Embedding | None = None,
    ) -> None:
        if tilted and embed is not None:
            raise ValueError("embed must be None where tilted=True: a block needs no tilt")
        if loss_fn is None and not terms:
            raise ValueError("loss_fn must be given, or terms must not be empty")
        if terms is not None:
            check_sequence("terms", terms)
        if loss_fn is not None:
            check_callable("loss_fn", loss_fn)
        for term in terms or ():
            if not isinstance(term, ResidualTerm):
                raise TypeError(f"terms must consist of ResidualTerm, got {term!r}")
        self.structure = structure
        self.terms = tuple(terms or ())
        self.tilted = tilted
        self.embed = embed
        self._loss_fn = loss_fn
        self._takes_key = loss_fn is not None and _has_key_argument(loss_fn)

    @property
    def takes_key(self) -> bool:
        """Whether the loss consumes a random key."""
        return self._takes_key

    def loss(
        self, params: Any, rest: Any, batch: tuple[Any, ...], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Any]:
        """Loss, and the other variables after the evaluation (running statistics, say)."""
        tilt = batch[0] if self.tilted else None
        model, batch = self._model(params, rest, batch)
        if self._loss_fn is None:
            value = mean_square_loss(self.terms, model, *batch)
        elif self._takes_key:
            value = self._loss_fn(model, *batch, key=key)
        else:
            value = self._loss_fn(model, *batch)
        value = _scalar_loss(value)
        if tilt is not None:
            value = value - optax.tree.vdot(tilt, params)
        return value, rest if self.embed is not None else nnx.state(model, nnx.Not(nnx.Param))

    def _model(
        self, params: Any, rest: Any, batch: tuple[Any, ...]
    ) -> tuple[nnx.Module, tuple[Any, ...]]:
        """The model to evaluate, and the data without what belongs to the objective."""
        if self.embed is not None:
            whole, rest = batch[0]
            params = self.embed(params, whole)
        # Copies belong to the trace of this evaluation: the loss may update them (batch statistics).
        model = nnx.merge(self.structure, params, rest, copy=True)
        return model, batch[1:] if self.tilted or self.embed is not None else batch

    def value(
        self, params: Any, rest: Any, batch: tuple[Any, ...], key: PRNGKeyArray | None = None
    ) -> Float[Array, ""]:
        """The loss alone."""
        return self.loss(params, rest, batch, key)[0]

    def bind(
        self, rest: Any, batch: tuple[Any, ...]
    ) -> tuple[Callable[[Any], PointFunction], tuple[Any, ...]]:
        """The map from parameters to the model, and the points, as least-squares solvers want them."""
        points = batch if self.embed is None else batch[1:]
        return (lambda params: self._model(params, rest, batch)[0]), points


def _scalar_loss(value: Any) -> Array:
    """The loss as an array.

    Raises:
        TypeError: if it is not one real number but a tuple with further results, say.
        ValueError: if it is an array of more than one number.
    """
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
        raise TypeError(
            f"loss_fn must return a scalar and nothing else, got a {type(value).__name__}"
        )
    if jnp.ndim(value) != 0:
        raise ValueError(f"loss_fn must return a scalar, got shape {jnp.shape(value)}")
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"loss_fn must return a real floating-point number, got {jnp.result_type(value)}"
        )
    return jnp.asarray(value)


def _has_key_argument(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return False
    return "key" in parameters


def value_and_gradient(
    objective: Objective,
    params: Any,
    rest: Any,
    batch: tuple[Any, ...],
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, ""], Any, Any]:
    """Loss, gradient, and the other variables after the evaluation."""
    (value, rest), grads = jax.value_and_grad(objective.loss, has_aux=True)(
        params, rest, batch, key
    )
    return value, grads, rest
