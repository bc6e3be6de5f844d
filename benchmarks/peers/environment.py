"""Environments of peers: made on demand in a folder of their own, never part of the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

HERE = Path(__file__).parent
Job = TypeVar("Job")


def first_core() -> int:
    """One that this process may use."""
    return min(os.sched_getaffinity(0))


def on_cores(cores: Sequence[int], jobs: Iterable[Job], work: Callable[[Job, int], None]) -> None:
    """Do ``work(job, core)`` for all jobs, one at a time on each core."""
    free: Queue[int] = Queue()
    for core in cores:
        free.put(core)

    def one(job: Job) -> None:
        core = free.get()
        try:
            work(job, core)
        finally:
            free.put(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        for _ in pool.map(one, jobs):
            pass


def with_ours(requirement: str) -> tuple[list[str]]:
    """Requirements of an environment that has a peer beside this project, at the pinned versions."""
    root = HERE.parents[1]
    ours = ["--constraint", str(root / "constraints.txt"), "--editable", str(root)]
    return ([*ours, requirement],)


def environment(
    name: str,
    requirements: Sequence[Sequence[str]],
    folder: str | None,
    interpreter: str = sys.executable,
) -> Path:
    """The Python of a virtual environment with the given packages, installed group by group.

    Args:
        name: name of the environment.
        requirements: groups of requirements, each one call of pip.
        folder: parent folder; the temporary folder by default.
        interpreter: what makes the environment, if there is none yet.
    """
    parent = Path(folder or tempfile.gettempdir()) / "opifex-peers"
    python = parent / name / "bin" / "python"
    stamp = parent / name / ".complete"
    if not stamp.exists():
        parent.mkdir(parents=True, exist_ok=True)
        print(f"making the environment of {name} ...", flush=True)
        subprocess.run([interpreter, "-m", "venv", str(parent / name)], check=True)
        for group in requirements:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *group], check=True)
        stamp.touch()
    return python


def run_peer(
    python: Path | str, script: str, *arguments: str, core: int | None = None
) -> dict[str, Any]:
    """Run a script of this folder in an environment; its last line of output is JSON.

    Args:
        python: the interpreter of the environment.
        script: its name.
        *arguments: of the script.
        core: the one core that the process may use, with one thread; any by default.
    """
    command = [str(python), str(HERE / script), *arguments]
    # Where this package is found by a path, its namesake's environment would find it, too.
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if core is not None:
        # The affinity is inherited; libraries that count cores their own way are told as well.
        command = ["taskset", "--cpu-list", str(core), *command]
        given |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=given)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
