"""A run leaves a folder that describes itself."""

from __future__ import annotations

import base64
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from opifex.cli.model_files import read_model, run_settings
from opifex.cli.parts import load_history
from opifex.cli.registry import PROBLEMS
from opifex.cli.report import seed_folders
from opifex.cli.run_folder import RunFolder
from opifex.cli.tasks import ProblemTask
from opifex.loggers.table_files import read_rows
from opifex.problems import Poisson
from opifex.storage import load_function, load_model


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_everything_is_in_the_folder(finished):
    out = finished.folder / "out"
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    expected = "configuration.yaml configuration.resolved.yaml versions.json status.json "
    expected += "metrics.csv metrics.parquet steps.csv steps.parquet accounts.json report.html "
    expected += "model/model.json state/1/0/content/metadata figures/loss-over-work.svg "
    expected += "figures/error-over-work.svg figures/timeline.svg figures/solution.svg "
    expected += "figures/error-spectra.svg spectra.json"
    assert set(expected.split()) <= names
    assert any(name.startswith("events/") for name in names)
    given = (finished.folder / "config.yaml").read_text(encoding="utf-8")
    assert (out / "configuration.yaml").read_text(encoding="utf-8") == given
    assert read_json(out / "versions.json")["jax"] == jax.__version__


def test_tables_say_what_happened(finished):
    pandas = pytest.importorskip("pandas")
    out = finished.folder / "out"
    steps = pandas.read_parquet(out / "steps.parquet")
    assert steps["level"].tolist() == [0] * 4 + [1] * 6
    assert steps["step"].tolist() == list(range(10))
    rows = read_rows(out / "metrics.csv")
    assert [(row["level"], row["epoch"]) for row in rows] == [
        (0, 2),
        (0, 4),
        (1, 2),
        (1, 4),
        (1, 6),
    ]
    assert pandas.read_parquet(out / "metrics.parquet")["step"].tolist() == [2, 4, 6, 8, 10]
    with (out / "steps.csv").open(encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(losses, steps["loss"])
    history = load_history(RunFolder(out))
    np.testing.assert_allclose(losses, history.losses)
    # In units of the finest level, also what was written before that was priced.
    done = history.table()["work"][[row["step"] - 1 for row in rows]]
    np.testing.assert_allclose([row["work"] for row in rows], done)
    assert all(np.diff(done) > 0)
    spent = read_json(out / "accounts.json")
    assert sum(v for k, v in spent.items() if k != "total") == pytest.approx(spent["total"])


def test_the_model_is_the_one_whose_error_is_told(finished):
    out = finished.folder / "out"
    status = read_json(out / "status.json")
    assert status["status"] == "finished"
    error = float(Poisson().relative_l2_error(load_model(out / "model")))
    assert error == pytest.approx(status["error"], rel=1e-5)
    assert read_rows(out / "metrics.csv")[-1]["error"] == pytest.approx(error, rel=1e-5)


def test_the_report_needs_nothing_else(finished):
    page = (finished.folder / "out" / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 6
    for source in sources:
        kind, content = source.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(content)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)
    for text in ("interior_points: 40", jax.__version__, "compile", "finished"):
        assert text in page


def test_another_run_is_not_overwritten_unasked(finished):
    assert "is not empty" in finished("run", "config.yaml", code=2)
    assert "there is nothing to go on with" in finished("resume", "out", code=2)


def test_only_a_run_is_ever_overwritten(command, finished):
    command.write((finished.folder / "config.yaml").read_text(encoding="utf-8"))
    (command.folder / "out").mkdir()
    (command.folder / "out" / "dear.txt").write_text("dear", encoding="utf-8")
    assert "is no run folder" in command("run", "config.yaml", "--overwrite", code=2)
    assert (command.folder / "out" / "dear.txt").exists()


def test_output_and_overwrite(command, finished):
    command.write((finished.folder / "config.yaml").read_text(encoding="utf-8"))
    output = command("run", "config.yaml", "--output", "a/b", "--no-figures")
    assert "run folder: a/b" in output
    assert not (command.folder / "a/b/report.html").exists()
    command("run", "config.yaml", "--output", "a/b", "--no-figures", "--overwrite")


def test_lines_are_plain_and_tell_everything(command, finished):
    command.write((finished.folder / "config.yaml").read_text(encoding="utf-8"))
    lines = command("run", "config.yaml", "--no-figures").splitlines()
    assert not any("\x1b" in line for line in lines)
    assert "compiling level 0" in lines
    assert "transferring to level 1" in lines
    (last,) = [line for line in lines if line.startswith("level 1 of 0..1  epoch 6/6")]
    for word in ("loss", "error", "steps/s", "work units", "so far", "left"):
        assert word in last


@pytest.mark.slow
def test_figures_and_report_can_be_drawn_again(finished):
    assert not list((finished.folder / "out" / "figures").glob("*.png"))
    output = finished("plot", "out")
    assert len(list((finished.folder / "out" / "figures").glob("*.png"))) == 6
    assert "out/figures/timeline.svg: Where the time went." in output
    assert finished("report", "out") == "report: out/report.html\n"


def test_what_cannot_be_written_is_told(command, finished):
    """A file where a folder should be: permissions do not keep a superuser out."""
    (command.folder / "file").write_text("", encoding="utf-8")
    command.write((finished.folder / "config.yaml").read_text(encoding="utf-8"))
    out = str(finished.folder / "out")
    for arguments in (
        ["run", "config.yaml", "--output", "file/run"],
        ["init", "file/own.yaml"],
        ["export", out, "--output", "file/there"],
    ):
        output = command(*arguments, code=2)
        assert re.match(r"error: file[\w/.]*: (Not a directory|File exists)\n", output), output


@pytest.mark.parametrize("name", ["plot", "report", "export", "resume"])
def test_a_folder_that_is_no_run_is_refused(command, name):
    assert "is no run folder" in command(name, ".", code=2)


def test_export_writes_weights_and_a_function(finished):
    output = finished("export", "out", "-o", "there")
    there = finished.folder / "there"
    assert "there/model.jax_export" in output
    points = np.random.default_rng(0).random((5, 2), np.float32)
    model = load_model(there)
    np.testing.assert_allclose(
        load_function(there / "model.jax_export")(points), model(points), rtol=1e-5, atol=1e-7
    )
    assert "did you mean safetensors?" in finished(
        "export", "out", "--format", "safetensor", code=2
    )
    assert "--seed must be one of [0]" in finished("export", "out", "--seed", "3", code=2)


SEEDS = """\
problem: {name: heat, interior_points: 30, boundary_points: 12, conditions: hard}
hierarchy: {levels: 2, hidden: [4]}
optimizer: adam
epochs: 2
seeds: [3, 5]
precision: float64
output: out
loggers: []
"""


@pytest.mark.slow
def test_several_seeds_have_folders_and_a_summary(command):
    command.write(SEEDS)
    output = command("run", "config.yaml", "--no-figures")
    assert "seed 3: compiling level 0" in output
    out = command.folder / "out"
    summary = read_json(out / "summary.json")
    assert [row["seed"] for row in summary["seeds"]] == [3, 5]
    errors = [row["error"] for row in summary["seeds"]]
    assert errors[0] != errors[1]
    assert min(errors) <= summary["median"]["error"] <= max(errors)
    folder = RunFolder(out)
    settings = run_settings(folder)
    with jax.enable_x64(True):
        problem = PROBLEMS["heat"]()
        for (_, where), error in zip(seed_folders(folder, settings), errors, strict=True):
            model = read_model(where)
            found = problem.relative_l2_error(model)
            assert found.dtype == "float64"
            assert float(found) == pytest.approx(error, rel=1e-6)
    assert "--seed must say which of [3, 5]" in command("export", "out", code=2)
    assert "model.json" in command("export", "out", "--seed", "5", "--format", "safetensors")


@pytest.mark.slow
def test_bfloat16_is_the_precision_of_the_evaluation_alone(command):
    first = {}
    for precision in ("float32", "bfloat16"):
        text = SEEDS.replace("[3, 5]", "[3]").replace("levels: 2", "levels: 1")
        command.write(text.replace("float64", precision).replace("out\n", f"{precision}\n"))
        command("run", "config.yaml", "--no-figures")
        folder = RunFolder(command.folder / precision)
        assert run_settings(folder).dtype == "float32"
        kept = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(read_model(folder)))}
        assert kept == {np.dtype("float32")}
        first[precision] = load_history(folder).losses[0]
    assert first["bfloat16"] != first["float32"]
    assert first["bfloat16"] == pytest.approx(first["float32"], rel=0.2)


@pytest.mark.slow
def test_the_report_of_several_seeds_has_the_figures_of_each(command):
    command.write(SEEDS)
    command("run", "config.yaml")
    page = (command.folder / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 12
    for text in ("<h2>seed 3</h2>", "<h2>seed 5</h2>", "<th>error</th>"):
        assert text in page


@pytest.mark.parametrize("strategy", ["v-cycle", "full-multigrid", "finest"])
def test_every_strategy_runs(command, finished, strategy):
    text = (finished.folder / "config.yaml").read_text(encoding="utf-8")
    command.write(text + f"strategy: {{name: {strategy}, cycles: 2}}\n")
    command("run", "config.yaml", "--no-figures")
    levels = {row["level"] for row in read_rows(command.folder / "out" / "metrics.csv")}
    assert levels == ({0} if strategy == "finest" else {0, 1})


def test_training_that_diverges_is_told_and_saved(command, finished):
    text = (finished.folder / "config.yaml").read_text(encoding="utf-8")
    command.write(text.replace("adam", "sgd").replace("1e-2", "1e+30"))
    assert "training failed: " in command("run", "config.yaml", code=2)
    status = read_json(command.folder / "out" / "status.json")
    assert status["status"] == "failed"
    assert "finite" in status["reason"]


def test_a_model_that_cannot_be_written_does_not_undo_the_run(command, finished, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(ProblemTask, "save_model", fail)
    command.write((finished.folder / "config.yaml").read_text(encoding="utf-8"))
    assert "disk full" in command("run", "config.yaml", "--no-figures")
    assert read_json(command.folder / "out" / "status.json")["status"] == "finished"
    assert "holds no model yet" in command("export", "out", code=2)


def test_problems_and_methods_are_listed(command):
    output = command("problems")
    assert "helmholtz: The Helmholtz problem" in output
    assert "    half_waves: 4" in output
    assert (
        "burgers: The viscous Burgers equation. u_t + u u_x = nu u_xx on [-1, 1] x [0, 1]" in output
    )
    assert "levenberg-marquardt: " in command("problems", "--methods")


@pytest.mark.parametrize(
    "arguments", [pytest.param(["problems"], marks=pytest.mark.slow), ["run", "wrong.yaml"]]
)
def test_the_installed_command(tmp_path, arguments):
    script = Path(sys.executable).with_name("opifex-multilevel")
    if not script.exists():
        pytest.skip("the package was installed before it had the command: pip install -e .")
    (tmp_path / "wrong.yaml").write_text("outputs: here\n", encoding="utf-8")
    result = subprocess.run(
        [str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if arguments == ["problems"]:
        assert result.returncode == 0
        assert "poisson" in result.stdout
    else:
        assert result.returncode == 2
        assert "wrong.yaml:1: outputs: unknown key; did you mean output?" in result.stderr


def test_a_missing_package_is_named():
    program = "import sys; sys.modules['typer'] = None; import opifex.cli as cli; cli.main()"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "pip install 'opifex-multilevel[cli]'" in result.stderr
