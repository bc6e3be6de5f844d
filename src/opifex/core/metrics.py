r"""Relative errors of predicted fields, per sample, averaged over the samples.

Fields are (batch, ...) with any shape after the batch axis for $L^2$, and
(batch, \*spatial, channels) for $H^1$. Both are plain differentiable functions: the same one serves
as loss and as measure.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from opifex.core.checks import check_positive
from opifex.core.dtypes import as_inexact

__all__ = ["relative_h1", "relative_l2"]


def _as_pair(
    prediction: Array | np.ndarray, target: Array | np.ndarray, least_axes: int
) -> tuple[Array, Array]:
    if jnp.shape(prediction) != jnp.shape(target):
        raise ValueError(
            f"prediction and target must have the same shape, "
            f"got {jnp.shape(prediction)} and {jnp.shape(target)}"
        )
    if jnp.ndim(target) < least_axes:
        raise ValueError(
            f"prediction and target need at least {least_axes} axes, got shape {jnp.shape(target)}"
        )
    return as_inexact(prediction), as_inexact(target)


def _sum_of_squares(fields: Array) -> Float[Array, " batch"]:
    return jnp.sum(jnp.square(fields.reshape(fields.shape[0], -1)), axis=1)


def _mean_ratio(error: Float[Array, " batch"], norm: Float[Array, " batch"]) -> Array:
    # The square root has an infinite slope at zero; a sample without error shall have gradient 0.
    exact = error == 0
    root = jnp.where(exact, 0.0, jnp.sqrt(jnp.where(exact, 1.0, error)))
    return jnp.mean(root / jnp.sqrt(norm))


def relative_l2(
    prediction: Real[Array | np.ndarray, "batch ..."], target: Real[Array | np.ndarray, "batch ..."]
) -> Float[Array, ""]:
    r"""Mean over the samples of $\|u - v\|_2 / \|v\|_2$, with $v$ the target.

    Args:
        prediction: fields $u$, shape (batch, ...).
        target: fields $v$ of the same shape; none may vanish identically.

    Returns:
        The mean relative error, a scalar; its gradient is zero at ``prediction == target``.

    Raises:
        ValueError: if the shapes differ or there is no axis beside the batch.
    """
    prediction, target = _as_pair(prediction, target, 2)
    return _mean_ratio(_sum_of_squares(prediction - target), _sum_of_squares(target))


def _slopes(fields: Array, axis: int, spacing: float, periodic: bool) -> Float[Array, " batch"]:
    """Sum over the points of the squared derivatives along one axis, for each sample."""
    n = fields.shape[axis]
    if not periodic:
        # Differences over one cell each, n - 1 of them, which stand for all n points. Central
        # differences at the points would not see the highest frequency, and hardly those below it.
        return _sum_of_squares(jnp.diff(fields, axis=axis) / spacing) * (n / (n - 1))
    # By Parseval; frequencies above zero stand for their conjugates too, but the Nyquist frequency.
    spectrum = jnp.fft.rfft(fields.astype(jnp.promote_types(fields.dtype, jnp.float32)), axis=axis)
    k = np.arange(n // 2 + 1)
    factor = (
        np.sqrt(np.where((k == 0) | (2 * k == n), 1.0, 2.0) / n) * 2 * np.pi * k / (n * spacing)
    )
    scaled = jnp.moveaxis(spectrum, axis, -1) * jnp.asarray(factor, spectrum.real.dtype)
    return _sum_of_squares(scaled.real) + _sum_of_squares(scaled.imag)


def relative_h1(
    prediction: Real[Array | np.ndarray, "batch *spatial channels"],
    target: Real[Array | np.ndarray, "batch *spatial channels"],
    *,
    periodic: bool = False,
    spacing: float | Sequence[float] | None = None,
) -> Float[Array, ""]:
    r"""Mean over the samples of the relative $H^1$ error.

    Per sample $\big((\|e\|^2 + \|\nabla e\|^2) / (\|v\|^2 + \|\nabla v\|^2)\big)^{1/2}$ with the
    error $e = u - v$. Training with it weighs high frequencies more than $L^2$ does. Derivatives of
    periodic fields are those of their Fourier series, exact for all frequencies that the grid carries,
    the Nyquist frequency included. Otherwise they are differences of neighbouring points, which make
    a wave of frequency $k$ on points at distance $h$ smaller by the factor
    $\sin(\pi k h) / (\pi k h)$: no less than $2 / \pi$, at the highest one.

    Args:
        prediction: fields $u$, shape (batch, \*spatial, channels).
        target: fields $v$ of the same shape.
        periodic: the fields are periodic.
        spacing: distance of neighbouring points, one number or one per axis; by default the unit
            interval divided by the number of points, or by one less if not ``periodic``.

    Returns:
        The mean relative error, a scalar; its gradient is zero at ``prediction == target``.

    Raises:
        ValueError: if the shapes differ, there is no spatial axis, a spatial axis has a single
            point, or ``spacing`` is not positive or of the wrong length.
    """
    prediction, target = _as_pair(prediction, target, 3)
    sizes = target.shape[1:-1]
    for axis, n in enumerate(sizes):
        if n < 2:
            raise ValueError(f"spatial axis {axis} needs at least 2 points, got {n}")
    if spacing is None:
        steps = [1.0 / (n if periodic else n - 1) for n in sizes]
    elif isinstance(spacing, Sequence):
        steps = [check_positive(f"spacing[{i}]", h) for i, h in enumerate(spacing)]
        if len(steps) != len(sizes):
            raise ValueError(f"spacing must have {len(sizes)} entries, got {list(spacing)}")
    else:
        steps = [check_positive("spacing", spacing)] * len(sizes)

    def norm(fields: Array) -> Array:
        total = _sum_of_squares(fields)
        for axis, h in enumerate(steps):
            total = total + _slopes(fields, axis + 1, h, periodic)
        return total

    return _mean_ratio(norm(prediction - target), norm(target))
