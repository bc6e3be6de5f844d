"""The gas solver of the benchmark on the cost of samples, against sound waves and conservation laws."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import gas_dynamics
from gas_dynamics import LINE, SQUARE, computed, velocities


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(gas_dynamics, "CELLS_PER_BATCH", 2048)


@pytest.fixture
def early(monkeypatch):
    """Before shocks form, in a fifth of the steps."""
    monkeypatch.setattr(gas_dynamics, "FINAL_TIME", 0.1)


each_dimension = pytest.mark.parametrize(
    ("gas", "cells"), [(LINE, 128), (SQUARE, 32)], ids=["line", "square"]
)


@pytest.mark.parametrize("wave", [(1,), (1, 0), (0, 1), (1, 1)])
def test_a_weak_wave_is_a_standing_sound_wave(wave):
    amplitude, final_time = 1e-4, 0.3
    cells = 256 if len(wave) == 1 else 64
    centres = np.stack(np.meshgrid(*[(np.arange(cells) + 0.5) / cells] * len(wave), indexing="ij"))
    length = np.linalg.norm(wave)
    shape = np.cos(2 * np.pi * np.tensordot(wave, centres, 1))
    velocity = amplitude * np.multiply.outer(np.asarray(wave) / length, shape)
    still = np.ones_like(velocity[:1])
    with jax.enable_x64(True):
        start = gas_dynamics.conserved_of(jnp.asarray(np.concatenate([still, velocity, still])))
        found = gas_dynamics.evolve(start[:, None], final_time, 0.45)
        found = gas_dynamics.primitive_of(found)[1:-1, 0]
    phase = 2 * np.pi * length * np.sqrt(gas_dynamics.RATIO_OF_SPECIFIC_HEATS) * final_time
    # The limiter clips crests: an error of a few cells' widths squared; nonlinear terms are smaller.
    tolerance = 0.01 * (256 / cells) * amplitude
    np.testing.assert_allclose(found, velocity * np.cos(phase), atol=tolerance)


@each_dimension
def test_mass_momentum_and_energy_are_conserved(gas, cells, early):
    data = computed(gas, 2, cells, 0)
    velocity = velocities(gas, 2, cells, 0, averaged=False)
    space = tuple(range(2, velocity.ndim))
    kinetic = 0.5 * (velocity**2).sum(axis=1).mean(axis=tuple(range(1, velocity.ndim - 1)))
    energy = 1 / (gas_dynamics.RATIO_OF_SPECIFIC_HEATS - 1) + kinetic
    totals = data.outputs.astype(np.float64).mean(axis=tuple(range(1, data.outputs.ndim - 1)))
    expected = np.column_stack([np.ones(2), velocity.mean(axis=space), energy])
    # Rounding of a few hundred steps that are not biased, and of what is stored in single precision.
    np.testing.assert_allclose(totals, expected, atol=1e-6 if gas is LINE else 1e-5)


@each_dimension
def test_a_sample_does_not_depend_on_its_batch_and_grids_share_their_inputs(gas, cells, early):
    alone, many = computed(gas, 1, cells, 3), computed(gas, 5, cells, 3)
    np.testing.assert_allclose(alone.outputs[0], many.outputs[0], atol=1e-6)
    finer = computed(gas, 5, 2 * cells, 3)
    np.testing.assert_array_equal(many.inputs, finer.inputs)


@each_dimension
def test_inputs_are_means_over_cells(gas, cells):
    points = velocities(gas, 2, 16 * cells, 3, averaged=False)
    for axis in range(2, points.ndim):
        points = np.stack(np.split(points, cells, axis=axis)).mean(axis=axis + 1)
        points = np.moveaxis(points, 0, axis)
    # The mean of 16 midpoints differs from that of the cell by (wave number times distance) squared.
    bound = (2 * np.pi * 4 / (16 * cells)) ** 2
    np.testing.assert_allclose(velocities(gas, 2, cells, 3, averaged=True), points, atol=bound)


def test_a_longer_set_begins_with_a_shorter_one_and_is_kept_in_blocks(tmp_path, monkeypatch, early):
    monkeypatch.setenv("OPIFEX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(gas_dynamics, "BLOCK", 4)
    whole = computed(LINE, 6, 128, 3)
    kept = [gas_dynamics.solve(LINE, count, 128, 3) for count in (4, 6)]
    assert len(list(tmp_path.iterdir())) == 2
    for data in kept:
        np.testing.assert_array_equal(data.inputs, whole.inputs[: len(data.inputs)])
        np.testing.assert_allclose(data.outputs, whole.outputs[: len(data.outputs)], atol=1e-6)
        assert data.seconds > 0


@each_dimension
def test_finer_grids_are_closer_to_each_other(gas, cells):
    coarse, middle, fine = (computed(gas, 1, cells * factor, 1).outputs for factor in (1, 2, 4))
    assert np.linalg.norm(middle - fine) < 0.7 * np.linalg.norm(coarse - middle)


@pytest.mark.parametrize(("gas", "cells"), [(LINE, 128), (LINE, 1024), (SQUARE, 32)])
def test_the_last_samples_of_a_batch_that_is_not_full(gas, cells, early):
    shape = (3, *[gas.points] * gas.dimensions, gas.dimensions + 2)
    assert computed(gas, 3, cells, 2).outputs.shape == shape
