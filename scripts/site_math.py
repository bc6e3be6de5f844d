r"""A Python-Markdown extension: ``$...$`` and ``$$...$$`` become MathML while the site is built.

Browsers draw MathML themselves, so that the pages need no script and no font from elsewhere. On a Git
host the same text is read as TeX.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

INLINE = r"(?<![\\$\w])\$(?![\s$])((?:\\.|[^\\$])+?)(?<!\s)\$(?![\w$])"
"""A dollar before and after, neither beside a blank on the inner side, none inside."""

DISPLAY = re.compile(r"^\s*\$\$(.+?)\$\$\s*$", re.DOTALL)
"""A block that holds a formula and nothing else."""

LONG = 25
"""Characters of TeX beyond which a formula may be wider than a small screen, without a line break."""

# Behind code spans (190) and before escapes (180), whose backslashes are TeX's here.
INLINE_PRIORITY = 185
# Before paragraphs (10) and lists, behind code blocks (80).
DISPLAY_PRIORITY = 75


def mathml(formula: str, display: str = "inline") -> str:
    """A formula of TeX as MathML.

    Args:
        formula: without dollars.
        display: ``"inline"`` or ``"block"``.

    Raises:
        ValueError: if a command is not known and would be shown as text.
    """
    text = convert(" ".join(formula.split()), display=display)
    unknown = re.search(r">\s*(\\[A-Za-z]+)", text)
    if unknown:
        raise ValueError(f"formula has {unknown[1]}, which is not known: {formula!r}")
    return text


class InlineMath(InlineProcessor):
    """Formulas within a line or across the break of one."""

    def handleMatch(  # noqa: N802
        self, m: re.Match[str], data: str
    ) -> tuple[str, int, int]:
        """The formula, kept from further processing; a long one in a box that can scroll."""
        formula = mathml(m.group(1))
        if len(m.group(1)) > LONG:
            formula = f'<span class="long-formula">{formula}</span>'
        return self.md.htmlStash.store(formula), m.start(0), m.end(0)


class DisplayMath(BlockProcessor):
    """Formulas of their own block, in a box that scrolls where the screen is narrow."""

    def test(self, parent: Element, block: str) -> bool:
        """Whether the block is a formula."""
        return DISPLAY.match(block) is not None

    def run(self, parent: Element, blocks: list[str]) -> None:
        """Put the formula where the block was."""
        found = DISPLAY.match(blocks.pop(0))
        assert found is not None
        box = Element("p")
        formula = mathml(found[1], "block")
        box.text = self.parser.md.htmlStash.store(f'<span class="formula">{formula}</span>')
        parent.append(box)


class Mathematics(Extension):
    """Registers both."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Called by Python-Markdown."""
        md.inlinePatterns.register(InlineMath(INLINE, md), "mathematics", INLINE_PRIORITY)
        md.parser.blockprocessors.register(DisplayMath(md.parser), "mathematics", DISPLAY_PRIORITY)


def makeExtension(**settings: Any) -> Mathematics:  # noqa: N802
    """Called by Python-Markdown for the name of this module."""
    return Mathematics(**settings)
