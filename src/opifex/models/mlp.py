"""Multilayer perceptron whose width, and optionally depth, can grow between levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from opifex.core.checks import (
    check_bool,
    check_callable,
    check_last_axis,
    check_nonnegative,
    check_param_dtype,
    check_positive,
    check_positive_int,
    check_rngs,
    check_sizes,
)
from opifex.core.dtypes import as_inexact

Activation = Callable[[Array], Array]
"""An elementwise function."""

__all__ = ["MLP", "Activation", "HiddenLayer"]


class HiddenLayer(nnx.Module):
    r"""A dense layer with its activation, optionally blended with the identity by a trainable gate.

    Without a gate the layer is $h \mapsto \sigma(W^T h + b)$. With a gate $\alpha$ it is
    $h \mapsto h + \alpha\,(\sigma(W^T h + b) - h)$: $\alpha = 1$ is the plain layer and
    $\alpha = 0$ is exactly the identity, which is how depth is added without changing the
    function (the adaptive skip of PirateNets, arXiv:2402.00326, section 4).

    Args:
        input_size: number of incoming features.
        output_size: number of outgoing features.
        activation: elementwise function.
        gated: add the gate; needs ``input_size == output_size``.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a size is not positive, or ``gated`` and the two sizes differ.
        TypeError: if an argument has the wrong type.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        activation: Activation,
        gated: bool = False,
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_positive_int("input_size", input_size)
        check_positive_int("output_size", output_size)
        check_callable("activation", activation)
        check_bool("gated", gated)
        check_param_dtype("param_dtype", param_dtype)
        check_rngs("rngs", rngs)
        if gated and input_size != output_size:
            raise ValueError(
                f"gated=True needs equal sizes, got input_size={input_size}, "
                f"output_size={output_size}"
            )
        self.dense = nnx.Linear(input_size, output_size, param_dtype=param_dtype, rngs=rngs)
        self.gate = nnx.Param(jnp.ones((), param_dtype)) if gated else None
        self.activation = activation

    def __call__(self, features: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Apply the layer to features of shape (..., input_size)."""
        new = self.activation(self.dense(features))
        if self.gate is None:
            return new
        return features + self.gate[...] * (new - features)


class MLP(nnx.Module):
    """A multilayer perceptron: hidden layers with an activation, then a linear output layer.

    Args:
        input_dim: number of input coordinates.
        output_dim: number of output components.
        hidden_dims: width of each hidden layer, at least one.
        activation: elementwise function of the hidden layers; smooth ones (``tanh``, ``gelu``)
            for problems that differentiate the network.
        depth_gates: give every hidden layer after the first a trainable gate, so that layers can
            be added later without changing the function; needs equal hidden widths.
        input_scale: factor of the first layer's weights at the start.
        bias_scale: biases of hidden layers start uniformly between minus and plus this number, those
            of the first layer times ``input_scale``; at zero by default. For second-order methods
            on inputs of about [-1, 1] start with ``input_scale=2, bias_scale=1``: features that
            differ more in slope and place end lower.
        param_dtype: dtype of the parameters; computations promote with the input.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a size or ``input_scale`` is not positive, ``bias_scale`` is negative,
            ``hidden_dims`` is empty, or ``depth_gates`` is set and the hidden widths differ.
        TypeError: if a size is not an integer, ``activation`` is not callable, ``depth_gates`` is no
            bool, or ``rngs`` no ``nnx.Rngs``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.models import MLP
        >>> model = MLP(2, 1, [16, 16], rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((5, 2))).shape, model(jnp.zeros(2)).shape
        ((5, 1), (1,))
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dims: Sequence[int],
        *,
        activation: Activation = jnp.tanh,
        depth_gates: bool = False,
        input_scale: float = 1.0,
        bias_scale: float = 0.0,
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        input_scale = check_positive("input_scale", input_scale)
        bias_scale = check_nonnegative("bias_scale", bias_scale)
        check_bool("depth_gates", depth_gates)
        check_param_dtype("param_dtype", param_dtype)
        check_rngs("rngs", rngs)
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.output_dim = check_positive_int("output_dim", output_dim)
        widths = check_sizes("hidden_dims", hidden_dims)
        check_callable("activation", activation)
        if depth_gates and len(set(widths)) != 1:
            raise ValueError(f"depth_gates=True needs equal hidden_dims, got {list(widths)}")
        self.hidden_dims = widths
        sizes = (self.input_dim, *widths)
        self.hidden = nnx.List(
            HiddenLayer(
                sizes[i],
                sizes[i + 1],
                activation=activation,
                gated=depth_gates and i > 0,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for i in range(len(widths))
        )
        self.output = nnx.Linear(widths[-1], self.output_dim, param_dtype=param_dtype, rngs=rngs)
        first = self.hidden[0].dense
        first.kernel[...] = input_scale * first.kernel[...]
        if bias_scale > 0:
            for i, layer in enumerate(self.hidden):
                half = bias_scale * (input_scale if i == 0 else 1.0)
                layer.dense.bias = nnx.Param(
                    jax.random.uniform(
                        rngs.params(), (widths[i],), param_dtype, minval=-half, maxval=half
                    )
                )

    def __call__(
        self, x: Real[Array | np.ndarray, "*batch inputs"]
    ) -> Float[Array, "*batch outputs"]:
        """Evaluate the network at points.

        Args:
            x: points, last axis of size ``input_dim``; a single point has no batch axis.

        Returns:
            Values with the same leading axes and last axis ``output_dim``.

        Raises:
            ValueError: if the last axis of ``x`` is not ``input_dim``.
            TypeError: if ``x`` does not hold numbers.
        """
        check_last_axis("x", x, "input_dim", self.input_dim)
        features = as_inexact(x, self.output.kernel[...].dtype)
        for layer in self.hidden:
            features = layer(features)
        return self.output(features)
