"""A process that is killed at any moment loses nothing but time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reliability.strategies import STRATEGIES

ROOT = Path(__file__).parent.parent


def killed(name: str, kills: int, folder: Path, seed: int = 0) -> dict:
    """What was found; see `reliability.killing`."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "ignore",
        "KILLED_PROGRAMS": str(ROOT.parent / ".pytest_cache" / "xla"),
    }
    command = [
        sys.executable,
        "-m",
        "reliability.killing",
        name,
        str(kills),
        str(seed),
        str(folder),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_few_kills(tmp_path):
    found = killed("cascade", 2, tmp_path)
    assert found["different"] == []
    assert found["kills"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_thirty_kills(name, tmp_path):
    found = killed(name, 30, tmp_path)
    assert found["different"] == []
    assert found["kills"] >= 30
