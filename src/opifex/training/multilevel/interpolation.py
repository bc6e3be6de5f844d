"""The model that a transfer makes for the next finer level, checked."""

from __future__ import annotations

import inspect
from typing import Any

import jax
from flax import nnx

from opifex.training.multilevel.transfer import Transfer

__all__ = ["interpolated"]


def interpolated(
    transfer: Transfer, coarse: nnx.Module, fine: nnx.Module, loss: float | None = None
) -> nnx.Module:
    """The model that a transfer makes for the finer level.

    Args:
        transfer: the transfer; one with an argument named ``loss`` gets the coarse level's last loss.
        coarse: model of the coarser level.
        fine: model of the finer level.
        loss: the last loss, ``None`` where it is not known.

    Raises:
        TypeError: if the transfer returns no model.
        ValueError: if it returns a model of other shapes than the fine one, unless it says that it
            does so by an attribute ``changes_structure``.
    """
    extra: dict[str, Any] = {"loss": loss} if _takes_loss(transfer) else {}
    new = transfer(coarse, fine, **extra)
    if not isinstance(new, nnx.Module):
        raise TypeError(
            f"prolongate_fn must return the new fine model, got {new!r} of type "
            f"{type(new).__name__}"
        )
    if getattr(transfer, "changes_structure", False):
        return new
    shapes, wanted = (
        {
            jax.tree_util.keystr(path): getattr(leaf, "shape", ())
            for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model))
        }
        for model in (new, fine)
    )
    if shapes != wanted:
        name = next(n for n in [*wanted, *shapes] if shapes.get(n) != wanted.get(n))
        raise ValueError(
            "prolongate_fn must return a model like the fine one, which has "
            f"{name}: {wanted.get(name, 'nothing')}, got {shapes.get(name, 'nothing')}"
        )
    return new


def _takes_loss(transfer: Transfer) -> bool:
    try:
        return "loss" in inspect.signature(transfer).parameters
    except (TypeError, ValueError):
        return False
