"""A run that was ended, by whatever, and taken up is the run that was not ended."""

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
from opifex.cli.parts import history_so_far, load_history
from opifex.cli.run_folder import RunFolder
from opifex.cli.spectra import read_spectra
from opifex.loggers import Reporter
from opifex.loggers.table_files import read_rows

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "resuming.md"

BATCHES = """\
data: {path: table.npz, held_out: 0.2}
hierarchy: {kind: network, levels: 2, hidden: [6]}
optimizer: {name: multilevel-adam, learning_rate: 1e-2, schedule: cosine}
epochs: [4, 6]
batch_size: 10
evaluation_interval: 1
output: out
checkpoint_every: 0
loggers: []
"""
"""Three steps per epoch, two samples left out of each, and rates that fall."""


def write(command, text=BATCHES, name="config.yaml"):
    """A configuration, and the table of forty samples that it may name."""
    x = np.linspace(-1.0, 1.0, 80, dtype=np.float32).reshape(40, 2)
    np.savez(command.folder / "table.npz", x=x, y=np.sin(x[:, :1]) * x[:, 1:])
    command.write(text, name)


@pytest.fixture(autouse=True)
def heed_ctrl_c():
    """Shells start background jobs with Ctrl-C ignored, which the runs here would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def read_status(folder):
    return json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))


def steps_on_disk(folder):
    return load_history(RunFolder(Path(folder))).num_steps


def results(folder):
    """Everything in a run folder but times: what must be the same, bit for bit."""
    folder = Path(folder)
    rows = [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in read_rows(folder / "metrics.csv")
    ]
    table = load_history(RunFolder(folder)).table()
    columns = {name: values.tolist() for name, values in table.items() if name != "seconds"}
    files = [*(folder / "model").iterdir(), *folder.glob("spectra.json")]
    return columns | {"rows": rows} | {file.name: file.read_bytes() for file in files}


def differences(one, other):
    found, expected = results(one), results(other)
    return [name for name in expected | found if found.get(name) != expected.get(name)]


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


KILLED = """
import os, signal, sys, time
from opifex.cli.app import app
from opifex.loggers import Reporter

log = Reporter.__call__

def call(self, progress):
    log(self, progress)
    time.sleep(0.1)  # as if steps took longer, so that some checkpoint is written before the end
    if progress.step >= int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

Reporter.__call__ = call
app(sys.argv[2:])
"""


def kill_at(step, folder, *arguments):
    """Carry out a command in a process that is killed, without last words, after so many steps."""
    command_line = [sys.executable, "-c", KILLED, str(step), *arguments, "--no-figures"]
    ended = subprocess.run(command_line, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert read_status(folder / "out")["status"] == "running"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_batches_of_a_run_that_is_killed_in_each_part(command):
    write(command, BATCHES + "further_epochs: [4]\n", "whole.yaml")
    command("run", "whole.yaml", "--no-figures", "-o", "whole")
    write(command)
    out = command.folder / "out"
    kill_at(21, command.folder, "run", "config.yaml")
    assert 0 < steps_on_disk(out) < 21
    command("resume", "out", "--no-figures")
    assert steps_on_disk(out) == 30
    kill_at(39, command.folder, "resume", "out", "--more", "4")
    assert 30 < steps_on_disk(out) < 39
    assert f"after {steps_on_disk(out)} steps" in command("resume", "out", "--no-figures")
    assert steps_on_disk(out) == 42
    assert differences(out, command.folder / "whole") == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_batches_of_a_cycle_that_is_killed(command):
    cycles = BATCHES + "strategy: {name: v-cycle, cycles: 2}\n"
    write(command, cycles + "further_epochs: [2]\n", "whole.yaml")
    command("run", "whole.yaml", "--no-figures", "-o", "whole")
    write(command, cycles)
    out = command.folder / "out"
    kill_at(18, command.folder, "run", "config.yaml")
    assert 0 < steps_on_disk(out) < 18
    command("resume", "out", "--more", "2", "--no-figures")
    assert steps_on_disk(out) == 36
    assert differences(out, command.folder / "whole") == []


EQUATION = {
    "data": None,
    "problem": "{name: poisson, interior_points: 32, boundary_points: 16}",
    "hierarchy": "{levels: 2, hidden: [6]}",
    "batch_size": None,
}


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [5, 16]),
        *(
            pytest.param(changes, steps, marks=pytest.mark.slow)
            for changes, steps in [
                ({"strategy": "{name: v-cycle, cycles: 3}"}, [7, 20]),
                ({"strategy": "finest"}, [7]),
                ({"strategy": "{name: w-cycle, cycles: 2}", "further_epochs": "[2, 1]"}, [17, 31]),
                ({"strategy": "{name: full-multigrid, cycles: 2}"}, [10, 22]),
                ({"strategy": "{name: cascade, transfer: padding}", "precision": "float64"}, [9]),
                ({"optimizer": "adam-then-lbfgs", "batch_size": "null"}, [5]),
                (EQUATION | {"optimizer": "levenberg-marquardt"}, [3, 6]),
                (EQUATION | {"optimizer": "adam", "strategy": "v-cycle"}, [3, 6]),
            ]
        ),
    ],
    ids=str,
)
def test_every_strategy_is_interrupted_and_taken_up(command, monkeypatch, changes, steps):
    given = dict(line.split(": ", 1) for line in BATCHES.splitlines()) | changes
    write(command, "".join(f"{key}: {value or 'null'}\n" for key, value in given.items()))
    command("run", "config.yaml", "--no-figures", "-o", "whole")
    arguments = ["run", "config.yaml"]
    for step in steps:
        with monkeypatch.context() as patch:
            ctrl_c_at(patch, step)
            command(*arguments, "--no-figures", code=130)
        assert steps_on_disk(command.folder / "out") >= step
        arguments = ["resume", "out"]
    command(*arguments, "--no-figures")
    assert differences(command.folder / "out", command.folder / "whole") == []


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
    assert read_status(out)["steps"] == steps_on_disk(out) == step
    output = command("resume", "out", "--no-figures")
    assert f"going on at level {int(step > 4)} after {step} steps" in output
    assert read_status(out)["status"] == "finished"
    history = load_history(RunFolder(out))
    assert history.table()["level"].tolist() == [0] * 4 + [1] * 6
    rows = read_rows(out / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    spectra = read_spectra(RunFolder(out))
    assert [(s.level, s.epoch) for s in spectra] == [(0, 0), (0, 4), (1, 6)]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_is_given_further_epochs(command):
    command.write(POISSON)
    command("run", "config.yaml", "--no-figures")
    assert "give --more EPOCHS" in command("resume", "out", code=2)
    command("resume", "out", "--more", "3", "--no-figures")
    out = command.folder / "out"
    history = load_history(RunFolder(out))
    assert history.table()["level"].tolist() == [0] * 4 + [1] * 9
    assert read_status(out)["status"] == "finished"
    command("resume", "out", "--more", "1", "--no-figures")
    command.write(POISSON + "further_epochs: [3, 1]\n", "whole.yaml")
    command("run", "whole.yaml", "--no-figures", "-o", "whole")
    assert differences(out, command.folder / "whole") == []
    # The seconds of no part are counted twice.
    again = load_history(RunFolder(out))
    assert again.seconds == pytest.approx(sum(s.seconds for s in again.stretches))


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
    assert steps_on_disk(command.folder / "runs/poisson") == 4 + 100


def test_a_run_without_checkpoints_begins_again(command, monkeypatch):
    command.write(POISSON)
    ctrl_c_at(monkeypatch, 2)
    command("run", "config.yaml", "--no-figures", code=130)
    out = command.folder / "out"
    shutil.rmtree(out / "state")
    assert history_so_far(RunFolder(out)) is None
    assert "holds no checkpoint yet" in command("plot", "out", code=2)
    assert "going on" not in command("resume", "out", "--no-figures")
    assert steps_on_disk(out) == 10
    assert len(read_rows(out / "metrics.csv")) == 5
    assert len(read_spectra(RunFolder(out))) == 3


# What is left of a read that failed reports to an event loop that is closed, within TensorStore.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoints_are_passed_over_or_named(command, monkeypatch):
    command.write(POISSON + "checkpoint_every: 0\n")
    ctrl_c_at(monkeypatch, 6)
    command("run", "config.yaml", "--no-figures", code=130)
    out = command.folder / "out"
    entries = sorted((out / "state" / "1").iterdir(), key=lambda path: int(path.name))
    assert len(entries) > 1
    for entry in entries[:0:-1]:
        (entry / "content" / "metadata").write_bytes(b"{}")
    with pytest.warns(UserWarning, match="going on from checkpoint"):
        assert steps_on_disk(out) < 6
    (entries[0] / "content" / "metadata").write_bytes(b"{}")
    for arguments in (["resume", "out"], ["report", "out"]):
        assert "no checkpoint that can be read" in command(*arguments, code=2)


def test_a_report_leaves_the_rows_alone_while_a_run_adds_some(command, monkeypatch):
    command.write(POISSON)
    ctrl_c_at(monkeypatch, 6)
    command("run", "config.yaml", "--no-figures", code=130)
    out = RunFolder(command.folder / "out")
    out.set_status("running")
    before = (out.path / "metrics.csv").stat()
    command("report", "out")
    after = (out.path / "metrics.csv").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    out.set_status("interrupted")
    command("report", "out")
    work = [row["work"] for row in read_rows(out.path / "metrics.csv")]
    assert work == load_history(out).table()["work"][[1, 3, 5]].tolist()


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


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
        while not (tmp_path / "out" / "metrics.csv").exists() or not read_rows(
            tmp_path / "out" / "metrics.csv"
        ):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        errors = process.stderr.read()
    assert process.returncode == 130, errors
    assert "resume out" in errors
    assert read_status(tmp_path / "out")["status"] == "interrupted"
    assert steps_on_disk(tmp_path / "out") == read_status(tmp_path / "out")["steps"] > 0
    # Only the same run is taken up.
    resolved = tmp_path / "out" / "configuration.resolved.yaml"
    text = resolved.read_text(encoding="utf-8")
    resolved.write_text(text.replace("- 1000000", "- 1"), encoding="utf-8")
    output = command("resume", "out", "--no-figures", code=2)
    assert "holds the checkpoint of another run: moves of the cycle" in output
