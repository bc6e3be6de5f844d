"""Working through the points block after block: the same numbers, and less memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opifex.core.residuals import ResidualTerm, mean_square_loss, residual_vector
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
)
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from tolerances import distance, rounding

SOLVERS = (LevenbergMarquardt, EnergyNaturalGradient, MatrixFreeGaussNewton)

# Two components at a point in one term, one in the other.
TERMS = (
    ResidualTerm("pair", lambda u, x: u(x)[0] * jnp.stack([x[0], x[1] ** 2]) - 1.0),
    ResidualTerm("single", lambda u, x: u(x)[0] - jnp.sin(3 * x[0]), 10.0),
)


def bind(params):
    return lambda x: jnp.tanh(x @ params["in"] + params["shift"]) @ params["out"]


def network(units: int, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    shapes = {"in": (2, units), "shift": (units,), "out": (units, 1)}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def clouds(*counts: int):
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.uniform(size=(count, 2))) for count in counts)


def everything(problem, rank):
    """All that solvers ask for, with both kinds of results of the linearisation."""
    start, directions = problem.start, jnp.stack([problem.start, -0.5 * jnp.cos(problem.start)])
    linear = problem.linearize(start)
    free = problem.linearize_matrix_free(start, rank)
    return {
        "loss": problem.loss(start),
        "losses": problem.losses(start + directions),
        "loss again": linear.loss,
        "right-hand side": linear.right_hand_side,
        "gram": linear.gram,
        "image": linear.image(directions[1]),
        "second derivatives": problem.second_derivatives(start, directions, linear),
        "loss, matrix-free": free.loss,
        "gradient": free.gradient,
        "product": free.product(directions[1]),
    }


@pytest.mark.parametrize("units", [5, 30])  # primal and dual
@pytest.mark.parametrize("numbers", [1, 900])
def test_blocks_change_no_result(units, numbers):
    with jax.enable_x64(True):
        params, points = network(units), clouds(23, 11)  # primes: the last block overlaps

        def run(block_bytes):
            problem = FlatResiduals(TERMS, bind, params, points, block_bytes)
            return jax.jit(lambda: everything(problem, 6))()

        whole, blocks = run(1e12), run(8 * numbers)
        for name, expected in whole.items():
            # Sums over the 57 residuals in another order; products of Jacobians of up to 120 columns.
            assert distance(blocks[name], expected) <= rounding(np.float64, operations=500), name
        squares = mean_square_loss(TERMS, bind(params), *points)
        assert distance(blocks["loss"], squares) <= rounding(np.float64, operations=100)


@pytest.mark.parametrize("units", [5, 30])
def test_what_is_summed_is_what_the_residuals_say(units):
    with jax.enable_x64(True):
        params, points = network(units), clouds(23, 11)
        problem = FlatResiduals(TERMS, bind, params, points, 8 * 900)

        def residuals(flat):
            return residual_vector(TERMS, bind(problem.unravel(flat)), *points)

        found = jax.jit(lambda: everything(problem, 1))()
        r, jacobian = residuals(problem.start), jax.jacfwd(residuals)(problem.start)
        primal = units == 5
        allowed = rounding(np.float64, operations=500)
        gram = jacobian.T @ jacobian if primal else jacobian @ jacobian.T
        assert distance(found["gram"], gram) <= allowed
        assert distance(found["right-hand side"], jacobian.T @ r if primal else r) <= allowed
        assert distance(found["gradient"], jacobian.T @ r) <= allowed


@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_in_blocks_are_the_same_steps(solver):
    with jax.enable_x64(True):
        params, points = network(5), clouds(23)
        found = []
        for block_bytes in (1e12, 2000):
            method = solver(block_bytes=block_bytes)
            step = jax.jit(lambda p, m=method: m.step(TERMS[1:], bind, p, m.init(p), points)[0])
            found.append(step(params))
        for name, expected in found[0].items():
            # The damping of 1e-3 bounds the condition number; conjugate gradients end at 1e-3, but
            # take the same way there.
            allowed = rounding(np.float64, condition=1e4, operations=500)
            assert distance(found[1][name], expected) <= allowed


def xla_bytes(solver, params, points) -> int:
    step = jax.jit(lambda p, s, x: solver.step(TERMS[1:], bind, p, s, x))
    state = jax.eval_shape(solver.init, params)
    analysis = step.lower(params, state, points).compile().memory_analysis()
    return analysis.temp_size_in_bytes


@pytest.mark.slow
def test_matrix_free_takes_a_fraction_of_what_the_dense_methods_take():
    with jax.enable_x64(True):
        params, points = network(500), clouds(3000)  # 2000 parameters
        free, dense, gradient = (
            xla_bytes(solver, params, points)
            for solver in (
                MatrixFreeGaussNewton(rank=25),
                LevenbergMarquardt(),
                EnergyNaturalGradient(),
            )
        )
        assert free < 0.6 * dense
        assert free < 0.6 * gradient
        # The Gram matrix and its eigenvectors or the sum of which it is part, and a block of points,
        # but not the Jacobian of 48 MB as well.
        for found in (dense, gradient):
            assert found < 2 * 2000**2 * 8 + 1.2 * LevenbergMarquardt().block_bytes


def test_the_dual_form_keeps_one_jacobian():
    with jax.enable_x64(True):
        params, points = network(2500), clouds(100, 100)  # 10000 parameters, 200 residuals
        jacobian, solver = 10000 * 100 * 8, LevenbergMarquardt(block_bytes=2**20)
        assert xla_bytes(solver, params, points[1:]) < jacobian + 2 * 100**2 * 8 + 4 * 2**20


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("units", "count"), [(50, 2000), (150, 1200), (400, 300)])
def test_memory_is_estimated_within_a_factor_of_two(solver, units, count):
    with jax.enable_x64(True):
        # Blocks of a third, half and whole of the smallest Jacobian; the last case is dual.
        params, points, method = network(units), clouds(count), solver(block_bytes=2**20)
        size = FlatResiduals(TERMS[1:], bind, params, points).size
        assert size[:2] == (4 * units, count)
        ratio = method.step_memory(size).arrays / xla_bytes(method, params, points)
        assert 0.5 <= ratio <= 2.0
