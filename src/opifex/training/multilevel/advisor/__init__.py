r"""A proposal of levels, factors and epochs, made from measurements, or of one network alone.

Most trainings that are short are served best by *one* network, and mostly not by the finest. The
questions are answered in turn, and the answers are printed with their reasons:

1. *Which level can hold the solution?* For operators: the output fields go to a level's grid and
   back; what is lost must be at most half of the error that is wanted, and the modes of a level must
   hold all but ``coarsest_error`` of the energy. For networks: the spectrum of the equation's
   residual for the zero function (the source and the conditions), each significant frequency per axis
   asking for two units of width. The coarsest such level is the one to arrive at.
2. *What does a step cost on each level?* Counted from the sizes; where the allowance permits, the
   operations of the traced step are counted, or compiled steps are timed.
3. *Is a finer level better even so?* Where the training is long, a few per cent of it are a race of
   the levels. For shorter ones it is left out.
4. *Do coarser levels before it pay?* They save at most half of its steps; against that stand the
   compilation of one more program and the transition.

All measurements together stay below ``max_share`` of the training. With a least-squares solver the
answer for networks is the finest alone: see `recommend_schedule`.

The room may import `opifex.core`, `opifex.models`, `opifex.problems`, `opifex.training.loop`,
`opifex.training.objective`, `opifex.training.operations`, `opifex.training.smoother`,
`opifex.training.multilevel.config` and `opifex.training.multilevel.transfer`; never the trainer, which
carries out what it proposes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax
from flax import nnx

from opifex.core.checks import check_choice, check_fraction, check_positive, check_positive_int
from opifex.models import FNO, MLP, MultiscaleMLP, TrialFunction
from opifex.problems import Problem
from opifex.training.loop import as_arrays
from opifex.training.loop import steps_per_epoch as loop_steps
from opifex.training.multilevel.advisor.candidates import (
    network_candidates,
    operator_candidates,
    operator_loss,
    problem_loss,
)
from opifex.training.multilevel.advisor.costs import Costs, least_seconds
from opifex.training.multilevel.advisor.probes import Allowance
from opifex.training.multilevel.advisor.schedule import (
    ScheduleAdvice,
    level_to_arrive_at,
    levels_before,
    shares_of,
)
from opifex.training.multilevel.advisor.spectrum import spectral_tail
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.smoother import LeastSquaresSmoother, as_smoother

__all__ = ["ScheduleAdvice", "recommend_schedule", "spectral_tail"]


def _models(finest_model: Any) -> list[Any]:
    return [finest_model] if isinstance(finest_model, nnx.Module) else list(finest_model)


def _check_models(source: Any, models: Sequence[Any]) -> None:
    """Networks belong to a problem, operators to a pair of arrays."""
    inner = [m.network if isinstance(m, TrialFunction) else m for m in models]
    if isinstance(source, Problem) and inner:
        allowed = (MLP,) if len(inner) == 1 else (MLP, MultiscaleMLP)
        if all(isinstance(model, allowed) for model in inner):
            return
    pair = isinstance(source, tuple | list) and len(source) == 2
    if pair and inner and all(isinstance(model, FNO) for model in models):
        return
    raise TypeError(
        "source and finest_model must be a Problem and an MLP (or a trial function around one), or "
        "(inputs, outputs) and an FNO; or a hierarchy of such models, coarsest first, where networks "
        f"may be MultiscaleMLP, too; got {type(source).__name__} and "
        f"{[type(model).__name__ for model in models]}"
    )


def recommend_schedule(
    source: Problem | tuple[Any, Any],
    finest_model: nnx.Module | Sequence[nnx.Module],
    budget: int,
    *,
    target_error: float = 0.01,
    seconds: float | None = None,
    max_share: float = 0.05,
    factor: float = 2.0,
    coarsest_error: float = 0.1,
    max_cost_ratio: float = 0.7,
    batch_size: int | None = None,
    num_points: int | Sequence[int] = 1000,
    shapes: Sequence[Sequence[int]] | None = None,
    grid_kind: str | None = None,
    optimizer: Any = None,
    verbose: bool = True,
) -> ScheduleAdvice:
    """Propose levels, factors and epochs for a problem or data, or one network alone; say why.

    Args:
        source: a `Problem` for networks; or ``(inputs, outputs)`` of shape (samples, *spatial,
            channels) for operators.
        finest_model: the largest model that is considered: an `MLP` (or its trial function) or an
            `FNO`, whose smaller relatives are considered, too; or all models to choose from, coarsest
            first. Given models are not changed.
        budget: work units to spend: steps of the finest model that would cost as much.
        target_error: relative error that is wanted, for operators. For networks nothing tells cheaply
            what error a width allows.
        seconds: processor seconds that the training may take; by default a lower bound, the operations
            of the budget at the speed of a product of matrices.
        max_share: share of these seconds that measuring may take. Loading the data of the proposed
            levels is not part of it.
        factor: ratio of the sizes of neighbouring levels, above one.
        coarsest_error: relative error that the coarsest level may leave.
        max_cost_ratio: largest cost of a level's step relative to that of the next finer level.
        batch_size: samples per step for operators; all samples by default.
        num_points: interior collocation points, for problems: those of the finest model, or of each.
        shapes: the grid of each model, for a hierarchy of operators; see `resolution_hierarchy`.
        grid_kind: where grid points lie, for operators; by default where the model says.
        optimizer: what is to train. With a least-squares solver (`LevenbergMarquardt` and the like)
            a network gets no coarser levels: the finest alone ended with lower errors on every problem
            that was measured, since the new units of a prolongated network have no slope in their
            incoming weights, and second order keeps the valley in which the coarse level ended.
        verbose: print the proposal.

    Returns:
        The proposal. Train by it with ``CascadeTrainer(advice.build(rngs), config=advice.config)``
        and ``fit(loss_fn, advice.data)``; ``advice.alone`` says whether it is one network.

    Raises:
        TypeError: if model and source do not belong together, or an argument has the wrong type.
        ValueError: if a number is out of range.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from opifex.models import FNO
        >>> from opifex.training.multilevel import recommend_schedule
        >>> x = (np.arange(64) + 0.5) / 64
        >>> wave = np.cos(2 * np.pi * x)[None, :, None].repeat(4, 0)
        >>> advice = recommend_schedule(
        ...     (wave, 2 * wave), FNO(16, 4, rngs=nnx.Rngs(0)), budget=100, verbose=False
        ... )
        >>> advice.alone, advice.sizes[0] < (16,)
        (True, True)
    """
    check_positive_int("budget", budget)
    if check_positive("factor", factor) <= 1:
        raise ValueError(f"factor must be above 1, got {factor!r}")
    for name, value in (
        ("target_error", target_error),
        ("max_share", max_share),
        ("coarsest_error", coarsest_error),
        ("max_cost_ratio", max_cost_ratio),
    ):
        check_fraction(name, value)
    if seconds is not None:
        check_positive("seconds", seconds)
    points = [num_points] if isinstance(num_points, int) else list(num_points)
    for count in points:
        check_positive_int("num_points", count)
    if grid_kind is not None:
        check_choice("grid_kind", grid_kind, ["periodic", "cell", "vertex"])
    began, models = time.process_time(), _models(finest_model)
    _check_models(source, models)
    for name, given in (("num_points", points[1:] and points), ("shapes", shapes)):
        if given and len(given) != len(models):
            raise ValueError(
                f"{name} must have one entry per model ({len(models)}), got {len(given)}"
            )
    smoother = as_smoother(optax.adam(1e-3) if optimizer is None else optimizer)
    loss: Any
    if isinstance(source, Problem):
        candidates, reason = network_candidates(
            models, source, points, factor=factor, coarsest_error=coarsest_error
        )
        loss, batch_size, samples = problem_loss(models[-1], source), None, None
        enough = "what is wanted"
    else:
        inputs, outputs = (np.asarray(part) for part in source)
        candidates, reason = operator_candidates(
            models,
            inputs,
            outputs,
            shapes=shapes,
            factor=factor,
            coarsest_error=coarsest_error,
            target_error=target_error,
            grid_kind=grid_kind or models[-1].grid_kind,
        )
        loss, samples = operator_loss, batch_size or len(inputs)
        enough = f"half of {target_error:.2g}"
    finest = len(candidates) - 1
    if seconds is None:
        seconds = least_seconds(candidates[-1], samples or 1, budget)
    allowance = Allowance(max_share * seconds, began)
    costs = Costs(candidates, allowance, (loss, smoother, batch_size), samples)
    if isinstance(source, Problem) and isinstance(smoother, LeastSquaresSmoother):
        levels, relative = [finest], [1.0] * (finest + 1)
        reasons = [
            f"{type(smoother.solver).__name__} gets the finest network alone: from a prolongated "
            "one it ended with larger errors on every problem that was measured"
        ]
    else:
        last, chosen_by = level_to_arrive_at(candidates, costs, allowance, enough)
        levels, relative, paid_by = levels_before(
            last, candidates, costs, allowance, seconds=seconds, max_cost_ratio=max_cost_ratio
        )
        reasons = [reason, *chosen_by, *paid_by]
    cost_seconds = allowance.spent
    reasons.append(
        f"measuring took {cost_seconds:.2g} s, {cost_seconds / seconds:.1%} of {seconds:.3g} s"
    )
    chosen = [candidates[i] for i in levels]
    data = [level.data for level in chosen]
    per_epoch = 1 if batch_size is None else loop_steps(as_arrays(data[-1]), batch_size)
    shares = zip(shares_of(len(levels)), levels, strict=True)
    timed = all(level in costs.seconds for level in levels)
    advice = ScheduleAdvice(
        sizes=tuple(level.size for level in chosen),
        shapes=tuple(level.shape for level in chosen),
        relative_cost=tuple(relative[level] for level in levels),
        step_seconds=tuple(costs.seconds[level] for level in levels) if timed else (),
        config=MultilevelConfig(
            num_levels=len(levels),
            coarsening_factor=1 / factor,
            level_epochs=[max(1, int(s * budget / relative[i] / per_epoch)) for s, i in shares],
        ),
        data=data,
        reasons=tuple(reasons),
        cost_seconds=cost_seconds,
        _builders=tuple(level.build for level in chosen),
    )
    if verbose:
        advice.print()
    return advice
