"""Models as somebody would write them who knows nothing of levels: plain Flax NNX, no base class.

Fields are channels last: shape (samples, n, ..., n, channels). `size` is what grows from level to level.
"""

from __future__ import annotations

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def grid_points(shape: tuple[int, ...]) -> Float[np.ndarray, "*shape axes"]:
    """The centres of the cells of a grid in the unit interval, square or cube."""
    axes = [(np.arange(n, dtype=np.float32) + 0.5) / n for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


class Convolution(nnx.Module):
    """A convolution, and a normalisation of groups of four channels."""

    def __init__(self, inputs: int, outputs: int, axes: int, padding: str, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Conv(inputs, outputs, (3,) * axes, padding=padding, rngs=rngs)
        self.norm = nnx.GroupNorm(outputs, num_groups=outputs // 4, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Apply both, and the activation."""
        return nnx.gelu(self.norm(self.layer(x)))


class UNet(nnx.Module):
    """Ronneberger, Fischer and Brox (arXiv:1505.04597), small: pooling, skips that are concatenated.

    Args:
        channels: of the finest grid; twice as many on each coarser one.
        depth: number of poolings.
        axes: number of space dimensions.
        padding: of the convolutions; ``"CIRCULAR"`` for periodic fields.
        rngs: random streams.
    """

    def __init__(
        self, channels: int, *, depth: int, axes: int, padding: str = "SAME", rngs: nnx.Rngs
    ) -> None:
        self.window = (2,) * axes
        widths = [channels * 2**level for level in range(depth + 1)]
        self.down = nnx.List(
            [
                Convolution(inputs, outputs, axes, padding, rngs)
                for inputs, outputs in zip([1, *widths[:-2]], widths[:-1], strict=True)
            ]
        )
        self.bottom = Convolution(widths[-2], widths[-1], axes, padding, rngs)
        self.enlarge = nnx.List(
            [
                nnx.ConvTranspose(2 * width, width, self.window, self.window, rngs=rngs)
                for width in reversed(widths[:-1])
            ]
        )
        self.up = nnx.List(
            [Convolution(2 * width, width, axes, padding, rngs) for width in reversed(widths[:-1])]
        )
        self.output = nnx.Conv(channels, 1, (1,) * axes, rngs=rngs)

    def __call__(self, x: Float[Array, "samples *grid 1"]) -> Float[Array, "samples *grid 1"]:
        """The output field."""
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = nnx.max_pool(x, self.window, strides=self.window)
        x = self.bottom(x)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(jnp.concatenate([enlarge(x), skips.pop()], axis=-1))
        return self.output(x)


class GalerkinAttention(nnx.Module):
    """Attention without softmax, linear in the number of points (Cao, arXiv:2105.14995).

    Args:
        width: number of features.
        heads: number of heads; every head has ``width / heads`` features.
        rngs: random streams.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.key_norm = nnx.LayerNorm(width // heads, rngs=rngs)
        self.value_norm = nnx.LayerNorm(width // heads, rngs=rngs)
        self.output = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "samples points width"]) -> Array:
        """Mix the features of all points."""
        samples, points, width = x.shape

        def heads_of(layer: nnx.Linear) -> Array:
            return layer(x).reshape(samples, points, self.heads, width // self.heads)

        query = heads_of(self.query)
        key, value = self.key_norm(heads_of(self.key)), self.value_norm(heads_of(self.value))
        mixed = jnp.einsum("bphi,bphj->bhij", key, value) / points
        answer = jnp.einsum("bphi,bhij->bphj", query, mixed)
        return self.output(answer.reshape(samples, points, width))


class AttentionBlock(nnx.Module):
    """Attention and two dense layers, each a term that is added to what was there."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.first_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = GalerkinAttention(width, heads, rngs)
        self.second_norm = nnx.LayerNorm(width, rngs=rngs)
        self.inner = nnx.Linear(width, 2 * width, rngs=rngs)
        self.outer = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "samples points width"]) -> Array:
        """Add both terms."""
        x = x + self.attention(self.first_norm(x))
        return x + self.outer(nnx.gelu(self.inner(self.second_norm(x))))


class AttentionOperator(nnx.Module):
    """Every point of the grid is a token that knows its value and its place.

    Args:
        width: number of features, eight for each head.
        blocks: number of blocks.
        axes: number of space dimensions.
        periodic: whether places are points of a torus.
        rngs: random streams.
    """

    def __init__(
        self, width: int, *, blocks: int, axes: int, periodic: bool = False, rngs: nnx.Rngs
    ) -> None:
        self.periodic = periodic
        self.input = nnx.Linear(1 + (2 if periodic else 1) * axes, width, rngs=rngs)
        self.blocks = nnx.List([AttentionBlock(width, width // 8, rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        self.output = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "samples *grid 1"]) -> Float[Array, "samples *grid 1"]:
        """The output field."""
        samples, *grid, _ = x.shape
        places = grid_points(tuple(grid)).reshape(-1, len(grid))
        if self.periodic:
            angles = 2 * np.pi * places
            places = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
        tokens = x.reshape(samples, -1, 1)
        everywhere = jnp.broadcast_to(places, (samples, *places.shape))
        tokens = self.input(jnp.concatenate([tokens, everywhere.astype(x.dtype)], axis=-1))
        for block in self.blocks:
            tokens = block(tokens)
        return self.output(nnx.gelu(self.hidden(self.norm(tokens)))).reshape(x.shape)


class DeepONet(nnx.Module):
    """Lu, Jin, Pang, Zhang and Karniadakis (arXiv:1910.03193): a branch and a trunk.

    Args:
        width: of all hidden layers; half as many terms are summed.
        sensors: number of values of the input field.
        axes: number of space dimensions.
        rngs: random streams.
    """

    def __init__(self, width: int, *, sensors: int, axes: int, rngs: nnx.Rngs) -> None:
        def layers(inputs: int) -> nnx.List:
            sizes = [inputs, width, width, width, width // 2]
            return nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairwise(sizes)])

        self.branch, self.trunk = layers(sensors), layers(axes)
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(
        self, field: Float[Array, "samples *grid 1"], places: Float[Array, "*points axes"]
    ) -> Float[Array, "samples *points 1"]:
        """The output field at some places."""
        coefficients, functions = field.reshape(len(field), -1), places
        for layer in self.branch[:-1]:
            coefficients = nnx.gelu(layer(coefficients))
        coefficients = self.branch[-1](coefficients)
        for layer in self.trunk:
            functions = nnx.gelu(layer(functions))
        summed = jnp.einsum("bk,...k->b...", coefficients, functions)
        return (summed + self.bias[...])[..., None]
