"""Pictures look as they did when somebody last looked at them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.testing.compare import compare_images
from PIL import Image

# Root mean square over all pixels, of 255. Renderings by different releases of Matplotlib differ in
# the smoothing of the edges of letters and lines and in their place by less than a pixel; a curve,
# a band or a legend that is missing or elsewhere differs by more.
TOLERANCE = 6.0


def load() -> ModuleType:
    path = Path(__file__).parent / "pictures.py"
    specification = importlib.util.spec_from_file_location("viz_pictures", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


PICTURES = load()


@pytest.mark.parametrize("name", PICTURES.PICTURES)
def test_picture(name: str, tmp_path: Path) -> None:
    actual = PICTURES.save(name, tmp_path)
    # The comparison writes the difference beside the file it is given.
    expected = shutil.copy(PICTURES.BASELINE / f"{name}.png", tmp_path / f"{name}-expected.png")
    assert compare_images(str(expected), str(actual), tol=TOLERANCE) is None


def test_the_comparison_finds_a_band_that_is_missing(tmp_path: Path) -> None:
    path = PICTURES.BASELINE / "history.png"
    picture = np.asarray(Image.open(path).convert("RGB")).copy()
    background = np.all((picture >= 200) & (picture < 250), axis=-1)  # the greys of the bands
    picture[background] = 255
    altered = tmp_path / "altered.png"
    Image.fromarray(picture).save(altered)
    expected = shutil.copy(path, tmp_path / "expected.png")
    assert compare_images(str(expected), str(altered), tol=TOLERANCE) is not None


def test_baselines_are_small_and_all_used() -> None:
    files = sorted(PICTURES.BASELINE.glob("*.png"))
    assert [file.stem for file in files] == sorted(PICTURES.PICTURES)
    assert sum(file.stat().st_size for file in files) < 500_000
