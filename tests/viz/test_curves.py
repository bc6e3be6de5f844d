"""What the curves of a run show: the drawn data is compared, not only that something was drawn."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from opifex.training.multilevel import History
from opifex.viz import PALETTE, plot_history, shade_levels
from viz_runs import cycle_history, example_history, timed_history


def curves(ax: Any) -> list[Any]:
    return [line for line in ax.get_lines() if line.get_gid() == "curve"]


def bands(ax: Any) -> list[tuple[float, float]]:
    found = [patch for patch in ax.patches if patch.get_gid() == "level"]
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in found]


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_loss_before_each_step_is_over_the_work_before_it() -> None:
    ax = plot_history(example_history(), label="cascade")
    (curve,) = curves(ax)
    np.testing.assert_array_equal(curve.get_xdata(), [0, 0.25, 0.5, 0.75, 1, 2])
    np.testing.assert_array_equal(curve.get_ydata(), [8, 4, 3, 2, 1.5, 0.5])
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "loss"
    assert legend(ax) == ["cascade", "levels of cascade"]


def test_levels_are_bands_from_their_first_step_to_their_last() -> None:
    ax = plot_history(example_history())
    assert bands(ax) == [(0.0, 1.0), (1.0, 3.0)]
    assert [text.get_text() for text in ax.texts] == ["level 0", "level 1"]
    assert ax.get_legend() is None
    unmarked = plot_history(example_history(), mark_transitions=False)
    assert bands(unmarked) == []
    assert len(unmarked.texts) == 0


def test_a_metric_is_drawn_where_it_was_evaluated() -> None:
    ax = plot_history(example_history(), metric="error")
    np.testing.assert_array_equal(curves(ax)[0].get_xdata(), [0, 3])
    np.testing.assert_array_equal(curves(ax)[0].get_ydata(), [1, 0.1])
    assert ax.get_ylabel() == "error"


@pytest.mark.parametrize(
    ("over", "expected", "first_band", "evaluated"),
    [
        ("work", [0, 0.5, 1, 2, 3, 4], (0, 1), [1, 5]),
        ("seconds", [0, 0.5, 1, 1.5, 2, 2.5], (0, 1), [1, 3]),
        # Two seconds of compilation come before the first step, and 1.25 s of transfer and compilation
        # between the levels; the half second of an evaluation is no part of the run.
        ("elapsed_seconds", [2, 2.5, 4.25, 4.75, 5.25, 5.75], (2, 4.25), [3, 6.25]),
    ],
)
def test_the_horizontal_axis(
    over: str, expected: list[float], first_band: tuple[float, float], evaluated: list[float]
) -> None:
    losses = plot_history(timed_history(), over=over)
    np.testing.assert_array_equal(curves(losses)[0].get_xdata(), expected)
    assert bands(losses)[0] == first_band
    errors = plot_history(timed_history(), over=over, metric="error")
    np.testing.assert_array_equal(curves(errors)[0].get_xdata(), evaluated)


def test_what_coarse_levels_of_a_cycle_minimise_is_not_drawn_as_the_loss() -> None:
    ax = plot_history(cycle_history())
    (curve,) = curves(ax)
    np.testing.assert_array_equal(curve.get_ydata(), [4, 3.5, 3, 2, 1.5, 1])
    np.testing.assert_array_equal(curve.get_xdata(), [0, 1, 2.5, 3.5, 4.5, 6])
    assert ax.get_yscale() == "log"


def test_many_visits_are_explained_by_the_legend() -> None:
    history = cycle_history()
    for cycle in range(2, 6):
        history.record_steps(1, np.array([0.5]), 1.0, 2.0, cycle=cycle)
        history.record_steps(0, np.array([0.5]), 1.0, 2.0, cycle=cycle)
    ax = plot_history(history, label="V")
    assert legend(ax) == ["V", "level 1 of V", "level 0 of V"]
    assert len(ax.texts) == 0


def test_several_runs_share_the_axes_and_the_legend_says_whose_levels_are_shown() -> None:
    alone = History()
    alone.begin()
    alone.set_unit(1.0)
    alone.record_steps(0, np.ones(6), 1.0, 1.0)
    ax = plot_history({"alone": alone, "one": example_history(), "two": timed_history()})
    assert legend(ax) == ["alone", "one", "levels of one", "two", "change of level"]
    assert [line.get_color() for line in curves(ax)] == list(PALETTE[:3])
    assert bands(ax) == [(0.0, 1.0), (1.0, 3.0)]
    dots = [line for line in ax.get_lines() if line.get_marker() == "o" and len(line.get_xdata())]
    assert len(dots) == 1
    assert dots[0].get_color() == PALETTE[2]
    np.testing.assert_array_equal(dots[0].get_xdata(), [1.0])
    np.testing.assert_array_equal(dots[0].get_ydata(), [2.0])
    assert ax.get_xlim() == (0.0, 5.0)  # the longest of the runs


def test_runs_can_be_added_one_by_one() -> None:
    _, ax = plt.subplots()
    assert plot_history(example_history(), ax=ax, label="one") is ax
    plot_history(example_history(), ax=ax, label="two", mark_transitions=False)
    assert legend(ax) == ["one", "levels of one", "two"]
    assert [line.get_color() for line in curves(ax)] == list(PALETTE[:2])


def test_losses_that_are_not_positive_have_a_linear_scale() -> None:
    history = History()
    history.record_steps(0, np.array([1.0, 0.0, -1.0]), 1.0, 1.0)
    assert plot_history(history).get_yscale() == "linear"


def test_levels_can_be_shaded_behind_other_curves() -> None:
    _, ax = plt.subplots()
    ax.plot([0, 3], [1, 2])
    shade_levels(ax, example_history(), owner="run")
    assert bands(ax) == [(0.0, 1.0), (1.0, 3.0)]
    assert ax.get_legend_handles_labels()[1] == ["levels of run"]


@pytest.mark.parametrize(
    ("history", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "history must be a History, got list"),
        ({"a": 3}, {}, TypeError, r"history\['a'\] must be a History, got int"),
        ({}, {}, ValueError, "history must hold at least one run"),
        (History(), {}, ValueError, "history must hold at least one step"),
        ({"a": example_history()}, {"label": "b"}, ValueError, "label must be None"),
        (
            example_history(),
            {"metric": "loss"},
            ValueError,
            r"metric must be one of .*'error'.* 'loss'",
        ),
        (example_history(), {"over": "days"}, ValueError, "over must be one of"),
        (example_history(), {"over": "elapsed_seconds"}, ValueError, "a history that was timed"),
    ],
)
def test_bad_input(
    history: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_history(history, **options)
    assert plt.get_fignums() == []  # nothing is drawn
