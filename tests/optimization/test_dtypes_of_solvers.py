"""Which dtypes solvers compute in and give back, and that products keep all digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.core.residuals import ResidualTerm
from opifex.models.mlp import MLP
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
)
from opifex.training.multilevel import CascadeTrainer
from tolerances import distance, rounding

SOLVERS = (LevenbergMarquardt(), EnergyNaturalGradient(), MatrixFreeGaussNewton(rank=5))
FIT = ResidualTerm("fit", lambda u, x: u(x)[0] - jnp.sin(3.0 * x[0]) * x[1])


def points(dtype):
    return (jnp.asarray(np.random.default_rng(0).uniform(size=(30, 2)), dtype),)


def bind(params):
    return lambda x: jnp.tanh(x @ params["in"]) @ params["out"]


def params(first, second):
    rng = np.random.default_rng(1)
    return {
        "in": jnp.asarray(rng.normal(size=(2, 6)), first),
        "out": jnp.asarray(rng.normal(size=(6, 1)), second),
    }


def dtypes(tree):
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("first", "second", "data", "computed"),
    [
        (jnp.float32, jnp.float32, jnp.float64, jnp.float64),
        (jnp.float32, jnp.float64, jnp.float32, jnp.float64),
        (jnp.float32, jnp.float32, jnp.float32, jnp.float32),
    ],
)
def test_parameters_and_state_keep_their_dtypes(solver, first, second, data, computed):
    with jax.enable_x64(True):
        start = params(first, second)
        state = solver.init(start)
        assert state.damping.dtype == jnp.result_type(first, second)

        def body(carry, _):  # a scan wants the same dtypes after every step
            new, state, loss = solver.step((FIT,), bind, *carry, points(data))
            return (new, state), loss

        (new, after), losses = jax.jit(lambda: jax.lax.scan(body, (start, state), length=8))()
        assert dtypes(new) == dtypes(start)
        assert dtypes(after) == dtypes(state)
        assert losses.dtype == computed
        # Steps are judged by the loss of the parameters as they are rounded: it falls or stays.
        assert np.all(np.diff(losses) <= rounding(computed, operations=100) * losses[0])
        assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_single_precision_networks_train_where_double_precision_is_on(solver):
    with jax.enable_x64(True):
        trainer = CascadeTrainer([MLP(2, 1, (4,), rngs=nnx.Rngs(0))], solver)
        history = trainer.fit((FIT,), points(jnp.float64), epochs=[4])
        leaves = jax.tree.leaves(nnx.state(trainer.model, nnx.Param))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
        assert history.losses[-1] < history.losses[0]


def test_a_mixed_tree_takes_the_steps_of_the_same_numbers_in_double_precision():
    with jax.enable_x64(True):
        mixed, solver = params(jnp.float64, jnp.float32), LevenbergMarquardt()
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), mixed)
        step = jax.jit(lambda p: solver.step((FIT,), bind, p, solver.init(p), points(jnp.float64)))
        found, expected = step(mixed)[0], step(double)[0]
        # Reverse mode rounds the slopes of the float32 parameters; the damping is at least 1e-4.
        allowed = rounding(np.float32, condition=1e4)
        for name, value in expected.items():
            assert distance(found[name] - mixed[name], value - double[name]) <= allowed


def products(jaxpr):
    """All matrix products of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("count", [4, 30])  # dual and primal
def test_matrix_products_keep_all_digits_on_every_device(solver, count):
    start = params(jnp.float32, jnp.float32)
    data = (jnp.ones((count, 2)),)
    traced = jax.jit(lambda p: solver.step((FIT,), bind, p, solver.init(p), data)).trace(start)
    found = list(products(traced.jaxpr.jaxpr))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert len(found) > 5
    assert {eqn.params["precision"] for eqn in found} == {highest}
