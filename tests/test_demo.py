"""The examples that ``make demo`` and ``make compare`` run, with tiny networks."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from opifex.training.multilevel import History

mpl.use("Agg")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("poisson_cascade")
    for name in ("poisson_cascade", "poisson_comparison"):
        sys.modules.pop(name, None)


def test_example_prints_a_table_and_draws_a_figure(example, tmp_path, capsys):
    results = example.main(quick=True, folder=str(tmp_path))
    printed = capsys.readouterr().out
    assert (tmp_path / "poisson_cascade.png").stat().st_size > 10_000
    assert "Results" in printed
    assert "All this took" in printed
    assert "…" not in printed  # nothing is cut off at 80 columns
    for result in results:
        assert result.name.split()[0] in printed
        assert result.history.losses[-1] < result.history.losses[0]
        assert 0 < result.error < 10
    cascade, alone = results[:2]
    assert abs(cascade.history.work - alone.history.work) <= 1


def test_the_long_comparison_is_the_same_with_more(example):
    long = importlib.import_module("poisson_comparison").LONG
    short = example.Settings()
    assert sum(long.level_epochs) > sum(short.level_epochs)
    assert min(long.hidden_dims) > max(short.hidden_dims)
    names = [[run.__name__ for run in example.runs(settings)] for settings in (short, long)]
    assert names == [
        ["cascade", "finest_alone"],
        ["cascade", "finest_alone", "least_squares_cascade"],
    ]
    assert long.name != replace(short).name  # neither overwrites the other's figure


def test_the_figure_explains_the_highest_peak_at_a_change_of_level(example):
    history = History()
    history.begin()
    history.set_unit(1.0)
    for level, losses in enumerate(([4.0, 2.0], [2.0, 3.0, 1.0], [1.0, 5.0, 0.5])):
        if level:
            history.record_transition(level - 1, level)
        history.record_steps(level, np.array(losses), 0.1, 1.0)
    ax = Figure().subplots()
    example.explain_peak(ax, history)
    (note,) = ax.texts
    assert "fresh Adam" in note.get_text()
    assert note.xy == (history.table()["work"][6], 5.0)


def test_without_a_peak_nothing_is_explained(example):
    history = History()
    history.begin()
    history.set_unit(1.0)
    history.record_steps(0, np.array([4.0, 2.0]), 0.1, 1.0)
    history.record_transition(0, 1)
    history.record_steps(1, np.array([2.0, 1.0]), 0.1, 1.0)
    ax = Figure().subplots()
    example.explain_peak(ax, history)
    assert not ax.texts
