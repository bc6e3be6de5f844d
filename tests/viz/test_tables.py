"""What the tables say."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from opifex.training.multilevel import History
from opifex.training.stopwatch import Stopwatch
from opifex.viz import comparison_table, history_table


def cells(table: Table) -> list[list[str]]:
    columns = [list(column.cells) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def example() -> History:
    history = History()
    history.begin()
    history.set_unit(400.0)
    history.record_steps(0, np.array([8.0, 4.0]), 0.5, 100.0)
    history.record_steps(0, np.array([3.0, 2.0]), 0.7, 100.0)
    history.record_transition(0, 1)
    history.record_steps(1, np.array([1.5, 0.001]), 2.0, 400.0)
    return history


def test_history_table_has_one_row_per_level() -> None:
    table = history_table(example(), title="run")
    assert [column.header for column in table.columns] == [
        "level",
        "steps",
        "first loss",
        "last loss",
        "work units",
        "seconds",
    ]
    assert cells(table) == [
        ["0", "4", "8.000e+00", "2.000e+00", "1.0", "1.2"],
        ["1", "2", "1.500e+00", "1.000e-03", "2.0", "2.0"],
    ]


def test_history_table_has_one_row_per_visit() -> None:
    history = example()
    history.record_steps(0, np.array([0.5]), 0.1, 100.0, cycle=1)
    history.record_steps(1, np.array([0.4]), 0.1, 400.0, cycle=1)
    assert [row[0] for row in cells(history_table(history))] == ["0", "1", "0", "1"]


def test_history_table_accounts_for_every_second() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    history = History(stopwatch=Stopwatch(clock))
    history.begin()
    history.set_unit(400.0)
    spent = {"training": 1.0, "compilation": 2.0, "transfer": 4.0, "evaluation": 8.0, "other": 16.0}
    for account, seconds in spent.items():
        with history.stopwatch.charge(account):
            clock.now += seconds
    history.record_steps(0, np.array([8.0, 4.0]), 1.0, 100.0)
    assert [(row[0], row[-1]) for row in cells(history_table(history))] == [
        ("0", "1.0"),
        ("compiling", "2.0"),
        ("transfers", "4.0"),
        ("evaluating", "8.0"),
        ("other", "16.0"),
        ("together", "31.0"),
    ]


def test_history_table_of_an_empty_history_is_empty() -> None:
    assert cells(history_table(History())) == []


def test_history_table_of_something_else() -> None:
    with pytest.raises(TypeError, match="history must be a History, got list"):
        history_table([1.0])  # type: ignore[arg-type]


def test_comparison_table_formats_numbers_and_leaves_text_alone() -> None:
    rows = [
        {"run": "cascade", "error": 0.00123456, "steps": 2000, "seconds": 12.3456},
        {"run": "finest alone", "error": 0.1, "steps": 1000, "seconds": 1.0},
    ]
    table = comparison_table(rows, formats={"error": ".2e"})
    assert cells(table) == [
        ["cascade", "1.23e-03", "2000", "12.3"],
        ["finest alone", "1.00e-01", "1000", "1"],
    ]
    assert [column.justify for column in table.columns] == ["left", "right", "right", "right"]


def test_comparison_table_can_be_printed() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table([{"run": "one", "error": 0.25}], title="All runs"))
    shown = console.export_text()
    assert "All runs" in shown
    assert "0.25" in shown


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": []}, ValueError, "rows must not be empty"),
        ({"rows": 3}, TypeError, "rows must be a sequence"),
        ({"rows": [3]}, TypeError, r"rows\[0\] must be a mapping, got int"),
        ({"rows": [{"a": 1}, {"b": 1}]}, ValueError, r"rows\[1\] has the columns \['b'\]"),
        (
            {"rows": [{"a": 1}], "formats": {"b": ".2f"}},
            ValueError,
            "formats names the column 'b'",
        ),
    ],
)
def test_comparison_table_of_bad_input(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        comparison_table(**arguments)
