"""What pyproject.toml cannot say: a package index shows README.md without its links to files."""

import re
from pathlib import Path

from setuptools import setup

_WHERE = (
    "\n\nPages that are named without a link are in the folder `docs` of the source distribution.\n"
)


def index_page(readme: str) -> str:
    """README.md for a reader who has no files beside it.

    A package index shows the text alone: links to files lead nowhere there, and pictures stay empty.

    Args:
        readme: the text, in Markdown.

    Returns:
        The text with pictures from files left out, and links to files replaced by their words.
    """
    elsewhere = r"(?!https?://|#)"
    without_pictures = re.sub(rf"!\[[^\]]*\]\({elsewhere}[^)]*\)\n*", "", readme)
    return re.sub(rf"\[([^\]]+)\]\({elsewhere}[^)]*\)", r"\1", without_pictures).rstrip() + _WHERE


if __name__ == "__main__":
    setup(
        long_description=index_page(Path("README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
