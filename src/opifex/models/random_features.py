r"""One hidden layer that is drawn and stays as drawn; only the outgoing weights are trained."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from opifex.core.checks import (
    check_callable,
    check_last_axis,
    check_positive,
    check_positive_int,
    check_positive_numbers,
)
from opifex.core.dtypes import as_inexact
from opifex.models.corrected import FrozenVariable
from opifex.models.mlp import Activation

__all__ = ["RandomFeatures"]

Interval = tuple[float, float]


def _bounds(domain: Sequence[Interval] | None, input_dim: int) -> np.ndarray:
    """Bounds of a box as an array (input_dim, 2); [-1, 1] along every axis by default.

    Args:
        domain: lower and upper bound along every axis.
        input_dim: how many axes there are.

    Raises:
        ValueError: if the shape is another one, or a lower bound is not below its upper bound.
    """
    if domain is None:
        return np.tile([-1.0, 1.0], (input_dim, 1))
    bounds = np.asarray(domain, float)
    if bounds.shape != (input_dim, 2):
        raise ValueError(
            f"domain must have a lower and an upper bound for each of {input_dim} inputs, "
            f"got {domain!r}"
        )
    if not (np.isfinite(bounds).all() and (bounds[:, 0] < bounds[:, 1]).all()):
        raise ValueError(f"domain must have lower bounds below finite upper ones, got {domain!r}")
    return bounds


class RandomFeatures(nnx.Module):
    r"""$u(x) = \sum_j c_j\, \sigma(w_j \cdot (y(x) - z_j))$ with random slopes and centres.

    $y$ maps the domain onto $[-1, 1]^d$; the slopes $w_j$ are uniform on a box and the centres $z_j$
    on $[-1, 1]^d$, so that every feature changes inside the domain. They are no parameters. The model
    is linear in its parameters $c_j$, which start at zero: for a linear equation one step of
    `opifex.optimization.second_order.GaussNewton` finds the best ones (random feature method, Chen,
    Chi, E and Yang, arXiv:2207.13380, section 2; extreme learning machines, Dong and Li, CMAME 387,
    2021). Where the solution is smooth the error falls fast with the number of features, down to
    rounding; fronts and many dimensions need networks whose features are trained.

    A model with more features contains one with fewer: transfers append features.

    Args:
        input_dim: number of input coordinates.
        output_dim: number of output components.
        num_features: number of features.
        domain: lower and upper bound of every input; [-1, 1] by default.
        slope: largest slope of a feature along every axis of the scaled domain, one number or one
            per axis: with sines the largest wave number. Larger ones resolve finer scales and need
            more features.
        activation: $\sigma$, a smooth elementwise function. For solutions made of waves sines are
            ahead by far; on others ``tanh`` with slopes of about 2 is as good.
        param_dtype: dtype of slopes, centres and weights.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a number is not positive, or ``domain`` or ``slope`` does not have one entry
            per input.
        TypeError: if a size is not an integer or ``activation`` is not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.models import RandomFeatures
        >>> model = RandomFeatures(2, 1, 100, domain=[(0, 1), (0, 2)], rngs=nnx.Rngs(0))
        >>> model(jnp.ones((5, 2))).tolist()
        [[0.0], [0.0], [0.0], [0.0], [0.0]]
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_features: int,
        *,
        domain: Sequence[Interval] | None = None,
        slope: float | Sequence[float] = 8.0,
        activation: Activation = jnp.sin,
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.output_dim = check_positive_int("output_dim", output_dim)
        check_positive_int("num_features", num_features)
        bounds = _bounds(domain, input_dim)
        slopes = (
            check_positive_numbers("slope", slope)
            if isinstance(slope, Sequence | np.ndarray)
            else (check_positive("slope", slope),) * input_dim
        )
        if len(slopes) != input_dim:
            raise ValueError(
                f"slope must have one entry for each of {input_dim} inputs, got {slope!r}"
            )
        check_callable("activation", activation)
        self.activation = activation
        middle, half = bounds.mean(axis=1), (bounds[:, 1] - bounds[:, 0]) / 2
        shape = (input_dim, num_features)
        scaled = jax.random.uniform(rngs.params(), shape, param_dtype, minval=-1)
        scaled *= jnp.asarray(slopes, param_dtype)[:, None]
        centres = jax.random.uniform(rngs.params(), shape, param_dtype, minval=-1)
        # w . (y - z) with y = (x - middle) / half, as an affine function of x.
        weights = scaled / jnp.asarray(half, param_dtype)[:, None]
        self.weights = FrozenVariable(weights)
        self.biases = FrozenVariable(
            -jnp.asarray(middle, param_dtype) @ weights - jnp.sum(scaled * centres, axis=0)
        )
        self.output = nnx.Linear(
            num_features,
            output_dim,
            kernel_init=nnx.initializers.zeros_init(),
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Real[Array | np.ndarray, "*batch inputs"]
    ) -> Float[Array, "*batch outputs"]:
        """Evaluate the model at points.

        Args:
            x: points, last axis of size ``input_dim``; a single point has no batch axis.

        Returns:
            Values with the same leading axes and last axis ``output_dim``.

        Raises:
            ValueError: if the last axis of ``x`` is not ``input_dim``.
        """
        check_last_axis("x", x, "input_dim", self.input_dim)
        x = as_inexact(x, self.output.kernel[...].dtype)
        return self.output(self.activation(x @ self.weights[...] + self.biases[...]))
