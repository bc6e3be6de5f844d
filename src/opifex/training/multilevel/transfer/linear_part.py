r"""The linear part of a transfer: by it everything moves that is no parameter, but belongs to one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_module
from opifex.training.multilevel.transfer.parameters import Transfer
from opifex.training.multilevel.transfer.placements import placed_like

KeyPath = tuple[Any, ...]

__all__ = ["KeyPath", "LinearPart", "NotAffineError", "filled", "leaves_by_path", "parameters_of"]


class NotAffineError(ValueError):
    """A transfer has no linear part by which an optimizer state could follow the parameters."""


def leaves_by_path(tree: Any) -> dict[KeyPath, Array]:
    """The leaves of a tree by their key paths.

    Args:
        tree: any tree.
    """
    return dict(jax.tree_util.tree_flatten_with_path(tree)[0])


def parameters_of(model: nnx.Module) -> nnx.State:
    """The parameters of a model.

    Args:
        model: any model.
    """
    return nnx.state(model, nnx.Param)


def filled(leaf: Array, value: float, dtype: Any = None) -> Array:
    """An array like another with one value everywhere, made without compiling anything.

    Args:
        leaf: the other array, whose shape and place it has.
        value: the value.
        dtype: type of the array, if it is not that of ``leaf``.
    """
    return placed_like(np.full(leaf.shape, value, dtype or leaf.dtype), leaf)


class LinearPart:
    r"""The linear part $m \mapsto T(m, 0) - T(0, 0)$ of a transfer $T$.

    Args:
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.
        transition_fn: the transfer.

    Attributes:
        of_ones: its value for a coarse tree of ones.

    Raises:
        NotAffineError: if $T$ is not affine: its values for zeros, ones and twos are not on one line.
    """

    def __init__(
        self, coarse_model: nnx.Module, fine_model: nnx.Module, transition_fn: Transfer
    ) -> None:
        self.coarse = nnx.split(coarse_model, nnx.Param, ...)
        self.fine = nnx.split(fine_model, nnx.Param, ...)
        self.transition_fn = transition_fn
        zero, one, two = (self._image({}, {}, fill) for fill in (0, 1, 2))
        self.of_ones = {path: one[path] - zero[path] for path in zero}
        self.has_offset = any(np.any(leaf) for leaf in zero.values())
        for path, linear in self.of_ones.items():
            size = np.abs(two[path]) + 2 * np.abs(one[path]) + 3 * np.abs(zero[path])
            bound = 8 * float(jnp.finfo(linear.dtype).eps) * size
            if not np.all(np.abs(two[path] - zero[path] - 2 * linear) <= bound):
                raise NotAffineError(
                    "transition_fn must be affine in the values of the coarse model, so that an "
                    "optimizer state can follow; its values for zeros, ones and twos are not on one "
                    f"line at {jax.tree_util.keystr(path)}"
                )

    def _image(
        self, values: dict[KeyPath, np.ndarray], dtypes: dict[KeyPath, Any], fill: float = 0
    ) -> dict[KeyPath, np.ndarray]:
        """The transfer of some coarse values, ``fill`` where none is given, into zeros."""

        def merged(split: tuple[Any, ...], given: dict[KeyPath, np.ndarray], fill: float) -> Any:
            def leaf(path: KeyPath, like: Array) -> Array:
                dtype = dtypes.get(path, like.dtype)
                if path in given:
                    return placed_like(given[path].astype(dtype), like)
                return filled(like, fill, dtype)

            graph, params, rest = split
            params = jax.tree_util.tree_map_with_path(leaf, params)
            return nnx.merge(graph, params, rest, copy=True)

        moved = self.transition_fn(merged(self.coarse, values, fill), merged(self.fine, {}, 0))
        check_module("what transition_fn returns", moved)
        return {
            path: np.asarray(leaf) for path, leaf in leaves_by_path(parameters_of(moved)).items()
        }

    def __call__(
        self, values: dict[KeyPath, Array], fresh: dict[KeyPath, Array]
    ) -> dict[KeyPath, np.ndarray]:
        """A fine tree for some coarse values, in the dtypes of a fresh state's tree."""
        # The state may be more precise than the parameters; and a transfer may take means of ages,
        # which integers would cut off.
        dtypes = {
            path: leaf.dtype if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.dtype("float32")
            for path, leaf in fresh.items()
        }
        arrays = {path: np.asarray(leaf) for path, leaf in values.items()}
        if not self.has_offset:
            return self._image(arrays, dtypes)
        # Moments may be far smaller than the offset, which must not round them away: scaled, by a
        # power of two, to about the root of the largest number.
        limit = min((float(jnp.finfo(dtype).max) for dtype in dtypes.values()), default=1.0)
        largest = max((float(np.max(np.abs(a), initial=0)) for a in arrays.values()), default=0.0)
        exponent = np.floor(np.log2(np.sqrt(limit) / largest)) if 0 < largest < np.inf else 0.0
        wide = {path: a.astype(np.result_type(a, np.float64)) for path, a in arrays.items()}
        scaled = self._image({path: a * 2.0**exponent for path, a in wide.items()}, dtypes)
        return {
            path: (scaled[path] - offset.astype(np.result_type(offset, np.float64)))
            * 2.0**-exponent
            for path, offset in self._image({}, dtypes).items()
        }
