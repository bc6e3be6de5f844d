r"""Fitting a known function by a sum of networks, each on the scaled residual of the others.

Multi-stage networks (Wang and Lai, arXiv:2307.08934, section 2). The residual itself is at hand here:
its root mean square scales the next network, and its dominant frequency scales that network's inputs.
For any loss, where only its value is known, see `ResidualCorrection`.
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
from opifex.models import MLP, CorrectedModel
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.loop import CAPACITY, CompiledLoop, LoopState
from opifex.training.objective import Objective, split_model
from opifex.training.smoother import LeastSquaresSmoother

__all__ = ["Stage", "fit_in_stages", "sine_network"]


@dataclass(frozen=True)
class Stage:
    """What one stage of `fit_in_stages` did.

    Attributes:
        scale: root mean square of the residual that it was fitted to.
        input_scale: factor of its inputs.
        relative_error: error of the sum up to it, over all points, relative to the function (both in
            the Euclidean norm).
        losses: the loss before each of its steps, shape (steps,), relative to that residual.
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

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.training.multilevel import fit_in_stages
        >>> points = jnp.linspace(-1.0, 1.0, 50)[:, None]
        >>> model, stages = fit_in_stages(jnp.sin, points, steps=10)
        >>> stages[1].relative_error < stages[0].relative_error < 0.1
        True
    """
    check_callable("function", function)
    if make_model is not None:
        check_callable("make_model", make_model)
    if solver is not None and (
        isinstance(solver, type) or not callable(getattr(solver, "step", None))
    ):
        raise TypeError(f"solver must be one such as LevenbergMarquardt(), got {solver!r}")
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
        graphdef, params, rest = split_model(model)
        objective = Objective((term,), graphdef, (rows,))
        start = LoopState.start(params, rest, method.init(params), jax.random.key(0))
        # Networks of the same structure share one compiled program.
        loop = CompiledLoop(objective, method, start)
        state = start
        parts: list[np.ndarray] = []
        while (left := count - sum(len(part) for part in parts)) > 0:
            state, part, healthy = loop.run(state, objective, min(left, CAPACITY))
            parts.append(part)
            if not healthy:
                break
        losses = np.concatenate(parts)
        nnx.update(model, state.params, state.rest)
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
