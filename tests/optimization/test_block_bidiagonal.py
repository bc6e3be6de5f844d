"""Least squares block by block against the dense solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.optimization.second_order import block_bidiagonal_solution


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


SEEDS = st.integers(0, 10**6)
# Blocks, unknowns, rows, those of them that reach the next block; few, since each is compiled.
SHAPES = [(3, 1, 2, 2), (5, 3, 7, 2), (4, 3, 6, 5)]
solve = jax.jit(block_bidiagonal_solution, static_argnums=3, static_argnames="cyclic")


def system(blocks, size, rows, coupled, cyclic, seed):
    """Blocks, and the matrix and right-hand side they stand for."""
    rng = np.random.default_rng(seed)
    diagonal = rng.normal(size=(blocks, rows, size))
    upper = rng.normal(size=(blocks, coupled, size))
    values = rng.normal(size=(blocks, rows))
    matrix = np.zeros((blocks * rows, blocks * size))
    for s in range(blocks):
        here = slice(s * rows, (s + 1) * rows)
        matrix[here, s * size : (s + 1) * size] += diagonal[s]
        if s + 1 < blocks or cyclic:
            following = (s + 1) % blocks
            last = slice((s + 1) * rows - coupled, (s + 1) * rows)
            matrix[last, following * size : (following + 1) * size] += upper[s]
    return diagonal, upper, values, matrix


@given(st.sampled_from(SHAPES), st.booleans(), SEEDS)
@settings(max_examples=30, deadline=None)
def test_is_the_least_squares_solution(shape, cyclic, seed):
    diagonal, upper, values, matrix = system(*shape, cyclic, seed)
    found = solve(*map(jnp.asarray, (diagonal, upper, values)), 1e-15, cyclic=cyclic)
    exact, _, _, singular = np.linalg.lstsq(matrix, values.ravel(), rcond=None)
    condition = singular[0] / singular[-1]
    # Rounding of a backward stable solution, with residuals as large as the values.
    tolerance = 1e-14 * condition**2 * np.linalg.norm(values) / singular[0]
    np.testing.assert_allclose(np.asarray(found).ravel(), exact, rtol=0, atol=100 * tolerance)


@given(st.booleans(), st.sampled_from([1e-3, 0.1]), SEEDS)
@settings(max_examples=20, deadline=None)
def test_is_regularized_by_the_norm_of_the_whole_matrix(cyclic, epsilon, seed):
    blocks, size = 4, 4
    diagonal, upper, values, matrix = system(blocks, size, 3, 2, cyclic, seed)  # underdetermined
    found = solve(*map(jnp.asarray, (diagonal, upper, values)), epsilon, cyclic=cyclic)
    damping = (epsilon * np.linalg.norm(matrix)) ** 2 * np.eye(blocks * size)
    exact = np.linalg.solve(matrix.T @ matrix + damping, matrix.T @ values.ravel())
    np.testing.assert_allclose(np.asarray(found).ravel(), exact, rtol=1e-8, atol=1e-8)


def test_last_upper_block_is_read_in_the_cyclic_case_only():
    diagonal, upper, values, _ = system(*SHAPES[1], False, 0)
    other = upper.copy()
    other[-1] += 1

    def found(above, *, cyclic=False):
        return solve(*map(jnp.asarray, (diagonal, above, values)), 1e-15, cyclic=cyclic)

    assert jnp.array_equal(found(upper), found(other))
    assert jnp.abs(found(upper, cyclic=True) - found(other, cyclic=True)).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_keeps_the_dtype(dtype):
    diagonal, upper, values, _ = system(*SHAPES[0], False, 0)
    arrays = [jnp.asarray(a, dtype) for a in (diagonal, upper, values)]
    assert block_bidiagonal_solution(*arrays, 1e-15).dtype == dtype


def test_shapes_are_checked():
    diagonal, upper, values, _ = map(jnp.asarray, system(*SHAPES[1], False, 0))
    with pytest.raises(ValueError, match="at most the 7 rows of diagonal, got 14"):
        block_bidiagonal_solution(diagonal, jnp.tile(upper, (1, 7, 1)), values, 1e-15)
    with pytest.raises(ValueError, match="at least 3 blocks, got 2"):
        block_bidiagonal_solution(diagonal[:2], upper[:2], values[:2], 1e-15, cyclic=True)
