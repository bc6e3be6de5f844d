"""`History`: columns, work, evaluations and transitions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.training.multilevel import CascadeTrainer, History, MultilevelConfig
from opifex.training.multilevel.hierarchy import create_network_hierarchy


def example() -> History:
    """Four cheap steps on level 0, seen in two stretches, then two full steps on level 1."""
    history = History(step_work={0: 0.25, 1: 1.0})
    history.record_evaluation(0, 0.0, {"error": 1.0})
    history.record_steps(0, np.array([8.0, 4.0]), 0.2, first_epoch=0, steps_per_epoch=2)
    history.record_steps(0, np.array([3.0, 2.0]), 0.4, first_epoch=1, steps_per_epoch=2)
    history.record_evaluation(0, 2.0, {"error": 0.5})
    history.record_transition(0, 1)
    history.record_steps(1, np.array([1.5, 1.0]), 2.0, first_epoch=0, steps_per_epoch=2)
    history.record_evaluation(1, 1.0, {"error": 0.1})
    return history


def test_table_has_one_row_per_step() -> None:
    table = example().table()
    assert list(table) == ["step", "level", "cycle", "epoch", "loss", "work", "seconds"]
    np.testing.assert_array_equal(table["step"], np.arange(6))
    np.testing.assert_array_equal(table["level"], [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(table["epoch"], [0, 0.5, 1, 1.5, 0, 0.5])
    np.testing.assert_array_equal(table["loss"], [8, 4, 3, 2, 1.5, 1])
    np.testing.assert_allclose(table["work"], [0.25, 0.5, 0.75, 1, 2, 3])
    np.testing.assert_allclose(table["seconds"], [0.1, 0.2, 0.4, 0.6, 1.6, 2.6])
    np.testing.assert_array_equal(example().losses, table["loss"])


def test_totals_are_the_last_row() -> None:
    history = example()
    assert history.num_steps == 6
    assert history.work == pytest.approx(3.0)
    assert history.seconds == pytest.approx(2.6)


def test_evaluations_know_when_they_were_made() -> None:
    first, second, third = example().evaluations
    assert (first.step, first.work, first.seconds) == (0, 0, 0)
    assert (second.step, second.level, second.epoch) == (4, 0, 2.0)
    assert (second.work, second.seconds) == (pytest.approx(1.0), pytest.approx(0.6))
    assert third.metrics == {"error": 0.1}


def test_transitions_know_when_they_were_made() -> None:
    (transition,) = example().transitions
    assert (transition.from_level, transition.to_level, transition.step) == (0, 1, 4)
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


def test_work_of_a_level_of_unknown_cost_is_not_invented() -> None:
    history = History()
    history.record_steps(0, np.ones(2), 0.1)
    assert np.isnan(history.work)


def test_work_can_be_measured_by_time() -> None:
    history = example()
    history.measure_work_by_time(finest=1)
    assert history.step_work == pytest.approx({0: 0.15, 1: 1.0})
    untouched = example()
    untouched.measure_work_by_time(finest=2)
    assert untouched.step_work == {0: 0.25, 1: 1.0}


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
    history = History(step_work={0: 0.1, 1: 0.4, 2: 1.0})
    for level, steps, seconds in stretches:
        history.record_steps(level, np.ones(steps), seconds)
    table = history.table()
    assert len({len(column) for column in table.values()}) == 1
    assert np.all(np.diff(table["work"]) > 0)
    assert np.all(np.diff(table["seconds"]) > 0)
    assert table["work"][-1] == pytest.approx(history.work)
    assert table["seconds"][-1] == pytest.approx(history.seconds)
    assert history.seconds == pytest.approx(sum(seconds for _, _, seconds in stretches))


@pytest.fixture(scope="module")
def cascade_history() -> History:
    hierarchy = create_network_hierarchy(1, 1, [16, 16], num_levels=3, rngs=nnx.Rngs(0))
    config = MultilevelConfig(3, level_epochs=[2, 3, 4])
    x = jnp.linspace(0, 1, 64)[:, None]
    return CascadeTrainer(hierarchy, optax.adam(1e-3), config=config).fit(
        lambda model, x: jnp.mean((model(x) - x) ** 2), (x,), report_every=2
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
