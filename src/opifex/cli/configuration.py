"""Reading a configuration: every error names file, line and key, and the nearest valid name."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from opifex.cli.errors import ConfigurationError, nearest
from opifex.cli.registry import METHODS, PROBLEMS, Method, make_optimizer
from opifex.cli.settings import RunSettings, StrategySettings
from opifex.cli.yaml_document import Location, YamlDocument, read_yaml

__all__ = ["load_settings", "settings_of"]

Mistake = tuple[Location, str]
"""Where in a configuration, and what is wrong."""


def load_settings(path: str | os.PathLike[str]) -> tuple[RunSettings, YamlDocument]:
    """Read and check a configuration.

    Args:
        path: the YAML file.

    Returns:
        The settings, with the data path made absolute and ``auto`` decided, and the document.

    Raises:
        CommandError: if the file cannot be read.
        ConfigurationError: if it is not right.
    """
    document = read_yaml(path)
    return settings_of(document, Path(path).resolve().parent), document


def settings_of(document: YamlDocument, folder: Path) -> RunSettings:
    r"""The checked settings of a document.

    Args:
        document: the document.
        folder: where relative paths of data start.

    Raises:
        ConfigurationError: if it is not right; all mistakes are listed.

    Example:
        >>> from pathlib import Path
        >>> from opifex.cli.configuration import settings_of
        >>> from opifex.cli.errors import ConfigurationError
        >>> from opifex.cli.yaml_document import parse_yaml
        >>> document = parse_yaml("problem: poisson\noutput: run\nepoch: 3\n", "a.yaml")
        >>> try:
        ...     settings_of(document, Path())
        ... except ConfigurationError as error:
        ...     print(str(error)[:54])
        a.yaml:3: epoch: unknown key; did you mean epochs? (al
    """
    if not isinstance(document.values, Mapping):
        raise ConfigurationError(
            [f"{document.name}:1: must be a mapping of keys to values, see opifex-multilevel init"]
        )
    try:
        settings = RunSettings.model_validate(document.values)
    except ValidationError as error:
        raise ConfigurationError(
            [document.at(*_place_and_reason(details)) for details in error.errors()]
        ) from error
    found = [document.at(where, reason) for where, reason in _disagreements(settings)]
    if found:
        raise ConfigurationError(found)
    return _resolved(settings, folder)


def _place_and_reason(details: Any) -> tuple[Location, str]:
    """Where and what is wrong, from one error of pydantic."""
    location: Location = tuple(details["loc"])
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        section = _section(location[:-1])
        names = list(section.model_fields) if section else []
        return location, f"unknown key; {nearest(location[-1], names)}"
    if kind == "missing":
        return location, "is missing"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", details["ctx"]["expected"])
        return location, f"must be one of the allowed values, got {given!r}; " + nearest(
            given, allowed
        )
    message = details["msg"].removeprefix("Value error, ")
    message = message.removeprefix("Input should be ")
    return location, f"must be {message.removeprefix('must be ')}, got {given!r}"


def _section(location: Location) -> type[BaseModel] | None:
    """The section that a location leads to."""
    section: type[BaseModel] = RunSettings
    for name in location:
        if not isinstance(name, str) or name not in section.model_fields:
            return None
        kinds = _alternatives(section.model_fields[name].annotation)
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not sections:
            return None
        section = sections[0]
    return section


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def _disagreements(settings: RunSettings) -> Iterator[Mistake]:
    """What is wrong with values in the light of others."""
    if (settings.problem is None) == (settings.data is None):
        got = "neither" if settings.problem is None else "both"
        yield (), f"give either problem or data, got {got}"
    yield from _problem_mistakes(settings)
    yield from _optimizer_mistakes(settings)
    yield from _hierarchy_mistakes(settings)
    yield from _strategy_mistakes(settings)
    epochs, levels = settings.epochs, settings.hierarchy.num_levels
    allowed = {levels, 1} if settings.strategy.name == "finest" else {levels}
    if isinstance(epochs, list) and len(epochs) not in allowed:
        reason = f"must have one entry per level ({levels}), or be one number for each level"
        yield ("epochs",), f"{reason}, got {epochs}"
    if len(set(settings.seeds)) != len(settings.seeds):
        yield ("seeds",), f"must differ from each other, got {settings.seeds}"


def _problem_mistakes(settings: RunSettings) -> Iterator[Mistake]:
    given = settings.problem
    if given is None:
        return
    if given.name not in PROBLEMS:
        reason = f"unknown problem {given.name!r}; {nearest(given.name, PROBLEMS)}"
        yield ("problem", "name"), reason
        return
    problem = PROBLEMS[given.name]
    names = [field.name for field in dataclasses.fields(problem)]  # type: ignore[arg-type]
    unknown = [name for name in given.parameters if name not in names]
    for name in unknown:
        reason = f"unknown parameter of {given.name}; {nearest(name, names)}"
        yield ("problem", "parameters", name), reason
    if unknown:
        return
    try:
        problem(**given.parameters)
    except (TypeError, ValueError) as error:
        # The checks of the library begin with the name of the parameter.
        yield ("problem", "parameters", str(error).split()[0]), str(error)
    if settings.batch_size is not None and given.conditions == "soft":
        reason = (
            "points of the equation and of its conditions differ in number and cannot be cut into"
        )
        yield ("batch_size",), f"{reason} batches; use conditions: hard, or fewer points"


def _optimizer_mistakes(settings: RunSettings) -> Iterator[Mistake]:
    given = settings.optimizer
    if given.name not in METHODS:
        reason = f"unknown method {given.name!r}; {nearest(given.name, METHODS)}"
        yield ("optimizer", "name"), reason
        return
    found = list(_method_mistakes(settings, METHODS[given.name]))
    yield from found
    if not found:
        try:
            make_optimizer(given, [1] * settings.num_levels)
        except (TypeError, ValueError) as error:
            yield ("optimizer", "options", str(error).split()[0]), str(error)


def _method_mistakes(settings: RunSettings, method: Method) -> Iterator[Mistake]:
    given = settings.optimizer
    if given.learning_rate is not None and method.learning_rate is None:
        yield ("optimizer", "learning_rate"), f"{given.name} has no learning rate"
    if given.schedule != "constant" and not method.scheduled:
        yield ("optimizer", "schedule"), f"{given.name} takes no schedule"
    for name, value in given.options.items():
        where = ("optimizer", "options", name)
        if name not in method.options:
            yield where, f"unknown option of {given.name}; {nearest(name, method.options)}"
        if not _is_plain(value):
            yield where, f"must be a value or a list of values, got {value!r}"
    if method.least_squares and settings.data is not None:
        reason = (
            f"{given.name} minimises residuals of an equation: use it with problem, not with data"
        )
        yield ("optimizer", "name"), reason
    if method.full_batch and settings.batch_size is not None:
        yield ("batch_size",), f"{given.name} needs all data at every step"


def _is_plain(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return all(entry is None or isinstance(entry, bool | int | float | str) for entry in entries)


def _hierarchy_mistakes(settings: RunSettings) -> Iterator[Mistake]:
    if settings.problem is not None and settings.hierarchy.kind == "fourier-operator":
        reason = "a problem is solved by a network; fourier-operator is for data"
        yield ("hierarchy", "kind"), reason
    for level, (coarse, fine) in enumerate(itertools.pairwise(settings.hierarchy.sizes or [])):
        if len(coarse) != len(fine) or any(a > b for a, b in zip(coarse, fine, strict=True)):
            reason = "must have as many entries as the coarser level, none smaller"
            yield ("hierarchy", "sizes", level + 1), f"{reason}, got {fine} after {coarse}"


def _strategy_mistakes(settings: RunSettings) -> Iterator[Mistake]:
    given = settings.strategy
    if given.coarse == "rediscretised" and _is_multigrid(given):
        reasons = {
            "a batch_size": settings.batch_size is not None,
            f"optimizer {settings.optimizer.name}": _is_least_squares(settings),
        }
        for reason, holds in reasons.items():
            if holds:
                yield (
                    ("strategy", "coarse"),
                    f"rediscretised cannot serve {reason}; use galerkin",
                )


def _is_multigrid(strategy: StrategySettings) -> bool:
    return strategy.name not in ("cascade", "finest")


def _is_least_squares(settings: RunSettings) -> bool:
    return settings.optimizer.name in METHODS and METHODS[settings.optimizer.name].least_squares


def _resolved(settings: RunSettings, folder: Path) -> RunSettings:
    """The same settings with everything decided that can be without the data."""
    changes: dict[str, Any] = {}
    if settings.data is not None:
        path = str((folder / Path(settings.data.path).expanduser()).resolve())
        changes["data"] = settings.data.model_copy(update={"path": path})
    if settings.strategy.coarse == "auto":
        needs_galerkin = settings.batch_size is not None or _is_least_squares(settings)
        coarse = "galerkin" if needs_galerkin else "rediscretised"
        changes["strategy"] = settings.strategy.model_copy(update={"coarse": coarse})
    method = METHODS[settings.optimizer.name]
    if settings.optimizer.learning_rate is None and method.learning_rate is not None:
        changes["optimizer"] = settings.optimizer.model_copy(
            update={"learning_rate": method.learning_rate}
        )
    return settings.model_copy(update=changes)
