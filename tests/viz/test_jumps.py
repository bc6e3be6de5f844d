"""The loss around transfers: numbers, and the same numbers in the picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from opifex.training.multilevel import History
from opifex.viz import TransferJump, comparison_table, plot_transfer_jump, transfer_jumps
from viz_runs import cycle_history, example_history, timed_history


def run(coarse: list[float], fine: list[float]) -> History:
    history = History()
    history.begin()
    history.set_unit(2.0)
    history.record_steps(0, np.array(coarse), 1.0, 1.0)
    history.record_steps(1, np.array(fine), 0.5 * len(fine), 2.0)
    return history


def test_a_peak_behind_the_transfer_and_the_way_back() -> None:
    assert transfer_jumps(timed_history()) == [
        TransferJump(
            from_level=0,
            to_level=1,
            step=2,
            before=2.0,
            after=2.0,
            peak=3.0,
            regained_steps=3,
            regained_work=3.0,
            regained_seconds=1.5,
        )
    ]
    assert transfer_jumps(timed_history())[0].ratio == 1.0


def test_without_a_jump_nothing_is_to_be_regained() -> None:
    (jump,) = transfer_jumps(example_history())
    assert (jump.before, jump.after, jump.peak) == (2.0, 1.5, 1.5)
    assert (jump.regained_steps, jump.regained_work, jump.regained_seconds) == (0, 0.0, 0.0)


def test_what_was_not_regained_is_none() -> None:
    (jump,) = transfer_jumps(run([2.0, 1.0], [3.0, 2.0, 1.5]))
    assert jump.ratio == 3.0
    assert (jump.regained_steps, jump.regained_work, jump.regained_seconds) == (None, None, None)


def test_as_low_as_before_is_low_enough() -> None:
    (jump,) = transfer_jumps(run([2.0, 1.0], [3.0, 1.0, 1.0]))
    assert jump.regained_steps == 1


def test_a_dip_before_the_peak_does_not_count() -> None:
    (jump,) = transfer_jumps(run([2.0, 1.0], [1.0, 0.5, 4.0, 2.0, 0.75]))
    assert (jump.after, jump.peak, jump.regained_steps) == (1.0, 4.0, 4)


def test_a_peak_long_after_the_transfer_is_not_the_transfers() -> None:
    losses = [2.0, 0.5, 0.25, 9.0]
    assert transfer_jumps(run([1.0], losses), within=3)[0].peak == 2.0
    assert transfer_jumps(run([1.0], losses))[0].peak == 9.0


def test_a_window_takes_medians() -> None:
    (jump,) = transfer_jumps(run([5.0, 1.0, 2.0, 9.0], [7.0, 3.0, 4.0, 1.0, 1.5]), window=3)
    assert (jump.before, jump.after, jump.peak) == (2.0, 4.0, 4.0)
    assert jump.regained_steps == 2  # the median of 4, 1 and 1.5


def test_runs_on_one_level_and_cycles_have_none() -> None:
    history = History()
    history.record_steps(0, np.ones(3), 1.0, 1.0)
    assert transfer_jumps(history) == []
    assert transfer_jumps(cycle_history()) == []


def test_the_numbers_make_a_table() -> None:
    table = comparison_table([asdict(jump) for jump in transfer_jumps(timed_history())])
    assert table.row_count == 1
    assert [column.header for column in table.columns][:3] == ["from_level", "to_level", "step"]


def test_the_picture_shows_losses_relative_to_the_last_one_before() -> None:
    ax = plot_transfer_jump(timed_history(), steps=3)
    (curve,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("level")]
    np.testing.assert_array_equal(curve.get_xdata(), [-2, -1, 0, 1, 2, 3])
    np.testing.assert_array_equal(curve.get_ydata(), [2, 1, 1, 1.5, 1.25, 0.5])
    dot = ax.get_lines()[-1]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (3, 0.5)
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == "level 0 to 1: jump 1, peak 1.5, regained after 3 steps"


@pytest.mark.parametrize(
    ("coarse", "fine", "words"),
    [
        ([2.0, 1.0], [1.0, 0.5], "no peak"),
        ([2.0, 1.0], [3.0, 2.0], "jump 3, peak 3, not regained"),
    ],
)
def test_the_legend_says_what_happened(coarse: list[float], fine: list[float], words: str) -> None:
    (text,) = plot_transfer_jump(run(coarse, fine)).get_legend().get_texts()
    assert words in text.get_text()


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (transfer_jumps, {"history": 3}, TypeError, "history must be a History"),
        (transfer_jumps, {"history": History()}, ValueError, "history must hold at least one"),
        (transfer_jumps, {"window": 0}, ValueError, "window must be at least 1"),
        (transfer_jumps, {"within": 1.5}, TypeError, "within must be an integer"),
        (plot_transfer_jump, {"steps": 0}, ValueError, "steps must be at least 1"),
        (
            plot_transfer_jump,
            {"history": cycle_history()},
            ValueError,
            "history must hold a transition to a finer level",
        ),
    ],
)
def test_bad_input(
    function: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(**{"history": example_history(), **arguments})
