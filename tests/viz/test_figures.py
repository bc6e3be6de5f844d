"""What the figures show: the drawn data is compared, not only that something was drawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from opifex.problems import Burgers
from opifex.training.multilevel import History
from opifex.viz import plot_history, plot_solution
from tolerances import distance, rounding


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def example() -> History:
    history = History()
    history.begin()
    history.set_unit(400.0)
    history.record_evaluation(0, 0, {"error": 1.0})
    history.record_steps(0, np.array([8.0, 4.0, 3.0, 2.0]), 0.5, 100.0)
    history.record_transition(0, 1)
    history.record_steps(1, np.array([1.5, 0.5]), 2.0, 400.0)
    history.record_evaluation(1, 2, {"error": 0.1})
    return history


# -- history ---------------------------------------------------------------------------------


def test_history_shows_the_loss_before_each_step_over_the_work_before_it() -> None:
    ax = plot_history(example(), label="cascade")
    curve = ax.get_lines()[0]
    np.testing.assert_array_equal(curve.get_xdata(), [0, 0.25, 0.5, 0.75, 1, 2])
    np.testing.assert_array_equal(curve.get_ydata(), [8, 4, 3, 2, 1.5, 0.5])
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "loss"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cascade"]


def test_history_marks_the_transition_where_it_happened() -> None:
    ax = plot_history(example())
    _, transition = ax.get_lines()
    np.testing.assert_array_equal(transition.get_xdata(), [1, 1])
    assert [text.get_text() for text in ax.texts] == ["level 1"]
    unmarked = plot_history(example(), mark_transitions=False)
    assert len(unmarked.get_lines()) == 1
    assert len(unmarked.texts) == 0


def test_history_shows_a_metric_where_it_was_evaluated() -> None:
    ax = plot_history(example(), metric="error")
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), [0, 3])
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [1, 0.1])
    assert ax.get_ylabel() == "error"


def test_two_histories_fit_into_one_figure() -> None:
    _, ax = plt.subplots()
    assert plot_history(example(), ax=ax, label="one") is ax
    plot_history(example(), ax=ax, label="two", mark_transitions=False)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]


@pytest.mark.parametrize(
    ("history", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "history must be a History, got list"),
        (History(), {}, ValueError, "history must hold at least one step"),
        (example(), {"metric": "loss"}, ValueError, r"metric must be one of .*'error'.* 'loss'"),
    ],
)
def test_history_of_bad_input(
    history: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_history(history, **options)


# -- solution --------------------------------------------------------------------------------


def first_coordinate(points: Any) -> Any:
    return points[:, 0]


def with_tilt(points: Any) -> Any:
    return (points[:, 0] + 0.25 * points[:, 1])[:, None]


def drawn(ax: Any) -> np.ndarray:
    return np.asarray(ax.collections[0].get_array())


def test_solution_shows_the_model_and_its_signed_error() -> None:
    left, right = plot_solution(
        first_coordinate, with_tilt, lower=(0, 0), upper=(2, 4), resolution=5
    )
    x, y = np.meshgrid(np.linspace(0, 2, 5), np.linspace(0, 4, 5), indexing="xy")
    np.testing.assert_array_equal(drawn(left), x + 0.25 * y)
    np.testing.assert_array_equal(drawn(right), 0.25 * y)
    assert right.collections[0].get_clim() == (-1.0, 1.0)
    assert left.get_xlim() == (0, 2)
    assert left.get_ylim() == (0, 4)
    assert (left.get_title(), right.get_title()) == ("solution", "error")
    assert {(ax.get_xlabel(), ax.get_ylabel()) for ax in (left, right)} == {("x", "y")}


def test_solution_takes_given_axes_and_a_component() -> None:
    _, axes = plt.subplots(1, 2)

    def two(points: Any) -> Any:
        return jnp.stack([points[:, 0], points[:, 1]], axis=-1)

    assert plot_solution(two, two, component=1, resolution=3, axes=list(axes)) == list(axes)
    np.testing.assert_array_equal(drawn(axes[0])[:, 0], [0, 0.5, 1])
    np.testing.assert_array_equal(drawn(axes[1]), 0)


def test_solution_of_a_problem_is_drawn_on_its_domain() -> None:
    problem = Burgers()
    left, right = plot_solution(problem, problem.exact, resolution=7)
    assert left.get_xlim() == (problem.domain.lower[0], problem.domain.upper[0])
    assert left.get_ylim() == (problem.domain.lower[1], problem.domain.upper[1])
    np.testing.assert_array_equal(drawn(right), 0)
    start = -np.sin(np.pi * np.linspace(-1, 1, 7))
    # The sine's argument, up to pi, is rounded.
    assert distance(drawn(left)[0], start) <= rounding(np.float32, condition=np.pi)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reference": 3}, TypeError, "reference must be callable"),
        ({"model": None}, TypeError, "model must be callable"),
        ({"resolution": 0}, ValueError, "resolution must be at least 1"),
        ({"lower": (0.0,)}, ValueError, "lower and upper must be two coordinates each"),
        ({"upper": (0.0, 1.0)}, ValueError, "lower and upper must be two coordinates each"),
        ({"axes": [None]}, ValueError, "axes must be two, got 1"),
        ({"component": 1}, ValueError, "component must be below 1"),
        ({"component": -1}, ValueError, "component must be at least 0"),
    ],
)
def test_solution_of_bad_input(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_solution(**{"reference": first_coordinate, "model": with_tilt, **options})


# -- Matplotlib is optional ------------------------------------------------------------------


def test_matplotlib_is_imported_only_for_a_figure() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, opifex.viz as viz\n"
        "from opifex.training.multilevel import History\n"
        "history = History()\n"
        "history.record_steps(0, np.ones(2), 0.1, 1.0)\n"
        "assert viz.history_table(history).row_count == 1\n"
        "try:\n    viz.plot_history(history)\n"
        "except ImportError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "opifex-multilevel[viz]" in result.stdout
