"""Errors of the command line that are for the user to mend, with places and suggestions."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["CommandError", "ConfigurationError", "Interrupted", "nearest"]


class CommandError(Exception):
    """Something that the user gave is not right; the message is all there is to show."""


class ConfigurationError(CommandError):
    """A configuration file is not right.

    Args:
        problems: one sentence each, with file and line.

    Attributes:
        problems: the same.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A run was ended by Ctrl-C; its state is saved.

    Args:
        folder: what to resume.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(f"go on with: opifex-multilevel resume {shlex.quote(str(folder))}")


def nearest(given: object, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, and all of them.

    Args:
        given: the unknown name.
        allowed: the valid names.

    Example:
        >>> from opifex.cli.errors import nearest
        >>> nearest("optimiser", ["optimizer", "output"])
        'did you mean optimizer? (allowed: optimizer, output)'
        >>> nearest("x", ["optimizer", "output"])
        'allowed: optimizer, output'
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.5)
    every = f"allowed: {', '.join(names)}"
    return f"did you mean {close[0]}? ({every})" if close else every
