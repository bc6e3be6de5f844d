r"""Truncated Fourier transforms on regular grids, in any number of dimensions.

The coefficients of a real field $x$ on a grid of $n_1 \times \dots \times n_d$ points are
$\hat x(k) = \frac{1}{n_1 \cdots n_d} \sum_j x(j)\, e^{-2\pi i\, k \cdot j / n}$, kept for
$|k_i| < m_i$. The division makes them a property of the field, not of the grid.

Layout. Fields are *space first*: ``(*spatial, *rest)``, where ``rest`` is usually (batch,
channels). Every one-dimensional transform is then a product of a small matrix with a wide one,
without moving data. Coefficients have shape ``(*mode_axes, 2, *rest)``; the axis of size two holds
real and imaginary parts. The last spatial axis stores $k = 0, \dots, m-1$ (the others follow from
the field being real), every leading axis $k = -(m-1), \dots, m-1$ in ascending order: the
coefficients of fewer modes are a centred slice of the leading axes and a leading slice of the last.

Two ways to compute the same numbers: ``"fft"`` transforms completely and discards; ``"matmul"``
multiplies with the $2m \times n$ matrix of cosines and sines, which costs $O(mn)$ instead of
$O(n \log n)$ operations but runs at the speed of matrix products and moves less data. It is the faster
one up to about 80 modes; `choose_transform` estimates which it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Real

from opifex.core.checks import check_choice, check_positive_int
from opifex.core.dtypes import as_inexact

__all__ = [
    "TRANSFORMS",
    "check_grid_carries_modes",
    "choose_transform",
    "inverse_truncated_transform",
    "mode_axes",
    "truncated_transform",
]

TRANSFORMS = ("auto", "fft", "matmul")

# What a fast transform costs in operations of a matrix product, measured on processors of one and two
# cores in float32: its data are brought into order before and after, which takes as long as so many
# operations per number whatever the size, and its own operations take so many times as long.
FFT_MOVES = 250.0
FFT_SLOWNESS = 3.0


def mode_axes(modes: Sequence[int]) -> tuple[int, ...]:
    """Number of stored frequencies per axis: ``2 m - 1`` on leading axes, ``m`` on the last.

    Args:
        modes: number of modes ``m`` per axis, at least one axis.

    Raises:
        TypeError: if a number of modes is not an integer.
        ValueError: if ``modes`` is empty or a number of modes is not positive.
    """
    if len(modes) == 0:
        raise ValueError("modes must name at least one axis, got an empty sequence")
    sizes = [check_positive_int(f"modes[{i}]", m) for i, m in enumerate(modes)]
    return (*(2 * m - 1 for m in sizes[:-1]), sizes[-1])


def check_grid_carries_modes(modes: Sequence[int], shape: Sequence[int]) -> None:
    r"""Raise unless every axis of a grid has the $2m - 1$ points that $|k| < m$ needs.

    Args:
        modes: number of modes ``m`` per axis.
        shape: points per axis of the grid.

    Raises:
        ValueError: naming the first axis that is too coarse, its size and the size it needs.
    """
    if len(modes) != len(shape):
        raise ValueError(
            f"a grid of shape {tuple(shape)} has {len(shape)} axes, "
            f"but modes={tuple(modes)} names {len(modes)}"
        )
    for axis, (m, n) in enumerate(zip(modes, shape, strict=True)):
        if n < 2 * m - 1:
            raise ValueError(
                f"spatial axis {axis} has {n} points, too coarse for modes={m}: "
                f"the frequencies |k| < {m} need at least {2 * m - 1} points"
            )


def choose_transform(modes: Sequence[int], shape: Sequence[int]) -> str:
    r"""The faster way for these sizes by a count of operations, ``"fft"`` or ``"matmul"``.

    An axis of $n$ points and $m$ modes takes, per real number that is transformed, $4m$ operations of
    a matrix product, or $2.5 \log_2 n$ of a Fourier transform; fewer numbers are left for the next
    axis. The constants are measured.

    Args:
        modes: number of modes per axis.
        shape: points per axis of the grid.
    """
    matmul = fft = 0.0
    numbers, last = float(math.prod(shape)), len(modes) - 1
    for axis in range(last, -1, -1):
        m, n = modes[axis], shape[axis]
        matmul += numbers * 4 * m
        fft += numbers * (FFT_MOVES + FFT_SLOWNESS * 2.5 * math.log2(n))
        numbers *= (2 * m if axis == last else 2 * m - 1) / n
    return "matmul" if matmul <= fft else "fft"


@lru_cache(maxsize=256)
def _cosines_and_sines(m: int, n: int) -> np.ndarray:
    """Rows cos(2 pi k j / n) for k < m, then the sines; shape (2 m, n), float64."""
    # The phase is reduced in integers, so that large k j loses no accuracy.
    phase = 2.0 * np.pi / n * ((np.arange(m)[:, None] * np.arange(n)[None, :]) % n)
    return np.concatenate([np.cos(phase), np.sin(phase)])


def _matrix_product(matrix: np.ndarray, x: Array) -> Array:
    """Product of a constant (p, q) matrix with ``x`` of shape (batch, q, columns)."""
    constant, batch = jnp.asarray(matrix, x.dtype), x.shape[0]
    # An exported program leaves the number of samples, and with it of columns, open: many, then.
    many = not isinstance(x.shape[2], int) or 2 * matrix.shape[0] <= x.shape[2]
    if batch > 1 and many:
        # A product for each of the batch needs as many copies of the matrix: only if it is small.
        constant = jnp.broadcast_to(constant, (batch, *constant.shape))
        return jnp.matmul(constant, x, precision=lax.Precision.HIGHEST)
    columns = jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)
    product = jnp.matmul(constant, columns, precision=lax.Precision.HIGHEST)
    return jnp.swapaxes(product.reshape(-1, batch, x.shape[2]), 0, 1)


def _forward_by_matmul(x: Array, modes: tuple[int, ...]) -> Array:
    dims = len(modes)
    shape, rest = x.shape[:dims], x.shape[dims:]
    columns = math.prod(rest)
    # Last axis: real to complex. (pre, n, columns) -> (pre, m, 2, columns).
    m, n = modes[-1], shape[-1]
    cosine, sine = np.split(_cosines_and_sines(m, n) / n, 2)
    matrix = np.stack([cosine, -sine], axis=1).reshape(2 * m, n)
    h = _matrix_product(matrix, x.reshape(-1, n, columns))
    # Leading axes, from the last to the first: complex to complex, by cosine and sine transforms of
    # the real and imaginary parts, each computed once for k and -k.
    post: tuple[int, ...] = (m, 2, columns)
    for axis in reversed(range(dims - 1)):
        m, n = modes[axis], shape[axis]
        pre = math.prod(shape[:axis])
        tail = math.prod(post[:-2])
        h = _matrix_product(_cosines_and_sines(m, n) / n, h.reshape(pre, n, -1))
        h = h.reshape(pre, 2, m, tail, 2, columns)
        even, odd = h[:, 0], h[:, 1]
        # -i times the sine transform: (re, im) -> (im, -re).
        odd = jnp.stack([odd[..., 1, :], -odd[..., 0, :]], axis=-2)
        h = jnp.concatenate([(even - odd)[:, :0:-1], even + odd], axis=1)
        post = (2 * m - 1, *post)
    return h.reshape(*mode_axes(modes), 2, *rest)


def _inverse_by_matmul(h: Array, modes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    dims = len(modes)
    rest = h.shape[dims + 1 :]
    columns = math.prod(rest)
    stored = mode_axes(modes)
    for axis in range(dims - 1):
        m, n = modes[axis], shape[axis]
        pre = math.prod(shape[:axis])
        tail = math.prod(stored[axis + 1 :])
        h = h.reshape(pre, 2 * m - 1, tail, 2, columns)
        negative, zero, positive = h[:, : m - 1][:, ::-1], h[:, m - 1 : m], h[:, m:]
        even = jnp.concatenate([zero, positive + negative], axis=1)
        odd = jnp.concatenate([jnp.zeros_like(zero), positive - negative], axis=1)
        # i times the odd part goes with the sines: (re, im) -> (-im, re).
        odd = jnp.stack([-odd[..., 1, :], odd[..., 0, :]], axis=-2)
        h = jnp.concatenate([even, odd], axis=1)
        h = _matrix_product(_cosines_and_sines(m, n).T, h.reshape(pre, 2 * m, -1))
    m, n = modes[-1], shape[-1]
    cosine, sine = np.split(_cosines_and_sines(m, n), 2)
    # Frequencies above zero stand for themselves and their conjugates.
    weight = np.where(np.arange(m) == 0, 1.0, 2.0)[:, None]
    matrix = np.stack([weight * cosine, -weight * sine], axis=1).reshape(2 * m, n)
    x = _matrix_product(matrix.T, h.reshape(-1, 2 * m, columns))
    return x.reshape(*shape, *rest)


def _forward_by_fft(x: Array, modes: tuple[int, ...]) -> Array:
    dims = len(modes)
    h = jnp.fft.rfft(x, axis=dims - 1, norm="forward")
    h = lax.slice_in_dim(h, 0, modes[-1], axis=dims - 1)
    for axis in range(dims - 1):
        m = modes[axis]
        h = jnp.fft.fft(h, axis=axis, norm="forward")
        n = h.shape[axis]
        negative = lax.slice_in_dim(h, n - (m - 1), n, axis=axis)
        h = jnp.concatenate([negative, lax.slice_in_dim(h, 0, m, axis=axis)], axis=axis)
    return jnp.stack([h.real, h.imag], axis=dims)


def _inverse_by_fft(h: Array, modes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    dims = len(modes)
    z = lax.complex(lax.index_in_dim(h, 0, dims, False), lax.index_in_dim(h, 1, dims, False))
    for axis in range(dims - 1):
        m, n = modes[axis], shape[axis]
        gap = list(z.shape)
        gap[axis] = n - (2 * m - 1)
        negative = lax.slice_in_dim(z, 0, m - 1, axis=axis)
        rest = lax.slice_in_dim(z, m - 1, 2 * m - 1, axis=axis)
        z = jnp.concatenate([rest, jnp.zeros(gap, z.dtype), negative], axis=axis)
        z = jnp.fft.ifft(z, axis=axis, norm="forward")
    return jnp.fft.irfft(z, n=shape[-1], axis=dims - 1, norm="forward")


def _transformable(x: Array) -> Array:
    """In single precision at least: there are no fast transforms of less, and both ways are equal."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def truncated_transform(
    x: Real[Array, "*spatial_and_rest"], modes: Sequence[int], *, transform: str = "auto"
) -> Float[Array, "*modes_two_and_rest"]:
    """Fourier coefficients of a real field for the frequencies ``|k| < m`` of every axis.

    Args:
        x: field, space first: one leading axis per entry of ``modes``, then any others.
        modes: number of modes per spatial axis.
        transform: ``"fft"``, ``"matmul"``, or ``"auto"`` for the faster one by `choose_transform`.

    Returns:
        Coefficients of shape ``(*mode_axes(modes), 2, *rest)``, see the layout above, in the dtype of
        ``x``; what has less than single precision is transformed in that.

    Raises:
        ValueError: if an axis has fewer than ``2 m - 1`` points, or ``transform`` is unknown.
    """
    modes, x = tuple(modes), as_inexact(x)
    shape = x.shape[: len(modes)]
    check_grid_carries_modes(modes, shape)
    if check_choice("transform", transform, TRANSFORMS) == "auto":
        transform = choose_transform(modes, shape)
    forward = _forward_by_fft if transform == "fft" else _forward_by_matmul
    return forward(_transformable(x), modes).astype(x.dtype)


def inverse_truncated_transform(
    coefficients: Real[Array, "*modes_two_and_rest"],
    modes: Sequence[int],
    shape: Sequence[int],
    *,
    transform: str = "auto",
) -> Float[Array, "*spatial_and_rest"]:
    """The real field with given Fourier coefficients, on a grid of a given shape.

    The imaginary part of the mean does not contribute, nor does the part of the coefficients with
    last frequency zero that no real field can have.

    Args:
        coefficients: shape ``(*mode_axes(modes), 2, *rest)``.
        modes: number of modes per spatial axis.
        shape: points per spatial axis.
        transform: as in `truncated_transform`.

    Returns:
        The field, space first: shape ``(*shape, *rest)``.

    Raises:
        ValueError: if an axis has fewer than ``2 m - 1`` points, the coefficients do not have the
            stated shape, or ``transform`` is unknown.
    """
    modes, grid, coefficients = tuple(modes), tuple(shape), as_inexact(coefficients)
    check_grid_carries_modes(modes, grid)
    expected = (*mode_axes(modes), 2)
    if coefficients.shape[: len(expected)] != expected:
        raise ValueError(
            f"coefficients must have leading axes {expected} for modes={modes}, "
            f"got shape {coefficients.shape}"
        )
    if check_choice("transform", transform, TRANSFORMS) == "auto":
        transform = choose_transform(modes, grid)
    inverse = _inverse_by_fft if transform == "fft" else _inverse_by_matmul
    return inverse(_transformable(coefficients), modes, grid).astype(coefficients.dtype)
