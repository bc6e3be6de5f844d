"""`History`: columns, work, time, evaluations and transitions."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import MLP
from opifex.training.multilevel import (
    CascadeTrainer,
    Cycle,
    History,
    Monitor,
    MultilevelConfig,
    Resampled,
    VCycle,
    create_network_hierarchy,
    prolongate,
)
from opifex.training.stopwatch import Stopwatch


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """A history on such a clock; level 2 is the finest, and a step of it is four operations."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.history = History(Stopwatch(self.clock))
        self.history.begin()
        self.history.set_unit(4.0)

    def train(self, level: int, losses: Any, seconds: float, **details: Any) -> None:
        with self.history.stopwatch.charge("training"):
            self.clock.now += seconds
        self.history.record_steps(level, np.asarray(losses), seconds, 2.0**level, **details)

    def evaluate(self, level: int, epoch: float, error: float, seconds: float = 8.0) -> None:
        with self.history.stopwatch.charge("evaluation"):
            self.clock.now += seconds
            self.history.record_evaluation(level, epoch, {"error": error})


def example() -> History:
    """Four cheap steps on level 0, seen in two stretches, then two full steps on level 2."""
    recorder = Recorder()
    recorder.evaluate(0, 0.0, 1.0)
    recorder.train(0, [8.0, 4.0], 0.2, first_epoch=0, steps_per_epoch=2)
    recorder.train(0, [3.0, 2.0], 0.4, first_epoch=1, steps_per_epoch=2)
    recorder.evaluate(0, 2.0, 0.5)
    with recorder.history.stopwatch.charge("transfer"):
        recorder.clock.now += 16.0
        recorder.history.record_transition(0, 2)
    recorder.train(2, [1.5, 1.0], 2.0, first_epoch=0, steps_per_epoch=2)
    recorder.evaluate(2, 1.0, 0.1)
    return recorder.history


# -- columns ---------------------------------------------------------------------------------


def test_table_has_one_row_per_step() -> None:
    table = example().table()
    assert list(table) == [
        "step",
        "level",
        "cycle",
        "epoch",
        "objective",
        "loss",
        "work",
        "seconds",
    ]
    np.testing.assert_array_equal(table["step"], np.arange(6))
    np.testing.assert_array_equal(table["level"], [0, 0, 0, 0, 2, 2])
    np.testing.assert_array_equal(table["epoch"], [0, 0.5, 1, 1.5, 0, 0.5])
    np.testing.assert_array_equal(table["objective"], ["own"] * 6)
    np.testing.assert_array_equal(table["loss"], [8, 4, 3, 2, 1.5, 1])
    np.testing.assert_allclose(table["work"], [0.25, 0.5, 0.75, 1, 2, 3])
    np.testing.assert_allclose(table["seconds"], [0.1, 0.2, 0.4, 0.6, 1.6, 2.6])
    np.testing.assert_array_equal(example().losses, table["loss"])


def test_table_tells_cycles_and_coarse_objectives_apart() -> None:
    recorder = Recorder()
    recorder.train(2, [3.0], 1.0, cycle=1)
    recorder.train(1, [9.0, 8.0], 1.0, cycle=1, objective="rediscretised")
    table = recorder.history.table()
    np.testing.assert_array_equal(table["cycle"], [1, 1, 1])
    np.testing.assert_array_equal(table["objective"], ["own", "rediscretised", "rediscretised"])


def test_totals_are_the_last_row() -> None:
    history = example()
    assert history.num_steps == 6
    assert history.work == pytest.approx(3.0)
    assert history.seconds == pytest.approx(2.6)


def test_stretches_are_what_was_recorded() -> None:
    first, second, third = example().stretches
    assert (first.level, first.seconds, first.operations) == (0, 0.2, 1.0)
    assert (second.first_epoch, second.steps_per_epoch) == (1, 2)
    np.testing.assert_array_equal(third.losses, [1.5, 1.0])


def test_a_stretch_without_steps_leaves_no_trace() -> None:
    """It happens when the first loss of all is not finite."""
    recorder = Recorder()
    recorder.train(0, [], 1.0)
    assert recorder.history.stretches == ()
    assert recorder.history.num_steps == 0


def test_evaluations_know_when_they_were_made() -> None:
    first, second, third = example().evaluations
    assert (first.step, first.work, first.seconds) == (0, 0, 0)
    assert (second.step, second.level, second.epoch) == (4, 0, 2.0)
    assert (second.work, second.seconds) == (pytest.approx(1.0), pytest.approx(0.6))
    assert third.metrics == {"error": 0.1}


def test_evaluations_do_not_count_the_time_of_evaluations() -> None:
    elapsed = [evaluation.elapsed_seconds for evaluation in example().evaluations]
    np.testing.assert_allclose(elapsed, [0, 0.6, 18.6])


def test_transitions_know_when_they_were_made() -> None:
    (transition,) = example().transitions
    assert (transition.from_level, transition.to_level, transition.step) == (0, 2, 4)
    assert (transition.work, transition.seconds) == (pytest.approx(1.0), pytest.approx(0.6))


@pytest.mark.parametrize(("threshold", "work"), [(1.0, 0.0), (0.5, 1.0), (0.3, 3.0)])
def test_first_evaluation_below_a_threshold(threshold: float, work: float) -> None:
    found = example().first_below("error", threshold)
    assert found is not None
    assert found.work == pytest.approx(work)
    assert example().first_below("error", 0.01) is None


def test_empty_history_has_empty_columns() -> None:
    history = History()
    assert {len(column) for column in history.table().values()} == {0}
    assert (history.num_steps, history.work, history.seconds) == (0, 0, 0)
    assert history.evaluations == history.transitions == []
    assert repr(history) == "History(no steps yet)"


def test_repr_says_steps_losses_work_and_time() -> None:
    shown = repr(example())
    assert "6 steps: 4 on level 0, 2 on level 2" in shown
    assert "loss 8.000e+00 -> 1.000e+00" in shown
    assert "3 work units" in shown
    assert "2.6 s training of 42.6 s" in shown


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 5), st.floats(0.01, 1.0)),
        min_size=1,
        max_size=6,
    )
)
def test_cumulative_columns_increase_and_end_at_the_totals(
    stretches: list[tuple[int, int, float]],
) -> None:
    recorder = Recorder()
    for level, steps, seconds in stretches:
        recorder.train(level, np.ones(steps), seconds)
    history = recorder.history
    table = history.table()
    assert len({len(column) for column in table.values()}) == 1
    assert np.all(np.diff(table["work"]) > 0)
    assert np.all(np.diff(table["seconds"]) > 0)
    assert table["work"][-1] == pytest.approx(history.work)
    assert table["seconds"][-1] == pytest.approx(history.seconds)
    assert history.seconds == pytest.approx(sum(seconds for _, _, seconds in stretches))


# -- work ------------------------------------------------------------------------------------


def test_work_of_a_level_of_unknown_cost_is_not_invented() -> None:
    history = History()
    history.record_steps(0, np.ones(2), 0.1, 3.0)
    assert np.isnan(history.work)


def test_every_stretch_has_its_own_price() -> None:
    """Two methods on one level are not pooled, and another run has another unit."""
    history = History()
    history.begin()
    history.set_unit(10.0)
    history.record_steps(0, np.ones(2), 1.0, 5.0)  # cheap steps
    history.record_steps(0, np.ones(1), 1.0, 40.0)  # a dear one
    assert history.work == pytest.approx(2 * 0.5 + 4)
    history.begin()
    history.set_unit(20.0)
    history.record_steps(0, np.ones(1), 1.0, 5.0)
    assert history.work == pytest.approx(5 + 0.25)
    assert history.step_work == {0: 0.25}


def test_work_beside_the_steps_is_charged_to_the_next_one() -> None:
    recorder = Recorder()
    recorder.train(2, [1.0, 1.0], 1.0)
    recorder.history.record_extra_operations(3.0)
    recorder.history.record_extra_operations(5.0)
    recorder.train(2, [1.0, 1.0], 1.0)
    np.testing.assert_allclose(recorder.history.table()["work"], [1, 2, 5, 6])


# -- of a run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cascade_history() -> History:
    hierarchy = create_network_hierarchy(1, 1, [16, 16], num_levels=3, rngs=nnx.Rngs(0))
    config = MultilevelConfig(3, level_epochs=[2, 3, 4])
    x = jnp.linspace(0, 1, 64)[:, None]
    return CascadeTrainer(hierarchy, optax.adam(1e-3), config=config).fit(
        lambda model, x: jnp.mean((model(x) - x) ** 2), (x,), monitor=Monitor(every=2)
    )


def test_work_units_are_steps_of_the_finest_level(cascade_history: History) -> None:
    cost = cascade_history.step_work
    assert cost[2] == 1.0
    assert 0 < cost[0] < cost[1] < 1
    assert cascade_history.work == pytest.approx(2 * cost[0] + 3 * cost[1] + 4)


def test_work_follows_the_number_of_operations(cascade_history: History) -> None:
    """Twice the width is about four times the multiplications; small terms blur it."""
    assert 2 < 1 / cascade_history.step_work[1] < 4.5


def test_transitions_of_a_cascade_lie_between_the_levels(cascade_history: History) -> None:
    assert [(t.from_level, t.to_level, t.step) for t in cascade_history.transitions] == [
        (0, 1, 2),
        (1, 2, 5),
    ]


def test_times_of_a_cascade_are_recorded(cascade_history: History) -> None:
    assert cascade_history.compile_seconds > 0
    assert cascade_history.transfer_seconds > 0
    assert cascade_history.seconds > 0


ACCOUNTS = ("seconds", "compile", "transfer", "resample", "evaluation", "other")


def seconds_of(history: History) -> dict[str, float]:
    names = {name: f"{name}_seconds" for name in ACCOUNTS} | {"seconds": "seconds"}
    return {account: getattr(history, name) for account, name in names.items()}


class Costs:
    """What the user's functions take, in seconds of a clock that stands still otherwise."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.spent = dict.fromkeys(ACCOUNTS, 0.0)

    def spend(self, account: str) -> None:
        self.clock.now += 1.0
        self.spent[account] += 1.0

    def fit(self, cycle: str | Cycle) -> CascadeTrainer:
        def loss(model: Any, x: jax.Array) -> jax.Array:
            self.spend("compile")  # while it is traced
            return jnp.mean((model(x) - x) ** 2)

        def transfer(coarse: Any, fine: Any) -> Any:
            self.spend("transfer")
            return prolongate(coarse, fine)

        def draw(model: Any, data: Any, key: Any) -> Any:
            self.spend("resample")
            return data

        def metric(model: Any) -> jax.Array:
            self.spend("evaluation")
            return jnp.sum(model(jnp.ones((1, 1))))

        models = [MLP(1, 1, [width], rngs=nnx.Rngs(width)) for width in (2, 3)]
        trainer = CascadeTrainer(models, optax.sgd(1e-2), transfer)
        trainer.history = History(Stopwatch(self.clock))
        data: Any = (jnp.linspace(0, 1, 5)[:, None],)
        trainer.fit(
            loss,
            Resampled(data, draw) if cycle == "cascade" else data,
            epochs=[4, 4],
            cycle=cycle,
            evaluate=metric,
            monitor=Monitor(every=2, callbacks=[lambda progress: self.spend("evaluation")]),
        )
        return trainer


@pytest.mark.parametrize(
    ("cycle", "charged"),
    [
        ("cascade", ACCOUNTS[1:5]),
        # Corrections need programs of their own.
        (VCycle(cycles=2), ("compile", "evaluation")),
        (VCycle(cycles=2, coarse="galerkin"), ("compile", "evaluation")),
    ],
    ids=["cascade", "rediscretised", "galerkin"],
)
def test_every_second_is_in_the_account_that_spent_it(cycle: Any, charged: Any) -> None:
    costs = Costs()
    history = costs.fit(cycle).history
    assert seconds_of(history) == costs.spent
    assert tuple(account for account, seconds in costs.spent.items() if seconds) == charged
    assert history.wall_seconds == costs.clock.now - 100
    assert history.elapsed_seconds == history.wall_seconds - costs.spent["evaluation"]


# -- tables for other programs ---------------------------------------------------------------


def recorded_with_metrics() -> History:
    history = History()
    history.begin()
    history.set_unit(4.0)
    history.record_evaluation(0, 0, {"error": 1.0})
    history.record_steps(0, np.array([0.1, 0.2], np.float32), 1.0, 2.0)
    history.record_evaluation(0, 2, {"error": 0.5, "work": 7.0})
    return history


def test_evaluations_are_columns_too() -> None:
    columns = recorded_with_metrics().evaluations_table()
    assert columns["step"].tolist() == [0, 2]
    assert columns["work"].tolist() == [0.0, 1.0]
    assert columns["error"].tolist() == [1.0, 0.5]
    np.testing.assert_array_equal(columns["metric_work"], [np.nan, 7.0])


def test_csv_holds_all_digits(tmp_path: Path) -> None:
    history = recorded_with_metrics()
    for evaluations, table in ((False, history.table()), (True, history.evaluations_table())):
        history.to_csv(tmp_path / "run.csv", evaluations=evaluations)
        with (tmp_path / "run.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == list(table)
        for name, column in table.items():
            read = np.array([row[name] for row in rows]).astype(column.dtype)
            np.testing.assert_array_equal(read, column)


def test_an_empty_history_is_a_line_of_names(tmp_path: Path) -> None:
    History().to_csv(str(tmp_path / "run.csv"))
    assert (tmp_path / "run.csv").read_text().startswith("step,level,cycle,")


def test_pandas_gets_the_same_numbers() -> None:
    pytest.importorskip("pandas")
    history = recorded_with_metrics()
    frame = history.to_pandas()
    np.testing.assert_array_equal(frame["loss"], history.losses)
    assert frame.index.name == "step"
    evaluations = history.to_pandas(evaluations=True)
    assert evaluations["error"].tolist() == [1.0, 0.5]


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas, or 'opifex-multilevel\[data\]'"):
        History().to_pandas()
