"""A Griffe extension: what our docstrings mean, said so that Griffe understands it.

The section ``Example:`` is the ``Examples:`` that Griffe knows; otherwise its doctests would be taken
for text, whose prompts are quotations in Markdown. A class that is made by ``__new__`` alone, as named
tuples are, has the arguments of that.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(\s*)Example:\s*$", re.MULTILINE)


class OurDocstrings(griffe.Extension):
    """Changes objects after Griffe has read them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by Griffe for each object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called by Griffe for each class, once its members are there."""
        if "__init__" not in cls.members and "__new__" in cls.members:
            made = cls.members["__new__"]
            if isinstance(made, griffe.Function):
                made.returns = None
                cls.members["__init__"] = made
