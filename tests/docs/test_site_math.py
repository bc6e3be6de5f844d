"""Formulas become MathML while the site is built."""

import importlib.util
import sys
from pathlib import Path

import pytest

markdown = pytest.importorskip("markdown", reason="the extra docs is not installed")
pytest.importorskip("latex2mathml", reason="the extra docs is not installed")

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture(scope="module")
def site_math():
    spec = importlib.util.spec_from_file_location("site_math", SCRIPTS / "site_math.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["site_math"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["site_math"]


def html(site_math, text):
    return markdown.markdown(text, extensions=[site_math.Mathematics(), "tables"])


def test_a_formula_in_a_line(site_math):
    page = html(site_math, "The damping $\\mu_k$ falls.")
    assert "<msub><mi>&#x003BC;</mi><mi>k</mi></msub>" in page
    assert "$" not in page


def test_a_formula_may_be_broken_across_lines(site_math):
    assert html(site_math, "with $a +\nb$ and").count("<math") == 1


def test_a_formula_of_its_own_scrolls(site_math):
    page = html(site_math, "Before\n\n$$\\frac{a}{b}\n= c$$\n\nafter")
    assert page.count('display="block"') == 1
    assert 'class="formula"' in page
    assert "$" not in page


def test_only_long_formulas_in_a_line_are_in_a_box(site_math):
    page = html(site_math, "short $a$ and long $a + b + c + d + e + f + g + h$")
    assert page.count("long-formula") == 1
    assert page.index("short") < page.index("<math") < page.index("long-formula")


@pytest.mark.parametrize(
    "text",
    [
        "costs 5 $ and 6 $ more",
        "the variable `$OUT` and `$HOME`",
        "an escaped \\$a\\$ stays",
        "    $a$ in code",
    ],
)
def test_other_dollars_stay(site_math, text):
    page = html(site_math, text)
    assert "<math" not in page
    assert page.count("$") == text.count("$")


def test_emphasis_and_backslashes_inside_are_tex(site_math):
    page = html(site_math, "$a_1 * b_2 * c_3$ and $\\{x\\}$")
    assert "<em>" not in page
    assert page.count("<msub>") == 3
    assert "&#x0007B;" in page


def test_an_unknown_command_is_an_error(site_math):
    with pytest.raises(ValueError, match=r"\\nonsense, which is not known: '\\\\nonsense x'"):
        html(site_math, "$\\nonsense x$")
