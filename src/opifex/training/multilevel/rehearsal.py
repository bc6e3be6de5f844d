"""All transfers of a run made once, so that what does not fit is found before any work."""

from __future__ import annotations

from opifex.training.loop import check_smoother
from opifex.training.multilevel.cycle import Interpolate, Restrict, Smooth
from opifex.training.multilevel.interpolation import interpolated
from opifex.training.multilevel.run import Run
from opifex.training.multilevel.state import LevelState
from opifex.training.precision import check_usable

__all__ = ["rehearse"]


def rehearse(run: Run) -> None:
    """Predict the models of all levels, and check that every smoother can work where it will.

    Args:
        run: the run, whose ``predicted`` levels change.

    Raises:
        TypeError: if a transfer returns no model.
        ValueError: if a level cannot be transferred or smoothed.
        MemoryError: if a step of a smoother does not fit into the memory of the device.
    """
    checked = set()
    for move, user_level in run.coming(0):
        if isinstance(move, Smooth):
            key = move.level, run.owner(move.level, user_level)
            if key not in checked:
                checked.add(key)
                _check(run, *key, user_level)
        elif isinstance(move, Interpolate | Restrict):
            coarse = move.level - 1 if isinstance(move, Interpolate) else move.level
            try:
                _transfer(run, move, coarse)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(
                    f"hierarchy[{coarse}] cannot be transferred to hierarchy[{coarse + 1}]: {error}"
                ) from error


def _check(run: Run, level: int, owner: int, user_level: int) -> None:
    levels, task = run.predicted, run.task
    objective, values = run.objective(levels, level, owner), levels[owner]
    check_usable(objective.precision, values.model)
    params, rows = levels[level].params, task.sampling[owner]
    check_smoother(
        task.smoothers[level], objective, params, values.rest, rows.batch_size, rows.window
    )
    if task.balanced is not None and owner == user_level:
        own = run.objective(levels, owner, owner)
        own = own.at(rest=values.rest, shift=None, weights=None)
        run.weights.price(owner, values, own, run.state.key)


def _transfer(run: Run, move: Interpolate | Restrict, coarse: int) -> None:
    levels, fine = run.predicted, coarse + 1
    if isinstance(move, Restrict):
        run.plan(coarse, fine)
    elif levels[fine] is run.state.levels[fine]:
        models = [levels[n].together(run.task.places[n]).model for n in (coarse, fine)]
        with run.traced(fine):
            new = interpolated(run.task.transfer, models[0], models[1], loss=1.0)
        levels[fine] = LevelState.of(new)
