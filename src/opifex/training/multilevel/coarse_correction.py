r"""Correcting a level from a coarser one: there, with an objective that agrees to first order, and back.

Between neighbouring levels, $P$ pads a coarse parameter tree with zeros and $R = P^T$ truncates a
fine one, so that $R P = I$. At a fine point $x_h$ with gradient $g_h$ of the present fine objective,
a rediscretised coarse level minimises (Nash 2000; Lewis and Nash 2005, section 2)

$$F_H(x_H) - \langle \tau, x_H \rangle, \qquad \tau = \nabla F_H(R x_h) - c\, P^T g_h,$$

whose gradient at $R x_h$ is $c\, P^T g_h$: the coarse level sees the fine descent directions to first
order. This is the full approximation scheme written for optimisation. Its result comes back as
$x_h + \alpha P (x_H - R x_h)$ with a step length that never increases the fine objective. A Galerkin
coarse level minimises $F_h$ itself over the entries that $P$ fills.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from opifex.training.multilevel.programs import Programs
from opifex.training.multilevel.run import Run
from opifex.training.multilevel.state import CoarseVisit
from opifex.training.objective import Objective

__all__ = ["correct", "restrict"]

# A loss evaluation costs about a third of a step, whose gradient takes a forward and a backward pass.
_LOSS_COST = 1 / 3


def _together(run: Run, level: int, tree: Any) -> Any:
    """Parameters of a level as a transfer reads them."""
    place = run.task.places[level]
    return tree if place is None else place.together(tree)


def _gradient(run: Run, *arguments: Any) -> Any:
    return run.compiled(Objective.value_and_gradient, *arguments)(*arguments)[1]


def _trial(objective: Objective, params: Any, correction: Any, length: Any) -> Any:
    """The loss after a multiple of a correction, and the parameters there."""
    moved = optax.tree.add_scale(params, length, correction)
    return objective.value(moved), moved


def restrict(run: Run, programs: Programs, level: int) -> None:
    """Begin a visit of a coarser ``level`` in a ``run``; ``programs`` know what its steps cost."""
    objective, params, rest = run.position()
    here = run.state.level
    # No smoothing has done it.
    if run.weights.interval(bool(run.state.visits)) and not run.taken[here]:
        with run.history.stopwatch.charge("balancing"):
            balance, key = run.weights.new(
                here, run.state.levels[here], objective.at(rest=rest), params, run.state.key
            )
        run.keep(replace(run.state.with_level(here, balance=balance), key=key))
        objective = objective.at(weights=balance.weights)
    fine_level, owner = run.state.working_level, run.owner(level)
    plan, coarse = run.plan(level, level + 1), run.state.levels[level]
    like = _together(run, level, coarse.params)
    whole = _together(run, fine_level, params)
    start = plan.restrict(whole, like)
    key, now = jax.random.split(run.state.key)
    objective = objective.at(rest=rest, key=now)
    # The levels agree to first order on the same weights only.
    new = run.objective(run.state.levels, level, owner).at(weights=objective.weights)
    if owner != level:
        layout = objective.layout
        frame = _together(run, owner, objective.frame)
        new = new.at(frame=params if layout is None else layout.prolong(whole, frame))
        coarse_rest = rest
    else:
        coarse_rest = plan.restrict(rest, coarse.rest)
        slopes = _together(run, fine_level, _gradient(run, objective, params))
        wanted = plan.restrict(slopes, like, dual=True)
        found = _gradient(run, new.at(rest=coarse_rest, key=now), start)
        scale: float = getattr(run.cycle, "gradient_scale", 1.0)
        new = new.at(shift=jax.tree.map(lambda f, w: f - scale * w, found, wanted))
        for where in (fine_level, level):
            run.history.record_extra_operations(programs.operations(where, where))
    run.history.record_transition(fine_level, level)
    jax.block_until_ready((new, start))  # else their time falls into the next account
    visit = CoarseVisit(level, new, start, start, coarse_rest)
    run.keep(replace(run.state, key=key, visits=(*run.state.visits, visit)))


def correct(run: Run, programs: Programs, level: int) -> None:
    """Correct the ``level`` that the last visit of a ``run`` was for, by the longest step that pays.

    The ``programs`` know what its trials cost.
    """
    visit = run.state.visits[-1]
    run.keep(replace(run.state, visits=run.state.visits[:-1]))
    objective, params, rest = run.position()
    zeros = _together(run, level, jax.tree.map(jnp.zeros_like, params))
    difference = jax.tree.map(jnp.subtract, visit.params, visit.start)
    difference = _together(run, level - 1, difference)
    correction = run.plan(level - 1, level).prolong(difference, zeros)
    key, now = jax.random.split(run.state.key)
    objective = objective.at(rest=rest, key=now)
    arguments = objective, params, correction
    trial = run.compiled(_trial, *arguments, 1.0)
    price = _LOSS_COST * programs.operations(level, run.owner(level))
    before = float(trial(*arguments, 0.0)[0])
    run.history.record_extra_operations(price)
    length = 1.0
    for _ in range(getattr(run.cycle, "backtracking_steps", 8)):
        value, moved = trial(*arguments, length)
        run.history.record_extra_operations(price)
        if float(value) < before:
            params = moved
            break
        length /= 2
    run.history.record_transition(level - 1, level)
    run.keep(replace(run.moved(params, rest), key=key))
