"""Which architectures grow with their function, and why others cannot: a table, model by model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import SpectralConv
from opifex.training.multilevel.transfer import (
    function_difference,
    plan_transfer,
    prolongate_preserving,
    restrict,
)
from random_models import random_model

PAGE = Path(__file__).parents[4] / "docs/methods/architectures.md"


def normal(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype("float32")


# -- convolutions ----------------------------------------------------------------------------------


class UNet(nnx.Module):
    def __init__(self, width, rngs, depth=2):
        conv = lambda a, b, size: nnx.Conv(a, b, (size, size), rngs=rngs)  # noqa: E731
        widths = [width * 2**level for level in range(depth)]
        before = [1, *widths]
        self.down = nnx.List([conv(a, b, 3) for a, b in zip(before, widths, strict=False)])
        self.norms = nnx.List([nnx.BatchNorm(w, rngs=rngs) for w in widths])
        self.middle = conv(widths[-1], 2 * widths[-1], 3)
        self.up, self.cross = nnx.List(), nnx.List()
        for w in reversed(widths):
            self.up.append(nnx.ConvTranspose(2 * w, w, (2, 2), strides=(2, 2), rngs=rngs))
            self.cross.append(conv(2 * w, w, 3))
        self.last = conv(width, 1, 1)

    def __call__(self, x):
        skips = []
        for conv, norm in zip(self.down, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
            skips.append(x)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.middle(x))
        for up, cross in zip(self.up, self.cross, strict=True):
            x = nnx.relu(cross(jnp.concatenate([up(x), skips.pop()], -1)))
        return self.last(x)


class Convolutions(nnx.Module):
    """One convolution between two others."""

    def __init__(self, width, rngs, groups=1, size=3):
        self.a = nnx.Conv(2, width, (3,), rngs=rngs)
        self.b = nnx.Conv(width, width, (size,), feature_group_count=groups, rngs=rngs)
        self.o = nnx.Conv(width, 1, (1,), rngs=rngs)

    def __call__(self, x):
        return self.o(jnp.tanh(self.b(jnp.tanh(self.a(x)))))


class Flattened(nnx.Module):
    """Features of all points lie side by side."""

    def __init__(self, width, rngs):
        self.a, self.o = nnx.Conv(1, width, (3,), rngs=rngs), nnx.Linear(6 * width, 1, rngs=rngs)

    def __call__(self, x):
        return self.o(jnp.tanh(self.a(x)).reshape(x.shape[0], -1))


class Strided(nnx.Module):
    """A convolution whose stride follows the width."""

    def __init__(self, width, rngs):
        self.a = nnx.Conv(1, width, (3,), strides=(width // 2,), rngs=rngs)
        self.o = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.o(self.a(x).mean(1))


# -- attention -------------------------------------------------------------------------------------


class Attention(nnx.Module):
    def __init__(self, heads, size, rngs, norm=None):
        width = heads * size
        self.i = nnx.Linear(3, width, rngs=rngs)
        self.norm = None if norm is None else norm(width, rngs=rngs)
        self.a = nnx.MultiHeadAttention(heads, width, width, decode=False, rngs=rngs)
        self.o = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        x = self.i(x)
        return self.o(x + self.a(x if self.norm is None else self.norm(x)))


class OwnAttention(nnx.Module):
    def __init__(self, heads, size, rngs):
        self.sizes = heads, size
        linear = lambda a, b: nnx.Linear(a, b, rngs=rngs)  # noqa: E731
        self.i, self.o = linear(3, heads * size), linear(heads * size, 1)
        self.q, self.k, self.v = (linear(heads * size, heads * size) for _ in range(3))

    def __call__(self, x):
        x = self.i(x)
        q, k, v = (f(x).reshape(*x.shape[:-1], *self.sizes) for f in (self.q, self.k, self.v))
        return self.o(x + nnx.dot_product_attention(q, k, v).reshape(x.shape))


class FusedAttention(nnx.Module):
    """Queries, keys and values from one layer."""

    def __init__(self, heads, size, rngs):
        self.sizes = heads, size
        self.i, self.o = (nnx.Linear(*n, rngs=rngs) for n in ((3, 8), (heads * size, 1)))
        self.a = nnx.Linear(8, 3 * heads * size, rngs=rngs)

    def __call__(self, x):
        parts = jnp.split(self.a(self.i(x)), 3, -1)
        q, k, v = (part.reshape(*x.shape[:-1], *self.sizes) for part in parts)
        weights = nnx.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(self.sizes[1]))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.o(y.reshape(*x.shape[:-1], -1))


class Gram(nnx.Module):
    """Products of features with themselves, divided by their number."""

    def __init__(self, width, rngs):
        self.a, self.width = nnx.Linear(2, width, rngs=rngs), width

    def __call__(self, x):
        h = self.a(x)
        return nnx.softmax(h @ h.T / self.width)


class Transformer(nnx.Module):
    """Blocks that are terms of a sum, behind their own normalisation."""

    def __init__(self, depth, rngs):
        self.i, self.o = nnx.Linear(2, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs) for _ in range(2 * depth)])
        self.attentions = nnx.List(
            [nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs) for _ in range(depth)]
        )
        self.a = nnx.List([nnx.Linear(8, 16, rngs=rngs) for _ in range(depth)])
        self.b = nnx.List([nnx.Linear(16, 8, rngs=rngs) for _ in range(depth)])

    def __call__(self, x):
        x, norms = self.i(x), iter(self.norms)
        for attention, a, b in zip(self.attentions, self.a, self.b, strict=True):
            x = x + attention(next(norms)(x))
            x = x + b(nnx.gelu(a(next(norms)(x))))
        return self.o(x)


class SoftFeatures(nnx.Module):
    def __init__(self, width, rngs):
        self.a, self.o = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.o(nnx.softmax(self.a(x)))


# -- normalisations --------------------------------------------------------------------------------


class Normalised(nnx.Module):
    def __init__(self, width, rngs, norm=nnx.LayerNorm, **options):
        self.a, self.b = (nnx.Linear(n, width, rngs=rngs) for n in (2, width))
        self.first, self.second = (norm(width, rngs=rngs, **options) for _ in range(2))
        self.o = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        x = self.a(x)
        return self.o(self.second(x + self.b(jnp.tanh(self.first(x)))))


def group_norm(width, groups, rngs):
    return Normalised(width, rngs, nnx.GroupNorm, num_groups=groups)


# -- sequences -------------------------------------------------------------------------------------


class Recurrent(nnx.Module):
    def __init__(self, width, rngs, cell=nnx.GRUCell):
        self.rnn, self.o = nnx.RNN(cell(2, width, rngs=rngs)), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.o(self.rnn(x))


class Looped(nnx.Module):
    """A recurrent cell in a loop of Python."""

    def __init__(self, width, rngs, cell=nnx.GRUCell):
        self.cell, self.o = cell(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        carry, y = self.cell.initialize_carry(x[:, 0].shape, nnx.Rngs(0)), None
        for step in range(x.shape[1]):
            carry, y = self.cell(carry, x[:, step])
        return self.o(y)


class Scanned(nnx.Module):
    """Steps in time by `nnx.scan`."""

    def __init__(self, width, rngs):
        self.i, self.o = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
        self.step = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, None), out_axes=(nnx.Carry, 0), length=4)
        def march(h, step):
            h = h + 0.1 * jnp.tanh(step(h))
            return h, h

        last, all_steps = march(jnp.tanh(self.i(x)), self.step)
        return self.o(last) + self.o(all_steps.mean(0))


class ScannedLayers(nnx.Module):
    """Layers stacked in one array, one after the other by `nnx.scan`."""

    def __init__(self, width, depth, rngs):
        make = nnx.vmap(lambda keys: nnx.Linear(width, width, rngs=nnx.Rngs(keys)))
        self.layers = make(jax.random.split(rngs.params(), depth))
        self.i, self.o = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def march(h, layer):
            return h + jnp.tanh(layer(h))

        return self.o(march(self.i(x), self.layers))


class DepthwiseSkip(nnx.Module):
    """Each channel of a concatenation has its own kernel: old ones are behind new ones."""

    def __init__(self, width, rngs):
        self.a = nnx.Conv(2, width, (1,), rngs=rngs)
        self.b = nnx.Conv(width + 2, width + 2, (3,), feature_group_count=width + 2, rngs=rngs)
        self.o = nnx.Conv(width + 2, 1, (1,), rngs=rngs)

    def __call__(self, x):
        return self.o(jnp.tanh(self.b(jnp.concatenate([jnp.tanh(self.a(x)), x], axis=-1))))


class Tied(nnx.Module):
    def __init__(self, width, rngs):
        self.e, self.a = nnx.Embed(5, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)

    def __call__(self, tokens):
        return self.e.attend(jnp.tanh(self.a(self.e(tokens))))


class Placed(nnx.Module):
    """The same with a learned vector for each position, and nothing between."""

    def __init__(self, width, rngs):
        self.e, self.positions = nnx.Embed(5, width, rngs=rngs), nnx.Param(jnp.ones((5, width)))

    def __call__(self, tokens):
        return self.e.attend(self.e(tokens) + self.positions[...])


# -- operators, graphs, mixtures -------------------------------------------------------------------


class DeepONet(nnx.Module):
    def __init__(self, width, rngs):
        self.branch = nnx.Sequential(
            nnx.Linear(7, width, rngs=rngs), jnp.tanh, nnx.Linear(width, width, rngs=rngs)
        )
        self.trunk = nnx.Sequential(
            nnx.Linear(2, width, rngs=rngs), jnp.tanh, nnx.Linear(width, width, rngs=rngs), jnp.tanh
        )
        self.bias = nnx.Param(jnp.ones(()))

    def __call__(self, u, y):
        return jnp.einsum("bp,np->bn", self.branch(u), self.trunk(y)) + self.bias[...]


class ScaledDeepONet(DeepONet):
    """Divides by the number of terms; of the two factors only the branch can be multiplied."""

    def __call__(self, u, y):
        trunk = nnx.gelu(self.trunk.layers[0](y))
        return jnp.einsum("bp,np->bn", self.branch(u), trunk) / trunk.shape[-1]


class Graph(nnx.Module):
    """Messages along edges, summed at their ends."""

    def __init__(self, width, rngs):
        self.e, self.o = nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
        self.m, self.u = (nnx.Linear(2 * width, width, rngs=rngs) for _ in range(2))

    def __call__(self, x, senders, receivers):
        h = jnp.tanh(self.e(x))
        for _ in range(2):
            m = jnp.tanh(self.m(jnp.concatenate([h[senders], h[receivers]], -1)))
            total = jax.ops.segment_sum(m, receivers, h.shape[0])
            h = h + jnp.tanh(self.u(jnp.concatenate([h, total], -1)))
        return self.o(h)


class Members(nnx.Module):
    def __init__(self, width, rngs):
        make = nnx.vmap(lambda keys: nnx.Linear(2, width, rngs=nnx.Rngs(keys)))
        self.a, self.o = make(jax.random.split(rngs.params(), 3)), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        each = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
        return self.o(jnp.tanh(each(self.a, x)))


class Mixture(nnx.Module):
    """Networks of which a third one says how much each counts."""

    def __init__(self, width, rngs):
        self.a, self.b = (nnx.Linear(2, width, rngs=rngs) for _ in range(2))
        self.gate, self.o = nnx.Linear(2, 2, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        weights = nnx.softmax(self.gate(x))
        parts = jnp.stack([jnp.tanh(self.a(x)), jnp.sin(self.b(x))], -1)
        return self.o(jnp.einsum("bfe,be->bf", parts, weights))


class WithFourier(nnx.Module):
    def __init__(self, width, modes, rngs):
        self.i, self.o = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
        self.spectral = SpectralConv(width, width, modes, rngs=rngs)

    def __call__(self, x):
        x = self.i(x)
        return self.o(x + self.spectral(x))


class Complex(nnx.Module):
    def __init__(self, width, rngs):
        linear = lambda a, b: nnx.Linear(a, b, param_dtype=jnp.complex64, rngs=rngs)  # noqa: E731
        self.a, self.b, self.o = linear(2, width), linear(width, width), linear(width, 1)

    def __call__(self, x):
        return self.o(jnp.tanh(self.b(jnp.exp(1j * self.a(x))))).real


# -- what cannot be ------------------------------------------------------------------------------


class Dense(nnx.Module):
    def __init__(self, widths, rngs):
        sizes = [2, *widths]
        pairs = zip(sizes[:-1], widths, strict=True)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])
        self.o = nnx.Linear(widths[-1], 1, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.o(x)


class BySize(nnx.Module):
    """Another program from some width on."""

    def __init__(self, width, rngs):
        self.a, self.o = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        h = self.a(x)
        return self.o(jnp.sin(h) if h.shape[-1] > 4 else jnp.tanh(h))


class ByData(nnx.Module):
    """A decision of Python on data."""

    def __init__(self, width, rngs):
        self.a, self.o = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        h = self.a(x)
        return self.o(jnp.tanh(h) if x.sum() > 0 else h)


class Chosen(nnx.Module):
    """The same by `jax.lax.cond`."""

    def __init__(self, width, rngs):
        self.a, self.o = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.o(jax.lax.cond(x.sum() > 0, jnp.tanh, lambda h: h, self.a(x)))


class Summed(nnx.Module):
    def __init__(self, width, rngs, act=jnp.tanh):
        self.a, self.act = nnx.Linear(2, width, rngs=rngs), act

    def __call__(self, x):
        return self.act(self.a(x)).sum(-1)


class SummedTimes(Summed):
    """The number that multiplies all terms would be the cheapest one to set to zero."""

    def __init__(self, width, rngs):
        super().__init__(width, rngs)
        self.size = nnx.Param(jnp.full((), 0.7))

    def __call__(self, x):
        return (self.size[...] * self.act(self.a(x))).sum(-1)


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        architecture: in words.
        growth: what grows, in words.
        make: function of a size and ``nnx.Rngs``.
        sizes: of the coarse and the fine level.
        inputs: arguments of the models.
        verdict: ``"exact"``, or why not, in words.
        error: what the message says, of what is not exact.
    """

    architecture: str
    growth: str
    make: Any
    sizes: tuple[Any, Any]
    inputs: tuple[Any, ...]
    verdict: str = "exact"
    error: str = ""


def two(cls, **options):
    """A class whose size consists of two numbers."""
    return lambda size, rngs: cls(*size, rngs, **options)


def one(cls, **options):
    return lambda size, rngs: cls(size, rngs, **options)


ROWS, LINE, IMAGE, SEQUENCE = normal(3, 2), normal(2, 6, 2), normal(2, 8, 8, 1), normal(2, 5, 3)
MEAN = "its mean runs over features: they must grow by a whole factor"
EDGES = (normal(6, 3), np.array([0, 1, 2, 3]), np.array([1, 2, 3, 5]))

TABLE = [
    Case("U-Net: batch normalisation, transposed convolutions, concatenated skips",
         "width 4 → 6", one(UNet), (4, 6), (IMAGE,)),
    Case("U-Net of three scales", "width 2 → 3", one(UNet, depth=3), (2, 3), (IMAGE,)),
    Case("convolution", "size of the kernel 3 → 5",
         lambda size, rngs: Convolutions(4, rngs, size=size), (3, 5), (LINE,)),
    Case("convolution", "size of the kernel 2 → 4, width 2 → 5",
         lambda size, rngs: Convolutions(size[0], rngs, size=size[1]), ((2, 2), (5, 4)), (LINE,)),
    Case("depthwise convolution of concatenated features", "width 3 → 5", one(DepthwiseSkip), (3, 5),
         (LINE,)),
    Case("depthwise convolution", "width 4 → 7",
         lambda size, rngs: Convolutions(size, rngs, groups=size), (4, 7), (LINE,)),
    Case("grouped convolution", "width of each group 2 → 4",
         lambda size, rngs: Convolutions(size, rngs, groups=2), (4, 8), (LINE,)),
    Case("grouped convolution", "groups 2 → 3",
         lambda size, rngs: Convolutions(2 * size, rngs, groups=size), (2, 3), (LINE,)),
    Case("convolution, flattened, linear", "width 4 → 7", one(Flattened), (4, 7), (normal(2, 6, 1),)),
    Case("attention (`nnx.MultiHeadAttention`)", "heads 2 → 3", two(Attention), ((2, 4), (3, 4)),
         (SEQUENCE,)),
    Case("attention", "width of each head 4 → 6", two(Attention), ((2, 4), (2, 6)), (SEQUENCE,)),
    Case("attention", "heads 2 → 3, their width 4 → 16", two(Attention), ((2, 4), (3, 16)),
         (SEQUENCE,)),
    Case("attention behind layer normalisation", "heads 2 → 4",
         two(Attention, norm=nnx.LayerNorm), ((2, 4), (4, 4)), (SEQUENCE,)),
    Case("attention behind layer normalisation", "heads 2 → 3",
         two(Attention, norm=nnx.LayerNorm), ((2, 4), (3, 4)), (SEQUENCE,),
         MEAN, r"mean at .* grows by a factor of 1\.5; .* whole number"),
    Case("attention of linear layers and reshapes", "heads 2 → 3", two(OwnAttention),
         ((2, 4), (3, 4)), (SEQUENCE,)),
    Case("attention of linear layers and reshapes", "width of each head 4 → 6",
         two(OwnAttention), ((2, 4), (2, 6)), (SEQUENCE,)),
    Case("attention, queries, keys and values from one layer", "width of each head 4 → 6",
         two(FusedAttention), ((2, 4), (2, 6)), (SEQUENCE,)),
    Case("features times themselves, divided by their number", "width 4 → 6", one(Gram), (4, 6),
         (ROWS,), "nothing can be scaled that is not squared", r"0\.6667 times .* both factors"),
    Case("transformer with normalisation inside its branches", "blocks 1 → 2", one(Transformer),
         (1, 2), (LINE,)),
    Case("layer normalisation", "width 4 → 8", one(Normalised), (4, 8), (ROWS,)),
    Case("layer normalisation", "width 4 → 12", one(Normalised), (4, 12), (ROWS,)),
    Case("layer normalisation", "width 4 → 6", one(Normalised), (4, 6), (ROWS,),
         MEAN, r"mean at .* grows by a factor of 1\.5; .* whole number"),
    Case("RMS normalisation", "width 4 → 8", one(Normalised, norm=nnx.RMSNorm), (4, 8), (ROWS,)),
    Case("RMS normalisation", "width 4 → 7", one(Normalised, norm=nnx.RMSNorm), (4, 7), (ROWS,),
         MEAN, r"mean at .* grows by a factor of 1\.75; .* whole number"),
    Case("batch normalisation", "width 4 → 7", one(Normalised, norm=nnx.BatchNorm), (4, 7), (ROWS,)),
    Case("group normalisation", "groups 2 → 3", two(group_norm), ((4, 2), (6, 3)), (ROWS,)),
    Case("group normalisation", "width of each group 2 → 4", two(group_norm), ((4, 2), (8, 2)),
         (ROWS,)),
    Case("group normalisation", "width of each group 2 → 3", two(group_norm), ((4, 2), (6, 2)),
         (ROWS,), MEAN, r"mean at .* grows by a factor of 1\.5; .* whole number"),
    Case("`GRUCell` in `nnx.RNN`", "width 3 → 5", one(Recurrent), (3, 5), (LINE,)),
    Case("`LSTMCell` in `nnx.RNN`", "width 3 → 5", one(Recurrent, cell=nnx.LSTMCell), (3, 5), (LINE,)),
    Case("`OptimizedLSTMCell` in `nnx.RNN`", "width 3 → 5",
         one(Recurrent, cell=nnx.OptimizedLSTMCell), (3, 5), (LINE,)),
    Case("`SimpleCell` in `nnx.RNN`", "width 3 → 5", one(Recurrent, cell=nnx.SimpleCell), (3, 5),
         (LINE,)),
    Case("`GRUCell` in a loop of Python", "width 3 → 5", one(Looped), (3, 5), (LINE,)),
    Case("`OptimizedLSTMCell` in a loop of Python", "width 3 → 5",
         one(Looped, cell=nnx.OptimizedLSTMCell), (3, 5), (LINE,)),
    Case("steps in time by `nnx.scan`", "width 3 → 5", one(Scanned), (3, 5), (ROWS,)),
    Case("layers stacked in one array, by `nnx.scan`", "width 3 → 5", two(ScannedLayers),
         ((3, 2), (5, 2)), (ROWS,)),
    Case("layers stacked in one array, by `nnx.scan`", "layers 2 → 3", two(ScannedLayers),
         ((3, 2), (3, 3)), (ROWS,), "a loop becomes longer: write the layers out",
         r"a loop over layers becomes longer"),
    Case("embedding that is the output layer too (`attend`)", "width 3 → 5", one(Tied), (3, 5),
         (np.arange(5),)),
    Case("the same with learned positions, and nothing between", "width 3 → 5", one(Placed), (3, 5),
         (np.arange(5),)),
    Case("DeepONet", "width 4 → 7", one(DeepONet), (4, 7), (normal(3, 7), normal(5, 2))),
    Case("DeepONet divided by its width, GELU", "width 4 → 8", one(ScaledDeepONet), (4, 8),
         (normal(3, 7), normal(5, 2))),
    Case("graph network (`segment_sum`)", "width 4 → 7", one(Graph), (4, 7), EDGES),
    Case("layers made by `nnx.vmap`", "width 4 → 7", one(Members), (4, 7), (ROWS,)),
    Case("mixture of two networks", "width 4 → 7", one(Mixture), (4, 7), (ROWS,)),
    Case("Fourier layers inside a model", "width 3 → 5, modes 2 → 4", two(WithFourier),
         ((3, 2), (5, 4)), (normal(2, 12, 2),)),
    Case("complex parameters", "width 3 → 5", one(Complex), (3, 5), (ROWS,)),
    Case("`jax.lax.cond`", "width 4 → 7", one(Chosen), (4, 7), (ROWS,)),
    Case("sum over features", "width 4 → 7", one(Summed), (4, 7), (ROWS,)),
    Case("sum over features times one trainable number", "width 4 → 7", one(SummedTimes), (4, 7),
         (ROWS,)),
    Case("sum over features of a function that is 1 at 0", "width 4 → 7",
         one(Summed, act=jnp.cos), (4, 7), (ROWS,), "new features would add to it",
         r"cos at .* does not keep zeros"),
    Case("softmax over features", "width 4 → 6", one(SoftFeatures), (4, 6), (ROWS,),
         "its sum runs over features", r"reduce_max at .* runs over entries that only the fine level"),
    Case("softmax over features", "width 4 → 8", one(SoftFeatures), (4, 8), (ROWS,),
         "its sum runs over features", r"a sum or a padded axis .* does not keep zeros"),
    Case("a layer that is no term of a sum", "layers 1 → 2", one(Dense), ([4], [4, 4]), (ROWS,),
         "it would have to be the identity", r"layers\.1\.\w+ exists only on the fine level"),
    Case("code that chooses by size", "width 4 → 7", one(BySize), (4, 7), (ROWS,),
         "two programs, not two sizes of one",
         r"coarse model computes tanh where the fine model computes sin"),
    Case("code that chooses by data, in Python", "width 4 → 7", one(ByData), (4, 7), (ROWS,),
         "it cannot be traced", r"decides by the values of its data, in Python"),
    Case("a stride that follows the width", "width 4 → 6", one(Strided), (4, 6), (normal(2, 12, 1),),
         "points would have to be others", r"conv"),
    Case("a layer that shrinks", "width 4 → 3", one(Flattened), (4, 3), (normal(2, 6, 1),),
         "the coarse level has more", r"(a|o)\.\w+ is larger on the coarse level"),
]  # fmt: skip
NAMES = [f"{case.architecture}: {case.growth}" for case in TABLE]
EXACT = [
    pytest.param(case, id=name)
    for case, name in zip(TABLE, NAMES, strict=True)
    if case.verdict == "exact"
]
NOT = [
    pytest.param(case, id=name)
    for case, name in zip(TABLE, NAMES, strict=True)
    if case.verdict != "exact"
]


def levels(case):
    models = [
        random_model(lambda rngs, size=size: case.make(size, rngs), seed)
        for seed, size in enumerate(case.sizes)
    ]
    for model in models:
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.BatchNorm):
                module.var[...] = jnp.abs(module.var[...]) + 0.5
    return models


def arrays(model):
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize("case", EXACT)
def test_the_function_is_preserved_and_comes_back(case):
    coarse, fine = levels(case)
    result = prolongate_preserving(coarse, fine, *case.inputs)
    found, allowed = function_difference(*nnx.split(coarse), *nnx.split(result), case.inputs)
    assert found <= allowed
    plan = plan_transfer(coarse, fine, *case.inputs)
    before, after = arrays(coarse), arrays(restrict(result, coarse, *case.inputs))
    for path, values in before.items():
        if plan[path].scale == 1:
            assert np.array_equal(values, after[path]), path
        else:
            np.testing.assert_allclose(values, after[path], rtol=4 * np.finfo(values.dtype).eps)


@pytest.mark.parametrize("case", NOT)
def test_what_cannot_be_preserved_is_an_error_that_says_why(case):
    coarse, fine = levels(case)
    with pytest.raises(ValueError, match=case.error):
        prolongate_preserving(coarse, fine, *case.inputs)


# -- models and inputs that do not fit -------------------------------------------------------------


class Wider(nnx.Module):
    """One layer more than the other level has, in the middle, under the same names."""

    def __init__(self, width, rngs, twice=False):
        self.a, self.o = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
        self.twice = twice

    def __call__(self, x):
        h = jnp.tanh(self.a(x))
        return self.o(jnp.sin(h) if self.twice else h)


def test_models_of_other_structure_are_an_error_that_names_the_place():
    coarse, fine = Wider(3, nnx.Rngs(0)), Wider(4, nnx.Rngs(0), twice=True)
    with pytest.raises(
        ValueError,
        match=r"coarse model computes dot_general where the fine model computes sin, at "
        r"test_architectures\.py, line \d+, in \S*__call__.* need a transfer of their own",
    ):
        plan_transfer(coarse, fine, ROWS)


def test_the_same_operations_on_other_operands_are_an_error_that_names_the_place():
    class Difference(nnx.Module):
        def __init__(self, width, turned, rngs):
            self.a, self.b = (nnx.Linear(2, width, rngs=rngs) for _ in range(2))
            self.output = nnx.Linear(width, 1, rngs=rngs)
            self.turned = turned

        def __call__(self, x):
            a, b = jnp.tanh(self.a(x)), jnp.tanh(self.b(x))
            return self.output(b - a if self.turned else a - b)

    coarse, fine, turned = (
        Difference(width, turn, nnx.Rngs(0)) for width, turn in ((3, False), (4, False), (4, True))
    )
    assert not plan_transfer(coarse, fine, ROWS).obstacles
    with pytest.raises(ValueError, match=r"differ at .*: an operand there comes from elsewhere"):
        plan_transfer(coarse, turned, ROWS)


def test_a_shared_parameter_is_left_alone_where_something_else_can_be_zero():
    plan = plan_transfer(Tied(3, nnx.Rngs(0)), Tied(5, nnx.Rngs(0)), np.arange(5))
    assert plan["e", "embedding"].zeros is None
    assert plan["a", "kernel"].zeros is not None


def test_plans_are_kept_for_the_inputs_that_they_were_inferred_from():
    class Either(nnx.Module):
        def __init__(self, width, rngs):
            self.hidden = nnx.Linear(2, width, rngs=rngs)
            self.output = nnx.Linear(width + 2, 1, rngs=rngs)

        def __call__(self, x):
            parts = [jnp.tanh(self.hidden(x)), x]
            return self.output(jnp.concatenate(parts if x.ndim == 2 else parts[::-1], axis=-1))

    coarse, fine = (Either(width, nnx.Rngs(0)) for width in (3, 5))
    for x, index in (
        (ROWS, (0, 1, 2, 5, 6)),
        (SEQUENCE[..., :2], range(5)),
        (ROWS, (0, 1, 2, 5, 6)),
    ):
        assert plan_transfer(coarse, fine, x)["output", "kernel"].index[0] == index


def test_inputs_of_a_wrong_shape_are_an_error_that_names_them():
    coarse, fine = (Wider(width, nnx.Rngs(0)) for width in (3, 4))
    with pytest.raises(
        ValueError, match=r"inputs must be what both models take, got \(\(3, 5\),\)"
    ):
        plan_transfer(coarse, fine, normal(3, 5))
    with pytest.raises(ValueError, match="inputs must be what both models take"):
        plan_transfer(coarse, fine, ROWS, ROWS)


def test_a_factor_reaches_a_part_of_a_parameter_and_is_its_own_adjoint():
    coarse, fine = (random_model(lambda rngs, d=d: FusedAttention(2, d, rngs), d) for d in (4, 16))
    place = plan_transfer(coarse, fine, SEQUENCE)["a", "kernel"]
    x, y = coarse.a.kernel[...], fine.a.kernel[...]
    moved = place.copy_and_pad(x, jnp.zeros_like(y))
    factors = np.asarray(moved)[place.block] / np.asarray(x)
    queries, keys, values = (float(part.mean()) for part in np.split(factors, 3, axis=1))
    assert set(np.unique(factors)) == {1, 2}  # the root of 16 / 4
    assert sorted((queries, keys)) == [1, 2]
    assert values == 1
    assert np.array_equal(place.truncate(moved, x), x)
    products = jnp.vdot(moved, y), jnp.vdot(x, place.truncate(y, x, dual=True))
    assert float(products[0]) == pytest.approx(float(products[1]), rel=1e-4)
    compiled = jax.jit(lambda a, b: (place.copy_and_pad(a, b), place.truncate(b, a, dual=True)))
    for traced, plain in zip(
        compiled(x, y), (place.copy_and_pad(x, y), place.truncate(y, x, dual=True)), strict=True
    ):
        assert np.array_equal(traced, plain)


def test_of_two_ways_that_need_the_same_zeros_the_smaller_one_is_taken():
    """An embedding of zeros is enough: with positions of zeros as well, nothing would ever learn."""
    coarse, fine = (random_model(lambda rngs, w=w: Placed(w, rngs), w) for w in (3, 5))
    result = prolongate_preserving(coarse, fine, np.arange(5))
    assert not np.any(result.e.embedding[...][:, 3:])
    assert np.array_equal(result.positions[...][:, 3:], fine.positions[...][:, 3:])


def test_a_copy_parts_from_its_original_but_not_from_another_copy():
    coarse, fine = (Normalised(width, nnx.Rngs(width)) for width in (4, 12))
    result = prolongate_preserving(coarse, fine, ROWS)
    for _ in range(2):
        gradient = nnx.grad(lambda model: jnp.sum((model(jnp.asarray(ROWS)) - 1) ** 2))(result)
        stepped = jax.tree.map(lambda p, g: p - 0.01 * g, nnx.state(result, nnx.Param), gradient)
        nnx.update(result, stepped)
    original, first, second = np.split(np.asarray(result.a.kernel[...]), 3, axis=1)
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(original - first)) > 1e-3


def test_units_under_a_plain_sum_stay_alike():
    """Zero is the only start that adds nothing, and all of them have it: the documents warn of that."""
    coarse, fine = (random_model(lambda rngs, w=w: Summed(w, rngs), w) for w in (4, 7))
    result = prolongate_preserving(coarse, fine, ROWS)
    gradient = nnx.grad(lambda model: jnp.sum((model(jnp.asarray(ROWS)) - 1) ** 2))(result)
    new = np.asarray(gradient.a.kernel[...])[:, 4:]
    assert new.any()
    assert np.array_equal(new, np.repeat(new[:, :1], 3, axis=1))


# -- the table in the documents --------------------------------------------------------------------


def rows():
    return [f"| {case.architecture} | {case.growth} | {case.verdict} |" for case in TABLE]


def test_the_documents_show_this_table():
    shown = [
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and not line.startswith(("| architecture |", "|---"))
    ]
    assert shown == rows(), "\n".join(rows())
