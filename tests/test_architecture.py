"""What the rooms of the package may import and touch, and how many arguments a call may take."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import opifex

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
FILES = sorted((SOURCE / "opifex").rglob("*.py"))
ROOMS = ["opifex"] + [
    found.name for found in pkgutil.walk_packages(opifex.__path__, "opifex.") if found.ispkg
]
CORE = ["cycle", "data", "history", "monitor", "state", "train"]
MOST_ARGUMENTS = 10

# Public parts of named tuples, which begin with an underscore so as not to clash with fields.
NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}


def file_id(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE


def imported_modules(tree: ast.AST) -> set[str]:
    """Full names of what a module imports, without the names it takes from there."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names.add(str(node.module))
    return names


def defined_names(tree: ast.AST) -> set[str]:
    """Names that a module defines: functions, classes, variables and attributes of ``self``."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def foreign_private_names(tree: ast.AST) -> list[str]:
    """Underscore names that a module imports, or reads from what it does not define itself."""
    found = []
    known = defined_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and node.attr not in known:
            parts = [node.attr]
        else:
            continue
        found += [f"{part} in line {node.lineno}" for part in parts if is_private(part)]
    return found


def arguments(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def public_functions(module) -> dict:
    """Public functions of a module, and public methods of its public classes."""
    own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    functions = {name: value for name, value in own.items() if inspect.isroutine(value)}
    for name, value in own.items():
        if inspect.isclass(value) and not name.startswith("_"):
            functions |= {f"{name}.{n}": m for n, m in inspect.getmembers(value, inspect.isroutine)}
    return {n: f for n, f in functions.items() if not n.split(".")[-1].startswith("_")}


def test_contracts_hold():
    # In a process of its own: it configures logging, and imports without what tests have imported.
    program = "import importlinter.cli as cli; exit(cli.lint_imports(no_cache=True, no_logo=True))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", FILES, ids=file_id)
def test_private_names_stay_private(path):
    assert foreign_private_names(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line", ["from a import _b", "from a._b import c", "import a._b", "a.b()._c", "a._b = 1"]
)
def test_foreign_private_names_are_found(line):
    assert foreign_private_names(ast.parse(line))


@pytest.mark.parametrize("line", ["a._replace(b=1)", "a.__name__", "def _f(): ...\na._f"])
def test_other_names_are_left_alone(line):
    assert foreign_private_names(ast.parse(line)) == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_say_what_they_may_import(room):
    assert "may import" in (importlib.import_module(room).__doc__ or "")


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "opifex"])
def test_rooms_import_what_they_say(room):
    text = importlib.import_module(room).__doc__
    sentence = re.search(r"may import(.*?)(;|\.\s|\.$)", text, re.DOTALL)[1]
    allowed = [room, *re.findall(r"`(opifex\.[\w.]+)`", sentence)]
    for path in (SOURCE / room.replace(".", "/")).rglob("*.py"):
        imports = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
        ours = [name for name in imports if name.split(".")[0] == "opifex"]
        strange = [n for n in ours if not any(f"{n}.".startswith(f"{a}.") for a in allowed)]
        assert strange == [], path


@pytest.mark.parametrize("name", ["__init__", "fit"])
def test_the_trainer_takes_few_arguments(name):
    trainer = importlib.import_module("opifex.training.multilevel").CascadeTrainer
    assert 0 < len(arguments(getattr(trainer, name))) <= MOST_ARGUMENTS


@pytest.mark.parametrize("module", CORE)
def test_functions_of_the_core_take_few_arguments(module):
    functions = public_functions(importlib.import_module(f"opifex.training.multilevel.{module}"))
    taken = {name: arguments(function) for name, function in functions.items()}
    assert taken
    assert {name: names for name, names in taken.items() if len(names) > MOST_ARGUMENTS} == {}
