"""A model in the units of the data, around a network that was trained on normalised values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from opifex.core.checks import check_array, check_module
from opifex.core.dtypes import as_input_of
from opifex.models.corrected import FrozenVariable

__all__ = ["NormalizedModel", "Normalizer"]


class Normalizer(Protocol):
    """Statistics of every channel, such as `opifex.data.FieldNormalizer`."""

    @property
    def mean(self) -> Any:
        """Shape (channels,)."""

    @property
    def deviation(self) -> Any:
        """Shape (channels,), positive."""


class NormalizedModel(nnx.Module):
    r"""$u(x) = \mu_u + \sigma_u\, N((x - \mu_x) / \sigma_x)$, channel by channel.

    It takes and gives physical units, and keeps its statistics as variables that training does not
    change: what is saved or exported needs nothing beside it.

    Args:
        network: $N$, which works on normalised values.
        inputs: mean and deviation of the inputs.
        outputs: mean and deviation of the outputs.

    Raises:
        TypeError: if ``network`` is not an ``nnx.Module``, or ``inputs`` or ``outputs`` has no such
            statistics.
        ValueError: if a mean and its deviation are not finite, of one shape (channels,), or a deviation
            is not positive.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from opifex.data import FieldNormalizer
        >>> from opifex.models import MLP, NormalizedModel
        >>> celsius = np.array([[10.0], [20.0], [30.0]])
        >>> scale = FieldNormalizer.fit(celsius)
        >>> network = MLP(1, 1, [8], rngs=nnx.Rngs(0))
        >>> model = NormalizedModel(network, scale, scale)
        >>> same = scale.denormalize(network(scale.normalize(celsius)))
        >>> bool(np.allclose(model(celsius), same, rtol=1e-5))
        True
    """

    def __init__(self, network: nnx.Module, inputs: Normalizer, outputs: Normalizer) -> None:
        check_module("network", network)
        self.network: Callable[[Any], Any] = network
        self.input_mean, self.input_deviation = _statistics("inputs", inputs)
        self.output_mean, self.output_deviation = _statistics("outputs", outputs)

    def __call__(
        self, x: Real[Array | np.ndarray, "*batch inputs"]
    ) -> Float[Array, "*batch outputs"]:
        """Evaluate in physical units; the last axis of ``x`` holds the channels."""
        x = as_input_of(self.network, x)
        found = self.network((x - self.input_mean[...]) / self.input_deviation[...])
        return found * self.output_deviation[...] + self.output_mean[...]


def _statistics(side: str, given: Normalizer) -> tuple[FrozenVariable, FrozenVariable]:
    # By NumPy: a model may be put together in compiled code, where JAX makes no truth value.
    for name in ("mean", "deviation"):
        if not hasattr(given, name):
            raise TypeError(f"{side} must have mean and deviation, got {given!r}")
    mean, deviation = (
        np.asarray(check_array(f"{side}.{name}", getattr(given, name), real=True))
        for name in ("mean", "deviation")
    )
    if mean.ndim != 1 or mean.shape != deviation.shape:
        raise ValueError(
            f"{side} must have mean and deviation of one shape (channels,), got {mean.shape} and "
            f"{deviation.shape}"
        )
    if not np.all(np.isfinite(mean) & np.isfinite(deviation) & (deviation > 0)):
        raise ValueError(f"{side} must have finite means and positive deviations, got {given}")
    return FrozenVariable(jnp.asarray(mean)), FrozenVariable(jnp.asarray(deviation))
