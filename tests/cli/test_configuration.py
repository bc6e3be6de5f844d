"""Every mistake in a configuration is named with file, line, key and the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest

from opifex.cli.configuration import load_settings, settings_of
from opifex.cli.errors import ConfigurationError
from opifex.cli.registry import METHODS, PROBLEMS, make_optimizer
from opifex.cli.settings import OptimizerSettings
from opifex.cli.yaml_document import dump_yaml, parse_yaml

ROOT = Path(__file__).parents[2]


def problems_of(text):
    with pytest.raises(ConfigurationError) as caught:
        settings_of(parse_yaml(text, "a.yaml"), Path())
    return list(caught.value.problems)


def settings(text):
    return settings_of(parse_yaml(text, "a.yaml"), Path("/somewhere"))


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_parameters_and_data_have_no_less_than_single_precision(precision):
    kept = settings(P + f"precision: {precision}\n").dtype
    assert kept == ("float64" if precision == "float64" else "float32")


P = "problem: poisson\noutput: out\n"
D = "data:\n  path: a.npz\noutput: out\n"

MISTAKES = {
    "empty": ("", 1, "must be a mapping"),
    "a list": ("- 1\n", 1, "must be a mapping"),
    "no yaml": ("problem: [1\noutput: out\n", 2, "no valid YAML"),
    "a tab": ("problem:\n\tname: poisson\n", 2, "no valid YAML"),
    "twice": (P + "epochs: 1\nepochs: 2\n", 4, "epochs: given twice, first in line 3"),
    "twice within": (
        "problem: poisson\noptimizer:\n  name: adam\n  name: sgd\n",
        4,
        "optimizer.name: given twice, first in line 3",
    ),
    "unknown key": (P + "optimiser: adam\n", 3, "optimiser: unknown key; did you mean optimizer?"),
    "unknown key within": (
        P + "optimizer:\n  name: adam\n  learning_rat: 1\n",
        5,
        "optimizer.learning_rat: unknown key; did you mean learning_rate?",
    ),
    "no output": ("problem: poisson\n", 1, "output: is missing"),
    "no path": ("output: out\ndata:\n  inputs: a\n", 2, "data.path: is missing"),
    "no name": ("output: out\nproblem:\n  interior_points: 3\n", 2, "problem.name: is missing"),
    "neither": ("output: out\n", 1, "give either problem or data, got neither"),
    "both": (P + "data: {path: a.npz}\n", 1, "give either problem or data, got both"),
    "unknown problem": (
        "output: out\nproblem:\n  name: poison\n",
        3,
        "problem.name: unknown problem 'poison'; did you mean poisson?",
    ),
    "unknown problem in short": ("output: out\nproblem: burger\n", 2, "did you mean burgers?"),
    "unknown parameter": (
        "output: out\nproblem:\n  name: heat\n  parameters:\n    difusivity: 1.0\n",
        5,
        "problem.parameters.difusivity: unknown parameter of heat; did you mean diffusivity?",
    ),
    "parameter out of range": (
        "output: out\nproblem:\n  name: heat\n  parameters:\n    diffusivity: -1.0\n",
        5,
        "diffusivity must be positive, got -1.0",
    ),
    "parameter of the wrong kind": (
        "output: out\nproblem:\n  name: heat\n  parameters:\n    diffusivity: high\n",
        5,
        "problem.parameters.diffusivity: must be a number, got 'high'",
    ),
    "parameter that is no integer": (
        "output: out\nproblem:\n  name: helmholtz\n  parameters: {half_waves: 2.5}\n",
        4,
        "half_waves must be an integer",
    ),
    "unknown method": (
        P + "optimizer: levenberg\n",
        3,
        "optimizer.name: unknown method 'levenberg'; did you mean levenberg-marquardt?",
    ),
    "unknown option": (
        P + "optimizer:\n  name: adam\n  options:\n    beta1: 0.9\n",
        6,
        "optimizer.options.beta1: unknown option of adam; ",
    ),
    "option out of range": (
        P + "optimizer:\n  name: levenberg-marquardt\n  options:\n    initial_damping: 0\n",
        6,
        "initial_damping must be positive, got 0",
    ),
    "option of the wrong kind": (
        P + "optimizer:\n  name: adam\n  options:\n    b1: {a: 1}\n",
        6,
        "optimizer.options.b1: must be a value or a list of values, got {'a': 1}",
    ),
    "learning rate without use": (
        P + "optimizer:\n  name: lbfgs\n  learning_rate: 0.1\n",
        5,
        "optimizer.learning_rate: lbfgs has no learning rate",
    ),
    "schedule without use": (
        P + "optimizer:\n  name: adam-then-lbfgs\n  schedule: cosine\n",
        5,
        "optimizer.schedule: adam-then-lbfgs takes no schedule",
    ),
    "negative rate": (
        P + "optimizer: {learning_rate: -1e-3}\n",
        3,
        "optimizer.learning_rate: must be greater than 0, got -0.001",
    ),
    "text for a number": (P + "epochs: many\n", 3, "epochs: must be a positive integer"),
    "quoted number": (P + "batch_size: '3'\n", 3, "batch_size: must be a valid integer, got '3'"),
    "zero epochs": (P + "epochs: [0, 1, 1]\n", 3, "epochs: must be a positive integer or a list"),
    "number of epochs": (P + "epochs: [1, 2]\n", 3, "must have one entry per level (3)"),
    "no levels": (P + "hierarchy: {levels: 0}\n", 3, "hierarchy.levels: must be greater than or"),
    "coarsening": (P + "hierarchy: {coarsening: 2.0}\n", 3, "hierarchy.coarsening: must be less"),
    "activation": (
        P + "hierarchy:\n  activation: tan\n",
        4,
        "hierarchy.activation: must be one of the allowed values, got 'tan'; did you mean tanh?",
    ),
    "shrinking sizes": (
        P + "hierarchy:\n  sizes:\n  - [8]\n  - [4]\n",
        6,
        "must have as many entries as the coarser level, none smaller",
    ),
    "operator for a problem": (
        P + "hierarchy: {kind: fourier-operator}\n",
        3,
        "hierarchy.kind: a problem is solved by a network",
    ),
    "strategy": (
        P + "strategy: vcycle\n",
        3,
        "strategy.name: must be one of the allowed values, got 'vcycle'; did you mean v-cycle?",
    ),
    "precision": (
        P + "precision: float46\n",
        3,
        "precision: must be one of the allowed values, got 'float46'; did you mean float64?",
    ),
    "logger": (P + "loggers: [tensorbord]\n", 3, "loggers.0: must be one of the allowed values"),
    "no seeds": (P + "seeds: []\n", 3, "seeds: must"),
    "equal seeds": (P + "seeds: [1, 1]\n", 3, "seeds: must differ"),
    "held out": (
        D + "\nepochs: 1\n" + "seeds: [-1]\n",
        6,
        "seeds.0: must be greater than or equal",
    ),
    "everything held out": (
        "data: {path: a, held_out: 1}\noutput: o\n",
        1,
        "data.held_out: must be",
    ),
    "batches of unequal parts": (
        P + "batch_size: 8\n",
        3,
        "batch_size: points of the equation and",
    ),
    "batches for a full-batch method": (
        D + "optimizer: lbfgs\nbatch_size: 8\n",
        5,
        "batch_size: lbfgs needs all data at every step",
    ),
    "residuals of data": (
        D + "optimizer: levenberg-marquardt\n",
        4,
        "optimizer.name: levenberg-marquardt minimises residuals of an equation",
    ),
    "rediscretised with batches": (
        D + "batch_size: 4\nstrategy:\n  name: v-cycle\n  coarse: rediscretised\n",
        7,
        "strategy.coarse: rediscretised cannot serve a batch_size; use galerkin",
    ),
    "rediscretised with least squares": (
        P + "optimizer: gauss-newton\nstrategy: {name: w-cycle, coarse: rediscretised}\n",
        4,
        "strategy.coarse: rediscretised cannot serve optimizer gauss-newton",
    ),
}


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_file_line_and_key(text, line, message):
    (problem,) = problems_of(text)
    assert problem.startswith(f"a.yaml:{line}: "), problem
    assert message in problem


def test_all_mistakes_are_told_at_once():
    assert len(problems_of(P + "optimiser: adam\nepochs: -1\nseeds: [a]\n")) == 3


def test_a_mistake_ends_the_command(command):
    command.write("problem: poisson\noutput: out\nepoch: 3\n")
    output = command("run", "config.yaml", code=2)
    assert output.startswith("error: config.yaml:3: epoch: unknown key; did you mean epochs?")
    assert not (command.folder / "out").exists()


def test_a_missing_file_is_named(command):
    assert "cannot read the configuration no.yaml" in command("run", "no.yaml", code=2)


def test_numbers_with_an_exponent_are_numbers():
    given = settings(P + "optimizer: {learning_rate: 1e-3}\n").optimizer
    assert given.learning_rate == 1e-3


def test_names_stand_for_sections():
    found = settings(P + "strategy: w-cycle\noptimizer: natural-gradient\n")
    assert (found.strategy.name, found.optimizer.name) == ("w-cycle", "natural-gradient")


@pytest.mark.parametrize(
    ("more", "coarse"),
    [
        ("strategy: v-cycle\n", "rediscretised"),
        ("strategy: v-cycle\noptimizer: levenberg-marquardt\n", "galerkin"),
    ],
)
def test_what_coarse_levels_minimise_is_decided(more, coarse):
    assert settings(P + more).strategy.coarse == coarse


def test_data_are_found_from_the_folder_of_the_configuration(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {path: b/c.npz}\noutput: out\n", encoding="utf-8")
    found, _ = load_settings(tmp_path / "a.yaml")
    assert found.data.path == str(tmp_path / "b" / "c.npz")


def test_a_resolved_configuration_is_one_that_resolves_to_itself():
    found = settings(P + "strategy: v-cycle\noptimizer: sgd\nepochs: 7\n")
    again = settings_of(parse_yaml(dump_yaml(found.model_dump(exclude_none=True))), Path())
    assert again == found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_made(name):
    method = METHODS[name]
    rate = 0.1 if method.learning_rate else None
    for schedule in ["constant", *(["cosine"] if method.scheduled else [])]:
        given = OptimizerSettings(name=name, learning_rate=rate, schedule=schedule)
        assert make_optimizer(given, [3, 4]).smoother_at(1)


def test_all_problems_of_the_library_are_known():
    assert {"allen-cahn", "burgers", "heat", "helmholtz", "poisson"} <= set(PROBLEMS)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_examples_are_right(path):
    found, _ = load_settings(path)
    assert found.level_epochs
