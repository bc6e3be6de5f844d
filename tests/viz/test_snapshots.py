"""What a recorder keeps is the model on its grid, at the moments at which callbacks are called."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.problems import Box, Burgers
from opifex.training.multilevel import CascadeTrainer, Monitor, create_network_hierarchy
from opifex.viz import SnapshotRecorder

LINE = Box((0.0,), (2.0,))


def test_the_grid_has_the_centres_of_cells() -> None:
    recorder = SnapshotRecorder(Box((0.0, -1.0), (1.0, 1.0)), resolution=(2, 4))
    np.testing.assert_array_equal(recorder.grids[0], [0.25, 0.75])
    np.testing.assert_array_equal(recorder.grids[1], [-0.75, -0.25, 0.25, 0.75])
    recorder.record(lambda points: points[:, 0] + 10 * points[:, 1])
    x, y = np.meshgrid(*recorder.grids, indexing="ij")
    np.testing.assert_array_equal(recorder.snapshots[0].values, x + 10 * y)


def test_a_problem_gives_its_domain_and_its_solution() -> None:
    problem = Burgers()
    recorder = SnapshotRecorder(problem, resolution=3)
    assert recorder.domain == problem.domain
    recorder.record(problem.exact)
    np.testing.assert_array_equal(recorder.reference(problem), recorder.snapshots[0].values)


def test_a_component_or_any_field_of_the_model_can_be_kept() -> None:
    def model(points: Any) -> Any:
        return jnp.concatenate([points, 3 * points], axis=-1)

    second = SnapshotRecorder(LINE, resolution=2, component=1)
    second.record(model)
    np.testing.assert_array_equal(second.snapshots[0].values, [1.5, 4.5])
    difference = SnapshotRecorder(LINE, resolution=2, field=lambda m, p: m(p)[:, 1] - m(p)[:, 0])
    difference.record(model)
    np.testing.assert_array_equal(difference.snapshots[0].values, [1.0, 3.0])


def test_references_are_functions_arrays_or_nothing() -> None:
    recorder = SnapshotRecorder(LINE, resolution=2)
    np.testing.assert_array_equal(recorder.reference(None), [0, 0])
    np.testing.assert_array_equal(recorder.reference(lambda p: p[:, 0]), [0.5, 1.5])
    np.testing.assert_array_equal(recorder.reference(np.array([7.0, 8.0])), [7, 8])
    np.testing.assert_array_equal(recorder.reference(jnp.array([7.0, 8.0])), [7, 8])


def test_a_run_is_recorded_at_every_evaluation_and_not_ended() -> None:
    models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer(models)
    recorder = SnapshotRecorder(LINE, resolution=8)
    recorder.record(models[0])
    trainer.fit(
        lambda model: jnp.mean(model(jnp.ones((3, 1))) ** 2),
        epochs=[4, 6],
        monitor=Monitor(every=2, callbacks=[recorder]),
    )
    assert [(s.level, s.epoch) for s in recorder.snapshots] == [
        (0, 0),
        (0, 2),
        (0, 4),
        (1, 2),
        (1, 4),
        (1, 6),
    ]
    np.testing.assert_array_equal(recorder.snapshots[-1].values, recorder.on_grid(trainer.model))
    assert np.any(recorder.snapshots[0].values != recorder.snapshots[1].values)
    assert repr(recorder) == "SnapshotRecorder(6 snapshots on 8 cells)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"domain": (0, 1)}, TypeError, "domain must be a Problem or a Box, got tuple"),
        ({"domain": Box((0.0,) * 4, (1.0,) * 4)}, ValueError, "one to three dimensions, got 4"),
        ({"resolution": 0}, ValueError, "resolution must be at least 1"),
        ({"resolution": (4, 4)}, ValueError, "resolution must be 1 numbers"),
        ({"resolution": (2.5,)}, TypeError, r"resolution\[0\] must be an integer"),
        ({"resolution": "fine"}, TypeError, "resolution must be an integer or a sequence"),
        ({"component": -1}, ValueError, "component must be at least 0"),
        ({"field": 3}, TypeError, "field must be callable"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SnapshotRecorder(**{"domain": LINE, **arguments})


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        (3, TypeError, "reference must be a Problem, a function, an array or None, got int"),
        (np.zeros(5), ValueError, r"reference must have the shape of the grid, \(2,\), got \(5,\)"),
    ],
)
def test_bad_references(reference: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SnapshotRecorder(LINE, resolution=2).reference(reference)


def test_a_model_with_too_few_outputs() -> None:
    with pytest.raises(ValueError, match="component must be below 1, got 2"):
        SnapshotRecorder(LINE, component=2).record(lambda points: points)
