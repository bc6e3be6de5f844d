r"""One learning rate for networks of growing width.

A step of Adam changes every entry of a kernel by about one learning rate, whatever the gradient, and the
changes of the entries that feed one unit agree in direction: the unit's input moves by the learning rate
*times the number of units it reads*. A rate that is right for a narrow network is too large for a wide
one. The maximal-update parametrisation (Yang et al., arXiv:2203.03466, table 3) therefore lets the rate
of hidden and output kernels fall as one over their fan-in, and leaves input kernels and biases alone;
the rate that is best on a narrow network is then about the best on all wider ones.

`scale_by_width` carries one factor for each parameter. All are one at the start, so that the network
with which training begins, the coarsest one, is the one that rates are tuned for. Whoever lets the
network grow sets the factors by `set_width_factors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from opifex.core.checks import check_array, check_callable

__all__ = ["WidthScalingState", "scale_by_width", "set_width_factors", "width_factors"]


class WidthScalingState(NamedTuple):
    """Factors of the updates.

    Attributes:
        factor: a tree like the parameters, with one float32 scalar for each whole parameter.
    """

    factor: Any


def scale_by_width() -> optax.GradientTransformation:
    """Multiply the updates of each parameter by its factor, which is one until the network grows.

    Chain it behind a transformation whose updates do not depend on the size of the gradient, such as
    Adam's. A `MultilevelOptimizer` sets the factors at each transition, by the axes along which the
    layers grow.

    Returns:
        An Optax transformation. Its state is one number for each parameter array.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from opifex.optimization import scale_by_width, set_width_factors
        >>> optimizer = optax.chain(optax.sgd(1.0), scale_by_width())
        >>> state = optimizer.init({"kernel": jnp.zeros(2), "bias": jnp.zeros(2)})
        >>> half = {"kernel": 0.5, "bias": 1.0}
        >>> state = set_width_factors(state, lambda path: half[path[-1].key])
        >>> updates, state = optimizer.update({"kernel": jnp.ones(2), "bias": jnp.ones(2)}, state)
        >>> updates["kernel"].tolist(), updates["bias"].tolist()
        ([-0.5, -0.5], [-1.0, -1.0])
    """

    def init(params: Any) -> WidthScalingState:
        return WidthScalingState(jax.tree.map(lambda _: jnp.ones((), jnp.float32), params))

    def update(
        updates: Any, state: WidthScalingState, params: Any = None
    ) -> tuple[Any, WidthScalingState]:
        del params
        scaled = jax.tree.map(
            lambda update, factor: None if update is None else update * factor.astype(update.dtype),
            updates,
            state.factor,
            is_leaf=lambda leaf: leaf is None,
        )
        return scaled, state

    return optax.GradientTransformation(init, update)


def width_factors(state: Any) -> dict[tuple[Any, ...], Array]:
    """The factors of `scale_by_width` in the state of an optimizer, by the parameters' key paths.

    Args:
        state: any Optax state; nothing is found in one that has no such factors.
    """
    found: dict[tuple[Any, ...], Array] = {}
    for node in filter(_is_scaling, jax.tree.leaves(state, is_leaf=_is_scaling)):
        found |= dict(jax.tree_util.tree_flatten_with_path(node.factor)[0])
    return found


def set_width_factors(state: Any, factor: Callable[[tuple[Any, ...]], float]) -> Any:
    """A state with other factors of `scale_by_width`, wherever that is chained in.

    Args:
        state: any Optax state.
        factor: from the key path of a parameter to its factor.

    Returns:
        The new state.

    Raises:
        TypeError: if ``factor`` is not callable, or returns something else than numbers.
        ValueError: if it returns more than one number.
    """
    check_callable("factor", factor)

    def number(path: tuple[Any, ...], dtype: Any) -> Array:
        name = f"factor({jax.tree_util.keystr(path)})"
        found = check_array(name, factor(path), real=True)
        if found.ndim:
            raise ValueError(f"{name} must be one number, got shape {found.shape}")
        return jnp.asarray(found, dtype)

    def replace(node: Any) -> Any:
        if not _is_scaling(node):
            return node
        return WidthScalingState(
            jax.tree_util.tree_map_with_path(
                lambda path, leaf: number(path, leaf.dtype), node.factor
            )
        )

    return jax.tree.map(replace, state, is_leaf=_is_scaling)


def _is_scaling(node: Any) -> bool:
    return isinstance(node, WidthScalingState)
