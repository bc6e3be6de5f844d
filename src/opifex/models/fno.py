"""Fourier neural operator in one, two and three dimensions, with one layer class for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from opifex.core.checks import (
    check_callable,
    check_choice,
    check_param_dtype,
    check_positive_int,
    check_rngs,
)
from opifex.core.dtypes import as_inexact
from opifex.models.fourier import (
    TRANSFORMS,
    inverse_truncated_transform,
    mode_axes,
    truncated_transform,
)

__all__ = ["FNO", "FourierBlock", "SpectralConv"]

GRID_KINDS = ("cell", "vertex", "periodic")


def _check_modes(modes: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """Modes per axis as a tuple; one number stands for all axes."""
    if not isinstance(modes, Sequence):
        return (check_positive_int("modes", modes),) * spatial_dims
    if len(modes) != spatial_dims:
        raise ValueError(
            f"modes must have one entry per axis (spatial_dims={spatial_dims}), got {tuple(modes)}"
        )
    return tuple(check_positive_int(f"modes[{i}]", m) for i, m in enumerate(modes))


def _check_spatial_dims(spatial_dims: int) -> int:
    if check_positive_int("spatial_dims", spatial_dims) > 3:
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}")
    return spatial_dims


class SpectralConv(nnx.Module):
    r"""Convolution by multiplication of Fourier coefficients.

    $\hat y_o(k) = \sum_i W_{io}(k)\, \hat x_i(k)$ for $|k_a| < m_a$ on every axis $a$, and zero for
    all other frequencies (Li et al., ICLR 2021, arXiv:2010.08895, section 4). The weights do not
    depend on the grid: the same layer acts on every grid with at least $2m - 1$ points per axis.

    The complex weights are two real parameters, ``weight_real`` and ``weight_imag``, so that every
    optimizer that is right for real parameters is right for them. Their shape is
    ``(*mode_axes, in, out)``: the last spatial axis stores $k = 0, \dots, m-1$, leading axes store
    $k = -(m-1), \dots, m-1$ in ascending order.

    Args:
        input_size: number of incoming channels.
        output_size: number of outgoing channels.
        modes: number of modes ``m``, one for all axes or one per axis; ``m`` keeps the
            frequencies ``|k| < m``, of which ``m = 1`` is the mean alone.
        spatial_dims: number of space dimensions, 1, 2 or 3.
        transform: ``"matmul"``, ``"fft"``, or ``"auto"``, see `opifex.models.fourier`.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a size is not positive, ``spatial_dims`` is above 3, ``modes`` does not have
            one entry per axis, or ``transform`` is unknown.
        TypeError: if a size is not an integer, or ``rngs`` no ``nnx.Rngs``.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        modes: int | Sequence[int],
        *,
        spatial_dims: int = 1,
        transform: str = "auto",
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_size = check_positive_int("input_size", input_size)
        self.output_size = check_positive_int("output_size", output_size)
        self.spatial_dims = _check_spatial_dims(spatial_dims)
        self.modes = _check_modes(modes, spatial_dims)
        self.transform = check_choice("transform", transform, TRANSFORMS)
        check_param_dtype("param_dtype", param_dtype)
        check_rngs("rngs", rngs)
        shape = (*mode_axes(self.modes), input_size, output_size)
        # The scale of Li et al.: small, so that the pointwise part of a block dominates at first.
        scale = 1.0 / (input_size * output_size)
        self.weight_real = nnx.Param(
            scale * jax.random.uniform(rngs.params(), shape, param_dtype, -1.0, 1.0)
        )
        self.weight_imag = nnx.Param(
            scale * jax.random.uniform(rngs.params(), shape, param_dtype, -1.0, 1.0)
        )

    def __call__(self, x: Real[Array | np.ndarray, "batch *spatial inputs"]) -> Array:
        """Apply the layer to channels-last fields.

        Args:
            x: fields, shape (batch, *spatial, input_size).

        Returns:
            Fields of shape (batch, *spatial, output_size).

        Raises:
            ValueError: if ``x`` has the wrong number of axes or channels, or a grid axis is too
                coarse for the modes.
            TypeError: if ``x`` does not hold numbers.
        """
        check_fields(x, self.spatial_dims, self.input_size)
        x = as_inexact(x, self.weight_real[...].dtype)
        return batch_first(self.convolve(space_first(x)))

    def convolve(self, x: Float[Array, "*spatial batch inputs"]) -> Array:
        """Apply the layer to space-first fields: (*spatial, batch, in) to (*spatial, batch, out).

        `FNO` works in this layout throughout, where no transform has to move data.
        """
        dims = self.spatial_dims
        batch, shape = x.shape[dims], x.shape[:dims]
        h = truncated_transform(x, self.modes, transform=self.transform)
        # One real product per mode gives all four terms of the complex one: real and imaginary
        # parts of the field are rows, those of the weights are columns.
        size = self.output_size
        weight = jnp.concatenate([self.weight_real[...], self.weight_imag[...]], axis=-1)
        weight = weight.reshape(-1, self.input_size, 2 * size)
        # Not by matmul, which drops an axis of one mode: layers of any sizes are the same operations.
        rows = h.reshape(-1, 2 * batch, self.input_size)
        terms = jnp.einsum("kbi,kio->kbo", rows, weight)
        real = terms[:, :batch, :size] - terms[:, batch:, size:]
        imag = terms[:, batch:, :size] + terms[:, :batch, size:]
        y = jnp.stack([real, imag], axis=1).reshape(*h.shape[:-1], size)
        return inverse_truncated_transform(y, self.modes, shape, transform=self.transform)


class FourierBlock(nnx.Module):
    """A spectral convolution plus a pointwise linear map (the ``skip``), before the activation.

    Args:
        width: number of channels.
        modes: number of modes per axis.
        spatial_dims: number of space dimensions.
        transform: as in `SpectralConv`.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: as `SpectralConv` does.
        TypeError: as `SpectralConv` does.
    """

    def __init__(
        self,
        width: int,
        modes: int | Sequence[int],
        *,
        spatial_dims: int = 1,
        transform: str = "auto",
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.spectral = SpectralConv(
            width,
            width,
            modes,
            spatial_dims=spatial_dims,
            transform=transform,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.skip = nnx.Linear(width, width, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*spatial batch width"]) -> Array:
        """Apply the block to space-first fields, shape (*spatial, batch, width)."""
        return self.spectral.convolve(x) + self.skip(x)


class FNO(nnx.Module):
    r"""Fourier neural operator (Li et al., ICLR 2021, arXiv:2010.08895).

    A pointwise lifting to ``width`` channels, ``num_layers`` blocks (spectral convolution plus
    pointwise linear map, with the activation between blocks), and a pointwise projection with one
    hidden layer. The same weights act on every grid that carries the modes.

    Args:
        modes: number of modes ``m``, one for all axes or one per axis; ``m`` keeps ``|k| < m``.
        width: number of channels of the blocks.
        input_dim: number of components of the input fields.
        output_dim: number of components of the output fields.
        num_layers: number of Fourier blocks.
        spatial_dims: number of space dimensions, 1, 2 or 3.
        activation: elementwise function.
        projection_dim: width of the projection's hidden layer; ``2 * width`` by default.
        grid_kind: where the points of an axis of ``n`` lie in [0, 1]: ``"cell"`` at (j + 1/2) / n,
            ``"vertex"`` at j / (n - 1), boundary included, ``"periodic"`` at j / n of data that are
            periodic.
        append_coordinates: give the coordinates of the points to the network as ``spatial_dims``
            further input channels; by default unless the data are periodic. Without them the operator
            commutes with translations, and knows of no boundary.
        transform: ``"matmul"``, ``"fft"``, or ``"auto"``, see `opifex.models.fourier`.
        param_dtype: dtype of the parameters; computations promote with the input.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if a size is not positive, ``spatial_dims`` is above 3, ``modes`` does not have
            one entry per axis, or ``grid_kind`` or ``transform`` is unknown.
        TypeError: if a size is not an integer, ``activation`` is not callable,
            ``append_coordinates`` is not a bool, or ``rngs`` is no ``nnx.Rngs``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.models import FNO
        >>> operator = FNO(modes=4, width=8, num_layers=1, rngs=nnx.Rngs(0))
        >>> [operator(jnp.zeros((5, points, 1))).shape for points in (16, 32)]
        [(5, 16, 1), (5, 32, 1)]
    """

    def __init__(
        self,
        modes: int | Sequence[int],
        width: int,
        *,
        input_dim: int = 1,
        output_dim: int = 1,
        num_layers: int = 4,
        spatial_dims: int = 1,
        activation: Callable[[Array], Array] = nnx.gelu,
        projection_dim: int | None = None,
        grid_kind: str = "cell",
        append_coordinates: bool | None = None,
        transform: str = "auto",
        param_dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.width = check_positive_int("width", width)
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.output_dim = check_positive_int("output_dim", output_dim)
        self.num_layers = check_positive_int("num_layers", num_layers)
        self.spatial_dims = _check_spatial_dims(spatial_dims)
        self.modes = _check_modes(modes, spatial_dims)
        check_callable("activation", activation)
        self.activation = activation
        self.projection_dim = (
            2 * width
            if projection_dim is None
            else check_positive_int("projection_dim", projection_dim)
        )
        self.grid_kind = check_choice("grid_kind", grid_kind, GRID_KINDS)
        if append_coordinates is None:
            append_coordinates = grid_kind != "periodic"
        elif not isinstance(append_coordinates, bool):
            raise TypeError(f"append_coordinates must be a bool, got {append_coordinates!r}")
        self.append_coordinates = append_coordinates
        self.transform = check_choice("transform", transform, TRANSFORMS)
        check_param_dtype("param_dtype", param_dtype)
        check_rngs("rngs", rngs)
        channels = input_dim + (spatial_dims if append_coordinates else 0)
        self.lifting = nnx.Linear(channels, width, param_dtype=param_dtype, rngs=rngs)
        self.blocks = nnx.List(
            FourierBlock(
                width,
                self.modes,
                spatial_dims=spatial_dims,
                transform=transform,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.projection_hidden = nnx.Linear(
            width, self.projection_dim, param_dtype=param_dtype, rngs=rngs
        )
        self.projection_output = nnx.Linear(
            self.projection_dim, output_dim, param_dtype=param_dtype, rngs=rngs
        )

    def with_modes(self, modes: int | Sequence[int], *, rngs: nnx.Rngs) -> FNO:
        """A new operator with other modes and otherwise the same settings.

        Args:
            modes: number of modes, one for all axes or one per axis.
            rngs: random streams for its parameters.

        Raises:
            ValueError: if ``modes`` does not have one positive entry per axis.
            TypeError: if a number of modes is not an integer.
        """
        return FNO(
            modes,
            self.width,
            input_dim=self.input_dim,
            output_dim=self.output_dim,
            num_layers=self.num_layers,
            spatial_dims=self.spatial_dims,
            activation=self.activation,
            projection_dim=self.projection_dim,
            grid_kind=self.grid_kind,
            append_coordinates=self.append_coordinates,
            transform=self.transform,
            param_dtype=self.lifting.kernel[...].dtype,
            rngs=rngs,
        )

    def __call__(self, x: Real[Array | np.ndarray, "batch *spatial inputs"]) -> Array:
        """Map input fields to output fields on the same grid.

        Args:
            x: fields, shape (batch, *spatial, input_dim).

        Returns:
            Fields of shape (batch, *spatial, output_dim).

        Raises:
            ValueError: if ``x`` has the wrong number of axes or channels, or a grid axis is too
                coarse for the modes.
            TypeError: if ``x`` does not hold numbers.
        """
        check_fields(x, self.spatial_dims, self.input_dim)
        kernel = self.lifting.kernel[...]
        x = as_inexact(x, kernel.dtype)
        features = space_first(x)
        if self.append_coordinates:
            coordinates = grid_coordinates(x.shape[1:-1], self.grid_kind, x.dtype)
            coordinates = jnp.broadcast_to(
                jnp.expand_dims(coordinates, -2), (*features.shape[:-1], self.spatial_dims)
            )
            features = jnp.concatenate([features, coordinates], axis=-1)
        features = self.lifting(features).astype(jnp.result_type(x, kernel))
        for i, block in enumerate(self.blocks):
            features = block(features)
            if i + 1 < self.num_layers:
                features = self.activation(features)
        hidden = self.activation(self.projection_hidden(features))
        return batch_first(self.projection_output(hidden))


def check_fields(
    x: Array | np.ndarray, spatial_dims: int, channels: int, *, name: str = "x"
) -> None:
    """Raise unless ``x`` has shape (batch, *spatial, channels).

    Args:
        x: fields.
        spatial_dims: number of spatial axes it should have.
        channels: size of the last axis it should have.
        name: what the message calls it.

    Raises:
        ValueError: if it has another shape.
    """
    shape = np.shape(x)
    if len(shape) != spatial_dims + 2 or shape[-1] != channels:
        missing = channels == 1 and len(shape) == spatial_dims + 1
        raise ValueError(
            f"{name} must have shape (batch, {spatial_dims} spatial axes, {channels} channels), "
            f"got {shape}" + (f"; add the axis of channels: {name}[..., None]" if missing else "")
        )


def check_axes(x: Array | np.ndarray, spatial_dims: int, *, name: str = "x") -> None:
    """Raise unless ``x`` has shape (batch, *spatial, channels), with any number of channels.

    Args:
        x: fields.
        spatial_dims: number of spatial axes it should have.
        name: what the message calls it.

    Raises:
        ValueError: if it has another number of axes.
    """
    shape = np.shape(x)
    if len(shape) != spatial_dims + 2:
        missing = len(shape) == spatial_dims + 1
        raise ValueError(
            f"{name} must have shape (batch, {spatial_dims} spatial axes, channels), got {shape}"
            + (f"; add the axis of channels: {name}[..., None]" if missing else "")
        )


def space_first(x: Float[Array, "batch *spatial channels"]) -> Array:
    """(batch, *spatial, channels) to (*spatial, batch, channels)."""
    return jnp.moveaxis(x, 0, -2)


def batch_first(x: Float[Array, "*spatial batch channels"]) -> Array:
    """(*spatial, batch, channels) to (batch, *spatial, channels)."""
    return jnp.moveaxis(x, -2, 0)


def grid_coordinates(
    shape: Sequence[int], grid_kind: str, dtype: jnp.dtype | type
) -> Float[Array, "*spatial dims"]:
    """Coordinates in [0, 1] of the points of a grid, shape (*shape, axes).

    Args:
        shape: points per axis.
        grid_kind: where the points lie, see `FNO`.
        dtype: of the coordinates, but at least float32: half precision cannot tell the points of a
            fine grid from each other.
    """
    axes, dtype = [], jnp.promote_types(dtype, jnp.float32)
    for n in shape:
        j = jnp.arange(n, dtype=dtype)
        if grid_kind == "periodic":
            axes.append(j / n)
        elif grid_kind == "vertex":
            axes.append(j / max(n - 1, 1))
        else:
            axes.append((j + 0.5) / n)
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
