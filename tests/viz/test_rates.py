"""Curves of final losses over learning rates, and their minima."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opifex.viz import plot_rate_transfer

RATES = [1e-3, 1e-1, 1e-2]


def marked(ax: Any, gid: str) -> list[tuple[list[float], list[float]]]:
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in ax.get_lines()
        if line.get_gid() == gid
    ]


def test_curves_are_drawn_in_the_order_of_the_rates_with_their_minima() -> None:
    ax = plot_rate_transfer(RATES, {"width 8": [3.0, 2.0, 1.0], "width 16": [0.5, 9.0, 0.7]})
    first = ax.get_lines()[0]
    assert list(first.get_xdata()) == [1e-3, 1e-2, 1e-1]
    assert list(first.get_ydata()) == [3.0, 1.0, 2.0]
    assert marked(ax, "best") == [([1e-2], [1.0]), ([1e-3], [0.5])]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["width 8, best 0.01", "width 16, best 0.001"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_levels_without_names_are_numbered() -> None:
    ax = plot_rate_transfer(np.array(RATES), np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["level 0, best 0.001", "level 1, best 0.01"]


def test_runs_that_diverged_are_crosses_and_never_the_best() -> None:
    ax = plot_rate_transfer(RATES, [[1.0, np.inf, np.nan]])
    assert marked(ax, "best") == [([1e-3], [1.0])]
    assert marked(ax, "diverged") == [([1e-1, 1e-2], [0.97, 0.97])]
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [1.0, np.nan, np.nan])


@pytest.mark.parametrize(
    ("rates", "losses", "error", "message"),
    [
        ([], [[]], ValueError, "rates must not be empty"),
        ([0.0], [[1.0]], ValueError, r"rates\[0\] must be positive"),
        (RATES, [], ValueError, "losses_by_level must hold at least one level"),
        (RATES, 3, TypeError, "losses_by_level must be a mapping or a sequence"),
        (RATES, {"a": [1.0]}, ValueError, r"losses_by_level\['a'\] must hold one loss per rate, 3"),
        (RATES, [[np.nan] * 3], ValueError, r"losses_by_level\['level 0'\] must hold a finite"),
    ],
)
def test_bad_input(rates: Any, losses: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plot_rate_transfer(rates, losses)
