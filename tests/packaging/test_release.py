"""The release script stops before a release that would be wrong; packages hold what they must."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LICENCES = {"LICENSE", "LICENSE-neuraloperator.txt"}


def git(folder, *arguments):
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tree(tmp_path):
    """A small project with the release script and a clean history."""
    for name in ("pyproject.toml", "CITATION.cff", "src/opifex/__init__.py", "scripts/release.sh"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 0.0.1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "start")
    return tmp_path


def release(folder, *arguments):
    """Run the script; packages are built by a program that only says so."""
    fake = folder.parent / "python"
    fake.write_text(
        f'#!/bin/sh\ncase "$1 $2" in "-m build") mkdir -p dist; touch dist/x.whl;;\n'
        f'"-m twine") echo checked;;\n*) exec "{sys.executable}" "$@";; esac\n'
    )
    fake.chmod(0o755)
    return subprocess.run(
        ["bash", "scripts/release.sh", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHON": str(fake), "GIT_AUTHOR_NAME": "T", "GIT_COMMITTER_NAME": "T",
             "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_EMAIL": "t@example.org"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def version():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def commit_changes(folder):
    text = f"# Changes\n\n## {version()} - today\n"
    (folder / "CHANGELOG.md").write_text(text)
    git(folder, "commit", "-q", "-a", "-m", "changes")


def test_a_dry_run_tags_nothing_and_says_what_would_stop(tree):
    (tree / "new.txt").touch()
    result = release(tree)
    assert result.returncode == 0, result.stderr
    assert (
        f"would stop: the first section of CHANGELOG.md is not that of {version()}" in result.stdout
    )
    assert "would stop: the tree is not clean" in result.stdout
    assert "dry run: nothing tagged" in result.stdout
    assert git(tree, "tag") == ""


def test_a_release_is_tagged_once(tree):
    commit_changes(tree)
    result = release(tree, "--tag")
    assert result.returncode == 0, result.stderr
    assert "checked" in result.stdout
    assert git(tree, "tag") == f"v{version()}\n"
    (tree / "dist" / "x.whl").unlink()
    (tree / "dist").rmdir()
    again = release(tree, "--tag")
    assert again.returncode == 1
    assert f"the tag v{version()} is there already" in again.stderr


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: (t / "new.txt").touch(), "the tree is not clean"),
        (lambda t: (t / "CITATION.cff").write_text("version: 9.9.9\n"), "the version differs"),
    ],
)
def test_a_tag_is_refused(tree, spoil, message):
    commit_changes(tree)
    spoil(tree)
    result = release(tree, "--tag")
    assert result.returncode == 1
    assert message in result.stderr
    assert git(tree, "tag") == ""


def test_nothing_may_be_left_unreleased(tree):
    commit_changes(tree)
    text = (tree / "CHANGELOG.md").read_text()
    (tree / "CHANGELOG.md").write_text(text.replace("## ", "## Unreleased\n\n- more\n\n## "))
    git(tree, "commit", "-q", "-a", "-m", "more")
    result = release(tree, "--tag")
    assert result.returncode == 1
    assert "the first section of CHANGELOG.md is not that of" in result.stderr
    assert git(tree, "tag") == ""


def test_other_arguments_are_refused(tree):
    result = release(tree, "--upload")
    assert result.returncode == 2
    assert "usage: scripts/release.sh [--tag], got --upload" in result.stderr


def test_the_data_and_its_licence_are_named_in_the_metadata():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["project"]["license-files"]
    found = {path.name for pattern in patterns for path in ROOT.glob(pattern)}
    assert found == LICENCES
    assert "data/files/*" in settings["tool"]["setuptools"]["package-data"]["opifex"]


def test_every_dependency_is_pinned():
    """What an extra names has an exact version in constraints.txt, which is what tests run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    chosen = {"dev", "docs"}
    for extra in list(chosen):
        for requirement in optional[extra]:
            if requirement.startswith("opifex-multilevel["):
                chosen |= set(re.search(r"\[(.*)\]", requirement)[1].split(","))
    named = [*project["dependencies"], *(r for extra in chosen for r in optional[extra])]
    wanted = {canonical(r) for r in named if not r.startswith("opifex-multilevel")}
    pins = (ROOT / "constraints.txt").read_text().split()
    assert all("==" in pin for pin in pins)
    assert wanted - {canonical(pin) for pin in pins} == set()


def canonical(requirement):
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
def test_wheel_and_sdist(tmp_path):
    """Needs a package index, from which the build takes setuptools."""
    before = {path.name for path in ROOT.iterdir()}
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name for path in ROOT.iterdir()} == before
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)],
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    sources = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*.py")}
    assert sources <= set(names)
    assert {"opifex/py.typed", "opifex/data/files/darcy_small.npz"} <= set(names)
    assert {Path(n).name for n in names if ".dist-info/licenses/" in n} == LICENCES
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]
    with tarfile.open(sdist) as archive:
        packed = {Path(name).name for name in archive.getnames()}
    assert LICENCES | {"constraints.txt", "CITATION.cff", "conftest.py"} <= packed
