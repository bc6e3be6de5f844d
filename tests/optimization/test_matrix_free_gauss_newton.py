"""Matrix-free Gauss-Newton against dense linear algebra, and its preconditioner."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from opifex.core.residuals import ResidualTerm
from opifex.models.mlp import MLP
from opifex.optimization.second_order import (
    AdaptiveDamping,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
)
from opifex.optimization.second_order.nystrom import nystrom_approximation
from opifex.training.multilevel import CascadeTrainer
from tolerances import distance, rounding

LINEAR = ResidualTerm("fit", lambda u, row: u(row[:-1])[0] - row[-1])
FIT = ResidualTerm("fit", lambda u, x: u(x)[0] - jnp.sin(3.0 * x[0]) * x[1])


def bind_linear(params):
    return lambda x: jnp.atleast_1d(x @ params["w"])


def bind_vector(params):
    return lambda _: params


def matrix_with_eigenvalues(values, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (basis * values) @ basis.T


def test_low_rank_matrix_is_found():
    with jax.enable_x64(True):
        values = np.concatenate([[100.0, 3.0, 0.1], np.zeros(17)])
        matrix = jnp.asarray(matrix_with_eigenvalues(values))
        found = nystrom_approximation(
            lambda vectors: vectors @ matrix, 20, 6, jax.random.key(0), jnp.dtype("float64")
        )
        # Relative to the largest eigenvalue: the method shifts all by sqrt(20) times the roundoff.
        allowed = rounding(np.float64, operations=20)
        assert distance(found.values, values[:6]) <= allowed
        assert distance((found.vectors * found.values) @ found.vectors.T, matrix) <= allowed
        assert distance(found.vectors.T @ found.vectors, np.eye(6)) <= allowed


@functools.cache
def nystrom_values(rank: int):
    def values(matrix, key):
        products = lambda vectors: vectors @ matrix  # noqa: E731
        return nystrom_approximation(products, 12, rank, key, jnp.dtype("float64")).values

    return jax.jit(values)


@given(seed=st.integers(0, 1000), decay=st.floats(0.0, 3.0), rank=st.sampled_from([3, 12]))
@settings(max_examples=20, deadline=None)
def test_eigenvalues_never_exceed_the_trace(seed, decay, rank):
    with jax.enable_x64(True):
        trace = np.sum(values := 10.0 ** (-decay * np.arange(12)))
        matrix = jnp.asarray(matrix_with_eigenvalues(values, seed))
        found = nystrom_values(rank)(matrix, jax.random.key(seed))
        allowed = rounding(np.float64, operations=12) * trace
        assert np.sum(found) <= trace + allowed
        if rank == 12:
            assert np.sum(found) >= trace - allowed


@pytest.mark.slow
def test_preconditioner_saves_iterations_on_a_badly_conditioned_problem():
    with jax.enable_x64(True):
        matrix = jnp.asarray(matrix_with_eigenvalues(10.0 ** -np.linspace(0, 8, 60)))
        right_hand_side = jnp.asarray(np.random.default_rng(1).normal(size=60))
        damping = jnp.asarray(1e-6)
        sketch = nystrom_approximation(
            lambda vectors: vectors @ matrix, 60, 40, jax.random.key(0), jnp.dtype("float64")
        )
        expected = np.linalg.solve(matrix + damping * np.eye(60), right_hand_side)

        def error_after(iterations, precondition):
            solution, _ = cg(
                lambda v: matrix @ v + damping * v,
                right_hand_side,
                M=precondition,
                tol=1e-10,
                maxiter=iterations,
            )
            return np.linalg.norm(solution - expected) / np.linalg.norm(expected)

        # Bounds of the method: the roots of the condition numbers are about 2 and 1000.
        assert error_after(30, lambda v: sketch.precondition(v, damping)) < 1e-6
        assert error_after(120, None) > 1e-3


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_step_is_that_of_the_dense_solve(shape):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        features, target = rng.normal(size=shape), rng.normal(size=shape[0])
        data = jnp.asarray(np.column_stack([features, target]))
        # With a sketch of full rank its eigenvalues are those of the matrix, and so is their sum.
        solver = MatrixFreeGaussNewton(
            damping=AdaptiveDamping(1e-3), rank=100, tolerance=1e-13, step_lengths=(1.0,)
        )
        params = {"w": jnp.ones(shape[1])}
        step = jax.jit(lambda p: solver.step((LINEAR,), bind_linear, p, solver.init(p), (data,)))
        new, state, loss = step(params)
        jacobian = features / np.sqrt(shape[0])
        residuals = (features @ np.ones(shape[1]) - target) / np.sqrt(shape[0])
        matrix = jacobian.T @ jacobian + 1e-3 * np.sum(jacobian**2) * np.eye(shape[1])
        expected = -np.linalg.solve(matrix, jacobian.T @ residuals)
        # The iteration ends at a residual of 1e-13.
        condition = np.linalg.cond(matrix)
        allowed = condition * 1e-13 + rounding(np.float64, condition=condition, operations=30)
        assert distance(new["w"] - params["w"], expected) <= allowed
        assert distance(loss, residuals @ residuals) <= rounding(np.float64, operations=60)
        assert distance(state.damping, 3e-4) <= rounding(np.float64)


@pytest.mark.slow
def test_step_on_a_network_is_that_of_the_dense_method():
    with jax.enable_x64(True):
        model = MLP(2, 1, (6,), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        structure, params = nnx.split(model)
        points = (jnp.asarray(np.random.default_rng(0).uniform(size=(40, 2))),)

        def bind(p):
            return nnx.merge(structure, p)

        free = MatrixFreeGaussNewton(rank=100, tolerance=1e-13, step_lengths=(1.0,))
        dense = LevenbergMarquardt(
            min_damping=1e-3, max_damping=1e-3, step_lengths=(1.0,), geodesic_acceleration=False
        )
        start = ravel_pytree(params)[0]
        steps = [
            ravel_pytree(
                jax.jit(lambda p, s=s: s.step((FIT,), bind, p, s.init(p), points)[0])(params)
            )[0]
            - start
            for s in (free, dense)
        ]
        # The damping of 1e-3 bounds the condition number; the iteration ends at a residual of 1e-13.
        assert distance(*steps) <= 1e3 * 1e-13 + rounding(np.float64, condition=1e3, operations=100)


def test_damping_rises_and_parameters_stay_after_a_failure():
    with jax.enable_x64(True):
        term = ResidualTerm("arctan", lambda u, x: jnp.arctan(u(x)[0]))
        solver = MatrixFreeGaussNewton(damping=AdaptiveDamping(1e-10), step_lengths=(1.0,))
        params = jnp.asarray([2.0])
        new, state, _ = solver.step(
            (term,), bind_vector, params, solver.init(params), (jnp.zeros((1, 1)),)
        )
        assert new[0] == 2.0
        assert distance(state.damping, 1e-9) <= rounding(np.float64)


@pytest.mark.slow
def test_dense_on_the_coarse_level_and_matrix_free_on_the_fine_one():
    with jax.enable_x64(True):
        models = [MLP(2, 1, (n,), param_dtype=jnp.float64, rngs=nnx.Rngs(n)) for n in (4, 8)]
        points = jnp.asarray(np.random.default_rng(0).uniform(size=(60, 2)))
        # The state is shared: a tiny damping on the coarse level is where the fine one starts, which
        # its own initial damping of 1e3 would not allow to get anywhere.
        solvers = [LevenbergMarquardt(), MatrixFreeGaussNewton(damping=AdaptiveDamping(1e3))]
        history = CascadeTrainer(models, solvers).fit((FIT,), (points,), epochs=[15, 15])
        table = history.table()
        allowed = rounding(np.float64, operations=100)  # relative to the first loss, the largest
        assert np.all(np.diff(table["loss"]) <= allowed * table["loss"][0])
        coarse, fine = (table["loss"][table["level"] == level] for level in (0, 1))
        assert fine[0] <= coarse[-1] + allowed * coarse[0]
        assert fine[-1] < 0.5 * fine[0]


def test_single_precision():
    model = MLP(2, 1, (6,), rngs=nnx.Rngs(0))
    structure, params = nnx.split(model)
    points = (jnp.asarray(np.random.default_rng(0).uniform(size=(40, 2)), jnp.float32),)
    solver = MatrixFreeGaussNewton(rank=10)

    def body(carry, _):
        new, state, loss = solver.step((FIT,), lambda p: nnx.merge(structure, p), *carry, points)
        return (new, state), loss

    (_, state), losses = jax.jit(lambda p: jax.lax.scan(body, (p, solver.init(p)), length=30))(
        params
    )
    assert state.damping.dtype == jnp.float32
    # The root of the loss is the norm of residuals whose terms have size one.
    assert np.all(np.diff(np.sqrt(losses)) <= rounding(np.float32, operations=20))
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize(
    ("given_settings", "error", "name"),
    [
        ({"damping": 1e-3}, TypeError, "damping"),
        ({"step_lengths": ()}, ValueError, "step_lengths"),
        ({"step_lengths": (-1.0,)}, ValueError, r"step_lengths\[0\]"),
        ({"rank": 0}, ValueError, "rank"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"max_iterations": 1.5}, TypeError, "max_iterations"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_settings_are_named(given_settings, error, name):
    with pytest.raises(error, match=name):
        MatrixFreeGaussNewton(**given_settings)
