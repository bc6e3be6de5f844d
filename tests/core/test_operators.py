"""Derivative operators against dense Hessians and analytic polynomials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.core.physics import divergence, gradient, hessian_diagonal, laplacian
from opifex.models import MLP
from tolerances import distance, rounding

numbers = st.floats(-2, 2, allow_nan=False, width=32)


@settings(max_examples=20, deadline=None)
@given(a=st.lists(numbers, min_size=9, max_size=9), x=st.lists(numbers, min_size=3, max_size=3))
def test_quadratic_polynomials(a, x):
    with jax.enable_x64(True):
        matrix, point = jnp.asarray(np.reshape(a, (3, 3))), jnp.asarray(np.array(x))
        symmetric = matrix + matrix.T
        expected = {
            "gradient": symmetric @ point,
            "diagonal": jnp.diag(symmetric),
            "laplacian": jnp.trace(symmetric),
            "divergence": jnp.trace(symmetric),
        }
        # Sums of six products of numbers up to two.
        allowed = rounding(np.float64, operations=6)
        for name, value in expected.items():
            assert distance(POLYNOMIAL[name](point, matrix), value, scale=4.0) <= allowed


def quadratic(matrix):
    return lambda y: y @ matrix @ y


POLYNOMIAL = {
    "gradient": jax.jit(lambda x, m: gradient(quadratic(m))(x)),
    "diagonal": jax.jit(lambda x, m: hessian_diagonal(quadratic(m))(x)),
    "laplacian": jax.jit(lambda x, m: laplacian(quadratic(m))(x)),
    "divergence": jax.jit(lambda x, m: divergence(lambda y: (m + m.T) @ y)(x)),
}


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_network_laplacian_is_the_trace_of_the_hessian(dim):
    with jax.enable_x64(True):
        model = MLP(dim, 1, [7, 7], param_dtype=jnp.float64, rngs=nnx.Rngs(dim))
        x = jax.random.normal(jax.random.key(1), (5, dim), jnp.float64)

        def dense(y):
            return jax.hessian(lambda z: model(z)[0])(y)

        hessian = jax.jit(jax.vmap(dense))(x)
        diagonal = jnp.diagonal(hessian, axis1=1, axis2=2)
        # Two layers of seven; the entries of the diagonal may cancel in their sum.
        allowed = rounding(np.float64, operations=100)
        assert distance(jax.jit(jax.vmap(hessian_diagonal(model)))(x), diagonal) <= allowed
        scale = float(jnp.linalg.norm(diagonal))
        found, trace = jax.jit(jax.vmap(laplacian(model)))(x), jnp.sum(diagonal, axis=1)
        assert distance(found, trace, scale=scale) <= allowed


def test_wrong_arguments_are_named():
    for operator in (gradient, hessian_diagonal, laplacian):
        with pytest.raises(TypeError, match="u must be callable"):
            operator(3)
        with pytest.raises(ValueError, match="u must have one component"):
            operator(lambda x: x)(jnp.ones(2))
    with pytest.raises(TypeError, match="f must be callable"):
        divergence(None)
    with pytest.raises(ValueError, match="f must have one component per coordinate"):
        divergence(lambda x: x[:1])(jnp.ones(2))
