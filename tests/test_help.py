"""``help()`` of every public name stands alone."""

import importlib
import inspect
import pkgutil
import re

import pytest

import opifex

# What a docstring may lean on instead of naming its arguments once more.
_ELSEWHERE = re.compile(r"(Arguments|Attributes)[^.]* are those of `\w+(\.\w+)*`", re.IGNORECASE)
_POSITION = re.compile(
    r"\b(see|as|described|defined|shown|mentioned|of the|given) (above|below)\b", re.IGNORECASE
)
_PRIVATE = re.compile(r"`+(?:\w+\.)*_[a-z]\w*")
_OPTIONAL = {"matplotlib", "shapely", "typer", "pydantic"}


def modules():
    names = [module.name for module in pkgutil.walk_packages(opifex.__path__, "opifex.")]
    for name in ["opifex", *names]:
        try:
            yield importlib.import_module(name)
        except ImportError as error:  # an optional dependency that is not installed
            if (error.name or "").split(".")[0] not in _OPTIONAL:
                raise


def public():
    """Every public class and function once, by the name of its own module."""
    found = {}
    for module in modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            own = (getattr(value, "__module__", None) or "").startswith("opifex")
            if own and (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


PUBLIC = public()


def shown_methods(value):
    """What help shows of a class: its own public methods and properties."""
    for name, member in vars(value).items():
        function = member.fget if isinstance(member, property) else member
        function = getattr(function, "__func__", function)
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


def texts(value):
    yield inspect.getdoc(value) or ""
    if inspect.isclass(value):
        for _, function in shown_methods(value):
            yield inspect.getdoc(function) or ""


def test_there_is_something_to_look_at():
    assert len(PUBLIC) > 150
    assert "opifex.training.multilevel.trainer.CascadeTrainer" in PUBLIC


def parameters(value):
    """What a caller passes: no ``self``, nothing private."""
    if inspect.isclass(value):
        # Flax and list hide the arguments behind those of their own.
        own = [
            vars(base).get("__init__") for base in value.__mro__ if base.__module__ != "builtins"
        ]
        own = [method for method in own if "opifex" in getattr(method, "__module__", "") or ""]
        if own:
            value = own[0]
        elif not hasattr(value, "_fields") and not hasattr(value, "__dataclass_fields__"):
            return []
    skipped = {"self", "cls"}
    if getattr(value, "__module__", "") == "opifex.core.checks":
        skipped.add("name")  # of the argument, first in all of them
    names = inspect.signature(value).parameters
    return [name for name in names if name not in skipped and not name.startswith("_")]


def unexplained(value):
    """Arguments that the docstring of a class or function does not mention."""
    if inspect.isclass(value) and (
        getattr(value, "_is_protocol", False) or issubclass(value, Exception)
    ):
        return []  # not to be called by users
    text = " ".join((inspect.getdoc(value) or "").split())
    if _ELSEWHERE.search(text):
        return []
    try:
        wanted = parameters(value)
    except ValueError:  # enumerations and the like
        return []
    if len(wanted) == 1 and not inspect.isclass(value) and "Args:" not in text:
        return []  # one line says it all
    text = text.split("Example:")[0]
    return [argument for argument in wanted if not re.search(rf"\b{argument}\b", text)]


def pointers(value):
    """What docstrings refer to and ``help()`` does not show."""
    found = []
    for text in texts(value):
        text = " ".join(text.split())
        for pattern in (_POSITION, _PRIVATE):
            found += [
                f"...{text[max(0, hit.start() - 60) : hit.end() + 20]}..."
                for hit in pattern.finditer(text)
            ]
    return found


def private_types(value):
    """Annotations that name what a reader cannot look up."""
    functions = [value] if not inspect.isclass(value) else [f for _, f in shown_methods(value)]
    return [
        f"{function.__qualname__}: {annotation}"
        for function in functions
        for annotation in inspect.get_annotations(inspect.unwrap(function)).values()
        if re.search(r"(?<![\w.])_[A-Za-z]", str(annotation))
    ]


def undocumented(value):
    """The class or function itself, or methods that ``help()`` shows, without a docstring."""
    missing = [] if value.__doc__ and not value.__doc__.startswith(f"{value.__name__}(") else [""]
    if inspect.isclass(value):
        missing += [
            method
            for method, function in shown_methods(value)
            if not function.__doc__ and not inspect.getdoc(getattr(value, method))
        ]
    return missing


@pytest.mark.parametrize("fault", [undocumented, unexplained, pointers, private_types])
def test_help_stands_alone(fault):
    faults = {name: fault(value) for name, value in PUBLIC.items()}
    assert {name: found for name, found in faults.items() if found} == {}


def test_faults_are_found():
    class Silent:
        def method(self, x):
            pass

    def vague(x, y):
        """Args: x: see above; `_hidden` says more."""

    assert undocumented(Silent) == ["", "method"]
    assert unexplained(vague) == ["y"]
    assert len(pointers(vague)) == 2

    def secretive(x: "list[_Hidden]") -> None:
        pass

    assert len(private_types(secretive)) == 1
