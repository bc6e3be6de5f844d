"""The levels to choose from: models of several sizes, each with the data that belong to its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.core.metrics import relative_l2
from opifex.core.residuals import mean_square_loss
from opifex.models import FNO, MLP, TrialFunction
from opifex.problems import Problem, grid_points
from opifex.training.multilevel.advisor.spectrum import (
    few,
    frequencies_needed,
    grid_error,
    spectral_tail,
)
from opifex.training.multilevel.transfer.grids import coarsest_grid, resolution_hierarchy
from opifex.training.objective import split_model

__all__ = ["Candidate", "network_candidates", "operator_candidates", "resized"]

LEAST_WIDTH = 8
OPERATOR_ACTIVATION = 20.0
NETWORK_ACTIVATION = 200.0
"""More than of operators: equations ask for second derivatives of every activation."""

_SOURCE_VALUES = 4096


@dataclass(frozen=True)
class Candidate:
    """A model that training may stop at, and what is known of it from the data.

    Attributes:
        size: modes per axis (operators) or hidden widths (networks).
        shape: its grid, or the number of its interior points.
        build: makes the model.
        load: makes its training data, of some samples where there are samples.
        activation: about how many multiplications cost as much as the activation of a unit at a point.
        usable: whether it holds enough of the solution to start from.
        adequate: whether it holds enough of the solution to end with.
        known: what was measured, for a sentence.
    """

    size: tuple[int, ...]
    shape: tuple[int, ...]
    build: Callable[[nnx.Rngs], nnx.Module]
    load: Callable[[slice], tuple[Any, ...]]
    activation: float
    usable: bool = True
    adequate: bool = True
    known: str = ""

    @cached_property
    def model(self) -> nnx.Module:
        """A model to measure with."""
        return self.build(nnx.Rngs(0))

    @cached_property
    def data(self) -> tuple[Any, ...]:
        """The training data, made when first needed."""
        return self.load(slice(None))

    @cached_property
    def parts(self) -> tuple[Any, Any, Any]:
        """Graph definition, shapes of the parameters and of all else, without making the model."""
        graphdef, params, rest = split_model(nnx.eval_shape(lambda: self.build(nnx.Rngs(0))))
        return graphdef, params, rest

    @cached_property
    def work(self) -> float:
        """About the multiplications per sample.

        Weights of a spectral convolution act once per sample and frequency, all others at every point,
        where every unit (with a bias) has an activation besides.
        """
        sizes = [leaf.shape for leaf in jax.tree.leaves(self.parts[1])]
        dense = sum(prod(size) for size in sizes if len(size) <= 2)
        units = sum(prod(size) for size in sizes if len(size) == 1)
        spectral = sum(prod(size) for size in sizes if len(size) > 2)
        return float(prod(self.shape) * (dense + self.activation * units) + spectral)

    def __str__(self) -> str:
        return f"{list(self.size)} on {' x '.join(map(str, self.shape))} points"


def resized(finest: nnx.Module, size: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
    """A model like another one, of another size.

    Args:
        finest: the model to be like: a trial function, an `MLP` or an `FNO`.
        size: hidden widths, or modes per axis.
        rngs: random streams of the new parameters.
    """
    if isinstance(finest, TrialFunction):
        functions = {"offset": finest.offset, "factor": finest.factor, "embed": finest.embed}
        inner: Any = finest.network
        return TrialFunction(resized(inner, size, rngs), **functions)  # type: ignore[arg-type]
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


def _builders(
    models: Sequence[nnx.Module], sizes: Sequence[tuple[int, ...]]
) -> list[Callable[[nnx.Rngs], nnx.Module]]:
    """What makes each model: the given ones as they are, others like the finest."""

    def keep(model: nnx.Module) -> Callable[[nnx.Rngs], nnx.Module]:
        return lambda _: model

    made = [partial(resized, models[-1], size) for size in sizes[: len(sizes) - len(models)]]
    return [*made, *(keep(model) for model in models)]


def operator_loss(model: Any, inputs: Any, outputs: Any) -> Any:
    """Mean relative error of the samples."""
    return relative_l2(model(inputs), outputs)


def operator_candidates(
    models: Sequence[FNO],
    inputs: np.ndarray,
    outputs: np.ndarray,
    *,
    shapes: Sequence[Sequence[int]] | None,
    factor: float,
    coarsest_error: float,
    target_error: float,
    grid_kind: str,
) -> tuple[list[Candidate], str]:
    """Operators on grids, coarsest first, and a sentence on how coarse they may be.

    Args:
        models: the finest operator, or all of them, coarsest first.
        inputs: shape (samples, *spatial, channels).
        outputs: shape (samples, *spatial, channels).
        shapes: grid of each model; by default those of `resolution_hierarchy`.
        factor: ratio of the modes of neighbouring levels, where one model is given.
        coarsest_error: relative error that the coarsest level may leave.
        target_error: the relative error that is wanted.
        grid_kind: where the points lie.
    """
    finest = models[-1]
    needed = frequencies_needed(spectral_tail(few(outputs), finest.spatial_dims), coarsest_error)
    sizes = [tuple(model.modes) for model in models]
    while len(models) == 1 and min(sizes[0]) > 1:
        smaller = _shrunk(finest.modes, factor, len(sizes))
        if max(smaller) < needed or smaller == sizes[0]:
            break
        sizes.insert(0, smaller)
    full = tuple(outputs.shape[1:-1])
    if shapes is None:
        shapes = [coarsest_grid(size, full, grid_kind=grid_kind) for size in sizes[:-1]] + [full]
    candidates = []
    for size, shape, build in zip(sizes, shapes, _builders(models, sizes), strict=True):
        error = grid_error(outputs, shape, grid_kind)
        candidates.append(
            Candidate(
                size,
                tuple(shape),
                build,
                partial(_fields, inputs, outputs, size, tuple(shape), grid_kind),
                OPERATOR_ACTIVATION,
                usable=max(size) >= needed and error <= coarsest_error,
                # The network has an error of its own: half of what is wanted is left to it.
                adequate=max(size) >= needed and error <= target_error / 2,
                known=f"its grid loses {error:.1e} of the outputs",
            )
        )
    reason = (
        f"{needed} frequencies per axis hold all but {coarsest_error:.0%} of the outputs "
        f"(relative L2): no level keeps fewer modes"
    )
    return candidates, reason


def _fields(
    inputs: Any,
    outputs: Any,
    size: tuple[int, ...],
    shape: tuple[int, ...],
    grid_kind: str,
    samples: slice,
) -> tuple[Any, Any]:
    (level,) = resolution_hierarchy(
        inputs[samples], outputs[samples], [size], shapes=[shape], grid_kind=grid_kind
    )
    return level.inputs, level.outputs


def _source_frequencies(problem: Problem, error: float) -> int:
    """The frequencies per axis that the equation's residual of the zero function needs."""
    resolution = max(4, round(_SOURCE_VALUES ** (1 / problem.input_dim)))
    grid = grid_points([resolution] * problem.input_dim, problem.domain)
    equation = problem.terms[0]

    def zero(x: Any) -> Any:
        return jnp.zeros((problem.output_dim,), x.dtype) + 0.0 * jnp.sum(x)

    values = np.asarray(jax.jit(lambda x: equation.evaluate(zero, x))(grid))
    source = values.reshape(*[resolution] * problem.input_dim, -1)[None]
    # A homogeneous equation says nothing about the solution: fall back to the least width.
    if not np.any(source):
        return 1
    return frequencies_needed(spectral_tail(source, problem.input_dim), error)


def _widths(model: nnx.Module) -> tuple[int, ...]:
    inner: Any = model.network if isinstance(model, TrialFunction) else model
    return tuple(inner.hidden_dims)


def network_candidates(
    models: Sequence[nnx.Module],
    problem: Problem,
    points: Sequence[int],
    *,
    factor: float,
    coarsest_error: float,
) -> tuple[list[Candidate], str]:
    """Networks with their points, coarsest first, and a sentence on how narrow they may be.

    Args:
        models: the finest network, or all of them, coarsest first.
        problem: what they solve.
        points: interior points of each model; one number is that of the finest.
        factor: ratio of the widths of neighbouring levels, where one model is given.
        coarsest_error: relative error that the coarsest level may leave.
    """
    needed = _source_frequencies(problem, coarsest_error)
    least = max(LEAST_WIDTH, 2 * needed)
    sizes = [_widths(model) for model in models]
    while len(models) == 1:
        smaller = _shrunk(sizes[-1], factor, len(sizes))
        if min(smaller) < least:
            break
        sizes.insert(0, smaller)
    counts = list(points)
    if len(counts) == 1:
        count, last = counts[0], len(sizes) - 1
        counts = [max(32, round(count / factor ** (last - i))) for i in range(last)] + [count]
    boundary = max(16, max(counts) // 10)
    # A trial function meets the conditions: the equation alone is left.
    terms = len(problem_terms(models[-1], problem))
    candidates = [
        Candidate(
            size,
            (count,),
            build,
            partial(_points, problem, count, boundary, terms),
            NETWORK_ACTIVATION,
            usable=min(size) >= least,
            adequate=min(size) >= least,
            known=f"it has {min(size)} units for {needed} frequencies",
        )
        for size, count, build in zip(sizes, counts, _builders(models, sizes), strict=True)
    ]
    reason = (
        f"{needed} frequencies per axis hold all but {coarsest_error:.0%} of the source, so that the "
        f"coarsest level keeps at least {least} units; levels use nested subsets of the "
        f"{max(counts)} points"
    )
    return candidates, reason


def _points(problem: Problem, count: int, boundary: int, terms: int, _: slice) -> tuple[Any, ...]:
    return tuple(problem.sample_points(jax.random.key(0), count, boundary)[:terms])


def problem_terms(model: nnx.Module, problem: Problem) -> tuple[Any, ...]:
    """The residual terms that a model does not meet by construction."""
    return tuple(problem.terms[:1] if isinstance(model, TrialFunction) else problem.terms)


def problem_loss(model: nnx.Module, problem: Problem) -> Any:
    """The loss of a network: the weighted mean squares of those terms."""
    return partial(mean_square_loss, problem_terms(model, problem))
