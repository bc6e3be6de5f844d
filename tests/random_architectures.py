"""Random models at two sizes, to be held against what the transfer between them promises.

`architectures` draws a small program: a list of blocks on features of shape (batch, length, channels)
or (batch, channels), with the sizes of every block on a coarse and on a fine level. Widths grow by any
number of features; where a statistic runs over features, all widths grow by the same whole factor,
without which no function could be preserved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import strategies as st

from opifex.models import SpectralConv
from random_models import random_model

__all__ = ["Architecture", "Drawn", "Node", "architectures", "inputs_of", "levels_of"]

BATCH, LENGTH, TOKENS, OUTPUTS = 2, 6, 5, 2
ACTIVATIONS = (jnp.tanh, jnp.sin, nnx.gelu, nnx.silu)
"""Smooth ones, which kill no unit."""


# -- blocks: modules that are built from sizes -----------------------------------------------------


class Dense(nnx.Module):
    def __init__(self, width, out, act, *, rngs):
        self.linear, self.act = nnx.Linear(width, out, rngs=rngs), act

    def __call__(self, x):
        return ACTIVATIONS[self.act](self.linear(x))


class Convolution(nnx.Module):
    def __init__(self, width, out, size, groups, act, *, rngs):
        self.conv, self.act = (
            nnx.Conv(width, out, (size,), feature_group_count=groups, rngs=rngs),
            act,
        )

    def __call__(self, x):
        return ACTIVATIONS[self.act](self.conv(x))


class Norm(nnx.Module):
    def __init__(self, width, kind, groups, *, rngs):
        if kind == "group":
            self.norm = nnx.GroupNorm(width, num_groups=groups, rngs=rngs)
        else:
            kinds = {"layer": nnx.LayerNorm, "rms": nnx.RMSNorm, "batch": nnx.BatchNorm}
            self.norm = kinds[kind](width, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class Chain(nnx.Module):
    """Blocks behind each other; those of one level only are left out on the other."""

    def __init__(self, nodes, level, rngs):
        self.names = tuple(f"b{n}" for n, node in enumerate(nodes) if node.sizes[level] is not None)
        for name in self.names:
            setattr(self, name, nodes[int(name[1:])].build(level, rngs))

    def __call__(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class Residual(nnx.Module):
    def __init__(self, width, inner, *, body, rngs):
        self.body, self.last = body, nnx.Linear(inner, width, rngs=rngs)

    def __call__(self, x):
        return x + self.last(self.body(x))


class Skip(nnx.Module):
    """Features before and behind a body, side by side."""

    def __init__(self, inner, front, *, body, rngs):
        self.body, self.front = body, front
        self.last = nnx.Linear(inner, inner, rngs=rngs)  # no feature twice, if it skips as well

    def __call__(self, x):
        parts = [self.last(self.body(x)), x]
        return jnp.concatenate(parts if self.front else parts[::-1], -1)


class UShape(nnx.Module):
    """Down, a body on half the points, up, and the skipped features beside."""

    def __init__(self, width, inner, out, pool, *, body, rngs):
        self.down = (
            nnx.Conv(width, width, (2,), strides=(2,), rngs=rngs) if pool == "conv" else None
        )
        self.up = nnx.ConvTranspose(inner, out, (2,), strides=(2,), rngs=rngs)
        self.body, self.pool = body, pool

    def __call__(self, x):
        if self.down is not None:
            half = self.down(x)
        else:
            pool = nnx.avg_pool if self.pool == "mean" else nnx.max_pool
            half = pool(x, (2,), strides=(2,))
        return jnp.concatenate([self.up(self.body(half)), x], -1)


class Gate(nnx.Module):
    """Features multiplied by a function of them, of their own point or of the mean of all."""

    def __init__(self, width, mean, *, rngs):
        self.linear, self.mean = nnx.Linear(width, width, rngs=rngs), mean

    def __call__(self, x):
        return x * nnx.sigmoid(self.linear(x.mean(1, keepdims=True) if self.mean else x))


class Halves(nnx.Module):
    """A gated linear unit: one half of the features gates the other."""

    def __init__(self, width, out, way, *, rngs):
        self.linear, self.way, self.out = nnx.Linear(width, 2 * out, rngs=rngs), way, out

    def __call__(self, x):
        h = self.linear(x)
        if self.way == "split":
            a, b = jnp.split(h, 2, -1)
        elif self.way == "slice":
            a, b = h[..., : self.out], h[..., self.out :]
        elif self.way == "interleaved":
            a, b = h[..., ::2], h[..., 1::2]
        else:
            pairs = h.reshape(*h.shape[:-1], 2, self.out)
            a, b = pairs[..., 0, :], pairs[..., 1, :]
        return a * nnx.sigmoid(b)


class Swapped(nnx.Module):
    """Two parts of the features change places."""

    def __init__(self, first, second, *, rngs):
        self.first, self.a = first, nnx.Linear(first, first, rngs=rngs)

    def __call__(self, x):
        return jnp.concatenate([x[..., self.first :], self.a(x[..., : self.first])], -1)


class Attention(nnx.Module):
    def __init__(self, width, heads, size, *, rngs):
        self.attention = nnx.MultiHeadAttention(
            heads, width, heads * size, width, decode=False, rngs=rngs
        )

    def __call__(self, x):
        return x + self.attention(x)


class OwnAttention(nnx.Module):
    """Attention out of one linear layer and reshapes."""

    def __init__(self, width, heads, size, *, rngs):
        self.heads, self.size = heads, size
        self.all = nnx.Linear(width, 3 * heads * size, rngs=rngs)
        self.last = nnx.Linear(heads * size, width, rngs=rngs)

    def __call__(self, x):
        parts = jnp.split(self.all(x), 3, -1)
        q, k, v = (p.reshape(*x.shape[:-1], self.heads, self.size) for p in parts)
        weights = nnx.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(self.size))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return x + self.last(y.reshape(*x.shape[:-1], -1))


class Heads(nnx.Module):
    """A matrix for each head of features."""

    def __init__(self, heads, size, out, *, rngs):
        self.heads = heads
        self.kernel = nnx.Param(rngs.normal((heads, size, out)))

    def __call__(self, x):
        y = x.reshape(*x.shape[:-1], self.heads, -1)
        return jnp.einsum("...hd,hde->...he", y, self.kernel[...]).reshape(*x.shape[:-1], -1)


class Recurrent(nnx.Module):
    def __init__(self, width, out, cell, *, rngs):
        dtype = jnp.result_type(float)  # that of the carried values
        self.rnn = nnx.RNN(
            getattr(nnx, cell)(width, out, dtype=dtype, param_dtype=dtype, rngs=rngs)
        )

    def __call__(self, x):
        return self.rnn(x)


class Tied(nnx.Module):
    """One layer, twice."""

    def __init__(self, width, *, rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return self.linear(jnp.tanh(self.linear(x)))


class Spectral(nnx.Module):
    """A layer of a Fourier neural operator."""

    def __init__(self, width, out, modes, *, rngs):
        self.spectral = SpectralConv(width, out, modes, rngs=rngs)
        self.pointwise = nnx.Linear(width, out, rngs=rngs)

    def __call__(self, x):
        return nnx.gelu(self.spectral(x) + self.pointwise(x))


class Mixing(nnx.Module):
    """A network along the points, the same one for each feature."""

    def __init__(self, inner, *, rngs):
        self.a = nnx.Linear(LENGTH, inner, rngs=rngs)
        self.b = nnx.Linear(inner, LENGTH, rngs=rngs)

    def __call__(self, x):
        return x + jnp.swapaxes(self.b(jnp.tanh(self.a(jnp.swapaxes(x, 1, 2)))), 1, 2)


class Positions(nnx.Module):
    """A learned number for each point and feature."""

    def __init__(self, width, *, rngs):
        self.table = nnx.Param(rngs.normal((LENGTH, width)))

    def __call__(self, x):
        return x + self.table[...]


class Points(nnx.Module):
    """What has no parameters: something along the points."""

    def __init__(self, kind, *, rngs):
        self.kind = kind

    def __call__(self, x):
        return {
            "softmax": lambda: nnx.softmax(x, axis=1),
            "mean": lambda: x + x.mean(1, keepdims=True),
            "max": lambda: x - x.max(1, keepdims=True),
            "sum": lambda: jnp.cumsum(x, 1),
            "roll": lambda: x + jnp.roll(x, 1, 1),
            "flip": lambda: x[:, ::-1],
        }[self.kind]()


class Stacked(nnx.Module):
    """The mean of several layers of one kind, made and called by `nnx.vmap`."""

    def __init__(self, width, out, members, *, rngs):
        make = nnx.vmap(lambda keys: nnx.Linear(width, out, rngs=nnx.Rngs(keys)))
        self.layers = make(jax.random.split(rngs.params(), members))

    def __call__(self, x):
        each = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
        return jnp.tanh(each(self.layers, x)).mean(0)


# -- ends: from features to the output -------------------------------------------------------------


class Head(nnx.Module):
    def __init__(self, width, way, *, rngs):
        self.way = way
        self.linear = nnx.Linear(width * (LENGTH if way == "flat" else 1), OUTPUTS, rngs=rngs)

    def __call__(self, x):
        if self.way == "mean":
            x = x.mean(1)
        if self.way == "flat":
            x = x.reshape(x.shape[0], -1)
        return self.linear(x)


class Paired(nnx.Module):
    """The sum of products of features, as at the end of a DeepONet."""

    def __init__(self, width, inner, *, rngs):
        self.a = nnx.Linear(width, inner, rngs=rngs)
        self.b = nnx.Linear(width, inner, rngs=rngs)

    def __call__(self, x):
        return jnp.sum(self.a(x) * jnp.tanh(self.b(x)), -1)


class Architecture(nnx.Module):
    """A program of blocks at one of two sizes.

    Args:
        drawn: what is drawn.
        level: which of the sizes to take.
        rngs: for the parameters.
    """

    def __init__(self, drawn, level, rngs):
        width = drawn.width[level]
        self.source, self.attend = drawn.source, drawn.attend
        self.embed = nnx.Embed(TOKENS, width, rngs=rngs) if drawn.source == "tokens" else None
        self.chain = Chain(drawn.nodes, level, rngs)
        self.head = None if drawn.attend else drawn.head.build(level, rngs)

    def __call__(self, x):
        x = self.chain(x if self.embed is None else self.embed(x))
        return self.embed.attend(x) if self.attend else self.head(x)


@dataclass(frozen=True)
class Node:
    """A block, its sizes on both levels (``None``: not there) and what is inside."""

    kind: type
    sizes: tuple[Any, Any]
    body: tuple[Node, ...] = ()

    def build(self, level: int, rngs: nnx.Rngs) -> nnx.Module:
        inside = {"body": Chain(self.body, level, rngs)} if self.body else {}
        return self.kind(*self.sizes[level], **inside, rngs=rngs)

    def __repr__(self) -> str:
        return (
            f"{self.kind.__name__}({self.sizes[0]} -> {self.sizes[1]}{', ' * bool(self.body)}"
            + (f"{list(self.body)})" if self.body else ")")
        )


@dataclass(frozen=True)
class Drawn:
    """A random architecture.

    Attributes:
        source: ``"tokens"``, ``"points"`` or ``"rows"``: what the input is.
        width: width that tokens are embedded with, or of the input.
        attend: whether the embedding is also the output layer.
        nodes: the blocks.
        head: the end, where the embedding is not.
    """

    source: str
    width: tuple[int, int]
    attend: bool
    nodes: tuple[Node, ...]
    head: Node


def inputs_of(drawn: Drawn, dtype: Any) -> tuple[Any, ...]:
    """An input for both levels."""
    random = np.random.default_rng(5)
    if drawn.source == "tokens":
        return (jnp.array([[0, 1, 2, 3, 4, 0], [1, 3, 0, 4, 2, 2]]),)  # no two points alike
    shape = (BATCH, LENGTH, drawn.width[0]) if drawn.source == "points" else (4, drawn.width[0])
    return (jnp.asarray(random.standard_normal(shape), dtype),)


def levels_of(drawn: Drawn, dtype: Any) -> list[Architecture]:
    """Both models, with random values everywhere."""
    models = []
    for level in (0, 1):
        model = random_model(lambda rngs, n=level: Architecture(drawn, n, rngs), level)
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.BatchNorm):
                module.var[...] = jnp.abs(module.var[...]) + 0.5
        graphdef, state = nnx.split(model)
        models.append(nnx.merge(graphdef, jax.tree.map(lambda v: _as(v, dtype), state)))
    return models


def _as(value, dtype):
    if jnp.iscomplexobj(value):
        return value.astype(jnp.result_type(dtype, jnp.complex64))
    return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value


# -- drawing ---------------------------------------------------------------------------------------


class _Draw:
    """Draws blocks; features know whether all of them grow by the whole factor."""

    def __init__(self, draw, factor, points, smooth):
        self.draw, self.factor, self.points, self.smooth = draw, factor, points, smooth

    def of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def hard(self, *choices):
        """Choices that stop some gradients."""
        return () if self.smooth else choices

    def number(self, low, high):
        return self.draw(st.integers(low, high))

    def pair(self, low=2, high=4):
        """A size on both levels."""
        coarse = self.number(low, high)
        if self.factor is not None:
            return coarse, coarse * self.factor
        return coarse, coarse + self.number(0, 3)

    def product(self):
        """Number and size of heads or groups, of which the product grows as widths do."""
        if self.factor is None:
            return self.pair(1, 2), self.pair(1, 3)
        a, b = self.number(1, 2), self.number(1, 3)
        more = self.of(1, self.factor)
        return (a, a * more), (b, b * self.factor // more)

    def act(self):
        return self.number(0, len(ACTIVATIONS) - 1)

    def dense(self, width, out):
        act = self.act()
        return Node(Dense, tuple((width[i], out[i], act) for i in (0, 1)))

    def chain(self, width, even, depth, most):
        """Some blocks behind each other, and the width they end with."""
        nodes = []
        for _ in range(self.number(1, most)):
            more, width, even = self.block(width, even, depth)
            nodes += more
        return tuple(nodes), width, even

    def block(self, width, even, depth):
        kinds = ["dense", "halves", "gate", "swapped", "heads", "tied", "stacked", "norm", "added"]
        if self.points:
            kinds += ["attention", "attention", "conv", "depthwise", "grouped", "recurrent"]
            kinds += ["spectral", "mixing", "positions", "along"]
        if depth > 0:
            kinds += ["residual", "residual", "skip"]
        if depth > 0 and self.points:
            kinds += ["ushape"]
        return getattr(self, "_" + self.of(*kinds))(width, even, depth)

    def _dense(self, width, even, depth):
        out = self.pair()
        return [self.dense(width, out)], out, True

    def _halves(self, width, even, depth):
        out, way = self.pair(), self.of("split", "slice", "interleaved", "stacked")
        return [Node(Halves, tuple((width[i], out[i], way) for i in (0, 1)))], out, True

    def _gate(self, width, even, depth):
        mean = self.points and self.of(True, False)
        return [Node(Gate, tuple((width[i], mean) for i in (0, 1)))], width, even

    def _swapped(self, width, even, depth):
        a, b = self.pair(1, 2), self.pair(1, 2)
        out = tuple(a[i] + b[i] for i in (0, 1))
        return [self.dense(width, out), Node(Swapped, tuple(zip(a, b, strict=True)))], out, True

    def _heads(self, width, even, depth):
        (heads, size), made = self.product(), self.pair(1, 3)
        if self.factor is not None:
            made = made[0], made[0] * (size[1] // size[0])
        inner = tuple(heads[i] * size[i] for i in (0, 1))
        out = tuple(heads[i] * made[i] for i in (0, 1))
        node = Node(Heads, tuple(zip(heads, size, made, strict=True)))
        return [self.dense(width, inner), node], out, True

    def _tied(self, width, even, depth):
        return [Node(Tied, tuple((width[i],) for i in (0, 1)))], width, True

    def _stacked(self, width, even, depth):
        out, members = self.pair(), self.number(1, 2)
        return [Node(Stacked, tuple((width[i], out[i], members) for i in (0, 1)))], out, True

    def _norm(self, width, even, depth):
        kinds = ["batch"]
        if self.factor is not None and even:
            kinds += ["layer", "rms"] * 2
        kind = self.of(*kinds, *["group"] * 2)
        if kind != "group":
            return [Node(Norm, tuple((width[i], kind, 1) for i in (0, 1)))], width, even
        groups, size = self.product()
        if self.factor is None:
            size = size[0], size[0]
        out = tuple(groups[i] * size[i] for i in (0, 1))
        node = Node(Norm, tuple((out[i], kind, groups[i]) for i in (0, 1)))
        return [self.dense(width, out), node], out, True

    def _added(self, width, even, depth):
        inner = self.number(1, 3)
        act = self.act()
        body = (Node(Dense, (None, (width[1], inner, act))),)
        return [Node(Residual, (None, (width[1], inner)), body)], width, even

    def _residual(self, width, even, depth):
        body, inner, _ = self.chain(width, even, depth - 1, 2)
        node = Node(Residual, tuple((width[i], inner[i]) for i in (0, 1)), body)
        return [node], width, even

    def _skip(self, width, even, depth):
        body, inner, _ = self.chain(width, even, depth - 1, 2)
        front = self.of(True, False)
        out = tuple(inner[i] + width[i] for i in (0, 1))
        return [Node(Skip, tuple((n, front) for n in inner), body)], out, even

    def _ushape(self, width, even, depth):
        # Half the points: nothing inside may know their number.
        draw = _Draw(self.draw, self.factor, False, self.smooth)
        body, inner, _ = draw.chain(width, even, depth - 1, 2)
        made, pool = self.pair(), self.of("conv", "mean", *self.hard("max"))
        node = Node(UShape, tuple((width[i], inner[i], made[i], pool) for i in (0, 1)), body)
        return [node], tuple(made[i] + width[i] for i in (0, 1)), even

    def _conv(self, width, even, depth):
        out, act, size = self.pair(), self.act(), self.number(1, 3)
        larger = size + self.of(0, 0, 2)
        sizes = (width[0], out[0], size, 1, act), (width[1], out[1], larger, 1, act)
        return [Node(Convolution, sizes)], out, True

    def _grouped(self, width, even, depth):
        groups, made = self.product()
        each, act = self.pair(1, 2), self.act()
        if self.factor is not None:
            each = each[0], each[0] * (made[1] // made[0])
        inner = tuple(groups[i] * each[i] for i in (0, 1))
        out = tuple(groups[i] * made[i] for i in (0, 1))
        node = Node(Convolution, tuple((inner[i], out[i], 3, groups[i], act) for i in (0, 1)))
        return [self.dense(width, inner), node], out, True

    def _depthwise(self, width, even, depth):
        act, times = self.act(), self.of(1, 1, 2)
        sizes = tuple((width[i], width[i] * times, 3, width[i], act) for i in (0, 1))
        return [Node(Convolution, sizes)], tuple(times * w for w in width), even

    def _recurrent(self, width, even, depth):
        out = self.pair()
        cell = self.of("GRUCell", "OptimizedLSTMCell", "LSTMCell", "SimpleCell")
        return [Node(Recurrent, tuple((width[i], out[i], cell) for i in (0, 1)))], out, True

    def _spectral(self, width, even, depth):
        out, modes = self.pair(), self.number(1, 2)
        more = modes + self.number(0, 1)
        return [Node(Spectral, ((width[0], out[0], modes), (width[1], out[1], more)))], out, True

    def _mixing(self, width, even, depth):
        return [Node(Mixing, tuple((n,) for n in self.pair()))], width, even

    def _positions(self, width, even, depth):
        return [Node(Positions, tuple((w,) for w in width))], width, even

    def _along(self, width, even, depth):
        kind = self.of("softmax", "mean", "sum", "roll", "flip", *self.hard("max"))
        return [Node(Points, ((kind,), (kind,)))], width, even

    def _attention(self, width, even, depth):
        heads, size = self.product()
        kind = self.of(Attention, OwnAttention)
        return [Node(kind, tuple((width[i], heads[i], size[i]) for i in (0, 1)))], width, even


@st.composite
def architectures(draw, most=3, depth=2, smooth=False):
    """A random architecture of two sizes.

    Args:
        draw: given by Hypothesis.
        most: how many blocks are behind each other, at most.
        depth: how often blocks are inside of others, at most.
        smooth: whether to leave out what stops some gradients.
    """
    source = draw(st.sampled_from(("tokens", "points", "points", "rows")))
    factor = draw(st.sampled_from((None, None, 2, 2, 3)))
    drawing = _Draw(draw, factor, source != "rows", smooth)
    width = drawing.pair() if source == "tokens" else (2, 2)
    nodes, last, _ = drawing.chain(width, source == "tokens", depth, most)
    attend = source == "tokens" and drawing.of(True, False)
    if attend:
        # Features that are the embedding times something could vanish only with the embedding.
        nodes = (*nodes, drawing.dense(last, width))
    ways = ("each", "mean", "flat") if source != "rows" else ("each",)
    kind, way = drawing.of((Paired, None), *((Head, way) for way in ways))
    more = drawing.pair() if kind is Paired else (way, way)
    head = Node(kind, tuple(zip(last, more, strict=True)))
    return Drawn(source, width, attend, nodes, head)
