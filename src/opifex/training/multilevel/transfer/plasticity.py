r"""A start from which new units learn at once, at the price of a small change of the function.

The preserving prolongation sets the weights to zero by which old units read new ones. What feeds the
new units then has no gradient until these weights have moved: after one step of a gradient method, but
the Jacobian of a second-order one is singular, and it stays where it is. Three remedies, which can be
combined:

* outgoing weights that are small instead of zero (`PlasticProlongation.outgoing`);
* new units chosen so that their outgoing weights have the largest gradient, and hence reduce the loss
  fastest: the choice of GradMax (Evci et al., arXiv:2201.05125, section 3), found by ascent, since for
  a model of any kind there is no singular value decomposition that gives it;
* moments and step counts of new entries that begin anew and are warmed up, as
  ``MultilevelAdam(rate, warm_up_steps=...)`` does (compare arXiv:2602.02472).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_nonnegative, check_nonnegative_int
from opifex.training.multilevel.transfer.inference import plan_transfer
from opifex.training.multilevel.transfer.parameters import prolongate_preserving
from opifex.training.multilevel.transfer.placements import TransferPlan, entries, replaced
from opifex.training.multilevel.transfer.tracing import Path

ModelT = TypeVar("ModelT", bound=nnx.Module)
Gradient = Callable[[nnx.Module], Any]
"""The gradient of a loss with respect to the parameters of a model."""

__all__ = ["Gradient", "PlasticProlongation"]

_RATE = 0.1  # of the ascent, relative to the size of the entries


@dataclass(frozen=True)
class PlasticProlongation:
    """A transfer like `prolongate_preserving` whose new units learn at once.

    Attributes:
        outgoing: entries that `prolongate_preserving` sets to zero get this share of the fine model's
            values: 0 preserves the function, 1 is nearly copy-and-pad.
        ascent_steps: number of steps by which the incoming weights of new units are improved, at equal
            size, so that the gradient of their outgoing weights grows; in `CascadeTrainer.fit`, which
            knows the loss. Each step costs about two gradients.

    Raises:
        TypeError: if an attribute is no number.
        ValueError: if one is negative.

    Example:
        >>> from flax import nnx
        >>> from opifex.models import MLP
        >>> from opifex.training.multilevel import CascadeTrainer, PlasticProlongation
        >>> models = [MLP(1, 1, [width], rngs=nnx.Rngs(width)) for width in (8, 16)]
        >>> trainer = CascadeTrainer(models, prolongate_fn=PlasticProlongation(outgoing=0.1))
    """

    outgoing: float = 0.1
    ascent_steps: int = 0

    def __post_init__(self) -> None:
        check_nonnegative("outgoing", self.outgoing)
        check_nonnegative_int("ascent_steps", self.ascent_steps)

    @property
    def preserves_function(self) -> bool:
        """Whether the fine model computes the coarse model's function."""
        return self.outgoing == 0

    def __call__(
        self,
        coarse_model: ModelT,
        fine_model: ModelT,
        *inputs: Any,
        gradient: Gradient | None = None,
    ) -> ModelT:
        """The fine model that starts from the coarse one.

        Args:
            coarse_model: model of the coarser level.
            fine_model: model of the finer level.
            *inputs: what both models take, see `plan_transfer`.
            gradient: gradient of the loss for a fine model, which the ascent follows.

        Raises:
            TypeError: if a model is not an ``nnx.Module`` or the classes differ.
            ValueError: as `prolongate_preserving` does.
        """
        new = prolongate_preserving(coarse_model, fine_model, *inputs)
        plan = plan_transfer(coarse_model, fine_model, *inputs)
        if self.ascent_steps and gradient is not None:
            new = _improved(new, plan, gradient, self.ascent_steps)
        if self.outgoing == 0:
            return new
        values, started = entries(nnx.state(fine_model)), entries(nnx.state(new))
        for path, emptied in _emptied(plan, values).items():
            share = (self.outgoing * values[path]).astype(values[path].dtype)
            started[path] = jnp.where(emptied, share, started[path])
        return nnx.merge(nnx.graphdef(new), replaced(nnx.state(new), started), copy=True)


def _emptied(plan: TransferPlan, fine: dict[Path, Array]) -> dict[Path, np.ndarray]:
    """New entries that are zero in the preserving start, by path."""
    masks = {
        path: np.broadcast_to(place.zeros.array, place.fine_shape) & ~place.old
        for path, place in plan.items()
        if place.zeros is not None
    }
    return masks | {
        path: np.broadcast_to(mask.array, fine[path].shape) for path, mask in plan.added_zeros
    }


def _improved(new: ModelT, plan: TransferPlan, gradient: Gradient, steps: int) -> ModelT:
    """A preserving start whose free new entries have been moved so that the emptied ones see more."""
    graphdef = nnx.graphdef(new)
    params, rest = nnx.state(new, nnx.Param), nnx.state(new, nnx.Not(nnx.Param))
    arrays = entries(params)
    emptied = {path: mask for path, mask in _emptied(plan, arrays).items() if path in arrays}
    free = {
        path: ~(plan[path].old if path in plan else np.zeros(array.shape, bool))
        & ~emptied.get(path, np.zeros(array.shape, bool))
        for path, array in arrays.items()
        if (path not in plan or not plan[path].sources) and jnp.issubdtype(array.dtype, jnp.inexact)
    }
    free = {path: mask for path, mask in free.items() if mask.any()}
    if not free or not emptied:
        return new

    def with_free(moved: dict[Path, Array]) -> ModelT:
        """The start with other values of its free entries."""
        whole = {path: jnp.where(free[path], moved[path], arrays[path]) for path in moved}
        return nnx.merge(graphdef, replaced(params, arrays | whole), rest, copy=True)

    def seen(moved: dict[Path, Array]) -> Array:
        slopes = entries(gradient(with_free(moved)))
        squares = [jnp.sum(jnp.abs(slopes[path]) ** 2 * mask) for path, mask in emptied.items()]
        return jnp.log(sum(squares) + jnp.finfo(jnp.float32).tiny)

    def size(array: Array, path: Path) -> Array:
        return jnp.sqrt(jnp.sum(jnp.abs(array) ** 2 * free[path]))

    def step(moved: dict[Path, Array], _: None) -> tuple[dict[Path, Array], None]:
        slopes = jax.grad(seen)(moved)
        result = {}
        for path, array in moved.items():
            before, slope = size(arrays[path], path), jnp.conj(slopes[path])
            slope = slope / jnp.maximum(size(slope, path), jnp.finfo(array.dtype).tiny)
            array = array + (_RATE * before) * slope
            shrunk = before / jnp.maximum(size(array, path), jnp.finfo(array.dtype).tiny)
            result[path] = jnp.where(before > 0, array * shrunk, array).astype(array.dtype)
        return result, None

    start = {path: arrays[path] for path in free}
    found = jax.jit(lambda moved: jax.lax.scan(step, moved, None, length=steps)[0])(start)
    return with_free(found)
