"""The gas solver of the benchmark on the cost of samples, against sound waves and conservation laws."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import gas_dynamics


def test_a_weak_wave_is_a_standing_sound_wave():
    amplitude, cells, final_time = 1e-4, 256, 0.3
    x = (np.arange(cells) + 0.5) / cells
    wave = amplitude * np.cos(2 * np.pi * x)
    with jax.enable_x64(True):
        start = gas_dynamics._conserved(jnp.asarray(np.stack([1 + 0 * wave, wave, 1 + 0 * wave])))
        found = gas_dynamics._primitive(gas_dynamics._evolve(start[:, None], final_time))
    phase = 2 * np.pi * np.sqrt(gas_dynamics.RATIO_OF_SPECIFIC_HEATS) * final_time
    # The limiter clips crests: an error of a few cells' widths squared; nonlinear terms are smaller.
    np.testing.assert_allclose(found[1, 0], wave * np.cos(phase), atol=0.01 * amplitude)


def test_mass_momentum_and_energy_are_conserved():
    data = gas_dynamics.computed(2, 128, 0)
    velocity = gas_dynamics._velocities(2, 128, 0)
    energy = 1 / (gas_dynamics.RATIO_OF_SPECIFIC_HEATS - 1) + 0.5 * (velocity**2).mean(axis=1)
    totals = data.outputs.astype(np.float64).mean(axis=1)
    expected = np.stack([np.ones(2), velocity.mean(axis=1), energy], axis=1)
    np.testing.assert_allclose(totals, expected, atol=1e-6)  # stored in single precision


def test_a_sample_does_not_depend_on_its_batch_and_grids_share_their_inputs():
    alone, many = gas_dynamics.computed(1, 128, 3), gas_dynamics.computed(5, 128, 3)
    np.testing.assert_allclose(alone.outputs[0], many.outputs[0], atol=1e-6)
    finer = gas_dynamics.computed(5, 256, 3)
    np.testing.assert_array_equal(many.inputs, finer.inputs)


def test_a_longer_set_begins_with_a_shorter_one_and_is_kept_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("OPIFEX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(gas_dynamics, "BLOCK", 4)
    whole = gas_dynamics.computed(6, 128, 3)
    kept = [gas_dynamics.solve(count, 128, 3) for count in (4, 6)]
    assert len(list(tmp_path.iterdir())) == 2
    for data in kept:
        np.testing.assert_array_equal(data.inputs, whole.inputs[: len(data.inputs)])
        np.testing.assert_allclose(data.outputs, whole.outputs[: len(data.outputs)], atol=1e-6)
        assert data.seconds > 0


def test_finer_grids_are_closer_to_each_other():
    coarse, middle, fine = (gas_dynamics.computed(4, n, 1).outputs for n in (128, 256, 512))
    assert np.linalg.norm(middle - fine) < 0.7 * np.linalg.norm(coarse - middle)


@pytest.mark.parametrize("cells", [128, 1024])
def test_the_last_samples_of_a_batch_that_is_not_full(cells):
    assert gas_dynamics.computed(3, cells, 2).outputs.shape == (3, gas_dynamics.POINTS, 3)
