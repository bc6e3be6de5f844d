"""An interrupted run goes on from its saved state, and says what it could not save."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cli_configurations import POISSON
from opifex.cli import training
from opifex.cli.saved_state import load_history, read_position
from opifex.loggers import Reporter
from opifex.loggers.table_files import read_rows
from opifex.storage import load_model


@pytest.fixture(autouse=True)
def heed_ctrl_c():
    """Shells start background jobs with Ctrl-C ignored, which the runs here would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def read_status(folder):
    return json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))


def ctrl_c_at(monkeypatch, step):
    """Press Ctrl-C when a run has taken so many steps, once."""
    log = Reporter.__call__
    pressed = []

    def call(self, progress):
        log(self, progress)
        if progress.step >= step and not pressed:
            pressed.append(step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Reporter, "__call__", call)


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4, 8])
def test_ctrl_c_ends_with_a_saved_state_and_resume_goes_on(command, monkeypatch, step):
    command.write(POISSON)
    ctrl_c_at(monkeypatch, step)
    output = command("run", "config.yaml", "--no-figures", code=130)
    assert "interrupted: the state is saved; go on with: opifex-multilevel resume out" in output
    out = command.folder / "out"
    assert read_status(out)["status"] == "interrupted"
    position = read_position(out / "state")
    assert position.step == step
    assert sum(position.epochs_done) == step
    output = command("resume", "out", "--no-figures")
    assert f"after {step} steps; the optimizer's state is restored" in output
    assert read_status(out)["status"] == "finished"
    history = load_history(out / "state")
    assert history.table()["level"].tolist() == [0] * 4 + [1] * 6
    rows = read_rows(out / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]


def test_full_batches_resumed_equal_one_run(command, monkeypatch):
    """Nothing is random in them, so that parameters and optimizer must have been restored exactly."""
    command.write(POISSON)
    command("run", "config.yaml", "--no-figures", "-o", "whole")
    ctrl_c_at(monkeypatch, 6)
    command("run", "config.yaml", "--no-figures", code=130)
    command("resume", "out", "--no-figures")
    points = np.random.default_rng(0).random((9, 2), np.float32)
    whole, parts = (load_model(command.folder / f / "model")(points) for f in ("whole", "out"))
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
    losses = [load_history(command.folder / f / "state").losses for f in ("whole", "out")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_a_killed_run_goes_on_from_its_last_evaluation(command, monkeypatch):
    command.write(POISSON)

    class KilledError(Exception):
        pass

    saved = training._Saver.__call__

    def call(self, progress):
        saved(self, progress)
        if progress.step == 8:
            raise KilledError

    monkeypatch.setattr(training, "_save", lambda *_, **__: None)  # no time for last words
    monkeypatch.setattr(training._Saver, "__call__", call)
    monkeypatch.setattr(training, "_SAVING_SHARE", float("inf"))
    command("run", "config.yaml", "--no-figures", code=1)
    out = command.folder / "out"
    assert read_position(out / "state").step == 8
    # As after a crash between the two renames of a save.
    (out / "state").rename(out / "state.old")
    monkeypatch.undo()
    command("resume", "out", "--no-figures")
    assert load_history(out / "state").num_steps == 10


def test_without_its_optimizer_a_run_says_so(command, monkeypatch):
    command.write(POISSON)
    ctrl_c_at(monkeypatch, 2)
    command("run", "config.yaml", "--no-figures", code=130)
    (command.folder / "out" / "state" / "smoother.npz").unlink()
    output = command("resume", "out", "--no-figures")
    assert "the optimizer's state is not saved: it starts afresh" in output


def test_a_run_without_state_begins_again(command, monkeypatch):
    command.write(POISSON)
    ctrl_c_at(monkeypatch, 2)
    command("run", "config.yaml", "--no-figures", code=130)
    shutil.rmtree(command.folder / "out" / "state")
    command("resume", "out", "--no-figures")
    assert load_history(command.folder / "out" / "state").num_steps == 10


@pytest.mark.parametrize("damage", ["cut", "other shapes"])
def test_a_damaged_state_is_named(command, monkeypatch, damage):
    command.write(POISSON)
    ctrl_c_at(monkeypatch, 2)
    command("run", "config.yaml", "--no-figures", code=130)
    path = command.folder / "out" / "state" / "params.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
        expected = "params.npz is damaged"
    else:
        with np.load(path) as file:
            arrays = {name: file[name][..., :1] for name in file.files}
        np.savez(path, **arrays)
        expected = "params.npz does not fit the configuration"
    assert expected in command("resume", "out", code=2)


def test_seeds_that_are_finished_are_not_run_again(command, monkeypatch):
    command.write(POISSON + "seeds: [1, 2]\n")
    reports = []
    log = Reporter.__call__

    def call(self, progress):
        log(self, progress)
        reports.append(progress.step)
        if len(reports) == 7:  # in the second seed
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Reporter, "__call__", call)
    command("run", "config.yaml", "--no-figures", code=130)
    first = read_status(command.folder / "out" / "seed-1")
    assert first["status"] == "finished"
    command("resume", "out", "--no-figures")
    assert read_status(command.folder / "out" / "seed-1") == first
    assert read_status(command.folder / "out" / "seed-2")["status"] == "finished"
    assert (command.folder / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    "strategy", ["v-cycle", pytest.param("full-multigrid", marks=pytest.mark.slow)]
)
def test_cycles_go_on(command, monkeypatch, strategy):
    command.write(
        POISSON.replace("[4, 6]", "[6, 12]") + f"strategy: {{name: {strategy}, cycles: 3}}\n"
    )
    ctrl_c_at(monkeypatch, 10)
    command("run", "config.yaml", "--no-figures", code=130)
    before = read_position(command.folder / "out" / "state")
    assert before.cycles_done >= 1
    command("resume", "out", "--no-figures")
    after = read_position(command.folder / "out" / "state")
    assert after.level == 1
    assert after.cycles_done >= 3
    assert after.epochs_done[1] >= 12


@pytest.mark.slow
def test_batches_and_schedules_go_on(command, monkeypatch):
    values = np.random.default_rng(0).normal(size=(20, 16))
    np.savez(command.folder / "a.npz", a=values, u=values**2)
    command.write(
        "data: {path: a.npz}\nhierarchy: {levels: 2, modes: 4, width: 4, layers: 1}\n"
        "optimizer: {name: multilevel-adam, learning_rate: 1e-2, schedule: cosine}\n"
        "epochs: [4, 4]\nbatch_size: 6\nevaluation_interval: 1\noutput: out\nloggers: []\n"
    )
    ctrl_c_at(monkeypatch, 18)  # three steps per epoch: in the middle of level 1
    command("run", "config.yaml", "--no-figures", code=130)
    output = command("resume", "out", "--no-figures")
    assert "optimizer's state is restored; epochs left per level: [2]" in output
    assert load_history(command.folder / "out" / "state").num_steps == 24


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    (tmp_path / "a.yaml").write_text(
        POISSON.replace("epochs: [4, 6]", "epochs: [1000000, 5]"), encoding="utf-8"
    )
    command = [sys.executable, "-m", "opifex.cli"]
    process = subprocess.Popen(
        [*command, "run", "a.yaml", "--no-figures"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "out" / "state" / "position.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "resume out" in errors
    assert read_position(tmp_path / "out" / "state").step > 0
