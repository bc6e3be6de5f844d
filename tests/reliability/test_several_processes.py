"""Runs that several processes share, broken off and taken up again; see `several_processes`."""

import shutil
import time

import jax
import pytest

from eight_devices import BATCH, ENVIRONMENT, SAMPLES, bound
from reliability.killing import newest
from several_processes import EPOCHS, finished, started
from tolerances import distance

pytestmark = pytest.mark.slow


def run(count, devices, *check):
    """Processes in double precision that start without kept programs."""
    return started(count, devices, *map(str, check), **ENVIRONMENT)


def test_two_processes_stop_together_and_go_on(tmp_path):
    """After a signal to one of them, and after an error; with parameters in pieces on both."""
    found = finished(run(2, 2, "two", tmp_path))
    assert found[0] == found[1]
    assert found[0]["terminated"] == found[0]["whole"]
    assert found[0]["broken off"] == found[0]["whole"]


def test_cycles_move_parameters_that_lie_in_pieces_on_two_processes():
    found = finished(run(2, 2, "cycles"))
    assert found[0] == found[1]
    with jax.enable_x64(True):
        for whole, pieces in (found[0][:2], found[0][2:]):
            assert distance(pieces, whole) <= bound(steps=len(whole))


def killed(processes, victim, folder, wanted):
    """Kill one process after so many checkpoints, and then the others, as a scheduler does."""
    try:
        while newest(folder) < wanted:
            assert all(process.poll() is None for process in processes), [
                process.communicate() for process in processes if process.poll() is not None
            ]
            time.sleep(0.01)
        processes[victim].kill()
        assert processes[victim].wait() < 0  # it had not come to its end
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_four_processes_are_killed_and_go_on(tmp_path):
    """The writer and another one; bit by bit as if nothing was, and on one device to rounding."""
    whole = finished(run(4, 2, "run"))
    assert all(one == whole[0] for one in whole)
    folder, copy = tmp_path / "kept", tmp_path / "copy"
    killed(run(4, 2, "run", folder), 2, folder, 2)
    shutil.copytree(folder, copy)
    killed(run(4, 2, "run", folder), 0, folder, newest(folder) + 3)
    assert finished(run(4, 2, "run", folder)) == whole
    # A rounded sum of the samples in each of the steps; see `bound`.
    with jax.enable_x64(True):
        most = bound(steps=2 * EPOCHS * SAMPLES // BATCH)
    alone, gone_on = finished(run(1, 1, "run")), finished(run(1, 1, "run", copy))
    for other in (alone, gone_on):
        assert distance(other[0]["losses"], whole[0]["losses"]) <= most
        for pair in zip(other[0]["parameters"], whole[0]["parameters"], strict=True):
            assert distance(*pair) <= most
