"""The moving picture has the frames that it should, of the sizes and times that it should."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from opifex.problems import Box
from opifex.viz import Snapshot, SnapshotRecorder, animate_solution
from opifex.viz.animation import spent_epochs


def recorded(dim: int, moments: int = 3) -> SnapshotRecorder:
    recorder = SnapshotRecorder(Box((0.0,) * dim, (1.0,) * dim), resolution=6)
    for i in range(moments):

        def model(p: Any, i: int = i) -> Any:
            return jnp.sin(4 * p[:, 0]) + 0.5**i * p[:, -1]

        recorder.record(model, level=2 * i // moments, epoch=10 * i)
    return recorder


def exact(points: Any) -> Any:
    return jnp.sin(4 * points[:, 0])


def frames(path: Path) -> tuple[list[np.ndarray], list[int]]:
    pictures, times = [], []
    with Image.open(path) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            pictures.append(np.asarray(image.convert("RGB")))
            times.append(image.info["duration"])
    return pictures, times


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_one_frame_per_snapshot_and_all_differ(dim: int, tmp_path: Path) -> None:
    path = animate_solution(
        recorded(dim), tmp_path / "new" / "run.gif", reference=exact, width=5, dpi=40
    )
    assert path == tmp_path / "new" / "run.gif"
    pictures, times = frames(path)
    assert len(pictures) == 3
    assert {p.shape[1] for p in pictures} == {200}
    assert times == [120, 120, 2000]  # hundredths of a second are what the format knows
    assert all(np.any(a != b) for a, b in itertools.pairwise(pictures))


def test_without_a_reference_there_is_one_panel(tmp_path: Path) -> None:
    path = animate_solution(recorded(1), tmp_path / "run.gif", width=4, dpi=40)
    pictures, _ = frames(path)
    assert pictures[0].shape[:2] == (120, 160)


def test_superfluous_snapshots_are_left_out_but_not_the_last(tmp_path: Path) -> None:
    recorder = recorded(1, moments=7)
    few = animate_solution(recorder, tmp_path / "few.gif", max_frames=3, width=4, dpi=40)
    last = animate_solution(recorder, tmp_path / "last.gif", max_frames=1, width=4, dpi=40)
    assert len(frames(few)[0]) == 3
    assert len(frames(last)[0]) == 1
    # Two palettes of one picture differ by little.
    difference = frames(few)[0][-1].astype(float) - frames(last)[0][-1]
    assert np.mean(np.abs(difference)) < 1


def test_epochs_are_counted_over_all_visits() -> None:
    places = [(0, 0, 0), (0, 5, 0), (1, 2, 0), (1, 4, 0), (0, 1, 1), (1, 3, 1)]
    snapshots = [Snapshot(level, epoch, cycle, np.zeros(1)) for level, epoch, cycle in places]
    np.testing.assert_array_equal(spent_epochs(snapshots), [0, 5, 7, 9, 10, 13])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recorder": 3}, TypeError, "recorder must be a SnapshotRecorder"),
        (
            {"recorder": SnapshotRecorder(Box((0.0,), (1.0,)))},
            ValueError,
            "recorder must hold at least one snapshot",
        ),
        ({"path": "run.mp4"}, ValueError, r"path must end with \.gif, got 'run\.mp4'"),
        ({"frames_per_second": 0}, ValueError, "frames_per_second must be positive"),
        ({"max_frames": 0}, ValueError, "max_frames must be at least 1"),
        ({"width": -1}, ValueError, "width must be positive"),
        ({"dpi": 1.5}, TypeError, "dpi must be an integer"),
        ({"reference": np.zeros(3)}, ValueError, "reference must have the shape of the grid"),
    ],
)
def test_bad_input(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        animate_solution(**{"recorder": recorded(1), "path": tmp_path / "run.gif", **arguments})
    assert list(tmp_path.iterdir()) == []
