"""A run that is broken off anywhere and taken up again is the run that was never broken off."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.storage.archive import Archive, UnreadableError
from opifex.storage.trees import named_leaves
from opifex.training.multilevel import (
    CascadeTrainer,
    Checkpoints,
    EarlyStopping,
    Monitor,
    VCycle,
    saved_history,
)
from reliability.strategies import (
    STRATEGIES,
    X,
    differences,
    fitted,
    networks,
    noisy_loss,
    record,
    square_loss,
)


class BrokenOffError(Exception):
    """The end of a run, for a test."""


class BreakOff:
    """A callback that raises at its n-th call."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, progress):
        self.left -= 1
        if self.left == 0:
            raise BrokenOffError


SLOW = pytest.mark.slow


@cache
def whole(name):
    """The record of an uninterrupted run, and how often its callbacks were called."""
    calls = []
    trainer = STRATEGIES[name].run(watch=calls.append)
    return record(trainer), len(calls)


QUICK = ("cascade", "v-cycle", "full multigrid", "streamed")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in STRATEGIES]
)
def test_a_run_that_was_broken_off_twice_ends_the_same(name, tmp_path):
    expected, calls = whole(name)
    strategy = STRATEGIES[name]
    broken = 0
    for after in (calls // 3, calls // 4):
        try:
            strategy.run(tmp_path, watch=BreakOff(max(1, after)))
        except BrokenOffError:
            broken += 1
    assert broken == 2
    assert differences(expected, record(strategy.run(tmp_path))) == []


@pytest.mark.parametrize("name", ["cascade", "v-cycle"])
def test_a_complete_run_is_not_run_again(name, tmp_path):
    expected, _ = whole(name)
    STRATEGIES[name].run(tmp_path)
    calls = []
    again = STRATEGIES[name].run(tmp_path, watch=calls.append)
    assert differences(expected, record(again)) == []
    assert calls == []
    assert again.history.seconds < again.history.wall_seconds


def test_early_stopping_remembers_its_best_model_before_it_is_called_again(tmp_path):
    """What is saved right after a run was taken up is what was restored."""
    with pytest.raises(BrokenOffError):
        STRATEGIES["early stopping"].run(tmp_path, watch=BreakOff(3))
    arrays, _ = Archive(tmp_path, "opifex-multilevel checkpoint", 3).read(
        int(entries(tmp_path)[-1].name)
    )
    prefix = "memory 0 "
    memory = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    assert any(name.startswith("snapshot") for name in memory)
    stopping = EarlyStopping(patience=2)
    stopping.restore_state(memory)
    again = {}
    for name, value in stopping.saved_state().items():
        again |= named_leaves(name, value)
    assert again.keys() == memory.keys()
    assert all(np.array_equal(again[name], memory[name]) for name in memory)


def test_checkpoints_do_not_change_a_run(tmp_path):
    expected, _ = whole("cascade")
    assert differences(expected, record(STRATEGIES["cascade"].run(tmp_path))) == []


def test_a_run_goes_on_after_one_that_was_taken_up(tmp_path):
    def both(folder, watch=None):
        trainer = CascadeTrainer(networks())
        for number, epochs in enumerate(([4, 4, 4], [0, 0, 6])):
            keeping = {}
            if folder is not None:
                keeping["checkpoint"] = Checkpoints(folder / str(number), every=0.0)
                keeping["resume"] = "auto"
            monitor = Monitor(every=2, callbacks=[watch] if watch else [])
            trainer.fit(square_loss, (X,), epochs=epochs, monitor=monitor, **keeping)
        return trainer

    with pytest.raises(BrokenOffError):
        both(tmp_path, BreakOff(8))
    assert differences(record(both(None)), record(both(tmp_path))) == []


def quick(folder, **changes):
    arguments = {
        "loss_fn": square_loss,
        "data": (X,),
        "epochs": [2, 2, 2],
        "checkpoint": Checkpoints(folder, every=0.0),
        "resume": "auto",
    }
    make = changes.pop("trainer", lambda: CascadeTrainer(networks()))
    trainer = make()
    trainer.fit(**{**arguments, **changes})
    return trainer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": [2, 2, 3]}, "moves of the cycle"),
        ({"cycle": VCycle(cycles=2)}, "moves of the cycle"),
        ({"batch_size": 8}, "batch_size"),
        ({"key": jax.random.key(5)}, "key"),
        ({"data": (X[:16],)}, "data"),
        ({"data": (X + 1,)}, "numbers of the data"),
        (
            {"trainer": lambda: CascadeTrainer(networks(), optax.sgd(0.1, momentum=0.9))},
            "optimizer",
        ),
        ({"loss_fn": noisy_loss}, "loss: square_loss there and noisy_loss here"),
        ({"resume": None}, "resume"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes, words, tmp_path):
    quick(tmp_path)
    with pytest.raises(ValueError, match=words):
        quick(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"checkpoint": None}, ValueError, "checkpoint"),
        ({"resume": "always"}, ValueError, "resume"),
        ({"checkpoint": "folder"}, TypeError, "Checkpoints"),
    ],
)
def test_bad_arguments_are_refused(changes, error, words, tmp_path):
    with pytest.raises(error, match=words):
        quick(tmp_path, **changes)


def test_a_run_of_one_process_among_several_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="a run that all 2 processes share"):
        quick(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((3,), TypeError), (("",), TypeError), (("a", -1.0), ValueError), (("a", 1.0, 0), ValueError)],
)
def test_bad_settings_are_refused(arguments, error):
    with pytest.raises(error):
        Checkpoints(*arguments)


def entries(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def test_only_the_newest_are_kept(tmp_path):
    quick(tmp_path, checkpoint=Checkpoints(tmp_path, every=0.0, keep=2))
    assert 1 <= len(entries(tmp_path)) <= 2


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with checkpoints of a cascade that was broken off, and the whole run."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.raises(BrokenOffError):
        STRATEGIES["cascade"].run(folder, watch=BreakOff(7))
    assert len(entries(folder)) >= 2
    return folder, record(STRATEGIES["cascade"].run())


def damage_of(rng: np.random.Generator, entry: Path) -> str:
    """Damage one file of a checkpoint in one of four ways."""
    files = [p for p in sorted(entry.rglob("*")) if p.is_file()]
    file = files[rng.integers(len(files))]
    content = bytearray(file.read_bytes())
    kind = ["flip", "truncate", "remove", "garbage"][rng.integers(4)]
    if kind == "remove":
        file.unlink()
    elif kind == "truncate":
        file.write_bytes(bytes(content[: len(content) // 2]))
    elif kind == "garbage":
        file.write_bytes(rng.bytes(max(1, len(content))))
    elif content:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(content))
    return f"{kind} {file.relative_to(entry)}"


def check_damaged(kept, folder: Path, seed: int) -> str:
    """A damaged newest checkpoint is passed over, or the damage did not matter."""
    source, expected = kept
    shutil.copytree(source, folder)
    done = damage_of(np.random.default_rng(seed), entries(folder)[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = record(STRATEGIES["cascade"].run(folder))
    assert differences(expected, found) == [], done
    return done


# What is left of a read that failed reports to an event loop that is closed, within TensorStore.
UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@UNRAISABLE
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_checkpoint_is_passed_over(kept, tmp_path, seed):
    check_damaged(kept, tmp_path / "copy", seed)


@UNRAISABLE
@pytest.mark.slow
def test_two_hundred_damaged_checkpoints(kept, tmp_path):
    done = [check_damaged(kept, tmp_path / str(seed), seed) for seed in range(200)]
    assert len(set(done)) > 20


@UNRAISABLE
def test_where_all_are_damaged_a_run_is_refused(kept, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(kept[0], folder)
    for entry in entries(folder):
        (entry / "content" / "metadata").write_bytes(b"{}")
    for read in (STRATEGIES["cascade"].run, saved_history):
        with pytest.raises(ValueError, match="no checkpoint that can be read"):
            read(folder)


def test_the_record_is_read_without_the_run(kept, tmp_path):
    source, expected = kept
    found = saved_history(source)
    assert 0 < found.num_steps < len(expected["losses"])
    assert np.array_equal(found.losses, expected["losses"][: found.num_steps])
    steps = []
    shutil.copytree(source, tmp_path / "copy")
    STRATEGIES["cascade"].run(tmp_path / "copy", watch=lambda progress: steps.append(progress.step))
    assert found.num_steps < steps[0] <= found.num_steps + STRATEGIES["cascade"].every


def test_where_nothing_was_saved_there_is_no_record_and_nothing_is_made(tmp_path):
    assert saved_history(tmp_path) is None
    assert saved_history(tmp_path / "missing") is None
    assert not list(tmp_path.iterdir())


def test_a_newer_release_and_another_program_are_refused(tmp_path):
    archive = Archive(tmp_path / "a", "one kind", 3)
    number = archive.write({"x": np.ones(3)}, {"a": 1})
    assert archive.read(number)[1] == {"a": 1}
    with pytest.raises(UnreadableError, match="is no other kind"):
        Archive(tmp_path / "a", "other kind", 3).read(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(number, tmp_path):
    before = signal.getsignal(number)
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def send(progress):
        if progress.level == 1:
            os.kill(os.getpid(), number)

    # Saves only at the end: what is taken up is what the signal made it save.
    strategy = STRATEGIES["cascade"]
    trainer = strategy.trainer()
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(
                **strategy.arguments(),
                monitor=Monitor(every=4, callbacks=[send]),
                checkpoint=Checkpoints(tmp_path, every=1e9),
            )
    finally:
        signal.signal(number, before)
    assert trainer.current_level == 1
    again = strategy.run(tmp_path)
    assert differences(whole("cascade")[0], record(again)) == []
    assert again.history.num_calls == 1


def test_an_error_of_the_disk_ends_the_run_with_its_state(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Archive, "write", fail)
    trainer = CascadeTrainer(networks())
    with pytest.raises(OSError, match="no space"):
        trainer.fit(**fitted(epochs=[4, 4, 4])(), checkpoint=Checkpoints(tmp_path, every=0.0))
    assert bool(
        jnp.all(jnp.isfinite(nnx.state(trainer.model)["hidden"][0]["dense"]["kernel"][...]))
    )
