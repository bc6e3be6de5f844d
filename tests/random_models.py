"""Models with random values everywhere, so that zero biases hide nothing, built without compiling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

__all__ = ["random_like", "random_model"]


def random_like(tree, seed, scale=0.5):
    """A tree of the same types: normal numbers, small integers, random keys."""
    random = np.random.default_rng(seed)

    def leaf(like):
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            data = random.integers(0, 2**32, (*like.shape, 2), dtype=np.uint32)
            return jax.random.wrap_key_data(jnp.asarray(data))
        if not jnp.issubdtype(like.dtype, jnp.inexact):
            return jnp.asarray(random.integers(0, 9, like.shape), like.dtype)
        values = scale * random.standard_normal(like.shape)
        if jnp.issubdtype(like.dtype, jnp.complexfloating):
            values = values + 1j * scale * random.standard_normal(like.shape)
        return jnp.asarray(values.astype(like.dtype))

    return jax.tree.map(leaf, tree)


def random_model(make, seed, scale=0.5):
    """The model that ``make(rngs)`` builds, with random variables instead of its own.

    Args:
        make: function of an ``nnx.Rngs``; it is only traced.
        seed: of the values.
        scale: standard deviation of the values.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return nnx.merge(graphdef, random_like(state, seed, scale))
