"""Going on to the next finer level, with the model that a transfer makes for it, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from opifex.training.multilevel.data import few_rows
from opifex.training.multilevel.programs import Programs
from opifex.training.multilevel.run import Run
from opifex.training.multilevel.state import LevelState
from opifex.training.multilevel.transfer import (
    Transfer,
    TransferError,
    accepted_inputs,
    function_difference,
    verify_transfer,
)
from opifex.training.objective import Objective

__all__ = ["interpolate", "interpolated"]

_ROWS_OF_GRADIENT = 4096  # more say little about which new units are good, and may not fit at once


def interpolated(
    transfer: Transfer,
    coarse: nnx.Module,
    fine: nnx.Module,
    loss: float | None = None,
    gradient: Callable[[nnx.Module], Any] | None = None,
) -> nnx.Module:
    """The model that a transfer makes for the finer level.

    Args:
        transfer: the transfer; one with an argument named ``loss`` gets the coarse level's last loss.
        coarse: model of the coarser level.
        fine: model of the finer level.
        loss: the last loss, ``None`` where it is not known.
        gradient: gradient of the loss of the finer level for a model of it; a transfer with an argument
            of this name gets it.

    Raises:
        TypeError: if the transfer returns no model.
        ValueError: if it returns a model of other shapes than the fine one, unless it says that it
            does so by an attribute ``changes_structure``.
    """
    known = {"loss": loss, "gradient": gradient}
    extra = {name: value for name, value in known.items() if name in _arguments(transfer)}
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


def _arguments(transfer: Transfer) -> Collection[str]:
    try:
        return inspect.signature(transfer).parameters
    except (TypeError, ValueError):
        return ()


def interpolate(run: Run, programs: Programs, level: int) -> None:
    """Enter a ``level`` of a ``run``, and its ``programs``, with what the transfer makes of it.

    Raises:
        TransferError: if the transfer does not keep the function that it promises to keep.
    """
    task = run.task
    coarse, fine = (run.state.levels[n].together(task.places[n]) for n in (level - 1, level))
    models = coarse.model, fine.model
    with run.traced(level):
        new_model = interpolated(
            task.transfer,
            *models,
            loss=run.last_loss,
            gradient=partial(_gradient, run, few_rows(run.state.data[level], _ROWS_OF_GRADIENT)),
        )
        moved = None
        if coarse.smoother is not None:
            moved = task.move_state(level - 1, coarse.smoother, models[0], new_model)
    new = LevelState.of(new_model, moved).placed(task.places[level])
    if task.config.verify_transfers and getattr(task.transfer, "preserves_function", False):
        _verify(run, coarse, new, run.state.data[level])
    if new.structure != run.predicted[level].structure:
        programs.forget(level)  # they are for another model
    run.history.record_transition(level - 1, level)
    levels = list(run.state.levels)
    levels[level] = run.predicted[level] = new
    run.keep(replace(run.state, level=level, levels=tuple(levels)))


def _verify(run: Run, coarse: LevelState, fine: LevelState, data: tuple[Any, ...]) -> None:
    """Check on a few rows of the data that both models compute the same.

    Models that cannot be called with the data are compared by their losses, to half of the digits
    only, since nobody knows how a loss amplifies rounding.
    """
    models = coarse.model, fine.model
    inputs = accepted_inputs(*models, few_rows(data))
    if inputs is None:
        before, after = (_loss(run, level, data) for level in (coarse, fine))
        if not abs(after - before) <= abs(before) * float(jnp.finfo(jnp.float32).eps) ** 0.5:
            raise TransferError(
                f"the transfer does not preserve the function: the loss is {before} on the "
                f"coarse level and {after} on the fine one"
            )
        return
    difference, allowed = function_difference(*nnx.split(models[0]), *nnx.split(models[1]), inputs)
    if not float(difference) <= float(allowed):
        verify_transfer(*models, *inputs)


def _gradient(run: Run, data: tuple[Any, ...], model: nnx.Module) -> Any:
    level = LevelState.of(model, None)
    return jax.grad(run.objective_of(level, data).value)(level.params)


def _loss(run: Run, level: LevelState, data: tuple[Any, ...]) -> float:
    arguments = run.objective_of(level, data), level.params
    return float(run.compiled(Objective.value, *arguments)(*arguments))
