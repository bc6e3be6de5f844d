"""Counted operations against those of the algorithms' textbooks."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from opifex.models import MLP
from opifex.training.operations import count_operations


def count(function, *arguments):
    return count_operations(jax.jit(function).trace(*arguments))


def test_a_matrix_product():
    assert count(jnp.matmul, jnp.ones((7, 5)), jnp.ones((5, 3))) == 2 * 7 * 5 * 3


@pytest.mark.slow
def test_a_rollout_of_twenty_steps_costs_ten_times_one_of_two():
    x, y = jnp.ones((16, 1)), jnp.zeros((16, 1))
    graphdef, params = nnx.split(MLP(1, 1, [32, 32], rngs=nnx.Rngs(0)))

    def rollout(steps):
        def loss(params):
            model = nnx.merge(graphdef, params)
            end, _ = lax.scan(lambda h, _: (h + 0.1 * model(h), None), x, None, length=steps)
            return jnp.mean((end - y) ** 2)

        return count(jax.grad(loss), params)

    assert rollout(20) - rollout(2) == 9 * (rollout(4) - rollout(2))
    # What is outside of the loop is little beside it.
    assert rollout(20) / rollout(2) == pytest.approx(10, rel=0.01)


def with_own_jvp(function):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(lambda primals, tangents: (function(*primals), *tangents))
    return wrapped


def with_own_vjp(function):
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda a: (function(a), None), lambda _, cotangent: (cotangent,))
    return wrapped


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        lambda f: lambda a: lax.cond(jnp.sum(a) > 0, f, lambda a: a, a),
        lambda f: lambda a: lax.while_loop(lambda b: jnp.sum(b) > 0, f, a),
        with_own_jvp,
        with_own_vjp,
        lambda f: lambda a: lax.map(f, a[None])[0],
    ],
    ids=["jit", "checkpoint", "cond", "while", "custom_jvp", "custom_vjp", "map"],
)
def test_loops_in_loops_and_inside_other_constructs(wrap):
    n, outer, inner = 30, 4, 5

    def loop(a):
        return lax.fori_loop(
            0, outer, lambda i, b: lax.fori_loop(0, inner, lambda j, c: c @ c, b), a
        )

    assert count(wrap(loop), jnp.eye(n)) == pytest.approx(outer * inner * 2 * n**3, rel=0.02)


@pytest.mark.parametrize(("length", "unroll"), [(0, 1), (1, 1), (10, 3), (10, 5), (10, 10)])
def test_a_loop_costs_the_same_however_it_is_unrolled(length, unroll):
    n = 10

    def loop(a):
        return lax.scan(lambda b, _: (b @ b, None), a, None, length=length, unroll=unroll)[0] + a

    assert count(loop, jnp.eye(n)) == length * 2 * n**3 + n**2


def test_the_dearest_branch_counts_and_a_while_once():
    n = 30

    def branches(a):
        return lax.cond(
            a[0, 0] > 0,
            jnp.linalg.cholesky,
            lambda a: lax.fori_loop(0, 3, lambda i, b: b @ b, a),
            a,
        )

    assert count(branches, jnp.eye(n)) == pytest.approx(3 * 2 * n**3, rel=0.02)

    def unknown(a):
        return lax.while_loop(lambda b: b[0, 0] < 9, lambda b: b @ b, a)

    assert count(unknown, jnp.eye(n)) == pytest.approx(2 * n**3, rel=0.02)


N, M = 120, 200
SQUARE, TALL, WIDE = jnp.eye(N), jnp.ones((M, N)), jnp.ones((N, M))


def svd(**options):
    return lambda a: jnp.linalg.svd(a, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "matrix", "operations"),
    [
        (jnp.linalg.cholesky, SQUARE, N**3 / 3),
        (jnp.linalg.eigh, SQUARE, 9 * N**3),
        (lax.linalg.lu, SQUARE, 2 * N**3 / 3),
        (lax.linalg.lu, TALL, N**2 * (M - N / 3)),
        (lambda a: jnp.linalg.qr(a, "raw"), TALL, 2 * N**2 * (M - N / 3)),
        (
            lambda a: lax.linalg.householder_product(a, jnp.ones(N)),
            TALL,
            2 * N**2 * (M - N / 3),
        ),
        (jnp.linalg.qr, TALL, 4 * N**2 * (M - N / 3)),
        (
            lambda a: jnp.linalg.qr(a, "complete"),
            TALL,
            2 * N**2 * (M - N / 3) + 4 * (M**2 * N - M * N**2 + N**3 / 3),
        ),
        (
            lambda a: jax.scipy.linalg.qr(a, pivoting=True, mode="economic"),
            TALL,
            4 * N**2 * (M - N / 3),
        ),
        (svd(compute_uv=False), TALL, 4 * M * N**2 - 4 * N**3 / 3),
        (svd(full_matrices=False), WIDE, 6 * M * N**2 + 20 * N**3),
        (svd(full_matrices=True), TALL, 4 * M**2 * N + 22 * N**3),
        (
            lambda a: lax.linalg.triangular_solve(SQUARE, a, left_side=True),
            WIDE,
            N**2 * M,
        ),
        (lambda a: lax.linalg.triangular_solve(SQUARE, a), TALL, N**2 * M),
        # One factorisation and two triangular solves, not those of the derivative too.
        (lambda a: jnp.linalg.solve(a, WIDE), SQUARE, 2 * N**3 / 3 + 2 * N**2 * M),
    ],
)
def test_factorisations_as_in_golub_and_van_loan(function, matrix, operations):
    # What surrounds a factorisation (masks, pivots) is of lower order.
    lower_order = 30 * matrix.size
    single = count(function, matrix)
    assert operations <= single <= operations + lower_order
    batch = jnp.broadcast_to(matrix, (2, 3, *matrix.shape))
    assert (
        6 * operations
        <= count(jax.vmap(jax.vmap(function)), batch)
        <= 6 * (operations + lower_order)
    )


def test_a_factorisation_inside_a_loop_counts_every_time():
    def loop(a):
        return lax.fori_loop(0, 5, lambda i, b: jnp.linalg.cholesky(b), a)

    assert count(loop, SQUARE) == pytest.approx(5 * count(jnp.linalg.cholesky, SQUARE), rel=1e-3)


def test_double_precision_counts_alike_wherever_it_is_counted():
    def loop(a):
        return lax.fori_loop(0, 5, lambda i, b: jnp.linalg.cholesky(2 * b), a)

    single = count(loop, SQUARE)
    with jax.enable_x64(True):
        traced = jax.jit(loop).trace(jax.ShapeDtypeStruct((N, N), jnp.float64))
    assert count_operations(traced) == pytest.approx(single, rel=1e-3)


def test_nothing_to_count_gives_none():
    assert count(lambda a: a, SQUARE) is None


@pytest.mark.parametrize(
    ("analysis", "operations"),
    [
        ([{"flops": 7.0}], 7.0),
        ([], None),
        (None, None),
        ({}, None),
        ({"flops": float("nan")}, None),
    ],
)
def test_every_form_of_the_analysis_is_read(analysis, operations):
    jaxpr = jax.jit(lambda a: a).trace(SQUARE).jaxpr
    lowered = SimpleNamespace(cost_analysis=lambda: analysis)
    assert count_operations(SimpleNamespace(jaxpr=jaxpr, lower=lambda: lowered)) == operations


def test_never_raises():
    def lower():
        raise NotImplementedError("no lowering on this platform")

    assert count_operations(SimpleNamespace(jaxpr=None, lower=lower)) is None
    assert count_operations(None) is None
