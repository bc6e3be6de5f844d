"""Least-squares problems without a sensible step: nothing rises, nothing breaks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opifex.core.residuals import ResidualTerm
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
)

SOLVERS = (LevenbergMarquardt(), EnergyNaturalGradient(), MatrixFreeGaussNewton(rank=3))


# A row (a, b, c, d) stands for the residual a (w_0 + b w_1 - c) + d of three parameters.
def affine(u, row):
    first, second, _ = u(row)
    return row[0] * (first + row[1] * second - row[2]) + row[3]


TERMS = (ResidualTerm("affine", affine),)
NAN = float("nan")


@functools.cache
def run(solver, dtype):
    """Ten steps from zero, for any row."""

    def steps(row):
        def body(carry, _):
            new, state, loss = solver.step(TERMS, lambda w: lambda _: w, *carry, (row,))
            return (new, state), loss

        start = jnp.zeros(3, dtype)
        (end, state), losses = jax.lax.scan(body, (start, solver.init(start)), length=10)
        return end, state, losses

    return jax.jit(steps)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("dtype", "row"),
    [
        ("float64", (1.0, 0.0, 0.0, 0.0)),  # no residual
        ("float64", (0.0, 0.0, 0.0, 1.0)),  # no Jacobian
        ("float64", (0.0, 0.0, 0.0, 0.0)),  # neither
        ("float64", (1.0, 0.0, 0.0, NAN)),
        ("float64", (NAN, 0.0, 0.0, 0.0)),
        ("float64", (1e200, 0.0, 1.0, 0.0)),  # squares overflow
        ("float64", (1e-200, 0.0, 1.0, 0.0)),  # squares underflow
        ("float32", (1e20, 0.0, 1.0, 0.0)),
        ("float32", (1e-20, 0.0, 1.0, 0.0)),
    ],
)
def test_parameters_stay_where_no_step_can_be_judged(solver, dtype, row):
    with jax.enable_x64(dtype == "float64"):
        end, state, losses = run(solver, dtype)(jnp.asarray([row], dtype))
        assert np.all(end == 0)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
        assert len(set(map(str, losses))) == 1  # also of NaN and infinity
        # After failures the damping has risen, to be ready for other points.
        assert state.damping > solver.init(end).damping


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_a_rank_deficient_problem_is_solved_whatever_its_scale(solver, scale):
    with jax.enable_x64(True):
        row = jnp.asarray([(scale, 1.0, 3.0, 0.0)])  # one equation for two of three parameters
        end, state, losses = run(solver, "float64")(row)
        assert np.all(np.isfinite(end))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
        assert np.all(np.diff(losses) <= 0)
        assert losses[-1] < 1e-12 * losses[0]
