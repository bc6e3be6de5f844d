"""The script that draws the pictures of the documents, with tiny networks."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent


def pictures(page: str) -> set[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return {Path(name).name for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)}


@pytest.mark.slow
def test_the_script_draws_every_picture_of_the_page(tmp_path: Path) -> None:
    path = ROOT / "examples" / "figures.py"
    specification = importlib.util.spec_from_file_location("figures", path)
    assert specification is not None
    assert specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = example  # dataclasses look their module up
    specification.loader.exec_module(example)
    example.main(quick=True, folder=str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == pictures("docs/pictures.md")
    for file in tmp_path.iterdir():
        with Image.open(file) as picture:
            assert picture.size[0] > 100
            assert len(picture.convert("RGB").getcolors(maxcolors=2**20) or []) > 10


def test_the_moving_picture_of_the_front_page_is_small() -> None:
    assert "levels.gif" in pictures("README.md")
    assert (ROOT / "docs" / "images" / "levels.gif").stat().st_size < 1_500_000
