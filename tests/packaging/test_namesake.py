"""The distribution ``opifex``, which installs a package of the same name, is noticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
ROOMS = ["storage", "cli", "viz", "data", "problems", "loggers"]
WAY_OUT = "pip uninstall opifex opifex-multilevel, then pip install opifex-multilevel"


def install_metadata(folder):
    """What pip writes of the namesake, whose files are overwritten by ours."""
    (folder / "opifex-0.2.10.dist-info").mkdir()
    text = "Metadata-Version: 2.1\nName: opifex\nVersion: 0.2.10\n"
    (folder / "opifex-0.2.10.dist-info" / "METADATA").write_text(text)


def run(*arguments, path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_alone_it_says_nothing(tmp_path):
    result = run("-W", "error", "-c", "import opifex", path=[SOURCE])
    assert (result.returncode, result.stderr) == (0, "")
    result = run("-m", "opifex_multilevel", path=[SOURCE])
    assert result.returncode == 0, result.stderr
    assert str(SOURCE / "opifex") in result.stdout


def test_where_ours_was_installed_last_it_warns(tmp_path):
    install_metadata(tmp_path)
    result = run("-c", "import opifex", path=[SOURCE, tmp_path])
    assert result.returncode == 0
    assert "RuntimeWarning: opifex 0.2.10 is installed beside opifex-multilevel" in result.stderr
    assert WAY_OUT in result.stderr
    result = run("-m", "opifex_multilevel", path=[SOURCE, tmp_path])
    assert result.returncode == 1
    assert "opifex 0.2.10 is installed beside" in result.stderr


@pytest.mark.parametrize("left", ["__init__.py", "nothing"])
def test_where_the_other_was_installed_last_or_removed_it_stops(tmp_path, left):
    """The tree is then mixed: some folders are theirs or gone, those that only we have are ours."""
    package = tmp_path / "opifex"
    (package / "training").mkdir(parents=True)
    (package / "training" / "multilevel").symlink_to(SOURCE / "opifex/training/multilevel")
    for room in ROOMS:
        (package / room).symlink_to(SOURCE / "opifex" / room)
    (tmp_path / "opifex_multilevel.py").symlink_to(SOURCE / "opifex_multilevel.py")
    if left == "__init__.py":
        (package / "__init__.py").write_text('__version__ = "0.2.10"\n')
        install_metadata(tmp_path)
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    program = (
        start
        + f"""
for room in {[*ROOMS, "training.multilevel"]}:
    try:
        __import__("opifex." + room)
    except ImportError as error:
        print(room, error)
"""
    )
    result = run("-I", "-S", "-c", program, path=[])  # without the editable install
    lines = result.stdout.splitlines()
    assert len(lines) == len(ROOMS) + 1, result.stderr
    for line, room in zip(lines, [*ROOMS, "training.multilevel"], strict=True):
        assert line.startswith(f"{room} the distributions opifex and opifex-multilevel")
        assert WAY_OUT in line
    program = start + "import opifex_multilevel as m; m.check_installation()"
    result = run("-I", "-S", "-c", program, path=[])  # without the editable install
    assert result.returncode == 1
    assert "ImportError: " in result.stderr
