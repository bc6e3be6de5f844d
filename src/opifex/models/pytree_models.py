"""Models of other libraries: pytrees of arrays with a function, held as an ``nnx.Module``.

An Equinox module is a pytree that can be called; Flax Linen and Haiku keep a pytree of parameters apart
from the function that reads it. Both are the same to a trainer: arrays that it changes, and all else.
The pytree stays what it is, with an ``nnx.Param`` in the place of every floating-point array, so that a
parameter is found under its own name, ``model.parameters.layers[0].weight``, and has that name in
checkpoints, transfers and messages, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.core.checks import check_bool, check_callable
from opifex.core.dtypes import is_inexact
from opifex.core.optional import optional_module

__all__ = ["EquinoxModel", "FunctionalModel"]


@dataclass(frozen=True)
class _Constant:
    """A leaf that training does not change; equal to another one of the same type and content."""

    leaf: Any = field(compare=False)
    content: Any

    @classmethod
    def of(cls, name: str, leaf: Any) -> _Constant:
        content = leaf
        try:
            if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                content = (
                    str(jax.random.key_impl(leaf)),
                    np.asarray(jax.random.key_data(leaf)).tobytes(),
                )
            elif isinstance(leaf, jax.Array | np.ndarray) and leaf.dtype != object:
                content = str(leaf.dtype), np.asarray(leaf).tobytes()
            hash(content)
        except TypeError as error:
            raise TypeError(
                f"{name} is no floating-point array, and so a constant of compiled programs, which must "
                f"be hashable or an array of known values, got {type(leaf).__name__}"
            ) from error
        return cls(leaf, (type(leaf), np.shape(leaf) if hasattr(leaf, "dtype") else (), content))


@dataclass(frozen=True)
class _Outline:
    """A pytree without its parameters, each of which leaves ``None`` behind."""

    structure: Any
    constants: tuple[_Constant | None, ...]

    def filled(self, parameters: Iterator[Any]) -> Any:
        """The pytree, with parameters in the order of its leaves."""
        leaves = [next(parameters) if c is None else c.leaf for c in self.constants]
        return jax.tree.unflatten(self.structure, leaves)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _outline(name: str, tree: Any) -> _Outline:
    found, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    if any(_is_variable(leaf) for _, leaf in found):
        raise TypeError(
            f"{name} must hold arrays, got variables of Flax: it is a model as it stands"
        )
    if not any(is_inexact(leaf) for _, leaf in found):
        raise ValueError(
            f"{name} must hold at least one floating-point array to train, got "
            f"{[type(leaf).__name__ for _, leaf in found]}"
        )
    return _Outline(
        structure,
        tuple(
            None if is_inexact(leaf) else _Constant.of(name + jax.tree_util.keystr(path), leaf)
            for path, leaf in found
        ),
    )


class _PytreeModel(nnx.Module):
    """A pytree whose floating-point arrays are parameters.

    Attributes:
        parameters: the pytree, with an ``nnx.Param`` for each floating-point array and ``None`` for any
            other leaf.
    """

    def __init__(self, name: str, tree: Any) -> None:
        self._outline = _outline(name, tree)
        self.parameters = nnx.data(
            jax.tree.map(
                lambda leaf: nnx.Param(jnp.asarray(leaf)) if is_inexact(leaf) else None, tree
            )
        )

    def _pytree(self) -> Any:
        variables = jax.tree.leaves(self.parameters, is_leaf=_is_variable)
        return self._outline.filled(variable[...] for variable in variables)


class EquinoxModel(_PytreeModel):
    """A module of Equinox as a model.

    Every floating-point array of the module is a parameter, in the module's own structure; numbers,
    functions, integers and random keys are constants. Models of one structure share their compiled
    programs, as long as they share their functions, too: an activation that is a ``lambda`` made anew
    for each module is another function each time.

    By default a call is the module's own. Equinox modules take one sample, so that a loss maps them over
    its data as it would without this library, ``jax.vmap(model)(x)``; so do residual terms and the
    problems of `opifex.problems`, which take functions of one point. With ``batched`` the model takes a
    batch and maps itself, ``model(x)``, as the other models of this library do; then the check of
    transfers compares outputs, where otherwise it has only losses.

    Modules with a state beside their parameters (``equinox.nn.BatchNorm``) keep it nowhere here:
    arguments and results are passed on as they are.

    Args:
        module: the module; it is not changed.
        batched: whether a call maps the module over the leading axis of all its arguments.

    Attributes:
        parameters: the module with an ``nnx.Param`` for each floating-point array, and ``None`` for any
            other leaf.

    Raises:
        ImportError: if Equinox is not installed (``[equinox]``).
        TypeError: if ``module`` is no Equinox module that can be called, a constant of it is not
            hashable, or ``batched`` is not a bool.
        ValueError: if it has no floating-point array.

    Example:
        >>> import equinox as eqx
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from opifex.models import EquinoxModel
        >>> network = eqx.nn.MLP(2, 1, width_size=8, depth=1, key=jax.random.key(0))
        >>> model, x = EquinoxModel(network, batched=True), jnp.ones((5, 2))
        >>> bool((model(x) == jax.vmap(network)(x)).all())
        True
        >>> model.parameters.layers[0].weight.shape
        (8, 2)
        >>> type(model.module).__name__
        'MLP'
    """

    def __init__(self, module: Any, batched: bool = False) -> None:
        equinox = optional_module("equinox", "equinox", "EquinoxModel")
        if not isinstance(module, equinox.Module):
            raise TypeError(f"module must be an equinox.Module, got {type(module).__name__}")
        check_callable("module", module)
        self.batched = check_bool("batched", batched)
        super().__init__("module", module)

    @property
    def module(self) -> Any:
        """The Equinox module with the present values of the parameters."""
        return self._pytree()

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Call the module; with ``batched``, once for each row of all arguments.

        Args:
            *inputs: arguments of the module, with a leading axis if ``batched``.
            **keywords: likewise.
        """
        call = jax.vmap(self.module) if self.batched else self.module
        return call(*inputs, **keywords)


class FunctionalModel(_PytreeModel):
    """A pytree of parameters and the function that reads them, as a model.

    That is the form of models in Flax Linen (``module.init(key, x)``, ``module.apply``) and Haiku
    (``transform(f)`` without random keys), and of those written by hand. Every floating-point array of
    ``params`` is trained; anything else in it is a constant.

    Args:
        params: any pytree; it is not changed.
        apply: the model computes ``apply(params, *inputs)``. Compiled programs are kept by this very
            function, so that models which share them need the same one.

    Attributes:
        parameters: the pytree with an ``nnx.Param`` for each floating-point array, and ``None`` for any
            other leaf.
        apply: the function.

    Raises:
        TypeError: if ``apply`` is not callable and hashable, ``params`` holds variables of Flax NNX,
            or a constant in it is not hashable.
        ValueError: if ``params`` has no floating-point array.

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.models import FunctionalModel
        >>> def line(params, x):
        ...     return params["slope"] * x + params["offset"]
        >>> model = FunctionalModel({"slope": jnp.array(2.0), "offset": jnp.array(1.0)}, line)
        >>> float(model(3.0))
        7.0
        >>> model.parameters["slope"][...] = 4.0
        >>> float(model.params["slope"])
        4.0
    """

    def __init__(self, params: Any, apply: Callable[..., Any]) -> None:
        check_callable("apply", apply)
        try:
            hash(apply)
        except TypeError as error:
            raise TypeError(
                f"apply must be hashable, since programs are kept by it, got {apply!r}"
            ) from error
        self.apply = apply
        super().__init__("params", params)

    @property
    def params(self) -> Any:
        """The pytree with the present values of the parameters."""
        return self._pytree()

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Compute ``apply(params, *inputs, **keywords)``.

        Args:
            *inputs: what the function takes after the parameters.
            **keywords: likewise.
        """
        return self.apply(self.params, *inputs, **keywords)
