"""Runs that are killed at random moments and started again, until they come to their end.

``python -m reliability.killing STRATEGY KILLS SEED FOLDER`` kills at least so many processes and prints
what it found as JSON. A process that has imported everything and computed nothing forks the ones that
train, since imports take longer than the runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reliability.strategies import STRATEGIES, record


def digests(found: dict[str, Any]) -> dict[str, str]:
    """A fingerprint of every part of a record."""
    return {
        name: hashlib.sha256(b"".join(np.asarray(value).tobytes() for value in values)).hexdigest()
        for name, values in found.items()
    }


def train(name: str, folder: Path | None, result: Path) -> None:
    """What a child does."""
    trainer = STRATEGIES[name].run(folder)
    result.write_text(json.dumps(digests(record(trainer))))


def start(name: str, folder: Path | None, result: Path) -> int:
    """Fork a child that trains."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        train(name, folder, result)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def newest(folder: Path) -> int:
    """Number of the newest checkpoint, -1 if there is none."""
    numbers = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    return max(numbers, default=-1)


def never() -> bool:
    """The last run of all must come to its end."""
    return False


def moment(rng: np.random.Generator, place: Path, seconds: float) -> Callable[[], bool]:
    """Says when to kill: at a random time from the start, or soon after some checkpoints were written.

    Starting and compiling take most of the time of a small run, so that a time alone would nearly
    always fall there.
    """
    started = time.monotonic()
    if rng.random() < 0.3:
        patience = rng.uniform(0.0, 1.2 * seconds)
        return lambda: time.monotonic() - started > patience
    wanted, more = newest(place) + int(rng.integers(1, 4)), rng.uniform(0.0, 0.1)
    written: list[float] = []

    def late() -> bool:
        if not written and newest(place) >= wanted:
            written.append(time.monotonic())
        return bool(written) and time.monotonic() - written[0] > more

    return late


def kill_until(name: str, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill processes until there were enough and the last run is complete."""
    rng = np.random.default_rng(seed)
    result, seconds = folder / "result.json", 0.0
    for _ in range(2):  # the first one compiles
        began = time.monotonic()
        assert os.waitpid(start(name, None, result), 0)[1] == 0
        seconds = time.monotonic() - began
    expected = json.loads(result.read_text())
    killed, at, runs, wrong = 0, [], 0, []
    while killed < kills:
        place, runs = folder / f"run {runs}", runs + 1
        result.unlink(missing_ok=True)
        while True:
            pid = start(name, place, result)
            done, status = 0, 0
            late = moment(rng, place, seconds) if killed < kills else never
            while not done and not late():
                done, status = os.waitpid(pid, os.WNOHANG)
                time.sleep(0.002)
            if not done:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                killed += 1
                at.append(newest(place))
                continue
            assert os.WEXITSTATUS(status) == 0, "a run that was taken up has failed"
            break
        found = json.loads(result.read_text())
        wrong += [f"{place.name}: {part}" for part in expected if found[part] != expected[part]]
    return {
        "strategy": name,
        "kills": killed,
        "runs": runs,
        "before the first checkpoint": sum(number < 0 for number in at),
        "checkpoints at the kill": sorted(set(at)),
        "different": wrong,
    }


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", os.environ["KILLED_PROGRAMS"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    print(
        json.dumps(kill_until(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
    )
