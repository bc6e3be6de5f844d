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

from cli_configurations import POISSON, commands_of, shorten
from opifex.cli import state_saver
from opifex.cli.run_folder import RunFolder
from opifex.cli.saved_state import load_history, read_position
from opifex.cli.spectra import read_spectra
from opifex.loggers import Reporter
from opifex.loggers.table_files import read_rows
from opifex.storage import load_model

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "resuming.md"


@pytest.fixture(autouse=True)
def heed_ctrl_c():
    """Shells start background jobs with Ctrl-C ignored, which the runs here would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def read_status(folder):
    return json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))


def ctrl_c_at(monkeypatch, step, number=signal.SIGINT):
    """Press Ctrl-C, or send another signal, when a run has taken so many steps, once."""
    log = Reporter.__call__
    pressed = []

    def call(self, progress):
        log(self, progress)
        if progress.step >= step and not pressed:
            pressed.append(step)
            signal.raise_signal(number)

    monkeypatch.setattr(Reporter, "__call__", call)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        pytest.param(2, signal.SIGINT, marks=pytest.mark.slow),
        (4, signal.SIGINT),
        (8, signal.SIGTERM),
    ],
)
def test_an_interrupt_ends_with_a_saved_state_and_resume_goes_on(
    command, monkeypatch, step, number
):
    command.write(POISSON)
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c_at(monkeypatch, step, number)
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
    spectra = read_spectra(RunFolder(out))
    assert [(s.level, s.epoch) for s in spectra][0::2] == [(0, 0), (1, 6 if step < 8 else 2)]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_is_given_further_epochs(command):
    command.write(POISSON)
    command("run", "config.yaml", "--no-figures")
    assert "give --more EPOCHS" in command("resume", "out", code=2)
    command("resume", "out", "--more", "3", "--no-figures")
    out = command.folder / "out"
    assert load_history(out / "state").table()["level"].tolist() == [0] * 4 + [1] * 9
    assert read_status(out)["status"] == "finished"
    output = command("resume", "out", "--more", "1", "--no-figures")
    assert "epochs left per level: [1]" in output


def test_the_commands_of_the_tutorial_run(command, monkeypatch):
    ctrl_c_at(monkeypatch, 3)
    init, run, *rest = commands_of(PAGE)
    command(*init)
    shorten(command.folder / init[1])
    output = command(*run, "--no-figures", code=130)
    told = "interrupted: the state is saved; go on with: opifex-multilevel resume runs/poisson\n"
    assert output.endswith(told)
    assert told in PAGE.read_text(encoding="utf-8")
    for arguments in rest:
        assert "going on at level 1" in command(*arguments, "--no-figures")
    assert load_history(command.folder / "runs/poisson/state").num_steps == 4 + 100


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

    saved = state_saver.StateSaver.__call__

    def call(self, progress):
        saved(self, progress)
        if progress.step == 8:
            raise KilledError

    monkeypatch.setattr(
        state_saver.StateSaver, "save", lambda *_, **__: None
    )  # no time for last words
    monkeypatch.setattr(state_saver.StateSaver, "__call__", call)
    monkeypatch.setattr(state_saver, "SAVING_SHARE", float("inf"))
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


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_an_interrupt_of_a_process_of_its_own(command, tmp_path, number):
    (tmp_path / "a.yaml").write_text(
        POISSON.replace("epochs: [4, 6]", "epochs: [1000000, 5]"), encoding="utf-8"
    )
    command_line = [sys.executable, "-m", "opifex.cli", "run", "a.yaml", "--no-figures"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command_line, cwd=tmp_path, text=True, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()  # as ``| head -1`` does: the run goes on without a reader
        deadline = time.monotonic() + 300
        while not (tmp_path / "out" / "state" / "position.json").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        errors = process.stderr.read()
    assert process.returncode == 130, errors
    assert "resume out" in errors
    assert read_status(tmp_path / "out")["status"] == "interrupted"
    steps = read_position(tmp_path / "out" / "state").step
    assert steps > 0
    resolved = tmp_path / "out" / "configuration.resolved.yaml"
    text = resolved.read_text(encoding="utf-8")
    resolved.write_text(text.replace("- 1000000", "- 1"), encoding="utf-8")
    command("resume", "out", "--no-figures")
    assert (
        load_history(tmp_path / "out" / "state").table()["level"].tolist() == [0] * steps + [1] * 5
    )
