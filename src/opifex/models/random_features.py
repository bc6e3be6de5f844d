r"""One hidden layer that is drawn and stays as drawn; only the outgoing weights are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from opifex.core.checks import (
    check_callable,
    check_last_axis,
    check_param_dtype,
    check_positive,
    check_positive_int,
    check_positive_numbers,
    check_rngs,
    check_sizes,
)
from opifex.core.dtypes import as_inexact
from opifex.models.corrected import FrozenVariable
from opifex.models.mlp import Activation
from opifex.models.partition_of_unity import PartitionOfUnity

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


def _patches(patches: Sequence[int] | None, input_dim: int, num_features: int) -> tuple[int, ...]:
    """Patches along every axis; one by default.

    Args:
        patches: how many along every axis.
        input_dim: how many axes there are.
        num_features: to be shared among the patches.

    Raises:
        ValueError: if there is not one positive number per axis, or features are left over.
        TypeError: if a number is not an integer.
    """
    if patches is None:
        return (1,) * input_dim
    counts = check_sizes("patches", patches)
    if len(counts) != input_dim:
        raise ValueError(
            f"patches must have one entry for each of {input_dim} inputs, got {patches!r}"
        )
    if num_features % math.prod(counts):
        raise ValueError(
            f"num_features must be a multiple of the number of patches, {math.prod(counts)}, "
            f"got {num_features}"
        )
    return counts


class RandomFeatures(nnx.Module):
    r"""$u(x) = \sum_j c_j\, \psi_{p(j)}(x)\, \sigma(w_j \cdot (y(x) - z_j))$, slopes and centres random.

    $y$ maps the domain onto $[-1, 1]^d$; the slopes $w_j$ are uniform on a box and the centres $z_j$
    on $[-1, 1]^d$, so that every feature changes inside the domain. They are no parameters. The model
    is linear in its parameters $c_j$, which start at zero: for a linear equation one step of
    `opifex.optimization.second_order.GaussNewton` finds the best ones (random feature method, Chen,
    Chi, E and Yang, arXiv:2207.13380, section 2; extreme learning machines, Dong and Li, CMAME 387,
    2021). Where the solution is smooth the error falls fast with the number of features, down to
    rounding; fronts and many dimensions need networks whose features are trained.

    With ``patches`` the domain is covered by overlapping patches whose windows $\psi_p$ add up to one
    (`opifex.models.PartitionOfUnity`; the same paper, section 2.2). Every feature belongs to one, $y$
    maps that patch onto $[-1, 1]^d$, and a few features in each resolve what global ones of any slope
    do not: holes, layers, many waves. Without patches there is one, the domain, and $\psi = 1$.

    A model with more features contains one with fewer on the same patches: transfers append features.

    Args:
        input_dim: number of input coordinates.
        output_dim: number of output components.
        num_features: number of features, those of all patches together.
        domain: lower and upper bound of every input; [-1, 1] by default.
        slope: largest slope of a feature along every axis of the scaled domain, one number or one
            per axis: with sines the largest wave number. Larger ones resolve finer scales and need
            more features.
        patches: number of patches along every axis; one by default.
        activation: $\sigma$, a smooth elementwise function. For solutions made of waves sines are
            ahead by far; on others ``tanh`` with slopes of about 2 is as good.
        param_dtype: dtype of slopes, centres and weights.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a number is not positive, ``domain``, ``slope`` or ``patches`` does not have one
            entry per input, or the patches do not get equal numbers of features.
        TypeError: if a size is not an integer, ``activation`` is not callable, or ``rngs`` is no
            ``nnx.Rngs``.

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
        patches: Sequence[int] | None = None,
        activation: Activation = jnp.sin,
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.output_dim = check_positive_int("output_dim", output_dim)
        self.num_features = check_positive_int("num_features", num_features)
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
        check_param_dtype("param_dtype", param_dtype)
        check_rngs("rngs", rngs)
        self.activation = activation
        self.patches = _patches(patches, input_dim, num_features)
        cover = PartitionOfUnity(bounds, self.patches)
        # Features take turns: the next round of one for every patch is appended to the earlier ones.
        middle = np.tile(cover.centres, (num_features // cover.number, 1)).T
        half = cover.half_widths[:, None]
        shape = (input_dim, num_features)
        scaled = jax.random.uniform(rngs.params(), shape, param_dtype, minval=-1)
        scaled *= jnp.asarray(slopes, param_dtype)[:, None]
        centres = jax.random.uniform(rngs.params(), shape, param_dtype, minval=-1)
        # w . (y - z) with y = (x - middle) / half, as an affine function of x.
        weights = scaled / jnp.asarray(half, param_dtype)
        self.weights = FrozenVariable(weights)
        self.biases = FrozenVariable(
            -jnp.sum(jnp.asarray(middle, param_dtype) * weights + scaled * centres, axis=0)
        )
        self._bounds: tuple[Interval, ...] = tuple((low, high) for low, high in bounds.tolist())
        self.output = nnx.Linear(
            num_features,
            output_dim,
            kernel_init=nnx.initializers.zeros_init(),
            param_dtype=param_dtype,
            rngs=rngs,
        )

    @property
    def domain(self) -> tuple[Interval, ...]:
        """Lower and upper bound of every input."""
        return self._bounds

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
            TypeError: if ``x`` does not hold numbers.
        """
        return self.output(self.features(x))

    def features(
        self, x: Real[Array | np.ndarray, "*batch inputs"]
    ) -> Float[Array, "*batch num_features"]:
        """Values of all features at points, before they are added up.

        Args:
            x: points, last axis of size ``input_dim``.

        Raises:
            ValueError: if the last axis of ``x`` is not ``input_dim``.
            TypeError: if ``x`` does not hold numbers.
        """
        check_last_axis("x", x, "input_dim", self.input_dim)
        x = as_inexact(x, self.output.kernel[...].dtype)
        features = self.activation(x @ self.weights[...] + self.biases[...])
        if max(self.patches) > 1:
            windows = PartitionOfUnity(np.asarray(self._bounds), self.patches).windows(x)
            rounds = features.shape[-1] // windows.shape[-1]
            features *= jnp.tile(windows, (1,) * (x.ndim - 1) + (rounds,))
        return features
