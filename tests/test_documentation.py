"""Every Python block of the documents runs, the blocks of one document in one namespace."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

SLOW = {
    "docs/data_files.md",
    "docs/extending.md",
    "docs/methods/adaptive_sampling.md",
    "docs/methods/cascade.md",
    "docs/methods/frequency_bands.md",
    "docs/methods/full_multigrid.md",
    "docs/methods/levenberg_marquardt.md",
    "docs/methods/loss_balancing.md",
    "docs/methods/matrix_free.md",
    "docs/methods/natural_gradient.md",
    "docs/methods/one_rate.md",
    "docs/methods/random_features.md",
    "docs/methods/residual_correction.md",
    "docs/methods/self_scaled_broyden.md",
    "docs/methods/time_slabs.md",
    "docs/pictures.md",
    "docs/saving.md",
    "docs/streaming.md",
    "docs/tutorials/burgers_operator.md",
    "docs/tutorials/darcy.md",
    "docs/tutorials/inverse.md",
    "docs/tutorials/own_equation.md",
    "docs/tutorials/own_unet.md",
    "docs/tutorials/poisson.md",
    "docs/tutorials/resuming.md",
    "docs/your_equation.md",
}
"""Documents that run on request: with all of them the default tests would take a minute more."""


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def with_blocks(path):
    marks = [pytest.mark.slow] if name_of(path) in SLOW else []
    return pytest.param(path, marks=marks, id=name_of(path))


def blocks(path):
    text = path.read_text(encoding="utf-8")
    return [
        (text[: match.start()].count("\n") + 2, match[1])
        for match in re.finditer(r"```python\n(.*?)```", text, flags=re.DOTALL)
    ]


@pytest.mark.parametrize("path", [with_blocks(p) for p in DOCUMENTS if blocks(p)])
def test_blocks_run(path):
    namespace = {}
    for line, code in blocks(path):
        exec(compile("\n" * (line - 1) + code, path.name, "exec"), namespace)


def test_slow_documents_exist():
    assert {name_of(path) for path in DOCUMENTS} >= SLOW


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if "://" not in target:
            assert (path.parent / target).exists(), target
