"""The page on a package index has no link that leads nowhere."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
index_page = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["index_page"]


def test_links_into_the_source_become_words():
    text = "See [all\npages](docs/index.md#top), [JAX](https://jax.dev) and [below](#more).\n"
    assert index_page(text).startswith(
        "See all\npages, [JAX](https://jax.dev) and [below](#more).\n\nPages that are named"
    )


def test_pictures_from_files_are_left_out():
    assert index_page("Before.\n\n![A plot](docs/a.gif)\n\n## After").startswith(
        "Before.\n\n## After"
    )


def test_the_readme_keeps_its_words_and_loses_its_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = index_page(readme)
    assert re.search(r"\]\((?!https?://|#)", readme)
    assert not re.search(r"\]\((?!https?://|#)", page)
    assert len(page) > 0.8 * len(readme)
    assert "five minutes" in page
