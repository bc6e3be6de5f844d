r"""A proposal of levels, factors and epochs, made from measurements.

Three questions are answered in turn, and the answers are printed with their reasons:

1. *How coarse can the coarsest level be?* For operators: the energy of the output fields is summed
   over frequencies; a level with fewer modes leaves the energy beyond them, and the coarsest level
   is the last one, going down by the factor, that leaves at most ``coarsest_error`` in relative
   $L^2$. For networks: the same spectrum of the equation's residual for the zero function (the source
   and the conditions), each significant frequency per axis asking for two units of width.
2. *What does a step cost on each level?* One compiled training step per level is timed. A level that
   costs more than ``max_cost_ratio`` of the next finer one saves too little and is left out.
3. *How long on each level?* The finest level gets half of the budget, the next half of the rest and
   so on, the coarsest all that remains; divided by the measured cost of a step this gives many
   cheap steps and few dear ones.

With a least-squares solver the answer for networks is one level: see `recommend_schedule`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from opifex.core.checks import check_choice, check_fraction, check_positive, check_positive_int
from opifex.core.metrics import relative_l2
from opifex.core.residuals import mean_square_loss
from opifex.models import FNO, MLP, TrialFunction
from opifex.problems import Problem, grid_points
from opifex.training.loop import CompiledLoop, LoopState, as_arrays, owned
from opifex.training.loop import steps_per_epoch as loop_steps
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.multilevel.transfer.grids import ResolutionLevel, resolution_hierarchy
from opifex.training.objective import Objective, split_model
from opifex.training.smoother import LeastSquaresSmoother, as_smoother

__all__ = ["ScheduleAdvice", "recommend_schedule", "spectral_tail"]

LEAST_WIDTH = 8
TIMED_STEPS = 3


@dataclass(frozen=True)
class ScheduleAdvice:
    """What `recommend_schedule` proposes.

    Attributes:
        sizes: modes per axis (operators) or hidden widths (networks) of each level, coarsest first.
        shapes: grid of each level, for operators; otherwise the number of interior points.
        step_seconds: measured seconds of one step of each level.
        config: levels and epochs, for `CascadeTrainer`.
        data: training data of each level, the second argument of `CascadeTrainer.fit`.
        reasons: one sentence per decision.
    """

    sizes: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    step_seconds: tuple[float, ...]
    config: MultilevelConfig
    data: list[tuple[Any, ...]]
    reasons: tuple[str, ...]
    _finest: nnx.Module

    def build(self, rngs: nnx.Rngs) -> list[nnx.Module]:
        """New models of the proposed sizes, coarsest first; the finest is the given one.

        Args:
            rngs: random streams for the coarser models.

        Returns:
            One model per level.
        """
        coarser = [_resized(self._finest, size, rngs) for size in self.sizes[:-1]]
        return [*coarser, self._finest]

    def print(self, console: Console | None = None) -> None:
        """Print levels, epochs and reasons."""
        out = console or Console()
        for reason in self.reasons:
            out.print(f"- {reason}")
        for level, (size, shape, seconds) in enumerate(
            zip(self.sizes, self.shapes, self.step_seconds, strict=True)
        ):
            out.print(
                f"level {level}: size {list(size)}, data {list(shape)}, "
                f"{1000 * seconds:.2f} ms per step, {self.config.epochs(level)} epochs"
            )


def spectral_tail(fields: np.ndarray, spatial_dims: int) -> np.ndarray:
    r"""The relative $L^2$ norm of what lies at and beyond each frequency.

    Fields that are not periodic have a jump at the boundary, whose slowly decaying spectrum would
    hide their own; they are continued evenly on every axis first, which leaves periodic fields with
    at most a kink.

    Args:
        fields: shape (samples, *spatial, channels).
        spatial_dims: number of spatial axes.

    Returns:
        Entry ``m`` is the norm of all coefficients with a frequency of at least ``m`` on some axis
        over the norm of all; frequencies count waves per length of the domain. Shape
        (n // 2 + 2,) for n points on the longest axis.
    """
    values = np.asarray(fields, np.float64)
    axes = tuple(range(1, 1 + spatial_dims))
    for axis in axes:
        values = np.concatenate([values, np.flip(values, axis)], axis)
    energy = np.sum(np.abs(np.fft.fftn(values, axes=axes)) ** 2, axis=(0, -1))
    frequencies = np.stack(
        np.meshgrid(
            # The continued field is twice as long: its frequency 2k is frequency k of the field.
            *[np.abs(np.fft.fftfreq(n, 1 / n)) / 2 for n in energy.shape],
            indexing="ij",
        )
    )
    largest = np.max(frequencies, axis=0)
    bounds = np.arange(int(np.max(largest)) + 2)
    total = float(np.sum(energy))
    if total == 0:
        return np.zeros(len(bounds))
    return np.sqrt(np.array([np.sum(energy[largest >= bound]) for bound in bounds]) / total)


def _resized(finest: nnx.Module, size: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
    if isinstance(finest, TrialFunction):
        functions = {"offset": finest.offset, "factor": finest.factor, "embed": finest.embed}
        inner: Any = finest.network
        return TrialFunction(_resized(inner, size, rngs), **functions)  # type: ignore[arg-type]
    if isinstance(finest, MLP):
        return MLP(
            finest.input_dim,
            finest.output_dim,
            size,
            activation=finest.hidden[0].activation,
            depth_gates=finest.hidden[-1].gate is not None,
            param_dtype=finest.output.kernel[...].dtype,
            rngs=rngs,
        )
    assert isinstance(finest, FNO)
    return finest.with_modes(size, rngs=rngs)


def _shrunk(size: Sequence[int], factor: float, times: int) -> tuple[int, ...]:
    return tuple(max(1, round(n / factor**times)) for n in size)


def _time_step(model: nnx.Module, loss: Any, data: tuple[Any, ...], batch: int | None) -> float:
    """Median seconds of a compiled Adam step."""
    arrays = as_arrays(data)
    smoother = as_smoother(optax.adam(1e-3))
    graphdef, params, rest = split_model(model)
    objective = Objective(loss, graphdef, arrays)
    start = LoopState.start(params, rest, smoother.init(params), jax.random.key(0), arrays, batch)
    loop = CompiledLoop(objective, smoother, start, batch_size=batch)
    state, _, _ = loop.run(owned(start), objective, 1)
    times = []
    for _ in range(TIMED_STEPS):
        clock = time.perf_counter()
        state, _, _ = loop.run(state, objective, 1)
        times.append(time.perf_counter() - clock)
    return float(np.median(times))


def _needed(tail: np.ndarray, error: float) -> int:
    """The fewest frequencies that leave at most a relative error."""
    return int(np.argmax(tail <= error)) if np.any(tail <= error) else len(tail)


def _operator_candidates(
    finest: FNO, data: Any, factor: float, coarsest_error: float, grid_kind: str | None
) -> tuple[list[tuple[int, ...]], list[ResolutionLevel], str]:
    inputs, outputs = (np.asarray(part) for part in data)
    tail = spectral_tail(outputs, finest.spatial_dims)
    needed = _needed(tail, coarsest_error)
    sizes = [tuple(finest.modes)]
    while min(sizes[0]) > 1:
        smaller = _shrunk(finest.modes, factor, len(sizes))
        if max(smaller) < needed or smaller == sizes[0]:
            break
        sizes.insert(0, smaller)
    reason = (
        f"{needed} frequencies per axis hold all but {coarsest_error:.0%} of the outputs "
        f"(relative L2), so that the coarsest level keeps {max(sizes[0])} modes of "
        f"{max(finest.modes)}"
    )
    return (
        sizes,
        resolution_hierarchy(inputs, outputs, sizes, grid_kind=grid_kind or finest.grid_kind),
        reason,
    )


def _network_candidates(
    finest: MLP, problem: Problem, factor: float, coarsest_error: float, points: int
) -> tuple[list[tuple[int, ...]], list[tuple[Any, ...]], str]:
    resolution = 64
    grid = grid_points([resolution] * problem.input_dim, problem.domain)
    equation = problem.terms[0]

    def zero(x: Any) -> Any:
        return jnp.zeros((problem.output_dim,), x.dtype) + 0.0 * jnp.sum(x)

    values = np.asarray(jax.jit(lambda x: equation.evaluate(zero, x))(grid))
    source = values.reshape(*[resolution] * problem.input_dim, -1)[None]
    tail = spectral_tail(source, problem.input_dim)
    # A homogeneous equation says nothing about the solution: fall back to the least width.
    needed = _needed(tail, coarsest_error) if np.any(source) else 1
    least = max(LEAST_WIDTH, 2 * needed)
    sizes = [tuple(finest.hidden_dims)]
    while True:
        smaller = _shrunk(finest.hidden_dims, factor, len(sizes))
        if min(smaller) < least:
            break
        sizes.insert(0, smaller)
    counts = [max(32, round(points / factor ** (len(sizes) - 1 - i))) for i in range(len(sizes))]
    data = [problem.sample_points(jax.random.key(0), n, max(16, points // 10)) for n in counts]
    reason = (
        f"{needed} frequencies per axis hold all but {coarsest_error:.0%} of the source, so that the "
        f"coarsest level keeps at least {least} units; coarser levels use nested subsets of the "
        f"{points} points"
    )
    return sizes, data, reason


def _thinned(seconds: Sequence[float], max_cost_ratio: float) -> list[int]:
    """Levels to keep, finest first in thought: each costs clearly less than the next finer one."""
    kept = [len(seconds) - 1]
    for level in range(len(seconds) - 2, -1, -1):
        if seconds[level] <= max_cost_ratio * seconds[kept[0]]:
            kept.insert(0, level)
    return kept


def recommend_schedule(
    source: Problem | tuple[Any, Any],
    finest_model: nnx.Module,
    budget: int,
    *,
    factor: float = 2.0,
    coarsest_error: float = 0.1,
    max_cost_ratio: float = 0.7,
    batch_size: int | None = None,
    num_points: int = 1000,
    grid_kind: str | None = None,
    optimizer: Any = None,
    verbose: bool = True,
) -> ScheduleAdvice:
    """Propose levels, factors and epochs for a problem or data, and say why.

    Args:
        source: a `Problem` for an `MLP`, or for its trial function around one; or ``(inputs, outputs)``
            of shape (samples, *spatial, channels) for an `FNO`.
        finest_model: the network or operator to arrive at; it is not changed.
        budget: work units to spend: steps of the finest level that would cost as much.
        factor: ratio of the sizes of neighbouring levels, above one.
        coarsest_error: relative error that the coarsest level may leave.
        max_cost_ratio: largest cost of a level's step relative to that of the next finer level.
        batch_size: samples per step for operators; all samples by default.
        num_points: interior collocation points of the finest level, for problems.
        grid_kind: where grid points lie, for operators; by default where ``finest_model`` says.
        optimizer: what is to train. With a least-squares solver (`LevenbergMarquardt` and the like)
            a network gets no coarser levels: the finest alone ended with lower errors on every problem
            that was measured, since the new units of a prolongated network have no slope in their
            incoming weights, and second order keeps the valley in which the coarse level ended.
        verbose: print the proposal.

    Returns:
        The proposal. Train by it with ``CascadeTrainer(advice.build(rngs), config=advice.config)``
        and ``fit(loss_fn, advice.data)``.

    Raises:
        TypeError: if model and source do not belong together, or an argument has the wrong type.
        ValueError: if a number is out of range.
    """
    check_positive_int("budget", budget)
    if check_positive("factor", factor) <= 1:
        raise ValueError(f"factor must be above 1, got {factor!r}")
    check_fraction("coarsest_error", coarsest_error)
    check_fraction("max_cost_ratio", max_cost_ratio)
    check_positive_int("num_points", num_points)
    if grid_kind is not None:
        check_choice("grid_kind", grid_kind, ["periodic", "cell", "vertex"])
    sizes: list[tuple[int, ...]]
    data: list[tuple[Any, ...]]
    loss: Any
    hard = isinstance(finest_model, TrialFunction)
    network: Any = finest_model.network if isinstance(finest_model, TrialFunction) else finest_model
    if isinstance(network, MLP) and isinstance(source, Problem):
        sizes, data, reason = _network_candidates(
            network, source, factor, coarsest_error, num_points
        )
        # A trial function meets the conditions: the equation alone is left.
        terms = source.terms[:1] if hard else source.terms
        data = [points[: len(terms)] for points in data]
        shapes: list[tuple[int, ...]] = [(int(points[0].shape[0]),) for points in data]
        loss, batch_size = partial(mean_square_loss, terms), None
        smoother = None if optimizer is None else as_smoother(optimizer)
        if isinstance(smoother, LeastSquaresSmoother):
            sizes, data, shapes = sizes[-1:], data[-1:], shapes[-1:]
            reason = (
                f"{type(smoother.solver).__name__} gets the finest network alone: from a prolongated "
                "one it ended with larger errors on every problem that was measured"
            )
    elif isinstance(finest_model, FNO) and isinstance(source, tuple | list) and len(source) == 2:
        sizes, levels, reason = _operator_candidates(
            finest_model, source, factor, coarsest_error, grid_kind
        )
        shapes = [tuple(level.shape) for level in levels]
        data = [(level.inputs, level.outputs) for level in levels]

        def loss(model: Any, inputs: Any, outputs: Any) -> Any:
            return relative_l2(model(inputs), outputs)
    else:
        raise TypeError(
            "source and finest_model must be a Problem and an MLP (or a trial function around one), or "
            "(inputs, outputs) and an FNO, "
            f"got {type(source).__name__} and {type(finest_model).__name__}"
        )
    rngs = nnx.Rngs(0)
    models = [*(_resized(finest_model, size, rngs) for size in sizes[:-1]), finest_model]
    seconds = [
        _time_step(model, loss, arrays, batch_size)
        for model, arrays in zip(models, data, strict=True)
    ]
    kept = _thinned(seconds, max_cost_ratio)
    reasons = [reason]
    dropped = [sizes[i] for i in range(len(sizes)) if i not in kept]
    if dropped:
        reasons.append(
            f"levels of size {[list(size) for size in dropped]} cost more than {max_cost_ratio:.0%} "
            "of a step of the next finer level and are left out"
        )
    steps_per_epoch = 1
    if batch_size is not None:
        steps_per_epoch = loop_steps(as_arrays(data[-1]), batch_size)
    shares = [0.5**position for position in range(1, len(kept))] if len(kept) > 1 else []
    shares = [*shares, 1.0 - sum(shares)][::-1]
    epochs = [
        max(1, math.floor(share * budget * seconds[kept[-1]] / seconds[level] / steps_per_epoch))
        for share, level in zip(shares, kept, strict=True)
    ]
    reasons.append(
        "time is shared as "
        + ", ".join(f"{share:.0%}" for share in shares)
        + " from coarse to fine; a step costs "
        + ", ".join(f"{seconds[level] / seconds[kept[-1]]:.2f}" for level in kept)
        + " of one on the finest level"
    )
    advice = ScheduleAdvice(
        sizes=tuple(sizes[i] for i in kept),
        shapes=tuple(shapes[i] for i in kept),
        step_seconds=tuple(seconds[i] for i in kept),
        config=MultilevelConfig(
            num_levels=len(kept), coarsening_factor=1 / factor, level_epochs=epochs
        ),
        data=[data[i] for i in kept],
        reasons=tuple(reasons),
        _finest=finest_model,
    )
    if verbose:
        advice.print()
    return advice
