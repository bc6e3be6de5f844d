"""The figures of the documentation say what the library and the results say."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def figures():
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("docs_figures", ROOT / "scripts/docs_figures.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = before


def texts(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


DRAWN = ["levels", "transfer", "cycles", "decision", "trials", "grid_growth", "sample_cost"]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_says_what_it_would_say_if_drawn_now(figures, tmp_path, name):
    drawn = texts(figures.draw(name, tmp_path))
    assert drawn
    assert texts(ROOT / "docs" / "figures" / f"{name}.svg") == drawn, "run make docs-figures"


def test_all_figures_are_drawn_and_shown(figures):
    files = {path.stem for path in (ROOT / "docs" / "figures").glob("*.svg")}
    assert files == set(figures.DRAWN)
    pages = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md"))
    assert [name for name in files if f"figures/{name}.svg" not in pages] == []


def test_the_choice_of_methods_follows_the_results(figures, monkeypatch):
    choices = sys.modules["choices"]
    before = choices.choices()[4].measured[0]
    real = choices.read_results

    def changed(name):
        results = real(name)
        for row in results["rows"] if name == "rounding" else []:
            row["error"] = 0.25
        return results

    monkeypatch.setattr(choices, "read_results", changed)
    after = choices.choices()[4].measured[0]
    assert before.error < 0.25
    assert after.error == 0.25
    assert str(after) != str(before)
