r"""What is minimised: a pytree that is a function of one parameter tree.

What decides the program (loss, graph definition, layout of a block, placement) is static; what
decides its values (data, weights of residual terms, other variables, random key, linear term,
surrounding parameters) are leaves. One compiled step therefore serves every objective of the same
structure, and another kind of coarse objective is another leaf, not another code path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from opifex.core.checks import check_callable
from opifex.core.residuals import PointFunction, ResidualTerm, mean_square_loss
from opifex.training.placement import LevelPlacement, Put, moved
from opifex.training.precision import evaluated_in, restored, rounded

LossFunction = Callable[..., Any]
"""``loss_fn(model, *data)``, or ``loss_fn(model, *data, key=key)`` if it has such an argument."""

__all__ = [
    "LossFunction",
    "Objective",
    "check_loss",
    "conjugate_gradient",
    "count_parameters",
    "hashable",
    "kept_program",
    "plain",
    "split_model",
]


def split_model(model: nnx.Module) -> tuple[Any, nnx.State, nnx.State]:
    """Graph definition, trainable parameters, and all other variables of a model."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, params, rest


def count_parameters(model: nnx.Module) -> int:
    """Number of trainable numbers of a model."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


class _ByIdentity:
    """A static value without a hash, such as a graph definition with a list among its attributes."""

    def __init__(self, value: Any) -> None:
        self.value = value


def hashable(value: Any) -> Any:
    """A static value as part of the key of a compiled program: itself, or compared by identity."""
    try:
        hash(value)
    except TypeError:
        return _ByIdentity(value)
    return value


def plain(value: Any) -> Any:
    """The static value itself, whatever `hashable` made of it."""
    return value.value if isinstance(value, _ByIdentity) else value


@lru_cache(maxsize=256)
def kept_program(function: Callable[..., Any], structure: Any, *static: Any) -> Any:
    """A jitted function, kept by what decides its program, and freed with what falls out of the cache.

    Args:
        function: a function of the static values and then of arrays; a named one, not made anew.
        structure: that of the objective among the arrays.
        static: values that `hashable` has made fit for this.
    """
    del structure
    return jax.jit(partial(function, *map(plain, static)))


def check_loss(loss_fn: Any) -> LossFunction | tuple[ResidualTerm, ...]:
    """A loss function, or residual terms as a tuple.

    Raises:
        TypeError: if ``loss_fn`` is neither callable nor a sequence of `ResidualTerm`.
        ValueError: if it is an empty sequence.
    """
    if isinstance(loss_fn, ResidualTerm):
        loss_fn = (loss_fn,)
    if not isinstance(loss_fn, Sequence) or isinstance(loss_fn, str):
        check_callable("loss_fn (or a sequence of ResidualTerm)", loss_fn)
        function: Any = loss_fn
        return function
    if len(loss_fn) == 0:
        raise ValueError("loss_fn must hold at least one ResidualTerm, got an empty sequence")
    for i, term in enumerate(loss_fn):
        if not isinstance(term, ResidualTerm):
            raise TypeError(f"loss_fn[{i}] must be a ResidualTerm, got {term!r}")
    return tuple(loss_fn)


@dataclass(frozen=True)
class Objective:
    r"""A loss, and residuals where there are any, as a function of the parameters of one level.

    Args:
        loss: ``loss_fn(model, *data)``; with an argument named ``key`` it also gets ``key``. A tuple
            of `ResidualTerm` stands for their weighted mean square.
        graphdef: graph definition of the model that is evaluated.
        data: arguments of the loss after the model.
        rest: all variables of that model that are not parameters.
        key: random key for the loss, or ``None``.
        shift: a tree $v$ like the parameters $x$: $\langle v, x \rangle$ is subtracted from the loss
            (the $\tau$ of first-order coherence, see `opifex.training.multilevel.coarse_correction`).
        frame: parameters of a larger model around the present ones (a Galerkin coarse objective).
        weights: one per residual term, in the place of its own ``weight``, shape (terms,); ``None``
            where the terms' own are meant. Other weights need no other program.
        precision: what the loss evaluates the model in, a name (see `opifex.training.precision`);
            ``None`` leaves that to the dtypes of parameters and data.
        layout: how parameters sit in ``frame``: an object with ``prolong(params, frame)``.
        placement: how devices share the data, ``None`` where one has all.
    """

    loss: Any
    graphdef: Any
    data: tuple[Any, ...] = ()
    rest: Any = None
    key: Any = None  # a random key, which JAX replaces by other things while it traces
    shift: Any = None
    frame: Any = None
    layout: Any = None
    weights: Any = None
    precision: str | None = None
    placement: LevelPlacement | None = None

    @property
    def has_terms(self) -> bool:
        """Whether the loss is a sum of mean squares of residual terms."""
        return isinstance(self.loss, tuple)

    @property
    def terms(self) -> tuple[ResidualTerm, ...]:
        """The residual terms, with the weights that count; empty if the loss is a function."""
        if not self.has_terms or self.weights is None:
            return self.loss if self.has_terms else ()
        pairs = zip(self.loss, self.weights, strict=True)
        return tuple(replace(term, weight=weight) for term, weight in pairs)

    @property
    def takes_key(self) -> bool:
        """Whether the loss consumes a random key."""
        return not self.has_terms and _takes_key(self.loss)

    @property
    def parts(self) -> int:
        """Parts of the samples from which mini-batches are drawn, each by itself."""
        return 1 if self.placement is None else self.placement.parts

    @property
    def structure(self) -> tuple[Any, ...]:
        """The static parts, as the key of a compiled program."""
        static = self.layout, self.precision, self.placement
        return hashable(self.loss), hashable(self.graphdef), *static

    def model(self, params: Any) -> nnx.Module:
        """The model: the level's own, or the larger one with the parameters in place."""
        return self._merged(self._whole(params))

    def _whole(self, params: Any) -> Any:
        return params if self.layout is None else self.layout.prolong(params, self.frame)

    def _merged(self, whole: Any) -> nnx.Module:
        # Copies belong to the trace of this evaluation: the loss may update them (batch statistics).
        return nnx.merge(self.graphdef, whole, self.rest, copy=True)

    def _evaluated(self, params: Any) -> nnx.Module:
        """The model as the loss sees it, which computes in the precision that is asked for."""
        whole = self._whole(params)
        if self.precision is None:
            return self._merged(whole)
        return evaluated_in(self._merged(rounded(whole, self.precision)), self.precision, whole)

    def evaluate(self, params: Any) -> tuple[Float[Array, ""], Any]:
        """Loss, and the other variables after the evaluation (running statistics, say)."""
        model = self._evaluated(params)
        if self.has_terms:
            value = mean_square_loss(self.terms, model, *self.data)
        elif self.takes_key:
            value = self.loss(model, *self.data, key=self.key)
        else:
            value = self.loss(model, *self.data)
        value = _scalar_loss(value)
        if self.shift is not None:
            value = value - jnp.real(optax.tree.vdot(self.shift, params)).astype(value.dtype)
        rest = nnx.state(model, nnx.Not(nnx.Param))
        return value, rest if self.precision is None else restored(rest, self.rest)

    def value(self, params: Any) -> Float[Array, ""]:
        """The loss alone."""
        return self.evaluate(params)[0]

    def value_and_gradient(self, params: Any) -> tuple[Float[Array, ""], Any, Any]:
        """Loss, direction of steepest ascent, and the other variables after the evaluation."""
        (value, rest), grads = jax.value_and_grad(self.evaluate, has_aux=True)(params)
        return value, conjugate_gradient(grads), rest

    def bind(self, params: Any) -> PointFunction:
        """The function of one point that the parameters describe, for least-squares solvers."""
        model: Any = self._evaluated(params)
        return model

    def placed(self, put: Put = moved) -> Objective:
        """The same objective with its leaves where they belong.

        Args:
            put: what to do with a leaf and its sharding, see `LevelPlacement`.
        """
        place = self.placement
        if place is None:
            return self
        return self.at(
            data=place.rows(self.data, put),
            shift=place.parameters(self.shift, put),
            frame=place.parameters(self.frame, put),
            **{name: place.whole(getattr(self, name), put) for name in ("rest", "key", "weights")},
        )

    def at(self, **changes: Any) -> Objective:
        """The same objective with other leaves."""
        return replace(self, **changes)


def _flatten(objective: Objective) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    leaves = (
        objective.data,
        objective.rest,
        objective.key,
        objective.shift,
        objective.frame,
        objective.weights,
    )
    return leaves, objective.structure


def _unflatten(structure: tuple[Any, ...], leaves: tuple[Any, ...]) -> Objective:
    loss, graphdef, layout, precision, placement = map(plain, structure)
    data, rest, key, shift, frame, weights = leaves
    return Objective(
        loss, graphdef, data, rest, key, shift, frame, layout, weights, precision, placement
    )


jax.tree_util.register_pytree_node(Objective, _flatten, _unflatten)


def conjugate_gradient(grads: Any) -> Any:
    r"""The direction of steepest ascent: for complex parameters the conjugate of JAX's gradient.

    For a real loss of $z = a + ib$ JAX returns $\partial_a L - i\, \partial_b L$; descent needs
    $\partial_a L + i\, \partial_b L$. Real gradients stay as they are.
    """
    return jax.tree.map(lambda leaf: jnp.conj(leaf) if jnp.iscomplexobj(leaf) else leaf, grads)


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


def _takes_key(function: Callable[..., Any]) -> bool:
    """Whether a loss has an argument named ``key`` that is still free.

    ``functools.partial`` keeps a bound keyword in the signature, as one with a default: such a key
    is the user's own and stays.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return False
    return "key" in parameters and not _binds_key(function)


def _binds_key(function: Any) -> bool:
    while hasattr(function, "func") and hasattr(function, "keywords"):
        if "key" in function.keywords:
            return True
        function = function.func
    return False
