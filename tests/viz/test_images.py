"""Pictures look as they did when somebody last looked at them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.testing.compare import compare_images
from PIL import Image, ImageColor

# Root mean square over all pixels, of 255. The oldest release of Matplotlib that is supported and the
# pinned one draw the same pixels but for the smoothing of a few edges, which is a hundredth of this; a
# curve or a band that is missing or elsewhere is several times as much.
TOLERANCE = 1.0


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


@pytest.mark.parametrize("missing", ["#D55E00", "#E7E7E7"], ids=["a curve", "a band"])
def test_the_comparison_finds_what_is_missing(missing: str, tmp_path: Path) -> None:
    path = PICTURES.BASELINE / "history.png"
    picture = np.asarray(Image.open(path).convert("RGB")).copy()
    there = np.all(np.abs(picture.astype(int) - ImageColor.getrgb(missing)) <= 2, axis=-1)
    assert np.any(there)
    picture[there] = 255
    altered = tmp_path / "altered.png"
    Image.fromarray(picture).save(altered)
    expected = shutil.copy(path, tmp_path / "expected.png")
    assert compare_images(str(expected), str(altered), tol=TOLERANCE) is not None


def test_baselines_are_small_and_all_used() -> None:
    files = sorted(PICTURES.BASELINE.glob("*.png"))
    assert [file.stem for file in files] == sorted(PICTURES.PICTURES)
    assert sum(file.stat().st_size for file in files) < 250_000
