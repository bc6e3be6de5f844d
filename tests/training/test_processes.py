"""What several processes agree on, with threads in the place of processes."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from opifex.training import processes
from opifex.training.multilevel import Checkpoints
from opifex.training.multilevel.checkpointing import Recorder
from opifex.training.processes import Processes

COUNT = 3


@pytest.fixture
def together(monkeypatch):
    """Calls a function in so many threads, which meet where processes would."""
    here, meeting, said = local(), Barrier(COUNT, timeout=60), {}

    def exchanged(value):
        said[here.number] = value
        meeting.wait()
        everything = [said[number] for number in range(COUNT)]
        meeting.wait()
        return everything

    def broadcast(value):
        values = exchanged(value)
        assert len({one.shape for one in values}) == 1
        return values[0]

    def call(function, number):
        here.number = number
        try:
            return function(number)
        except Exception as error:
            return error

    def in_all(function):
        with ThreadPoolExecutor(COUNT) as threads:
            return list(threads.map(call, [function] * COUNT, range(COUNT)))

    monkeypatch.setattr(processes, "_PIECE", 64)
    # What the first writes it writes in a thread of its own.
    monkeypatch.setattr(jax, "process_index", lambda: getattr(here, "number", 0))
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(
        processes.multihost_utils, "process_allgather", lambda value: np.stack(exchanged(value))
    )
    return in_all


@pytest.mark.parametrize("size", [0, 54, 55, 56, 118, 119, 120, 1000])
def test_all_are_told_what_the_first_finds(together, size):
    found = [np.random.default_rng(number).bytes(size) for number in range(COUNT)]
    assert together(lambda n: Processes(several=True).told(lambda: found[n])) == [found[0]] * COUNT


@pytest.mark.parametrize("number", [0, -1, 2**40, -(2**62)])
def test_all_use_the_number_of_the_first(together, number):
    found = together(lambda n: Processes(several=True).number(lambda: number + n))
    assert found == [number] * COUNT


@pytest.mark.parametrize("which", [None, 0, 2])
def test_a_flag_of_one_is_one_of_all(together, which):
    assert (
        together(lambda n: Processes(several=True).any(n == which)) == [which is not None] * COUNT
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError("not there"), OSError),
        (ValueError("not there"), ValueError),
        (ImportError("not there"), ImportError),
        (KeyError("not there"), RuntimeError),
    ],
)
def test_all_raise_what_the_first_raises(together, error, kind):
    def find():
        raise error

    own, *others = together(lambda n: Processes(several=True).told(find))
    assert own is error
    for other in others:
        assert type(other) is kind
        assert "not there" in str(other)


def test_one_process_asks_nobody():
    alone = Processes()
    assert alone.first
    assert alone.told(lambda: b"said") == b"said"
    assert (alone.number(lambda: 3), alone.any(True), alone.any(False)) == (3, True, False)
    with pytest.raises(KeyError):
        alone.number(lambda: {}["missing"])


def mesh(*numbers):
    devices = [SimpleNamespace(process_index=number) for number in numbers]
    return SimpleNamespace(devices=np.array(devices))


def test_a_mesh_is_of_one_process_or_of_all(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert Processes.of(mesh(0, 0, 1, 1, 2, 2)).several
    assert not Processes.of(mesh(1, 1)).several
    for numbers in ((0, 1), (0, 0)):
        with pytest.raises(ValueError, match="all 3 processes, or of this one alone"):
            Processes.of(mesh(*numbers))


def test_the_first_alone_writes_and_all_read_the_same(together, tmp_path):
    """Others do not even see the folder, and their clocks do not count."""

    def kept(number):
        folder = tmp_path / str(number)
        recorder = Recorder(Checkpoints(folder, every=1e9 * number), Processes(several=True))
        found = [recorder.empty, recorder.newest()]
        arrays = {
            "zero": np.float64(-0.0),
            "numbers": np.arange(40.0),
            "none": np.ones((0, 2), bool),
        }
        found.append(recorder.offer(lambda: (arrays, {"third": 1 / 3, "of": number})))
        recorder.close(None)
        recorder = Recorder(Checkpoints(folder), Processes(several=True))
        found += [recorder.empty, recorder.newest()]
        recorder.close(None)
        return found

    for empty, nothing, saved, full, (arrays, document) in together(kept):
        assert (empty, nothing, saved, full) == (True, None, True, False)
        assert document == {"third": 1 / 3, "of": 0}
        assert np.signbit(arrays["zero"])
        assert np.array_equal(arrays["numbers"], np.arange(40.0))
        assert (arrays["none"].shape, arrays["none"].dtype) == ((0, 2), bool)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
