"""Two commands lead from an empty folder to a trained model; the page of the command line is true."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from cli_configurations import commands_of, shorten
from opifex.cli.configuration import load_settings
from opifex.cli.model_files import read_model
from opifex.cli.registry import PROBLEMS
from opifex.cli.run_folder import RunFolder
from opifex.cli.tasks import held_out_rows
from opifex.core.metrics import relative_l2
from opifex.storage import load_function

PAGE = Path(__file__).parents[2] / "docs" / "command_line.md"


def save_fields(path, samples=20, points=16, inputs="force", outputs="height"):
    """Pairs of functions: waves, and a nonlinear function of them, in other units."""
    rng = np.random.default_rng(0)
    x = (np.arange(points) + 0.5) / points
    force = sum(rng.normal(size=(samples, 1)) * np.cos(np.pi * k * x) for k in range(1, 4))
    np.savez(path, **{inputs: force, outputs: 1e3 * np.sin(force) + 500})


def test_two_commands_from_a_file_to_a_model(command):
    save_fields(command.folder / "mine.npz", inputs="a", outputs="u")
    output = command("init", "--data", "mine.npz")
    assert output == "config.yaml is written; now: opifex-multilevel run config.yaml\n"
    shorten(command.folder / "config.yaml")
    output = command("run", "config.yaml", "--no-figures")
    assert "held out: 2 of 20 samples, never trained; error is measured on them" in output
    out = command.folder / "runs" / "mine"
    rows = json.loads((out / "data.json").read_text(encoding="utf-8"))["held_out_rows"]
    with np.load(command.folder / "mine.npz") as file:
        inputs, outputs = (jnp.asarray(file[name][rows, :, None], "float32") for name in "au")
    told = json.loads((out / "status.json").read_text(encoding="utf-8"))["error"]
    model = read_model(RunFolder(out))
    assert float(relative_l2(model(inputs), outputs)) == pytest.approx(told, rel=1e-4)
    command("export", "runs/mine", "--format", "jax")
    assert not (out / "model" / "scaling.json").exists()  # all of it is in the model
    served = load_function(out / "export" / "model.jax_export")
    assert float(relative_l2(served(inputs), outputs)) == pytest.approx(told, rel=1e-4)


def test_held_out_samples_are_never_trained(command):
    """Other values in the held-out rows change the error, and nothing of the training."""
    save_fields(command.folder / "mine.npz")
    command("init", "--data", "mine.npz", "--inputs", "force", "--outputs", "height")
    shorten(command.folder / "config.yaml")
    found = []
    for change in (0.0, 100.0):
        save_fields(command.folder / "mine.npz")
        with np.load(command.folder / "mine.npz") as file:
            arrays = dict(file)
        arrays["height"][held_out_rows(20, 0.1)] += change
        np.savez(command.folder / "mine.npz", **arrays)
        command("run", "config.yaml", "--no-figures", "-o", f"run-{change:.0f}")
        status = command.folder / f"run-{change:.0f}" / "status.json"
        found.append(json.loads(status.read_text(encoding="utf-8")))
    assert found[0]["loss"] == found[1]["loss"]
    assert found[0]["error"] != found[1]["error"]


@pytest.mark.slow
def test_a_table_is_fitted_by_a_network(command):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 3))
    np.savez(command.folder / "table.npz", x=x, y=100 * x[:, 0] * x[:, 1])
    command("init", "--data", "table.npz")
    settings, _ = load_settings(command.folder / "config.yaml")
    assert (settings.hierarchy.kind, settings.precision) == ("network", "float64")
    shorten(command.folder / "config.yaml")
    command("run", "config.yaml", "--no-figures")
    status = json.loads((command.folder / "runs/table/status.json").read_text(encoding="utf-8"))
    assert 0 < status["error"] < 10


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_has_an_example(command, name):
    command("init", "a.yaml", "--problem", name)
    settings, _ = load_settings(command.folder / "a.yaml")
    problem = PROBLEMS[name]
    assert problem(**settings.problem.parameters) == problem()


def test_commands_to_copy_are_quoted(command):
    output = command("init", "own run.yaml")
    assert "now: opifex-multilevel run 'own run.yaml'" in output
    text = (command.folder / "own run.yaml").read_text(encoding="utf-8")
    assert "opifex-multilevel run 'own run.yaml'" in text


def test_what_cannot_be_begun_is_refused(command):
    np.savez(command.folder / "strange.npz", one=np.ones((5, 8)), two=np.ones((5, 8)))
    assert "one" in command("init", "--data", "strange.npz", code=2)
    assert "there is no file" in command("init", "--data", "no.npz", code=2)
    assert "did you mean heat?" in command("init", "--problem", "het", code=2)
    assert "not both" in command("init", "--problem", "heat", "--data", "a.npz", code=2)
    command("init")
    assert "exists already" in command("init", code=2)
    assert "poisson" in (command.folder / "config.yaml").read_text(encoding="utf-8")


DATA = "data: {path: mine.npz, inputs: force, outputs: height}\noutput: out\nloggers: []\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("batch_size: 19\n", "batch_size must be at most the 18 training samples (2 are held out)"),
        ("hierarchy: {modes: 100}\n", "too coarse"),
        ("hierarchy: {modes: [2, 2]}\n", "must have one entry per axis of the grid [16]"),
    ],
)
def test_what_does_not_fit_the_data_is_told_before_anything_is_written(command, more, message):
    save_fields(command.folder / "mine.npz")
    command.write(DATA + more)
    assert message in command("run", "config.yaml", code=2)
    assert not (command.folder / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "no.npz"}, "data.path: there is no file"),
        ({"inputs": "forc"}, "force"),
        ({"held_out": 0.99}, "leaves nothing to train of 20 samples"),
    ],
)
def test_mistakes_in_the_data_section(command, change, message):
    save_fields(command.folder / "mine.npz")
    data = {"path": "mine.npz", "inputs": "force", "outputs": "height", **change}
    command.write(f"data: {json.dumps(data)}\noutput: out\n")
    assert message in command("run", "config.yaml", code=2)


def test_a_sample_without_output_has_no_relative_error(command):
    np.savez(command.folder / "mine.npz", force=np.ones((20, 16)), height=np.zeros((20, 16)))
    command.write(DATA)
    assert "height must not vanish" in command("run", "config.yaml", code=2)


def test_nothing_held_out_is_said(command):
    save_fields(command.folder / "mine.npz")
    command.write(
        DATA.replace("height}", "height, held_out: 0, normalize: false}")
        + "hierarchy: {levels: 1, width: 2, layers: 1}\nepochs: 1\n"
    )
    assert "held out: nothing" in command("run", "config.yaml", "--no-figures")
    status = (command.folder / "out" / "status.json").read_text(encoding="utf-8")
    assert "error" not in json.loads(status)


def test_advice_is_lines_for_the_configuration(command):
    save_fields(command.folder / "mine.npz", points=32)
    command.write(DATA + "hierarchy: {modes: 8, width: 2, layers: 1}\n")
    output = command("advise", "config.yaml", "--budget", "50")
    advice = yaml.safe_load(output.split("# for config.yaml:")[1])
    (size,) = advice["hierarchy"]["sizes"][-1]
    assert 1 <= size <= 8
    assert ("restrict the fields" in output) == (size < 8)
    assert len(advice["epochs"]) == len(advice["hierarchy"]["sizes"])
    # No grid but the file's own holds everything.
    strict = command("advise", "config.yaml", "--error", "1e-7", "--seconds", "2")
    assert yaml.safe_load(strict.split("# for config.yaml:")[1])["hierarchy"]["sizes"] == [[8]]


def test_advice_on_trial_functions(command):
    command.write(
        "problem: {name: poisson, interior_points: 64, conditions: hard}\n"
        "hierarchy: {hidden: [32]}\noutput: out\n"
    )
    output = command("advise", "config.yaml", "--budget", "50")
    advice = yaml.safe_load(output.split("# for config.yaml:")[1])
    (width,) = advice["hierarchy"]["sizes"][-1]
    assert 8 <= width <= 32
    assert 32 <= advice["problem"]["interior_points"] <= 64
    assert "64 points" in output


def test_no_advice_on_tables_says_why_and_what_to_do(command):
    x = np.random.default_rng(0).uniform(size=(20, 2))
    np.savez(command.folder / "table.npz", x=x, y=x)
    command.write("data: {path: table.npz}\nhierarchy: {kind: network}\noutput: out\n")
    output = command("advise", "config.yaml", code=2)
    assert "samples (samples, features) have none" in output
    assert "--strategies cascade,finest" in output


@pytest.mark.slow
def test_the_commands_of_the_page_run(command, monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # times do not matter here
    save_fields(command.folder / "fields.npz")
    ran = set()
    for arguments in commands_of(PAGE):
        if arguments[0] == "resume":  # as if Ctrl-C had been pressed
            path = command.folder / arguments[1] / "status.json"
            status = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**status, "status": "interrupted"}), encoding="utf-8")
        # The figures of one of them are enough.
        costly = arguments[0] in ("run", "resume", "compare") and ran
        command(*arguments, *(["--no-figures"] if costly else []))
        for path in command.folder.glob("*.yaml"):
            shorten(path)
        ran.add(arguments[0])
    assert ran == {
        "init",
        "run",
        "problems",
        "advise",
        "resume",
        "plot",
        "report",
        "export",
        "compare",
    }


def test_every_command_is_on_the_page(command):
    help_text = command("--help")
    names = re.findall(r"^  ([a-z]+) ", help_text.split("Commands:")[1], re.MULTILINE)
    assert len(names) == 9
    assert {arguments[0] for arguments in commands_of(PAGE)} == set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["poisson_cascade", "helmholtz_levenberg_marquardt", "heat_v_cycle"]
)
def test_examples_reach_what_they_are_for(command, name):
    path = PAGE.parents[1] / "examples" / "configs" / f"{name}.yaml"
    command("run", os.fspath(path), "--no-figures", "-o", "out")
    folder = command.folder / "out"
    name_of_result = "summary.json" if (folder / "summary.json").exists() else "status.json"
    result = json.loads((folder / name_of_result).read_text(encoding="utf-8"))
    error = result.get("median", result)["error"]
    assert error < {"poisson_cascade": 0.2, "helmholtz_levenberg_marquardt": 1e-4}.get(name, 0.2)
