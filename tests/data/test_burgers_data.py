"""Burgers solver against the Cole-Hopf solution and SciPy; generated pairs; bad input."""

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from opifex.data import gaussian_random_field, generate_burgers_operator_data, solve_burgers
from tolerances import distance, rounding


def cole_hopf(initial, viscosity, time):
    """u = -2 nu phi_x / phi, where phi solves the heat equation; initial with mean zero."""
    n = initial.size
    k = 2 * np.pi * np.arange(n // 2 + 1)
    transform = scipy.fft.rfft(initial)
    antiderivative = np.zeros_like(transform)
    antiderivative[1:] = transform[1:] / (1j * k[1:])
    phi = np.exp(-scipy.fft.irfft(antiderivative, n=n) / (2 * viscosity))
    later = scipy.fft.rfft(phi) * np.exp(-viscosity * k**2 * time)
    slope = scipy.fft.irfft(1j * k * later, n=n)
    return -2 * viscosity * slope / scipy.fft.irfft(later, n=n)


@pytest.mark.parametrize(("viscosity", "time"), [(0.1, 1.0), (0.02, 0.5)])
def test_agrees_with_the_cole_hopf_solution(viscosity, time):
    initial = gaussian_random_field(4, 512, scale=25.0, modes=64, random_mean=False, seed=1)
    u = solve_burgers(initial, viscosity=viscosity, final_time=time)
    # The same formula in another discretisation; the solver promises 1e-10 of the initial values.
    for row, start in zip(u, initial, strict=True):
        np.testing.assert_allclose(
            row, cole_hopf(start, viscosity, time), atol=1e-9 * np.abs(start).max()
        )


def test_agrees_with_an_implicit_solver_in_physical_space():
    """Differentiation matrices and the BDF methods of SciPy, nothing shared with our solver."""
    n, viscosity = 32, 0.05
    x = np.arange(n) / n
    initial = 1.0 + np.sin(2 * np.pi * x) + 0.3 * np.cos(4 * np.pi * x)
    k = scipy.fft.fftfreq(n, 1 / n) * 2j * np.pi
    k[n // 2] = 0
    derivative = scipy.fft.ifft(k[:, None] * scipy.fft.fft(np.eye(n), axis=0), axis=0).real
    solution = solve_ivp(
        lambda t, u: viscosity * derivative @ (derivative @ u) - u * (derivative @ u),
        (0, 0.3),
        initial,
        method="BDF",
        rtol=1e-9,
        atol=1e-11,
    ).y[:, -1]
    ours = solve_burgers(initial[None], viscosity=viscosity, final_time=0.3)
    # The two discretisations differ in space: what they truncate has size 1e-7 here.
    np.testing.assert_allclose(ours[0], solution, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 63), st.integers(0, 1000))
def test_mean_is_kept_energy_decays_and_translations_commute(shift, seed):
    initial = gaussian_random_field(2, 64, scale=25.0, modes=16, seed=seed)
    u = solve_burgers(initial)
    # The solver promises 1e-10 of the largest initial value, at each point.
    size, allowed = np.linalg.norm(initial), 1e-9
    assert distance(u.mean(axis=1), initial.mean(axis=1), scale=size) <= allowed
    assert np.all(u.var(axis=1) < initial.var(axis=1))
    moved = solve_burgers(np.roll(initial, shift, axis=1))
    assert distance(moved, np.roll(u, shift, axis=1), scale=size) <= allowed


def test_generated_pairs_solve_the_equation(tmp_path):
    data = generate_burgers_operator_data(3, 128, seed=7, cache_dir=tmp_path)
    assert data.inputs.shape == data.outputs.shape == (3, 128, 1)
    assert data.inputs.dtype == data.outputs.dtype == np.float32
    for start, end in zip(data.inputs[..., 0], data.outputs[..., 0], strict=True):
        fine = scipy.fft.irfft(scipy.fft.rfft(start.astype(float)), n=512) * 4
        # Stored in single precision; the initial value decides the final one, so twice.
        exact = cole_hopf(fine, 0.1, 1.0)[::4]
        assert distance(end, exact, scale=np.linalg.norm(start)) <= rounding(np.float32)


def test_generation_is_cached(tmp_path, monkeypatch):
    first = generate_burgers_operator_data(2, 16, cache_dir=tmp_path, progress=True)
    monkeypatch.setattr("opifex.data.burgers.solve_burgers", None)
    again = generate_burgers_operator_data(2, 16, cache_dir=tmp_path)
    assert np.array_equal(first.outputs, again.outputs)
    with pytest.raises(TypeError, match="not callable"):
        generate_burgers_operator_data(2, 16, seed=1, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"resolution": 0}, ValueError, "resolution must be at least 1"),
        ({"resolution": 2}, ValueError, "resolution must be at least 3"),
        ({"viscosity": 0.0}, ValueError, "viscosity must be positive"),
        ({"final_time": -1.0}, ValueError, "final_time must be positive"),
        ({"smoothness": 0.0}, ValueError, "smoothness must be positive"),
        ({"inverse_length": 0.0}, ValueError, "inverse_length must be positive"),
        ({"scale": 0.0}, ValueError, "scale must be positive"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
    ],
)
def test_bad_arguments(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        generate_burgers_operator_data(
            **({"num_samples": 1, "resolution": 8} | arguments), cache_dir=tmp_path
        )


def test_bad_solver_input():
    with pytest.raises(ValueError, match=r"initial must hold finite numbers.*got shape \(4,\)"):
        solve_burgers(np.ones(4))
    with pytest.raises(ValueError, match="initial must hold finite numbers"):
        solve_burgers(np.full((1, 4), np.nan))
    rough = 1e3 * gaussian_random_field(1, 128, scale=25.0, seed=0)
    with pytest.raises(ValueError, match="viscosity must be at least"):
        solve_burgers(rough, viscosity=1e-4, final_time=10.0)
