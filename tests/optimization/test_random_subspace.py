"""Steps that move some parameters: which, how far, and never up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.core.residuals import ResidualTerm
from opifex.models import MLP
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    GaussNewton,
    LevenbergMarquardt,
    ProblemSize,
    RandomSubspace,
)
from opifex.training.multilevel import CascadeTrainer
from tolerances import distance, rounding

LINEAR = ResidualTerm("fit", lambda u, row: u(row[:-1])[0] - row[-1])
FIT = ResidualTerm("fit", lambda u, x: u(x)[0] - jnp.sin(3 * x[0]) * x[1])


def bind(weights):
    return lambda x: jnp.atleast_1d(x @ weights)


def rows(columns: int) -> tuple[jax.Array]:
    return (jnp.asarray(np.random.default_rng(0).normal(size=(40, columns + 1))),)


def test_a_step_is_the_least_squares_solution_in_the_drawn_columns():
    with jax.enable_x64(True):
        data, start = rows(12), jnp.arange(12.0)
        solver = RandomSubspace(GaussNewton(), 5)
        step = jax.jit(lambda w, s: solver.step((LINEAR,), bind, w, s, data))
        state, seen = solver.init(start), []
        for _ in range(4):
            moved, state, loss = step(start, state)
            (changed,) = np.nonzero(np.asarray(moved != start))
            seen.append(tuple(changed))
            assert len(changed) == 5
            matrix, target = np.asarray(data[0][:, :-1]), np.asarray(data[0][:, -1])
            residual = matrix @ np.asarray(start) - target
            assert distance(loss, np.mean(residual**2)) < rounding(np.float64, operations=100)
            expected = np.linalg.lstsq(matrix[:, changed], -residual)[0]
            # Well conditioned: 5 of 12 random columns with 40 rows.
            assert distance(moved[changed] - start[changed], expected) < rounding(
                np.float64, condition=100, operations=100
            )
        assert len(set(seen)) > 1
        assert int(state.drawn) == 4


@pytest.mark.slow
def test_with_room_for_all_parameters_it_is_the_method_itself():
    with jax.enable_x64(True):
        data, start = rows(6), jnp.arange(6.0)
        for method in (LevenbergMarquardt(), GaussNewton()):
            solver = RandomSubspace(method, 6)
            own, _, _ = method.step((LINEAR,), bind, start, method.init(start), data)
            found, _, _ = solver.step((LINEAR,), bind, start, solver.init(start), data)
            assert np.array_equal(own, found)


def test_it_trains_a_cascade_of_networks_and_never_goes_up():
    with jax.enable_x64(True):
        models = [
            MLP(2, 1, [width], param_dtype=jnp.float64, rngs=nnx.Rngs(width)) for width in (8, 16)
        ]
        trainer = CascadeTrainer(models, RandomSubspace(LevenbergMarquardt(), 20))
        points = jax.random.uniform(jax.random.key(0), (100, 2), jnp.float64)
        history = trainer.fit([FIT], (points,), epochs=[15, 15])
        assert np.all(np.diff(history.losses) <= 1e-12)
        assert history.losses[-1] < 0.1 * history.losses[0]


@pytest.mark.slow
def test_draws_depend_on_the_seed_only():
    data, start = rows(12), jnp.arange(12.0)

    def moved(seed: int) -> np.ndarray:
        solver = RandomSubspace(GaussNewton(), 3, seed=seed)
        return np.asarray(solver.step((LINEAR,), bind, start, solver.init(start), data)[0])

    assert np.array_equal(moved(1), moved(1))
    assert not np.array_equal(moved(1), moved(2))


def test_memory_is_that_of_the_subspace():
    size = ProblemSize(parameters=30_000, residuals=5000)
    method = LevenbergMarquardt()
    few = RandomSubspace(method, 1000).step_memory(size)
    assert few == method.step_memory(size._replace(parameters=1000))
    assert few.total < 0.1 * method.step_memory(size).total
    assert RandomSubspace(method, 10**6).step_memory(size) == method.step_memory(size)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((LevenbergMarquardt, 5), TypeError, "method"),
        (("adam", 5), TypeError, "method"),
        ((LevenbergMarquardt(), 0), ValueError, "parameters"),
        ((LevenbergMarquardt(), 2.5), TypeError, "parameters"),
        ((LevenbergMarquardt(), 5, -1), ValueError, "seed"),
    ],
)
def test_bad_settings_are_named(arguments, error, name):
    with pytest.raises(error, match=name):
        RandomSubspace(*arguments)


def test_a_method_with_momentum_is_refused():
    with pytest.raises(TypeError, match="every parameter"):
        RandomSubspace(EnergyNaturalGradient(), 5).init(jnp.zeros(20))
