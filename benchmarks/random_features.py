r"""Collocation with random features: an untrained hidden layer and one linear least-squares solve.

The solution is sought as a trial function around $\sum_j c_j \tanh(w_j \cdot y - b_j)$ whose slopes
and centres are drawn and stay; only the $c_j$ are determined, so that a linear equation takes a single
solve (random feature method, Chen, Chi, E, Yang, arXiv:2207.13380; extreme learning machines with
local or global features, Dong and Li, CMAME 387, 2021). For nonlinear equations the solve is a
Gauss-Newton step with backtracking, and a coefficient is followed from an easy value to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import nnx

from opifex.problems import AllenCahn, Burgers
from opifex.problems.evolution import space_time_derivatives
from second_order import Case, Level, data_of, terms_of

SMALLEST_STEP = 1e-3  # of backtracking
FRONT = 0.03  # deviation of the centres of steep features from a front at the middle
CONVERGED = 0.9  # a stage ends when a full step leaves more than this part of the sum of squares
SOFT_SLOPE = 5.0  # rows of points with slopes beyond this count less


@dataclass(frozen=True)
class Settings:
    """What is tuned.

    Attributes:
        features: their number.
        points: collocation points for each of them.
        slope: largest slope along the first input of the network.
        slope_second: the same along the second.
        steep: share of features with steep slopes in the first input and centres near zero.
        steepest: largest slope of these.
        soften: give rows of points where the solution is steep less weight.
        cut: singular values below this part of the largest are left out.
    """

    features: int
    points: float = 2.0
    slope: float = 2.0
    slope_second: float = 2.0
    steep: float = 0.0
    steepest: float = 100.0
    soften: bool = False
    cut: float = 1e-14


@dataclass(frozen=True)
class Stage:
    """A value of the coefficient and of the part of the reaction, and how many solves it gets."""

    solves: int
    coefficient: float | None = None
    reaction: float = 1.0


def stages_of(case: Case) -> tuple[Stage, ...]:
    """The way to the equation: viscosity from above, reaction from zero, or nothing."""
    own = case.levels[-1].coefficient
    if isinstance(case.problem, Burgers):
        return (*(Stage(3, nu) for nu in (0.05, 0.02, 0.01, 0.006)), Stage(6, own))
    if isinstance(case.problem, AllenCahn):
        return (
            Stage(1, own, 0.0),
            *(Stage(2, own, part) for part in (0.2, 0.4, 0.6, 0.8)),
            Stage(6, own),
        )
    return (Stage(1, own),)


class Features(nnx.Module):
    """Fixed hidden units with the given outgoing weights."""

    def __init__(self, weights: jax.Array, biases: jax.Array, outgoing: jax.Array) -> None:
        self.weights, self.biases, self.outgoing = weights, biases, outgoing

    def __call__(self, y: jax.Array) -> jax.Array:
        """Values (..., 1) at inputs (..., 2)."""
        return (jnp.tanh(y @ self.weights + self.biases) @ self.outgoing)[..., None]


def draw(settings: Settings, seed: int) -> tuple[jax.Array, jax.Array]:
    """Weights (2, features) and biases (features,), centres in the square [-1, 1]^2."""
    rng = np.random.default_rng(seed)
    count = settings.features
    steep = int(settings.steep * count)
    centres = rng.uniform(-1, 1, (count, 2))
    weights = rng.uniform(-1, 1, (count, 2)) * [settings.slope, settings.slope_second]
    centres[:steep, 0] = rng.normal(0, FRONT, steep)
    sizes = rng.uniform(np.log(settings.slope), np.log(settings.steepest), steep)
    weights[:steep, 0] = np.exp(sizes) * rng.choice([-1, 1], steep)
    return jnp.asarray(weights.T), jnp.asarray(-(weights * centres).sum(axis=1))


@dataclass(frozen=True)
class Solution:
    """Where the solves stand: a model of points, its loss and the number of solves."""

    model: Callable[[jax.Array], jax.Array]
    loss: float
    solves: int


def solve(
    case: Case,
    settings: Settings,
    seed: int,
    compiling: Callable[[], AbstractContextManager[Any]],
) -> Iterator[Solution]:
    """Yield the solution after every solve.

    Args:
        case: problem, terms and the sampling of its finest level.
        settings: numbers, slopes and weights.
        seed: of features and points.
        compiling: context in which programs are compiled, so that a caller can time it.
    """
    finest: Level = case.levels[-1]
    count = int(settings.points * settings.features)
    points = data_of(case, replace(finest, interior=count), seed)[0]
    weights, biases = draw(settings, seed)
    equation = terms_of(case)[0]
    rate = getattr(case.problem, "reaction", 0.0)

    def model(outgoing: jax.Array) -> Any:
        return case.problem.trial_function(Features(weights, biases, outgoing))

    def residual(outgoing: jax.Array, row: jax.Array, reaction: jax.Array) -> jax.Array:
        u = model(outgoing)
        value = jnp.squeeze(equation.residual(u, row))
        if rate:
            v = u(row[:2])[0]
            value += (1 - reaction) * rate * (v - v**3)
        return value / jnp.sqrt(count)

    def softness(outgoing: jax.Array, row: jax.Array) -> jax.Array:
        slope = space_time_derivatives(model(outgoing), row[:2])[2]
        return 1 / jnp.sqrt(1 + (slope / SOFT_SLOPE) ** 2)

    def all_residuals(outgoing: jax.Array, rows: jax.Array, reaction: jax.Array) -> jax.Array:
        return jax.vmap(residual, (None, 0, None))(outgoing, rows, reaction)

    def all_softness(outgoing: jax.Array, rows: jax.Array) -> jax.Array:
        return jax.vmap(softness, (None, 0))(outgoing, rows)

    def system(outgoing: jax.Array, rows: jax.Array, reaction: jax.Array) -> Any:
        return jax.vmap(jax.value_and_grad(residual), (None, 0, None))(outgoing, rows, reaction)

    outgoing, one = jnp.zeros(settings.features), jnp.ones(())
    with compiling():
        arguments = (outgoing, points, one)
        compiled_system = jax.jit(system).lower(*arguments).compile()
        stages = stages_of(case)
        searches = sum(stage.solves for stage in stages) > 1
        if searches:
            compiled_residuals = jax.jit(all_residuals).lower(*arguments).compile()
        if settings.soften:
            compiled_softness = jax.jit(all_softness).lower(outgoing, points).compile()
    solves = 0
    for stage in stages:
        rows = points if stage.coefficient is None else points.at[:, 2].set(stage.coefficient)
        reaction = jnp.asarray(stage.reaction)
        for _ in range(stage.solves):
            soft = np.asarray(compiled_softness(outgoing, rows)) if settings.soften else 1.0
            values, slopes = compiled_system(outgoing, rows, reaction)
            right = -soft * np.asarray(values)
            matrix = np.asarray(slopes) * np.reshape(soft, (-1, 1))
            step = jnp.asarray(least_squares(matrix, right, settings.cut))
            before = loss = float(right @ right)
            size = 1.0
            if not searches:  # a linear equation
                remaining = matrix @ np.asarray(step) - right
                loss = float(remaining @ remaining)
            while searches:
                found = soft * np.asarray(
                    compiled_residuals(outgoing + size * step, rows, reaction)
                )
                # Also true where a number is not finite.
                if not float(found @ found) < loss and size > SMALLEST_STEP:
                    size /= 2
                    continue
                loss = float(found @ found)
                break
            outgoing += size * step
            solves += 1
            yield Solution(model(outgoing), loss, solves)
            if size == 1.0 and loss > CONVERGED * before:
                break


def least_squares(matrix: np.ndarray, right: np.ndarray, cut: float) -> np.ndarray:
    """The solution of least norm, by QR first, then with pivots on the small triangle."""
    columns = matrix.shape[1]
    both = np.concatenate([matrix, right[:, None]], axis=1)
    triangle = scipy.linalg.qr(both, mode="r", overwrite_a=True, check_finite=False)[0]
    solution, *_ = scipy.linalg.lstsq(
        triangle[:columns, :columns],
        triangle[:columns, columns],
        cond=cut,
        lapack_driver="gelsy",
        check_finite=False,
    )
    return solution
