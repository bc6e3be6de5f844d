"""What maps of fields and their errors show, in one to three dimensions."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from opifex.problems import Burgers
from opifex.viz import plot_fields, plot_solution
from tolerances import distance, rounding


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
        ({"lower": (0.0,), "upper": (1.0, 1.0)}, ValueError, "must be one to three coordinates"),
        ({"lower": (0.0,) * 4}, ValueError, "must be one to three coordinates"),
        ({"upper": (0.0, 1.0)}, ValueError, "lower and upper must be one to three coordinates"),
        ({"model": lambda points: points.sum()}, ValueError, "one row per point, 10201 in all"),
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


def test_a_problem_is_drawn_in_its_own_dimension() -> None:
    with pytest.raises(ValueError, match="one to three coordinates each"):
        plot_solution(Burgers(), Burgers().exact, lower=(0.0,))


def test_one_dimension_is_drawn_as_curves() -> None:
    left, right = plot_solution(
        first_coordinate, lambda p: 3 * p[:, 0], lower=(0,), upper=(2,), resolution=3
    )
    reference, found = left.get_lines()
    np.testing.assert_array_equal(found.get_xdata(), [0, 1, 2])
    np.testing.assert_array_equal(reference.get_ydata(), [0, 1, 2])
    np.testing.assert_array_equal(found.get_ydata(), [0, 3, 6])
    np.testing.assert_array_equal(right.get_lines()[-1].get_ydata(), [0, 2, 4])
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["reference", "found"]


def test_three_dimensions_are_drawn_as_slices_through_the_middle() -> None:
    x, y, z = np.meshgrid([0.0, 1.0], [0.0, 2.0, 4.0], [0.0, 3.0, 6.0, 9.0], indexing="ij")
    field = x + 10 * y + 100 * z
    axes = plot_fields(field, field - x, upper=(1, 4, 9), coordinates=("a", "b", "c"))
    assert len(axes) == 6
    titles = [ax.get_title() for ax in axes]
    assert titles[:3] == ["solution, c = 6", "solution, b = 2", "solution, a = 1"]
    assert titles[3:] == ["error, c = 6", "error, b = 2", "error, a = 1"]
    np.testing.assert_array_equal(drawn(axes[0]), field[:, :, 2].T)
    np.testing.assert_array_equal(drawn(axes[1]), field[:, 1, :].T)
    np.testing.assert_array_equal(drawn(axes[2]), field[1].T)
    np.testing.assert_array_equal(drawn(axes[3]), x[:, :, 2].T)
    np.testing.assert_array_equal(drawn(axes[5]), 1)
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in axes[:3]] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    # One scale per row, that of the whole field, so that the slices can be compared.
    assert {ax.collections[0].get_clim() for ax in axes[:3]} == {(0.0, field.max())}
    assert {ax.collections[0].get_clim() for ax in axes[3:]} == {(-1.0, 1.0)}


def test_the_first_axis_of_a_field_is_horizontal() -> None:
    field = np.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    left, right = plot_fields(field, np.zeros_like(field), upper=(5, 7))
    np.testing.assert_array_equal(drawn(left), field.T)
    np.testing.assert_array_equal(drawn(right), field.T)
    assert left.get_xlim() == (0, 5)
    assert left.get_ylim() == (0, 7)


def test_points_that_are_not_finite_do_not_spoil_the_scale() -> None:
    field = np.array([[0.0, np.nan], [2.0, -4.0]])
    _, right = plot_fields(field, np.zeros_like(field))
    assert right.collections[0].get_clim() == (-4.0, 4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": np.zeros(3)}, r"found and reference must have the same shape"),
        ({"found": np.zeros(1), "reference": np.zeros(1)}, "found must have one to three axes"),
        ({"found": 0.0, "reference": 0.0}, "found must have one to three axes"),
        ({"lower": (0.0,)}, "lower and upper must be one to three coordinates"),
        ({"lower": (0.0,), "upper": (1.0,)}, "lower and upper must have 2 coordinates"),
        ({"coordinates": ("x",)}, "coordinates must be 2 names"),
        ({"axes": [None] * 3}, "axes must be two, got 3"),
    ],
)
def test_fields_of_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_fields(**{"found": np.eye(2), "reference": np.eye(2), **arguments})
    assert plt.get_fignums() == []
