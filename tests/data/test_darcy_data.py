"""Darcy solver: manufactured solution, known values, symmetry; generated and shipped data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.data import generate_darcy_data, load_darcy_small, solve_darcy
from tolerances import distance, rounding


def centres(rows, columns):
    return np.meshgrid(
        (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij"
    )


@pytest.mark.parametrize("ratio", [1, 2])
def test_second_order_on_a_manufactured_solution(ratio):
    """u = sin(pi x) sin(2 pi y) with a = 2 + x y, on square and on stretched cells."""
    errors = []
    for n in (16, 32, 64):
        x, y = centres(n, ratio * n)
        u = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
        u_x = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y)
        u_y = 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
        source = 5 * np.pi**2 * (2 + x * y) * u - y * u_x - x * u_y
        errors.append(np.abs(solve_darcy(2 + x * y, source) - u).max())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > 1.9), orders
    assert errors[-1] < 3e-3


def test_largest_value_of_the_torsion_function():
    """-Laplace u = 1 on the unit square: u(1/2, 1/2) = 0.0736713532814 (Fourier series).

    The error is that of the grid, 65^-2 times a small factor.
    """
    odd = np.arange(1, 60, 2)
    i, j = np.meshgrid(odd, odd, indexing="ij")
    series = (
        16
        / np.pi**4
        * np.sum(np.sin(i * np.pi / 2) * np.sin(j * np.pi / 2) / (i * j * (i**2 + j**2)))
    )
    u = solve_darcy(np.ones((65, 65)))
    assert u[32, 32] == pytest.approx(series, rel=2e-3)


def dense_solution(a, source):
    """The balance of every cell, written out: fluxes through its four faces add up to its source."""
    rows, columns = a.shape
    matrix = np.zeros((a.size, a.size))
    for i, j in np.ndindex(a.shape):
        here = i * columns + j
        for di, dj, share in (
            (1, 0, rows / columns),
            (-1, 0, rows / columns),
            (0, 1, columns / rows),
            (0, -1, columns / rows),
        ):
            row, column = i + di, j + dj
            if 0 <= row < rows and 0 <= column < columns:
                flux = share * 2 / (1 / a[i, j] + 1 / a[row, column])
                matrix[here, row * columns + column] -= flux
            else:
                flux = share * 2 * a[i, j]
            matrix[here, here] += flux
    return np.linalg.solve(matrix, np.full(a.size, source / a.size)).reshape(a.shape)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 1), (1, 2), (3, 4)])
def test_cells_in_a_row_a_column_or_alone(shape):
    a = np.random.default_rng(0).uniform(1, 4, size=shape)
    allowed = rounding(np.float64, condition=4 * 4 * max(shape) ** 2, operations=9)
    assert distance(solve_darcy(a, 3.0), dense_solution(a, 3.0)) <= allowed


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 10.0), st.integers(0, 1000))
def test_symmetry_scaling_and_sign(rows, columns, factor, seed):
    a = np.where(np.random.default_rng(seed).random((rows, columns)) < 0.5, 3.0, 12.0)
    u = solve_darcy(a)
    assert np.all(u > 0)
    # Eigenvalues of the five-point matrix lie between about the smallest and 4 n^2 / 8 times the
    # largest permeability.
    allowed = rounding(np.float64, condition=4 * max(rows, columns) ** 2, operations=9)
    assert distance(solve_darcy(a.T), u.T) <= allowed
    assert distance(solve_darcy(a[::-1]), u[::-1]) <= allowed
    assert distance(solve_darcy(factor * a), u / factor) <= allowed
    assert distance(solve_darcy(a, np.full(a.shape, factor)), u * factor) <= allowed


def test_balance_of_every_cell():
    """What flows out of all boundary faces is what the source puts in."""
    a = np.where(np.random.default_rng(1).random((8, 6)) < 0.5, 3.0, 12.0)
    u = solve_darcy(a, 2.0)
    flux = 2 * a * u
    outflow = (flux[0] + flux[-1]).sum() * 8 / 6 + (flux[:, 0] + flux[:, -1]).sum() * 6 / 8
    # A backward stable solve leaves a residual of the size of the roundoff, 12 * 64 times it here.
    assert distance(outflow, 2.0) <= rounding(np.float64, condition=4 * 8**2, operations=48)


def test_generated_pairs(tmp_path):
    data = generate_darcy_data(6, 16, seed=3, cache_dir=tmp_path, progress=True)
    assert data.inputs.shape == data.outputs.shape == (6, 16, 16, 1)
    assert data.inputs.dtype == data.outputs.dtype == np.float32
    assert set(np.unique(data.inputs)) == {3.0, 12.0}
    for a, u in zip(data.inputs[..., 0], data.outputs[..., 0], strict=True):
        np.testing.assert_allclose(u, solve_darcy(a), rtol=rounding(np.float32))


def test_fixed_modes_give_the_same_permeability_on_every_grid(tmp_path):
    coarse = generate_darcy_data(2, 8, modes=6, seed=4, cache_dir=tmp_path)
    fine = generate_darcy_data(2, 24, modes=6, seed=4, cache_dir=tmp_path)
    assert np.array_equal(fine.inputs[:, 1::3, 1::3], coarse.inputs)


def test_processes_change_nothing(tmp_path):
    alone = generate_darcy_data(3, 8, cache_dir=tmp_path / "one")
    together = generate_darcy_data(3, 8, workers=2, cache_dir=tmp_path / "two")
    assert np.array_equal(alone.outputs, together.outputs)


def test_shipped_data():
    train, test = load_darcy_small()
    assert train.inputs.shape == train.outputs.shape == (1000, 16, 16, 1)
    assert test.inputs.shape == test.outputs.shape == (50, 16, 16, 1)
    for data in (train, test):
        assert data.inputs.dtype == data.outputs.dtype == np.float32
        assert set(np.unique(data.inputs)) == {0.0, 1.0}
        # The mean pressure rises from the boundary to the middle.
        mean = data.outputs.mean(axis=0)[..., 0]
        assert mean[8, 8] > mean[4, 4] > mean[0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"resolution": -1}, ValueError, "resolution must be at least 1"),
        ({"low": 0.0}, ValueError, "low must be positive"),
        ({"high": -2.0}, ValueError, "high must be positive"),
        ({"smoothness": 0.0}, ValueError, "smoothness must be positive"),
        ({"inverse_length": 0.0}, ValueError, "inverse_length must be positive"),
        ({"modes": 9}, ValueError, "modes must be at most 8"),
        ({"source": 0.0}, ValueError, "source must be positive"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"workers": 0}, ValueError, "workers must be at least 1"),
    ],
)
def test_bad_arguments(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        generate_darcy_data(**({"num_samples": 1, "resolution": 8} | arguments), cache_dir=tmp_path)


def test_bad_solver_input():
    for bad in (np.ones(4), np.zeros((2, 2)), np.full((2, 2), np.inf), np.ones((0, 2))):
        with pytest.raises(ValueError, match="permeability must hold finite positive numbers"):
            solve_darcy(bad)
    for source in (np.ones(2), np.nan, np.full((2, 2), np.inf)):
        with pytest.raises(
            ValueError, match=r"source must be a finite number or have shape \(2, 2\)"
        ):
            solve_darcy(np.ones((2, 2)), source)
