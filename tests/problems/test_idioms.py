"""Every way in which the documents use a problem, for every problem, in single and double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import AllenCahn, Burgers, Heat, Helmholtz, Poisson
from opifex.training.adaptive_sampling import ResidualResampler
from opifex.training.multilevel import CascadeTrainer, MultilevelConfig, Resampled
from tolerances import distance, rounding

CONFIG = MultilevelConfig(num_levels=1, compile_ahead=False)
PROBLEMS = [Poisson(), Helmholtz(), Heat(), Burgers(), AllenCahn()]
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# Geodesic acceleration differentiates residuals once more, which costs most of the compilation: one
# problem has it, the one with the most intricate trial function.
PLAIN = LevenbergMarquardt(step_lengths=(1.0,), geodesic_acceleration=False)
ALL = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)


def network(dtype):
    return MLP(2, 1, [4], param_dtype=dtype, rngs=nnx.Rngs(0))


@ALL
@BOTH
def test_loss_residuals_and_errors(problem, dtype):
    with jax.enable_x64(dtype == np.float64):
        model = network(dtype)
        sobol = problem.sample_points(jax.random.key(0), 20, 8, method="sobol")
        points = problem.sample_points(jax.random.key(0), 20, 8)
        assert [p.shape for p in sobol] == [p.shape for p in points]
        assert len(points) == len(problem.terms)

        @jax.jit
        def measures(points):
            loss, residuals = problem.loss(model, *points), problem.residual_vector(model, *points)
            return loss, jnp.sum(residuals**2), problem.terms[0].evaluate(model, points[0])

        loss, squares, equation = measures(points)
        assert loss.dtype == dtype
        assert distance(loss, squares) <= rounding(dtype, operations=100)
        assert equation.shape == (20, 1)

        grid = problem.evaluation_points(5)
        exact = problem.exact(grid)
        assert exact.shape == (25, 1)
        assert exact.dtype == grid.dtype == dtype
        allowed = rounding(dtype, condition=10, operations=10)
        for single in (jax.vmap(problem.exact)(grid), jax.jit(problem.exact)(grid)):
            assert distance(single, exact, scale=np.sqrt(25)) <= allowed

        errors = [
            problem.relative_l2_error(model, grid),
            jax.jit(lambda: problem.relative_l2_error(model, grid))(),
            jax.jit(lambda where: problem.relative_l2_error(model, where))(grid),
        ]
        assert all(distance(error, errors[0]) <= allowed for error in errors)
        assert float(problem.relative_l2_error(problem.exact, grid)) <= allowed


@ALL
def test_fit_with_the_loss_and_new_points(problem):
    def candidates(points, key):
        return problem.domain.scale(jax.random.uniform(key, (2 * len(points), 2)))

    draw = ResidualResampler(problem.terms[0], candidates)
    data = Resampled(problem.sample_points(jax.random.key(0), 10, 4), draw, every=1)
    history = CascadeTrainer([network(np.float32)], optax.adam(1e-3), config=CONFIG).fit(
        problem.loss, data, epochs=[2], evaluate=problem.relative_l2_error
    )
    assert np.isfinite(history.evaluations[-1].metrics["relative_l2_error"])


@ALL
def test_fit_with_terms_and_a_trial_function(problem):
    with jax.enable_x64(True):
        model = problem.trial_function(network(np.float64))
        solver = LevenbergMarquardt() if isinstance(problem, AllenCahn) else PLAIN
        trainer = CascadeTrainer([model], solver, config=CONFIG)
        points = problem.sample_points(jax.random.key(0), 10, 4, method="sobol")
        history = trainer.fit(
            problem.terms[:1],
            points[:1],
            epochs=[2],
            evaluate=lambda model: {"error": problem.relative_l2_error(model)},
        )
        error = history.evaluations[-1].metrics["error"]
        allowed = rounding(np.float64, condition=10, operations=100)
        assert distance(error, problem.relative_l2_error(trainer.model)) <= allowed


def test_the_solution_on_the_default_grid_is_computed_once(monkeypatch):
    problem, count = Poisson(), 0
    exact = Poisson.exact

    def counted(self, points):
        nonlocal count
        count += 1
        return exact(self, points)

    monkeypatch.setattr(Poisson, "exact", counted)
    first = problem.relative_l2_error(lambda x: x[:1])
    inside = jax.jit(lambda: problem.relative_l2_error(lambda x: x[:1]))()
    assert count == 1
    assert distance(inside, first) <= rounding(np.float32, operations=100)
