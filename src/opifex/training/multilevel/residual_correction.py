r"""Residual correction: every finer network learns what is left over, scaled to size one.

The model of level $l$ is $u_l = u_{l-1} + \epsilon_l c_l$ with $u_{l-1}$ frozen and $\epsilon_l$ the
size of the remaining residual (multi-stage networks, Wang and Lai, arXiv:2307.08934, section 2;
multi-level networks, arXiv:2601.12000). A network of outputs around one then always meets a target
around one, and in double precision the error falls far below what a single network reaches.

`ResidualCorrection` is a strategy for any loss, whose root is taken as the size of the residual.
`fit_in_stages` fits a known function: there the residual itself is at hand, its root mean square is
$\epsilon_l$ and its dominant frequency scales the inputs of the next network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from opifex.core.checks import check_callable, check_positive_int, check_sequence
from opifex.core.residuals import ResidualTerm
from opifex.models import MLP, CorrectedModel, FrozenVariable, freeze
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.loop import CompiledLoop
from opifex.training.multilevel.run import CoarseObjective, MultilevelRun
from opifex.training.objective import Objective
from opifex.training.smoothers import LeastSquaresSmoother

__all__ = ["ResidualCorrection", "Stage", "fit_in_stages", "sine_network"]


def _stacked(models: Sequence[nnx.Module]) -> list[nnx.Module]:
    """Model of each level as the sum of all up to it."""
    stack = [models[0]]
    for model in models[1:]:
        stack.append(CorrectedModel(stack[-1], nnx.clone(model)))
    return stack


def _on_top(base: nnx.Module, model: CorrectedModel, scale: float) -> CorrectedModel:
    """The corrected model with another frozen base and scale."""
    new = nnx.clone(model)
    values = nnx.state(freeze(base), FrozenVariable)
    nnx.update(new.base, values)
    new.scale[...] = jnp.asarray(scale, new.scale[...].dtype)
    return new


@dataclass(frozen=True)
class ResidualCorrection:
    """Strategy: train a level, freeze it, and let the next one learn the scaled remainder.

    The trainer's models become sums (`CorrectedModel`); the last one is what to evaluate. Optimizer
    states start afresh on every level, since no parameter has a predecessor.
    """

    @property
    def coarse_objective(self) -> CoarseObjective:
        """Every level minimises its own loss."""
        return "own"

    def prepare(self, models: Sequence[nnx.Module], level: int) -> list[nnx.Module]:
        """Sums in place of the models from a level on."""
        if isinstance(models[-1], CorrectedModel):
            return list(models)
        return [*models[:level], *_stacked(models[level:])]

    def __call__(self, run: MultilevelRun) -> None:
        """Start on the present level."""
        run.evaluate()
        while True:
            run.smooth()
            if run.stopped or run.level == run.finest:
                return
            remaining = float(np.sqrt(np.maximum(run.history.losses[-1], 1e-300)))
            fine = run.models[run.level + 1]
            assert isinstance(fine, CorrectedModel)
            run.move_to(run.level + 1, _on_top(run.model, fine, remaining))
            run.evaluate()


@dataclass(frozen=True)
class Stage:
    """What one stage of `fit_in_stages` did.

    Attributes:
        scale: size of the residual that it was given.
        input_scale: factor of its inputs.
        relative_error: relative L2 error at the points after it.
        losses: its losses relative to its own target.
    """

    scale: float
    input_scale: float
    relative_error: float
    losses: np.ndarray


def _dominant_frequency(points: np.ndarray, residual: np.ndarray) -> float:
    """Zero crossings per unit length, halved; counts what a spectrum would on uneven points too."""
    order = np.argsort(points)
    signs = np.sign(residual[order])
    crossings = np.count_nonzero(np.diff(signs[signs != 0]))
    return 0.5 * crossings / float(points.max() - points.min())


def sine_network(
    hidden_dims: Sequence[int] = (16, 16),
    *,
    param_dtype: jnp.dtype | type = jnp.float32,
    rngs: nnx.Rngs,
) -> MLP:
    r"""A network of sines for functions of one variable, with phases spread over $[-\pi, \pi]$.

    With the usual biases of zero all first features are odd, and a fit begins with a saddle.

    Args:
        hidden_dims: width of each hidden layer.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        TypeError: if a width is not an integer.
        ValueError: if a width is not positive, or there is none.
    """
    model = MLP(1, 1, hidden_dims, activation=jnp.sin, param_dtype=param_dtype, rngs=rngs)
    phases: Any = model.hidden[0].dense.bias
    phases[...] = jax.random.uniform(
        rngs.params(), phases.shape, phases.dtype, minval=-np.pi, maxval=np.pi
    )
    return model


def fit_in_stages(
    function: Callable[[Float[Array, "n 1"]], Float[Array, "n 1"]],
    points: Float[Array, "n 1"],
    make_model: Callable[[int], nnx.Module] | None = None,
    *,
    num_stages: int = 2,
    steps: int | Sequence[int] = 150,
    solver: LevenbergMarquardt | None = None,
) -> tuple[nnx.Module, list[Stage]]:
    """Fit a function of one variable by a sum of networks, each on the scaled residual of the others.

    Args:
        function: the target.
        points: where it is fitted; use float64 for errors below 1e-7. They should lie around zero,
            and be dense enough for a remainder with tens of oscillations.
        make_model: ``make_model(stage)`` returns a new network of one input and one output for
            outputs around one; by default a `sine_network` of the target's dtype.
        num_stages: number of networks. Two reach 1e-12 for a smooth function in float64; the
            remainder after that is too rough for a network of the same size.
        steps: steps of the solver per stage, one number or one per stage.
        solver: the least-squares solver; ``LevenbergMarquardt()`` by default.

    Returns:
        The sum, and one `Stage` for each network.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is not positive, ``points`` does not have shape (n, 1), ``steps``
            does not have one entry per stage, or ``function`` returns another shape than that of
            ``points``, or zero everywhere.
    """
    check_callable("function", function)
    if make_model is not None:
        check_callable("make_model", make_model)
    check_positive_int("num_stages", num_stages)
    if not isinstance(steps, int):
        check_sequence("steps", steps)
    per_stage = [steps] * num_stages if isinstance(steps, int) else list(steps)
    if len(per_stage) != num_stages:
        raise ValueError(f"steps must have num_stages={num_stages} entries, got {per_stage}")
    for i, count in enumerate(per_stage):
        check_positive_int(f"steps[{i}]", count)
    if jnp.ndim(points) != 2 or points.shape[1] != 1:
        raise ValueError(f"points must have shape (n, 1), got {jnp.shape(points)}")
    points = jnp.asarray(points)
    target = jnp.asarray(function(points))
    if target.shape != points.shape:
        raise ValueError(f"function must return shape {points.shape}, got {target.shape}")
    size = float(jnp.sqrt(jnp.mean(target**2)))
    if not 0 < size < np.inf:
        raise ValueError(f"function must be finite and not zero everywhere, got size {size}")
    if make_model is None:

        def make_model(stage: int) -> nnx.Module:
            return sine_network(param_dtype=target.dtype, rngs=nnx.Rngs(stage))

    low, high = float(jnp.min(points)), float(jnp.max(points))
    method = LeastSquaresSmoother(solver or LevenbergMarquardt())
    term = ResidualTerm("fit", lambda u, row: u(row[:1]) - row[1:])
    total: nnx.Module | None = None
    loop: CompiledLoop | None = None
    compiled_for: Any = None
    stages: list[Stage] = []
    residual = target
    for number, count in enumerate(per_stage):
        scale = float(jnp.sqrt(jnp.mean(residual**2)))
        if scale == 0:
            break
        frequency = _dominant_frequency(np.asarray(points[:, 0]), np.asarray(residual[:, 0]))
        # One wave of the first layer's sine or tanh spans about the interval [-pi, pi].
        input_scale = max(2.0 / (high - low), 2 * np.pi * frequency)
        model = make_model(number)
        rows = jnp.concatenate([input_scale * points, residual / scale], axis=1)
        shape = (nnx.graphdef(model), jax.tree.map(jnp.shape, nnx.state(model)))
        if loop is None or shape != compiled_for:
            objective = Objective(nnx.graphdef(model), None, [term])
            loop = CompiledLoop(objective, method, (rows,), capacity=max(per_stage))
            compiled_for = shape
        loop.data = (rows,)  # networks of the same structure share one compiled program
        state = loop.initial_state(
            model, method.init(nnx.state(model, nnx.Param)), jax.random.key(0)
        )
        state, losses, _ = loop.run(state, count)
        nnx.update(model, state.params)
        if total is None:
            total = CorrectedModel(_Zero(), model, scale, input_scale=input_scale)
        else:
            total = CorrectedModel(total, model, scale, input_scale=input_scale)
        evaluate: Any = nnx.jit(lambda m, x: m(x))
        residual = target - evaluate(total, points)
        error = float(jnp.sqrt(jnp.mean(residual**2))) / size
        stages.append(Stage(scale, input_scale, error, losses))
    assert total is not None
    return total, stages


class _Zero(nnx.Module):
    """The sum of no networks."""

    def __call__(self, x: Array) -> Array:
        return jnp.zeros_like(x)
