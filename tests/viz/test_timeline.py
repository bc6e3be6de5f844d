"""The bars of the time line are the intervals of the stopwatch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.training.multilevel import CascadeTrainer, History, create_network_hierarchy
from opifex.viz import level_colors, plot_timeline
from viz_runs import example_history, timed_history


def bars(ax: Any, account: str) -> list[tuple[float, float]]:
    found = []
    for collection in ax.collections:
        if collection.get_gid() == account:
            for path in collection.get_paths():
                x = path.vertices[:, 0]
                found.append((float(x.min()), float(x.max())))
    return found


def test_bars_are_where_the_time_was_spent() -> None:
    ax = plot_timeline(timed_history())
    assert bars(ax, "compilation") == [(0.0, 2.0), (3.75, 4.75)]
    assert bars(ax, "training") == [(2.0, 3.0), (4.75, 6.75)]
    assert bars(ax, "evaluation") == [(3.0, 3.5)]
    assert bars(ax, "transfer") == [(3.5, 3.75)]
    assert ax.get_xlim() == (0.0, 6.75)


def test_rows_are_named_with_their_seconds_and_shares() -> None:
    ax = plot_timeline(timed_history())
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["training", "compilation", "transfer", "evaluation"]
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["3 s, 44 %", "3 s, 44 %", "0.25 s, 4 %", "0.5 s, 7 %"]


def test_training_has_the_colour_of_its_level() -> None:
    ax = plot_timeline(timed_history())
    training = [c for c in ax.collections if c.get_gid() == "training"]
    assert [c.get_label() for c in training] == ["level 0", "level 1"]
    for collection, color in zip(training, level_colors(2), strict=True):
        np.testing.assert_allclose(collection.get_facecolor()[0][:3], color)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["level 0", "level 1"]


def test_bars_of_a_real_run_add_up_to_its_accounts() -> None:
    models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer(models)
    history = trainer.fit(
        lambda model: jnp.mean(model(jnp.ones((3, 1))) ** 2),
        epochs=[3, 4],
        evaluate=lambda model: jnp.sum(model(jnp.ones((1, 1)))),
    )
    intervals = history.stopwatch.intervals
    ax = plot_timeline(history)
    for name, total in history.stopwatch.seconds.items():
        spent = [i.end - i.start for i in intervals if i.account == name]
        # One rounding per addition, of a clock that shows no more than the seconds of the whole run.
        assert abs(sum(spent) - total) <= len(intervals) * np.spacing(history.wall_seconds)
        assert len(bars(ax, name)) == len(spent)
    found = {c.get_label() for c in ax.collections if c.get_gid() == "training"}
    assert found == {"level 0", "level 1"}


@pytest.mark.parametrize(
    ("history", "error", "message"),
    [
        (None, TypeError, "history must be a History, got NoneType"),
        (History(), ValueError, "history must hold at least one step"),
        (example_history(), ValueError, "history must be timed"),
    ],
)
def test_bad_input(history: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plot_timeline(history)
