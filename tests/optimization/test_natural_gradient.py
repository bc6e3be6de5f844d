"""Energy natural gradient against dense linear algebra in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.core.residuals import ResidualTerm
from opifex.models.mlp import MLP
from opifex.optimization.second_order import AdaptiveDamping, EnergyNaturalGradient
from opifex.training.multilevel import (
    CascadeTrainer,
    prolongate_preserving,
    transfer_optimizer_state,
)
from tolerances import distance, rounding

LINEAR = ResidualTerm("fit", lambda u, row: u(row[:-1])[0] - row[-1])
FIT = ResidualTerm("fit", lambda u, x: u(x)[0] - jnp.sin(3.0 * x[0]) * x[1])


def bind_linear(params):
    return lambda x: jnp.atleast_1d(x @ params["w"])


def bind_vector(params):
    return lambda _: params


def linear_data(seed: int, rows: int, columns: int):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, columns)), rng.normal(size=rows)


@pytest.mark.parametrize("shape", [(20, 6), (6, 20)])
def test_steps_with_momentum_solve_the_dense_problem(shape):
    with jax.enable_x64(True):
        features, target = linear_data(0, *shape)
        solver = EnergyNaturalGradient(
            damping=AdaptiveDamping(1e-2, decrease=1.0), momentum=0.7, step_lengths=(0.5,)
        )
        params, data = {"w": jnp.zeros(shape[1])}, jnp.asarray(np.column_stack([features, target]))
        state = solver.init(params)
        step = jax.jit(lambda p, s: solver.step((LINEAR,), bind_linear, p, s, (data,)))
        w, old = np.zeros(shape[1]), np.zeros(shape[1])
        jacobian = features / np.sqrt(shape[0])
        damping = 1e-2 * np.sum(jacobian**2)
        matrix = jacobian.T @ jacobian + damping * np.eye(shape[1])
        # The error of a step reaches the next two.
        allowed = rounding(np.float64, condition=np.linalg.cond(matrix), operations=3 * 20)
        for _ in range(3):
            params, state, loss = step(params, state)
            residuals = (features @ w - target) / np.sqrt(shape[0])
            assert distance(loss, residuals @ residuals) <= allowed
            # The minimiser of |r + J d|^2 + damping |d - 0.7 old|^2 by its normal equations.
            old = np.linalg.solve(matrix, 0.7 * damping * old - jacobian.T @ residuals)
            w = w + 0.5 * old
            assert distance(state.direction["w"], old) <= allowed
            assert distance(params["w"], w) <= allowed


def test_the_best_length_is_taken():
    with jax.enable_x64(True):
        # For arctan from w = 2 the full step goes to -3.54, half of it to -0.77.
        term = ResidualTerm("arctan", lambda u, x: jnp.arctan(u(x)[0]))
        solver = EnergyNaturalGradient(
            damping=AdaptiveDamping(1e-14), step_lengths=(1.0, 0.5, 0.01)
        )
        params = jnp.asarray([2.0])
        new, _, _ = solver.step(
            (term,), bind_vector, params, solver.init(params), (jnp.zeros((1, 1)),)
        )
        # The damping of 1e-14 shortens the step, which is subtracted from a 2 of its own size.
        allowed = rounding(np.float64, condition=4, operations=10) + 4 * 1e-14
        assert distance(new, 2.0 - 0.5 * 5.0 * np.arctan(2.0)) <= allowed


def test_failure_keeps_the_parameters_and_forgets_the_momentum():
    with jax.enable_x64(True):
        term = ResidualTerm("arctan", lambda u, x: jnp.arctan(u(x)[0]))
        solver = EnergyNaturalGradient(damping=AdaptiveDamping(1e-14), step_lengths=(1.0,))
        params = jnp.asarray([2.0])
        new, state, _ = solver.step(
            (term,), bind_vector, params, solver.init(params), (jnp.zeros((1, 1)),)
        )
        assert new[0] == 2.0
        assert state.direction[0] == 0.0
        assert distance(state.damping, 1e-13) <= rounding(np.float64)


def test_new_points_at_every_step():
    with jax.enable_x64(True):
        model = MLP(2, 1, (12,), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        structure, params = nnx.split(model)
        solver = EnergyNaturalGradient(damping=AdaptiveDamping(1e-4, decrease=1.0))

        def bind(p):
            return nnx.merge(structure, p)

        def body(carry, key):
            points = jax.random.uniform(key, (30, 2))
            new, state, loss = solver.step((FIT,), bind, *carry, (points,))
            return (new, state), loss

        keys = jax.random.split(jax.random.key(0), 60)
        _, losses = jax.jit(lambda p: jax.lax.scan(body, (p, solver.init(p)), keys))(params)
        assert jnp.mean(losses[-10:]) < 1e-3 * losses[0]


def test_direction_moves_to_the_next_level_with_the_parameters():
    with jax.enable_x64(True):
        coarse, fine = (MLP(2, 1, (n,), param_dtype=jnp.float64, rngs=nnx.Rngs(n)) for n in (4, 8))
        solver = EnergyNaturalGradient()
        state = jax.tree.map(jnp.ones_like, solver.init(nnx.state(coarse, nnx.Param)))
        moved = transfer_optimizer_state(solver, state, coarse, fine, prolongate_preserving)
        shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(fine, nnx.Param))]
        assert moved.damping == state.damping
        assert [leaf.shape for leaf in jax.tree.leaves(moved.direction)] == shapes
        assert any(jnp.any(leaf == 1.0) for leaf in jax.tree.leaves(moved.direction))


def test_runs_in_a_cascade():
    with jax.enable_x64(True):
        models = [MLP(2, 1, (n,), param_dtype=jnp.float64, rngs=nnx.Rngs(n)) for n in (4, 8)]
        points = jnp.asarray(np.random.default_rng(0).uniform(size=(60, 2)))
        trainer = CascadeTrainer(models, EnergyNaturalGradient())
        history = trainer.fit((FIT,), (points,), epochs=[15, 15])
        losses = history.table()["loss"]
        assert np.all(np.diff(losses) <= rounding(np.float64, operations=100) * losses[0])
        assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"damping": 1e-8}, TypeError, "damping"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"momentum": -0.1}, ValueError, "momentum"),
        ({"step_lengths": ()}, ValueError, "step_lengths"),
        ({"step_lengths": (1.0, 0.0)}, ValueError, r"step_lengths\[1\]"),
    ],
)
def test_bad_settings_are_named(settings, error, name):
    with pytest.raises(error, match=name):
        EnergyNaturalGradient(**settings)
