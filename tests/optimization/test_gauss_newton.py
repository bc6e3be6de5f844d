"""Full Gauss-Newton steps: against dense linear algebra, on linear problems, on nonlinear ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.core.residuals import ResidualTerm
from opifex.models import RandomFeatures
from opifex.optimization.second_order import GaussNewton, ProblemSize
from opifex.problems import Poisson
from opifex.training.multilevel import CascadeTrainer
from tolerances import distance, rounding

# A row of data is (features..., target); the "function of a point" is the linear model itself.
LINEAR = ResidualTerm("fit", lambda u, row: u(row[:-1])[0] - row[-1])


def bind(weights):
    return lambda x: jnp.atleast_1d(x @ weights)


@jax.jit
def one_step(rows, start):
    return GaussNewton().step((LINEAR,), bind, start, GaussNewton().init(start), (rows,))


@pytest.mark.parametrize("shape", [(30, 5), (5, 30), (8, 8)])
@given(seed=st.integers(0, 50), decay=st.floats(0, 4))
@settings(max_examples=10, deadline=None)
def test_a_step_is_the_least_squares_solution_of_least_norm(shape, seed, decay):
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    values = 10.0 ** -np.linspace(0, decay, min(shape))
    matrix, target = left @ np.diag(values) @ right, rng.normal(size=shape[0])
    expected = np.linalg.lstsq(matrix, target)[0]
    with jax.enable_x64(True):
        rows = jnp.asarray(np.column_stack([matrix, target]))
        found, _, loss = one_step(rows, jnp.zeros(shape[1]))
    assert distance(loss, np.mean(target**2)) < rounding(np.float64, operations=100)
    # The part of the target outside the range counts with the square of the condition number.
    condition = 10.0**decay * (10.0**decay if shape[0] > shape[1] else 1)
    bound = rounding(np.float64, condition=condition, operations=100)
    assert distance(found, expected, scale=np.linalg.norm(target) * 10**decay) < bound


def test_directions_that_normal_equations_lose_are_kept():
    with jax.enable_x64(True):
        # Two columns that differ by 1e-10: a condition number whose square is beyond 1 / eps.
        x = jnp.linspace(0, 1, 20)
        matrix = jnp.stack([x, x + 1e-10 * x**2], axis=1)
        rows = jnp.column_stack([matrix, x**2])
        end, _, _ = one_step(rows, jnp.zeros(2))
        assert float(jnp.linalg.norm(matrix @ end - x**2)) < 1e-4


def test_an_equation_is_solved_in_one_step_of_fit():
    problem = Poisson()
    with jax.enable_x64(True):
        model = RandomFeatures(
            2, 1, 300, domain=[(0, 1), (0, 1)], slope=4.0, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
        trainer = CascadeTrainer([model], GaussNewton())
        points = problem.sample_points(jax.random.key(0), 1000, 200, method="sobol")
        history = trainer.fit(problem.terms, points, epochs=[2])
        assert history.losses[1] < 1e-16 * history.losses[0]
        # Far above what is seen, far below what training of networks reaches in this time.
        assert problem.relative_l2_error(trainer.model) < 1e-8


def test_a_step_that_would_lead_up_is_shortened_or_not_taken():
    term = ResidualTerm("root", lambda u, x: jnp.arctan(u(x)))
    solver = GaussNewton()
    with jax.enable_x64(True):
        weights, point = jnp.array([5.0]), (jnp.ones((1, 1)),)  # the full step overshoots
        losses = []
        for _ in range(8):
            weights, _, loss = solver.step((term,), bind, weights, solver.init(weights), point)
            losses.append(float(loss))
        assert np.all(np.diff(losses) <= 0)
        assert losses[-1] < 1e-20
        nowhere = ResidualTerm("constant", lambda u, x: u(x) * 0 + 1)
        same, _, loss = solver.step((nowhere,), bind, weights, solver.init(weights), point)
        assert float(loss) == 1
        assert np.array_equal(same, weights)


def test_rounding_at_the_minimum_is_no_reason_to_go_up():
    with jax.enable_x64(True):
        for seed in range(150):
            rows = jnp.asarray(np.random.default_rng(seed).normal(size=(30, 8)))
            weights, losses = jnp.zeros(7), []
            for _ in range(15):
                weights, _, loss = one_step(rows, weights)
                losses.append(float(loss))
            assert np.all(np.diff(losses) <= 0)


def test_of_several_regularisations_the_first_that_promises_enough_is_used():
    with jax.enable_x64(True):
        matrix = np.diag([1.0, 1e-6])
        start = jnp.zeros(2)

        def moved(target, *epsilons: float) -> np.ndarray:
            rows = jnp.asarray(np.column_stack([matrix, target]))
            solver = GaussNewton(regularization=epsilons if len(epsilons) > 1 else epsilons[0])
            return np.asarray(solver.step((LINEAR,), bind, start, solver.init(start), (rows,))[0])

        strong, weak = 1e-3, 1e-15
        # The small column matters in the first problem and not in the second.
        for target, expected in (([1.0, 1.0], weak), ([1.0, 1e-6], strong)):
            assert np.array_equal(moved(target, strong, weak), moved(target, expected))
        assert not np.array_equal(moved([1.0, 1.0], strong), moved([1.0, 1.0], weak))


def test_the_first_length_is_taken_if_it_does_what_it_promised():
    with jax.enable_x64(True):
        rows = jnp.asarray(np.random.default_rng(0).normal(size=(20, 4)))
        start = jnp.zeros(3)

        def moved(*lengths: float) -> np.ndarray:
            solver = GaussNewton(step_lengths=lengths)
            return np.asarray(solver.step((LINEAR,), bind, start, solver.init(start), (rows,))[0])

        # Half of the way is worse than all of it, and as good as a linear model says.
        half, full = moved(0.5, 1.0), moved(1.0, 0.5)
        assert distance(2 * half, full) < rounding(np.float64, condition=100, operations=100)


@pytest.mark.parametrize(("parameters", "residuals"), [(300, 1000), (1000, 300)])
def test_memory_is_what_the_compiler_says(parameters, residuals):
    with jax.enable_x64(True):
        solver, start = GaussNewton(), jnp.zeros(parameters)
        rows = jnp.ones((residuals, parameters + 1))
        program = jax.jit(lambda w, r: solver.step((LINEAR,), bind, w, solver.init(w), (r,)))
        compiled = program.lower(start, rows).compile()
        # What one block of points takes is nearly nothing here.
        size = ProblemSize(parameters, residuals, jnp.float64, 2 * residuals * parameters)
        measured = compiled.memory_analysis().temp_size_in_bytes
        assert 0.5 < solver.step_memory(size).arrays / measured < 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"regularization": 0.0}, ValueError),
        ({"regularization": 1.0}, ValueError),
        ({"regularization": ()}, ValueError),
        ({"regularization": (1e-8, 2.0)}, ValueError),
        ({"step_lengths": ()}, ValueError),
        ({"step_lengths": (1.0, -1.0)}, ValueError),
        ({"block_bytes": 0}, ValueError),
        ({"regularization": "small"}, TypeError),
    ],
)
def test_bad_settings_are_named(change, error):
    with pytest.raises(error, match=next(iter(change))):
        GaussNewton(**change)
