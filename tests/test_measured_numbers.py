"""Measured numbers stand in pages only where the report writes them from the results."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
GENERATED = ("docs/measurements.md", "docs/testing.md")  # the latter says where tests were run
PROSE = [
    "README.md",
    *sorted(
        name
        for path in (ROOT / "docs").rglob("*.md")
        if (name := path.relative_to(ROOT).as_posix()) not in GENERATED
    ),
]


@pytest.fixture(scope="module")
def report() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("report", BENCHMARKS / "report.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_pages_say_what_the_results_say(report: Any) -> None:
    for path, text in report.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run benchmarks/report.py"


def test_a_changed_result_changes_the_page(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *_ = (name for name, *_ in report.SECTIONS if report.read_results(name))
    before = report.page()
    real = report.read_results

    def changed(which: str) -> Any:
        text = json.dumps(real(which))
        return json.loads(re.sub(r"(?<=\d)\.(\d)", r".9\1", text)) if which == name else real(which)

    monkeypatch.setattr(report, "read_results", changed)
    assert report.page() != before


@pytest.mark.parametrize("page", PROSE)
def test_prose_quotes_no_measured_number_by_hand(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for generated in (
        r"<!-- measured: .*?<!-- /measured -->",
        r"```.*?```",
        r"`[^`]*`",
        r"\$.*?\$",
    ):
        text = re.sub(generated, "", text, flags=re.DOTALL)
    found = re.findall(r"\d(?:\.\d+)?e-?\d+|\d+(?:\.\d+)? ?(?:%|x\b|times\b|ms\b|seconds\b)", text)
    assert not found, f"{page} quotes {found}: put measured numbers into a block of the report"


@pytest.mark.parametrize(
    "path", sorted(BENCHMARKS.glob("results/*.json")), ids=lambda path: path.stem
)
def test_the_ratios_of_a_race_follow_from_its_times(path: Path) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    for target in results.get("targets", []):
        ratios = []
        for run in target["runs"]:
            rival, ours = run["single"], run["cascade"]
            if ours["seconds"] is not None:
                ratios.append((rival["seconds"] or rival["all_seconds"]) / ours["seconds"])
            elif rival["seconds"] is not None:
                ratios.append(0.0)
        said = target["ratios"]["single_over_cascade"]
        assert len(target["runs"]) >= 5
        if ratios:
            assert np.isclose(said["median"], np.median(ratios))
            assert np.isclose(said["lower_quartile"], np.quantile(ratios, 0.25))
        assert said["neither"] == len(target["runs"]) - len(ratios)
