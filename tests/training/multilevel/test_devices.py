"""Trainings that several devices share; the checks themselves are in `eight_devices`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import several_processes
from eight_devices import ADAM, ENVIRONMENT, loss, program
from opifex.training.multilevel import MultilevelConfig
from opifex.training.placement import Placement
from several_processes import finished, started
from tolerances import distance, rounding

TESTS = Path(__file__).parents[2]
QUICK = [
    "bad_sizes",
    "communication_and_memory_of_a_step",
    "copies_may_be_donated",
    "devices_of_a_level",
    "levenberg_marquardt",
    "mini_batches",
    "parameters_in_pieces",
]
SLOW = [
    "another_number_of_devices",
    "arrays_closed_over",
    "balanced_terms",
    "checkpoints",
    "faults",
    "galerkin_cycle_on_fewer_devices",
    "least_squares_cascade",
    "memory_of_shared_rows",
    "mini_batches_of_a_cascade",
    "pieces_after_a_transition",
    "resampled_data",
    "streamed_batches",
    "rows_of_a_jacobian",
    "rows_of_a_jacobian_that_is_kept",
    "surrounding_mesh",
    "v_cycle",
]


def carried_out(names: list[str]) -> dict[str, str | None]:
    """What went wrong with each check, in one process, since starting JAX takes longer than most."""
    script = [sys.executable, str(TESTS / "eight_devices.py"), *names]
    surroundings = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(script, capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def quick():
    return carried_out(QUICK)


@pytest.fixture(scope="module")
def slow():
    return carried_out(SLOW)


@pytest.mark.parametrize("name", QUICK)
def test_eight_devices(quick, name):
    assert quick[name] is None, quick[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_eight_devices_in_all_kinds_of_training(slow, name):
    assert slow[name] is None, slow[name]


@pytest.mark.slow
def test_two_processes_train_together():
    """Each with four devices, as on a cluster; one of the levels uses four of the eight."""
    both = finished(started(2, 4, "losses"))
    assert both[0] == both[1]
    alone = several_processes.losses(MESH)
    # Sums of the 64 samples in another order, in sixteen steps that pass their errors on.
    most = rounding(np.float32, operations=64, condition=16)
    assert distance(both[0], alone) <= most


def test_every_check_is_a_test():
    text = (TESTS / "eight_devices.py").read_text()
    defined = {line.split("(")[0][10:] for line in text.splitlines() if line[:10] == "def check_"}
    assert defined == {*QUICK, *SLOW}


MESH = Mesh(np.array(jax.devices()[:1]), ("data",))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mesh": "data"}, TypeError, "mesh must be a jax.sharding.Mesh"),
        ({"data_axis": "rows"}, ValueError, "data_axis must be one of the axes"),
        ({"model_axis": "model"}, ValueError, "model_axis must be one of the axes"),
        ({"model_axis": "data"}, ValueError, "model_axis must be another axis"),
        ({"least_work": -1}, ValueError, "least_work must be"),
        ({"parts": 0}, ValueError, "parts must be at least 1"),
        ({"devices": 1}, TypeError, "devices must be a sequence"),
        ({"devices": [2]}, ValueError, r"devices\[0\] must divide the 1 places"),
        ({"devices": [1], "least_work": 10}, ValueError, "give one"),
    ],
)
def test_what_a_placement_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        Placement(**{"mesh": MESH, **arguments})


def test_devices_are_given_for_every_level():
    placement = Placement(MESH, devices=[1])
    assert placement.at(0, 1, 1).devices == 1
    with pytest.raises(ValueError, match="entry for every level, got 1 and no entry for level 1"):
        placement.at(1, 1, 1)


def test_a_configuration_takes_a_placement_only():
    with pytest.raises(TypeError, match="placement must be a Placement"):
        MultilevelConfig(placement=MESH)


def test_programs_that_are_bound_to_devices_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OPIFEX_PROGRAM_CACHE", str(tmp_path))
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    data = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
    program(Placement(MESH), ADAM, loss, data, model)
    assert not list(tmp_path.rglob("*.xla"))


def test_the_surroundings_ask_for_nothing_on_one_device():
    assert Placement.found((np.ones(3),)) is None
    with jax.set_mesh(MESH):
        assert Placement.found() is None
