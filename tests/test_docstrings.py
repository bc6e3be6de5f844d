"""Docstrings: public names have one, the most used have an example, and all examples run."""

import ast
import doctest
import importlib
import inspect
import itertools
import pkgutil
from functools import cache
from pathlib import Path

import pytest

import opifex

ROOMS = [
    "opifex.core",
    "opifex.core.physics",
    "opifex.models",
    "opifex.problems",
    "opifex.data",
    "opifex.optimization",
    "opifex.optimization.second_order",
    "opifex.storage",
    "opifex.training.multilevel",
    "opifex.viz",
    "opifex.loggers",
]

WITH_EXAMPLE = {
    "opifex.core": ["ResidualTerm"],
    "opifex.data": ["read_fields"],
    "opifex.storage": ["export_function", "save_model"],
    "opifex.core.physics": ["GradNormBalancer", "directional_derivatives"],
    "opifex.models": ["EquinoxModel", "FNO", "FunctionalModel", "MLP", "TrialFunction"],
    "opifex.optimization": ["scale_by_age_corrected_adam"],
    "opifex.optimization.second_order": ["LevenbergMarquardt"],
    "opifex.problems": ["PlanarRegion", "Poisson"],
    "opifex.training.adaptive_sampling": ["RADSampler", "ResidualResampler"],
    "opifex.training.multilevel": [
        "Balanced",
        "Cascade",
        "CascadeTrainer",
        "CascadeTrainer.fit",
        "FullMultigrid",
        "History",
        "JacobianBalancing",
        "LossPlateau",
        "Monitor",
        "MultilevelAdam",
        "MultilevelConfig",
        "Resampled",
        "VCycle",
        "create_depth_hierarchy",
        "create_fno_hierarchy",
        "create_hierarchy",
        "create_multiscale_hierarchy",
        "create_network_hierarchy",
        "fit_in_stages",
        "prolongate",
        "prolongate_preserving",
        "resolution_hierarchy",
        "restrict",
        "verify_transfer",
    ],
    "opifex.viz": [
        "SnapshotRecorder",
        "error_spectra",
        "plot_fields",
        "plot_history",
        "plot_rate_transfer",
        "publication_style",
        "radial_spectrum",
        "transfer_jumps",
    ],
}

MODULES = sorted(found.name for found in pkgutil.walk_packages(opifex.__path__, "opifex."))


def examples(name: str) -> list[doctest.DocTest]:
    """Examples of a module; an empty namespace, so that each shows the imports that it needs."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = finder.find(importlib.import_module(name), name, globs={})
    return [test for test in tests if test.examples]


def is_described(room: str, name: str) -> bool:
    """Whether a public name says what it is.

    A class or function does so by a docstring of its own, which dataclasses and named tuples without
    one replace by their signature. Any other value does by a string behind its assignment.
    """
    value = getattr(importlib.import_module(room), name)
    if inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value)):
        text = (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or ""
        return bool(text.strip()) and not text.startswith(f"{value.__name__}(")
    return any(name in described_values(module) for module in MODULES)


@cache
def described_values(module: str) -> set[str]:
    path = Path(inspect.getfile(importlib.import_module(module)))
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = set()
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("module", [name for name in MODULES if examples(name)])
def test_examples_run(module, capsys):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in examples(module):
        runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0, capsys.readouterr().out


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_described(room):
    names = importlib.import_module(room).__all__
    assert names
    assert [name for name in names if not is_described(room, name)] == []


@pytest.mark.parametrize(
    ("room", "name"), [(room, name) for room, names in WITH_EXAMPLE.items() for name in names]
)
def test_most_used_names_have_an_example(room, name):
    assert ">>>" in pkgutil.resolve_name(f"{room}:{name}").__doc__
