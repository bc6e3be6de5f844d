r"""Frequency-aware networks: a sum of sub-networks, each of which sees one band of frequencies.

A multilayer perceptron learns low frequencies first, and high ones late or never. A sub-network
whose inputs are multiplied by $\omega$ meets a target of frequency $\omega$ as one of frequency
one (MscaleDNN: Liu, Cai and Xu, Commun. Comput. Phys. 28, 2020, section 3; arXiv:2007.11207). Random
Fourier features in front of it do the same with waves in many directions (Tancik et al.,
arXiv:2006.10739, section 5).

The sub-networks are the blocks by which such a network can grow: one with more bands contains one
with fewer, and a band whose amplitudes are zero contributes nothing.
"""

from __future__ import annotations

import itertools
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
from opifex.models.mlp import Activation, HiddenLayer

__all__ = ["FourierFeatures", "FrequencyBand", "MultiscaleMLP", "check_frequencies"]


class FourierFeatures(nnx.Module):
    r"""Random waves $\sqrt{2} \cos(x B + \phi)$ with fixed directions and phases.

    $B$ is standard normal and $\phi$ uniform on $[0, 2\pi)$: the features of Tancik et al.
    (arXiv:2006.10739, section 5) with a random phase in place of sine and cosine side by side, which
    gives the same kernel in expectation and lets features be appended one by one.

    Args:
        input_dim: number of input coordinates.
        num_features: number of waves.
        param_dtype: dtype of directions and phases.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a size is not positive.
        TypeError: if a size is not an integer.
    """

    def __init__(
        self,
        input_dim: int,
        num_features: int,
        *,
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_positive_int("input_dim", input_dim)
        check_positive_int("num_features", num_features)
        check_param_dtype("param_dtype", param_dtype)
        check_rngs("rngs", rngs)
        self.directions = FrozenVariable(
            jax.random.normal(rngs.params(), (input_dim, num_features), param_dtype)
        )
        self.phases = FrozenVariable(
            jax.random.uniform(rngs.params(), (num_features,), param_dtype, maxval=2 * jnp.pi)
        )

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        """Evaluate the waves at points of shape (..., input_dim)."""
        return jnp.sqrt(2.0) * jnp.cos(x @ self.directions[...] + self.phases[...])


class FrequencyBand(nnx.Module):
    r"""One term of a `MultiscaleMLP`: $x \mapsto h(\omega x)^T A$ with hidden layers $h$.

    It has no output bias, so that with amplitudes $A = 0$ it contributes nothing.

    Args:
        input_dim: number of input coordinates.
        output_dim: number of output components.
        hidden_dims: width of each hidden layer, at least one.
        frequency: the factor $\omega$ of the inputs.
        activation: elementwise function of the hidden layers.
        fourier_features: number of random waves in front of the first hidden layer; ``None`` feeds
            it with the scaled inputs themselves.
        spread_phases: start the biases of the first hidden layer uniformly on $[-\pi, \pi)$
            instead of at zero. With scaled inputs and odd activations, zero biases make all first
            features odd about the origin.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a number is not positive or ``hidden_dims`` is empty.
        TypeError: if an argument has the wrong type.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dims: Sequence[int],
        frequency: float,
        *,
        activation: Activation = jnp.sin,
        fourier_features: int | None = None,
        spread_phases: bool = True,
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_positive_int("input_dim", input_dim)
        check_positive_int("output_dim", output_dim)
        widths = check_sizes("hidden_dims", hidden_dims)
        omega = check_positive("frequency", frequency)
        check_callable("activation", activation)
        check_param_dtype("param_dtype", param_dtype)
        check_rngs("rngs", rngs)
        # A variable, so that a transfer carries it along with the weights that belong to it.
        self.frequency = FrozenVariable(jnp.asarray(omega, param_dtype))
        if fourier_features is not None:
            check_positive_int("fourier_features", fourier_features)
        self.features = (
            None
            if fourier_features is None
            else FourierFeatures(input_dim, fourier_features, param_dtype=param_dtype, rngs=rngs)
        )
        sizes = (input_dim if fourier_features is None else fourier_features, *widths)
        self.hidden = nnx.List(
            HiddenLayer(n, m, activation=activation, param_dtype=param_dtype, rngs=rngs)
            for n, m in itertools.pairwise(sizes)
        )
        if spread_phases:
            bias = self.hidden[0].dense.bias
            assert bias is not None
            bias[...] = jax.random.uniform(
                rngs.params(), bias.shape, param_dtype, minval=-jnp.pi, maxval=jnp.pi
            )
        self.amplitudes = nnx.Param(
            nnx.initializers.lecun_normal()(rngs.params(), (widths[-1], output_dim), param_dtype)
        )

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Evaluate the band at points of shape (..., input_dim)."""
        features: jax.Array = self.frequency[...] * x
        if self.features is not None:
            features = self.features(features)
        for layer in self.hidden:
            features = layer(features)
        return features @ self.amplitudes[...]


def check_frequencies(frequencies: Sequence[float]) -> tuple[float, ...]:
    """Return frequencies as floats; raise unless they are positive and increase.

    Args:
        frequencies: the factors of the inputs of a `MultiscaleMLP`.

    Raises:
        ValueError: if there are none, one is not positive, or they do not increase.
        TypeError: if they are not a sequence of real numbers.
    """
    values = check_positive_numbers("frequencies", frequencies)
    if any(low >= high for low, high in itertools.pairwise(values)):
        raise ValueError(f"frequencies must increase, got {list(values)}")
    return values


class MultiscaleMLP(nnx.Module):
    r"""A sum of sub-networks, one per band of frequencies, and a bias.

    $u(x) = b + \sum_k h_k(\omega_k x)^T A_k$ (MscaleDNN, arXiv:2007.11207, section 3).

    Args:
        input_dim: number of input coordinates.
        output_dim: number of output components.
        hidden_dims: hidden widths of every band, at least one layer.
        frequencies: the factors $\omega_k$ of the inputs, increasing, one band each.
        activation: elementwise function of the hidden layers. The default, a sine, fits waves in
            far fewer steps than ``tanh``, at about three times the cost of a step on a CPU.
        fourier_features: number of fixed random waves in front of each band; ``None`` feeds the bands
            with the scaled inputs themselves.
        spread_phases: see `FrequencyBand`.
        param_dtype: dtype of the parameters; computations promote with the input.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a number is not positive, a sequence is empty or the frequencies do not
            increase.
        TypeError: if an argument has the wrong type.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dims: Sequence[int],
        *,
        frequencies: Sequence[float] = (1.0, 2.0, 4.0),
        activation: Activation = jnp.sin,
        fourier_features: int | None = None,
        spread_phases: bool = True,
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.output_dim = check_positive_int("output_dim", output_dim)
        self.hidden_dims = check_sizes("hidden_dims", hidden_dims)
        check_param_dtype("param_dtype", param_dtype)
        check_rngs("rngs", rngs)
        self.bands = nnx.List(
            FrequencyBand(
                self.input_dim,
                self.output_dim,
                self.hidden_dims,
                frequency,
                activation=activation,
                fourier_features=fourier_features,
                spread_phases=spread_phases,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for frequency in check_frequencies(frequencies)
        )
        self.bias = nnx.Param(jnp.zeros((self.output_dim,), param_dtype))

    @property
    def frequencies(self) -> tuple[float, ...]:
        """The factors of the inputs, one per band."""
        return tuple(float(band.frequency[...]) for band in self.bands)

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
        total = self.bias[...]
        x = as_inexact(x, total.dtype)
        for band in self.bands:
            # Low bands first: adding a band that contributes zero changes no rounding.
            total = total + band(x)
        return total
