"""Random features on elements of space and slabs of time, next to each other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from opifex.core.checks import check_array, check_last_axis
from opifex.core.dtypes import as_inexact
from opifex.models.corrected import FrozenVariable
from opifex.models.random_features import RandomFeatures

__all__ = ["SpaceTimeFeatures", "element_features"]


def element_features(
    features: RandomFeatures,
    x: Float[Array, "*batch 2"],
    lower: Float[Array, "*batch 2"],
    upper: Float[Array, "*batch 2"],
) -> Float[Array, "*batch features"]:
    """The features in the coordinates of elements, which are mapped onto [-1, 1] x [-1, 1].

    Args:
        features: on [-1, 1] x [-1, 1].
        x: places and times.
        lower: left end and first time of the elements.
        upper: right end and last time.

    Raises:
        TypeError: if ``features`` is no `RandomFeatures`, or the others do not hold real numbers.
        ValueError: if these do not have a last axis of size two, or do not fit together.
    """
    _check_features(features)
    given = {"x": x, "lower": lower, "upper": upper}
    arrays = {name: check_array(name, array, real=True) for name, array in given.items()}
    for name, array in arrays.items():
        check_last_axis(name, array, "input_dim", 2)
    try:
        np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError as error:
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"x, lower and upper must fit together, got shapes {shapes}") from error
    x, lower, upper = map(jnp.asarray, arrays.values())
    return features.features((2 * x - lower - upper) / (upper - lower))


def _check_features(features: Any) -> None:
    if not isinstance(features, RandomFeatures):
        raise TypeError(f"features must be RandomFeatures, got {type(features).__name__}")


class SpaceTimeFeatures(nnx.Module):
    r"""$u(x, t) = \sum_j c_{n s j}\, \varphi_j(\xi, \tau)$ with element $s$ of slab $n$ around $(x, t)$.

    $\xi$ and $\tau$ map the element onto $[-1, 1]^2$, where all of them use the same features
    (local extreme learning machines, Dong and Li, CMAME 387, 2021). Nothing in the model ties
    neighbours together; who determines the coefficients does, `opifex.training.TimeMarching` for
    instance. On a node or at a time between two, the right and the later one answers. Outside of the
    elements the nearest ones go on.

    Args:
        features: $\varphi_j$, of two inputs, on [-1, 1] x [-1, 1].
        times: ends of the slabs, ascending, shape (slabs + 1,).
        nodes: ends of the elements in each slab, ascending, shape (slabs, elements + 1).
        coefficients: shape (slabs, elements, features, outputs).

    Raises:
        ValueError: if the shapes do not fit together.
        TypeError: if ``features`` is no `RandomFeatures`, or the others do not hold real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.models import RandomFeatures, SpaceTimeFeatures
        >>> features = RandomFeatures(2, 1, 10, rngs=nnx.Rngs(0))
        >>> times, nodes = jnp.array([0.0, 1.0]), jnp.array([[0.0, 0.5, 1.0]])
        >>> model = SpaceTimeFeatures(features, times, nodes, jnp.zeros((1, 2, 10, 1)))
        >>> model(jnp.array([[0.2, 0.3], [0.7, 0.3]])).tolist()
        [[0.0], [0.0]]
    """

    def __init__(
        self,
        features: RandomFeatures,
        times: Float[Array, " ends"],
        nodes: Float[Array, "slabs nodes"],
        coefficients: Float[Array, "slabs elements features outputs"],
    ) -> None:
        _check_features(features)
        times = jnp.asarray(check_array("times", times, "ends", real=True))
        nodes = jnp.asarray(check_array("nodes", nodes, "slabs nodes", real=True))
        axes = "slabs elements features outputs"
        coefficients = jnp.asarray(check_array("coefficients", coefficients, axes, real=True))
        slabs, elements = len(times) - 1, nodes.shape[1] - 1
        expected = (slabs, elements, features.num_features)
        if nodes.shape[0] != slabs or coefficients.shape[:3] != expected:
            raise ValueError(
                "times, nodes and coefficients must have shapes (slabs + 1,), (slabs, elements + 1) "
                f"and (slabs, elements, {features.num_features}, outputs), got {times.shape}, "
                f"{nodes.shape} and {coefficients.shape}"
            )
        self.features = features
        self.times = FrozenVariable(times)
        self.nodes = FrozenVariable(nodes)
        self.coefficients = nnx.Param(coefficients)

    def __call__(self, x: Real[Array | np.ndarray, "*batch 2"]) -> Float[Array, "*batch outputs"]:
        """Evaluate the model at places and times.

        Args:
            x: points (place, time) along the last axis.

        Returns:
            Values with the same leading axes and last axis ``outputs``.

        Raises:
            ValueError: if the last axis of ``x`` does not have size two.
            TypeError: if ``x`` does not hold numbers.
        """
        check_last_axis("x", x, "input_dim", 2)
        times, nodes, coefficients = self.times[...], self.nodes[...], self.coefficients[...]
        x = as_inexact(x, coefficients.dtype)
        slab = jnp.clip(
            jnp.searchsorted(times, x[..., 1], side="right") - 1, 0, coefficients.shape[0] - 1
        )
        inner = nodes[slab, 1:-1]
        element = jnp.sum(inner <= x[..., :1], axis=-1)
        lower = jnp.stack([nodes[slab, element], times[slab]], axis=-1)
        upper = jnp.stack([nodes[slab, element + 1], times[slab + 1]], axis=-1)
        values = element_features(self.features, x, lower, upper)
        return jnp.einsum("...j,...jo->...o", values, coefficients[slab, element])
