"""Pairs of input and output fields, and their normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from opifex.core.checks import check_array, check_positive

__all__ = ["FieldNormalizer", "OperatorData"]

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


class OperatorData(NamedTuple):
    """Samples of an operator: ``outputs[i]`` is the image of ``inputs[i]``.

    Attributes:
        inputs: shape (samples, *spatial, input channels), float32 from all generators here.
        outputs: shape (samples, *spatial, output channels), likewise.
    """

    inputs: np.ndarray
    outputs: np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FieldNormalizer:
    """Shifts and scales every channel to mean zero and standard deviation one.

    One mean and one deviation per channel, over samples and points: the map does not depend on the
    grid, so that it serves all levels of a resolution hierarchy. Fit it on training data only. It
    is a pytree and may pass through compiled functions.

    Attributes:
        mean: mean of every channel, shape (channels,).
        deviation: standard deviation of every channel, shape (channels,).
    """

    mean: Float[Array, " channels"]
    deviation: Float[Array, " channels"]

    @classmethod
    def fit(
        cls,
        fields: Real[Array | np.ndarray, "samples *spatial channels"],
        *,
        smallest_deviation: float | None = None,
    ) -> FieldNormalizer:
        """The normalizer of given training fields.

        Args:
            fields: shape (samples, *spatial, channels).
            smallest_deviation: a channel counts as constant, and is shifted only, if its deviation is
                at most this times its largest magnitude. By default it is the rounding error of the
                fields' dtype, so that the scale of a field does not matter.

        Raises:
            TypeError: if ``fields`` does not hold real numbers, or ``smallest_deviation`` is none.
            ValueError: if ``fields`` has fewer than two axes, no entries or some that are not finite,
                or ``smallest_deviation`` is not positive.
        """
        values = np.asarray(check_array("fields", fields, real=True), np.float64)
        if values.ndim < 2 or values.size == 0:
            raise ValueError(
                f"fields must have shape (samples, *spatial, channels), got {values.shape}"
            )
        if not np.all(np.isfinite(values)):
            raise ValueError("fields must be finite, got NaN or infinite entries")
        dtype = jnp.result_type(fields, jnp.float32)
        if smallest_deviation is None:
            given = jnp.result_type(fields)
            exact = not jnp.issubdtype(given, jnp.inexact)
            smallest_deviation = float(jnp.finfo(dtype if exact else given).eps)
        least = check_positive("smallest_deviation", smallest_deviation)
        values = values.reshape(-1, values.shape[-1])
        deviation = values.std(axis=0)
        # Below the smallest normal number a division overflows.
        least_of_channels = np.maximum(
            least * np.abs(values).max(axis=0), float(jnp.finfo(dtype).tiny)
        )
        return cls(
            mean=jnp.asarray(values.mean(axis=0), dtype),
            deviation=jnp.asarray(np.where(deviation <= least_of_channels, 1.0, deviation), dtype),
        )

    def normalize(self, fields: AnyArray) -> AnyArray:
        """Fields of shape (..., channels) minus the mean, over the deviation; NumPy in, NumPy out."""
        if isinstance(fields, np.ndarray):
            return (fields - np.asarray(self.mean)) / np.asarray(self.deviation)
        return (fields - self.mean) / self.deviation

    def denormalize(self, fields: AnyArray) -> AnyArray:
        """The inverse of `normalize`."""
        if isinstance(fields, np.ndarray):
            return fields * np.asarray(self.deviation) + np.asarray(self.mean)
        return fields * self.deviation + self.mean
