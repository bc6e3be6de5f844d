"""Derivative operators against dense Hessians, nested forward mode and analytic polynomials."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.core.physics import (
    directional_derivatives,
    divergence,
    gradient,
    hessian_diagonal,
    laplacian,
)
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


def network(dim, activation=jnp.tanh):
    return MLP(dim, 1, [7, 7], activation=activation, param_dtype=jnp.float64, rngs=nnx.Rngs(dim))


@pytest.mark.parametrize("dim", [1, 2, 18])
def test_network_laplacian_is_the_trace_of_the_hessian(dim):
    """In 18 dimensions the directions are batched in blocks, the last of which is not full."""
    with jax.enable_x64(True):
        model = network(dim)
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


WEIGHTS = np.random.default_rng(0).normal(size=(3, 2, 2))


@jax.custom_jvp
def own_sine(x):
    return jnp.sin(x)


own_sine.defjvp(lambda x, v: (jnp.sin(x[0]), jnp.cos(x[0]) * v[0]))


def python_branch(x):
    return jnp.sin(x[0]) * x[1] if x[0] > 0 else x[1] ** 2


OF_ALL_KINDS = {
    "scan": lambda x: jnp.sum(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), h), x, WEIGHTS)[1] ** 2),
    "counted loop": lambda x: jax.lax.fori_loop(
        0, 3, lambda i, h: jnp.sin(h @ jnp.asarray(WEIGHTS)[i]), x
    )[0],
    "while": lambda x: jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ WEIGHTS[0])), (0, x)
    )[1][0],
    "cond": lambda x: jax.lax.cond(x[0] > 0, lambda y: y[0] * jnp.sin(y[1]), jnp.sum, x),
    "where": lambda x: jnp.where(x[0] > x[1], jnp.exp(x[0] * x[1]), x[1] ** 4),
    "checkpoint": jax.checkpoint(lambda x: jnp.sum(jnp.tanh(x @ WEIGHTS[0]) ** 2)),
    "custom rule": lambda x: own_sine(x[0]) * own_sine(x[0] * x[1]),
    "integers": lambda x: jnp.sin(x)[jnp.argmax(x)] * jnp.floor(x[0]) + x[1] ** 3,
    "several results": lambda x: (
        jnp.prod(jnp.stack(jnp.split(jnp.exp(x), 2))) + jnp.sort(x)[0] ** 2
    ),
    "complex": lambda x: jnp.abs(jnp.exp((1 + 2j) * x[0]) * x[1] + 1j) ** 2,
    "Fourier": lambda x: jnp.sum(jnp.abs(jnp.fft.rfft(jnp.tanh(x @ WEIGHTS[0]))) ** 2),
    "normalised": lambda x: jax.nn.softmax(x @ WEIGHTS[0])[0] + jax.nn.logsumexp(x),
    "a derivative": lambda x: jnp.sum(jax.grad(lambda y: jnp.prod(jnp.tanh(y)))(x) ** 2),
    "a Laplacian": laplacian(lambda y: jnp.prod(jnp.sin(y)) * y[0] ** 3),
    "stopped": lambda x: jax.lax.stop_gradient(x[0]) * x[1] ** 3,
    "constant": lambda x: 3.0,
    "two numbers": lambda x: x[0] ** x[1] + jnp.arctan2(x[0], x[1]) + jnp.maximum(x[0], x[1]) ** 2,
}


def nested(u, direction, order):
    """Value and derivatives by forward mode in forward mode."""

    def along(x):
        orders = [lambda y: jnp.reshape(jnp.asarray(u(y), x.dtype), ())]
        for _ in range(order):
            orders.append(functools.partial(slope, orders[-1]))
        return [f(x) for f in orders]

    def slope(f, x):
        return jax.jvp(f, (x,), (direction,))[1]

    return along


@pytest.mark.slow
def test_functions_of_all_kinds():
    """What the operators know nothing of is differentiated all the same."""
    with jax.enable_x64(True):
        x = jnp.array([0.7, 0.4])

        def dense(u):
            slopes = jax.jacfwd(lambda y: jnp.reshape(jnp.asarray(u(y), y.dtype), ()))
            return lambda x: jnp.trace(jax.jacfwd(slopes)(x))

        functions = OF_ALL_KINDS.values()
        found = jax.jit(lambda x: [laplacian(u)(x) for u in functions])(x)
        expected = jax.jit(lambda x: [dense(u)(x) for u in functions])(x)
    for name, one, other in zip(OF_ALL_KINDS, found, expected, strict=True):
        # A few dozen operations each, with second derivatives of about one.
        allowed = rounding(np.float64, operations=100)
        assert distance(one, other, scale=1 + abs(float(other))) <= allowed, name


@pytest.mark.parametrize("x", [(0.5, 0.3), (-0.5, 0.3)])
def test_branches_of_python_see_the_point(x):
    found = laplacian(python_branch)(jnp.array(x))
    expected = -jnp.sin(x[0]) * x[1] if x[0] > 0 else 2.0
    assert distance(found, expected) <= rounding(np.float32, operations=4)


def test_jacobians_with_respect_to_parameters():
    """Rows as Gauss-Newton methods compute them: reverse mode over the operator, per point."""
    with jax.enable_x64(True):
        graph, params = nnx.split(network(2))
        x = jax.random.normal(jax.random.key(0), (3, 2), jnp.float64)

        def rows(operator):
            def residual(params, x):
                return operator(lambda y: nnx.merge(graph, params)(y)[0])(x)

            return jax.jit(jax.vmap(jax.grad(residual), (None, 0)))(params, x)

        def dense(u):
            return lambda y: jnp.trace(jax.hessian(u)(y))

        def flat(tree):
            return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

        allowed = rounding(np.float64, operations=200)
        assert distance(flat(rows(laplacian)), flat(rows(dense))) <= allowed


whole = st.integers(-3, 3)


@settings(max_examples=20, deadline=None)
@given(
    coefficients=st.lists(whole, min_size=7, max_size=7),
    vectors=st.lists(st.tuples(whole, whole), min_size=3, max_size=3),
)
def test_all_derivatives_of_polynomials(coefficients, vectors):
    """For p(w x) the n-th derivative along v is p^(n)(w x) (w v)^n: integers, hence exact."""
    w, v, x = (np.array(vector) for vector in vectors)
    polynomial = np.polynomial.Polynomial(coefficients)
    expected = [polynomial.deriv(n)(w @ x) * float(w @ v) ** n for n in range(6)]
    with jax.enable_x64(True):
        found = WAVES["polynomial"](*(jnp.asarray(a, float) for a in (coefficients, w, v, x)))
    # Powers are computed by repeated multiplication, so that all numbers are integers.
    np.testing.assert_array_equal(found, expected)


WAVES = {
    "polynomial": jax.jit(
        lambda c, w, v, x: directional_derivatives(
            lambda y: sum(c[k] * (w @ y) ** k for k in range(7)), v, 5
        )(x)
    )
}


@pytest.mark.parametrize("activation", [jnp.tanh, jnp.sin, nnx.gelu, nnx.silu, jax.nn.softplus])
def test_all_derivatives_of_networks(activation):
    with jax.enable_x64(True):
        model, direction = network(2, activation), jnp.array([0.6, -0.8])
        x = jax.random.normal(jax.random.key(1), (5, 2), jnp.float64)
        found = jax.jit(jax.vmap(directional_derivatives(model, direction, 4)))(x)
        expected = jax.jit(jax.vmap(nested(lambda y: model(y)[0], direction, 4)))(x)
    for one, other in zip(found, expected, strict=True):
        # Fifteen partitions of the fourth derivative in each of two layers of seven.
        assert distance(one, other) <= rounding(np.float64, operations=2 * 15 * 7)


def floating_point_operations(f, *arguments):
    return jax.jit(f).lower(*arguments).compile().cost_analysis()["flops"]


def test_one_sweep_carries_no_more_than_it_needs():
    """Matrix products dominate: one for each derivative that is carried, and one for the value."""
    dim = 6
    model = MLP(dim, 1, [128, 128, 128], rngs=nnx.Rngs(0))
    x = jnp.ones((10, dim))
    once = floating_point_operations(jax.vmap(model), x)
    # Value, six slopes and one sum; nested forward mode carries two for each direction.
    assert floating_point_operations(jax.vmap(laplacian(model)), x) <= 1.1 * (dim + 2) * once
    axis = jnp.eye(dim)[0]
    for order in (2, 4):
        along = jax.vmap(directional_derivatives(model, axis, order))
        assert floating_point_operations(along, x) <= 1.1 * (order + 1) * once


def test_integers_are_points():
    x = jnp.array([1, 2])
    assert float(laplacian(lambda y: jnp.sum(y**3))(x)) == 18.0
    assert gradient(lambda y: jnp.sum(y**3))(x).tolist() == [3.0, 12.0]
    assert hessian_diagonal(lambda y: jnp.sum(y**3))(x).tolist() == [6.0, 12.0]
    assert float(divergence(lambda y: y**2)(x)) == 6.0


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
    with pytest.raises(TypeError, match="u must be callable"):
        directional_derivatives(3, jnp.ones(2), 2)
    with pytest.raises(ValueError, match="order must be at least 1"):
        directional_derivatives(jnp.sum, jnp.ones(2), 0)
    with pytest.raises(TypeError, match="order must be an integer"):
        directional_derivatives(jnp.sum, jnp.ones(2), 2.0)
    with pytest.raises(
        ValueError, match=r"direction must have the point's shape \(2,\), got \(3,\)"
    ):
        directional_derivatives(jnp.sum, jnp.ones(3), 2)(jnp.ones(2))
