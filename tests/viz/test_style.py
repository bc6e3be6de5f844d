"""Colours that all can tell apart, figures of the size of a column, and Matplotlib only if needed."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from opifex.viz import PALETTE, level_colors, plot_fields, plot_history, publication_style
from viz_runs import example_history

# Matrices of Machado, Oliveira and Fernandes (2009) for full deficiency, on linear RGB.
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(color: Any) -> np.ndarray:
    rgb = np.asarray(mpl.colors.to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lightness_and_hue(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, in which one unit is about the least difference that is seen."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb, 1e-6, None) / to_xyz.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_of_curves_differ_for_everybody(deficiency: str) -> None:
    matrix = np.array(DEFICIENCIES[deficiency])
    seen = [lightness_and_hue(np.clip(matrix @ linear(c), 0, 1)) for c in PALETTE]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > 10  # ten times the least difference that is seen


def test_the_test_finds_colours_that_are_confused() -> None:
    matrix = np.array(DEFICIENCIES["deuteranopia"])
    red, green = (
        lightness_and_hue(np.clip(matrix @ linear(c), 0, 1)) for c in ("#B08020", "#80A020")
    )
    assert np.linalg.norm(red - green) < 10


def test_levels_get_lighter_so_that_they_can_be_told_apart_in_grey() -> None:
    luminance = [float(np.dot([0.2126, 0.7152, 0.0722], linear(c))) for c in level_colors(6)]
    assert luminance == sorted(luminance)
    assert luminance[-1] < 0.6  # against white paper


@pytest.mark.parametrize(("width", "inches"), [("single", 3.5), ("double", 7.2), (4.5, 4.5)])
def test_figures_are_as_wide_as_the_column(width: Any, inches: float, tmp_path: Path) -> None:
    with publication_style(width, aspect=0.5, font_size=9):
        ax = plot_history(example_history())
        assert tuple(ax.figure.get_size_inches()) == (inches, inches * 0.5)
        assert ax.xaxis.label.get_fontsize() == 9
        left, _ = plot_fields(np.eye(3), np.eye(3))
        assert tuple(left.figure.get_size_inches()) == (inches, inches / 2 * 0.5)
        ax.figure.savefig(tmp_path / "figure")
    file = (tmp_path / "figure.pdf").read_bytes()
    assert file.startswith(b"%PDF")
    assert b"/Type3" not in file  # letters are TrueType, which publishers ask for
    box = file.split(b"/MediaBox [")[1].split(b"]")[0].split()
    assert float(box[2]) == pytest.approx(72 * inches, abs=0.01)  # printed to two digits


def test_the_style_ends_with_the_block() -> None:
    before = dict(mpl.rcParams)
    with pytest.raises(RuntimeError, match="stop"), publication_style():
        raise RuntimeError("stop")
    assert dict(mpl.rcParams) == before
    assert plot_history(example_history()).figure.get_size_inches()[0] == 5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": "wide"}, ValueError, "width must be one of .*'single'.* or inches"),
        ({"width": -1}, ValueError, "width must be positive"),
        ({"width": None}, TypeError, "width must be a real number"),
        ({"aspect": 0}, ValueError, "aspect must be positive"),
        ({"font_size": "big"}, TypeError, "font_size must be a real number"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), publication_style(**arguments):
        pass


def test_matplotlib_is_imported_only_for_a_figure() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, opifex.viz as viz\n"
        "from opifex.training.multilevel import History\n"
        "history = History()\n"
        "history.record_steps(0, np.ones(2), 0.1, 1.0)\n"
        "assert viz.history_table(history).row_count == 1\n"
        "try:\n    viz.plot_history(history)\n"
        "except ImportError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "opifex-multilevel[viz]" in result.stdout
