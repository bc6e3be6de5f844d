"""YAML files with the line of every key and entry."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from opifex.cli.errors import CommandError, ConfigurationError

__all__ = ["Location", "YamlDocument", "dump_yaml", "parse_yaml", "read_yaml"]

Location = tuple[str | int, ...]
"""Keys and positions that lead from the top of a document to one of its values."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which 1e-3 is a number, as in YAML 1.2, and not a string."""


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class YamlDocument:
    """A YAML document.

    Attributes:
        name: the name of the file, for messages.
        text: the text as it was given.
        values: the plain values.
        lines: line of every key and entry by its location; lines count from 1.
    """

    name: str
    text: str
    values: Any
    lines: dict[Location, int]

    def line(self, location: Location) -> int:
        """Line of a location, or of the nearest one around it that is in the file."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def at(self, location: Location, message: str) -> str:
        """A message with file, line and key in front."""
        key = ".".join(map(str, location))
        return f"{self.name}:{self.line(location)}: {key + ': ' if key else ''}{message}"


def read_yaml(path: str | os.PathLike[str]) -> YamlDocument:
    """Read a YAML file.

    Args:
        path: the file.

    Raises:
        CommandError: if it cannot be read.
        ConfigurationError: if it is no valid YAML, or gives a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CommandError(f"cannot read the configuration {os.fspath(path)}: {reason}") from error
    return parse_yaml(text, os.fspath(path))


def parse_yaml(text: str, name: str = "configuration") -> YamlDocument:
    r"""Parse YAML text.

    Args:
        text: the text.
        name: what messages call it.

    Raises:
        ConfigurationError: if it is no valid YAML, or gives a key twice.

    Example:
        >>> from opifex.cli.yaml_document import parse_yaml
        >>> document = parse_yaml("epochs: 3\noptimizer:\n  learning_rate: 1e-3\n", "a.yaml")
        >>> document.values["optimizer"], document.line(("optimizer", "learning_rate"))
        ({'learning_rate': 0.001}, 3)
        >>> document.at(("epochs",), "must be a list")
        'a.yaml:1: epochs: must be a list'
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Location, int] = {}
        repeated: list[str] = []
        if node is not None:
            _collect(node, (), lines, repeated)
        values = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigurationError([f"{name}:{line}: no valid YAML: {error.problem}"]) from error
    except yaml.YAMLError as error:
        raise ConfigurationError([f"{name}:1: no valid YAML: {error}"]) from error
    finally:
        loader.dispose()
    document = YamlDocument(name, text, values, lines)
    if repeated:
        raise ConfigurationError([f"{name}:{entry}" for entry in repeated])
    return document


def _collect(
    node: yaml.Node, location: Location, lines: dict[Location, int], repeated: list[str]
) -> None:
    """Note the lines of all keys and entries, and which keys are given twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*location, key.value)
            line = key.start_mark.line + 1
            if here in lines:
                name = ".".join(map(str, here))
                repeated.append(f"{line}: {name}: given twice, first in line {lines[here]}")
            lines.setdefault(here, line)
            _collect(value, here, lines, repeated)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            here = (*location, position)
            lines[here] = value.start_mark.line + 1
            _collect(value, here, lines, repeated)


def dump_yaml(values: Any) -> str:
    """Plain values as YAML text, in the order that they have."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
