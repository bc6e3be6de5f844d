"""Environments of peers: made on demand in a folder of their own, never part of the project."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def environment(name: str, requirements: Sequence[Sequence[str]], folder: str | None) -> Path:
    """The Python of a virtual environment with the given packages, installed group by group.

    Args:
        name: name of the environment.
        requirements: groups of requirements, each one call of pip.
        folder: parent folder; the temporary folder by default.
    """
    parent = Path(folder or tempfile.gettempdir()) / "opifex-peers"
    python = parent / name / "bin" / "python"
    stamp = parent / name / ".complete"
    if not stamp.exists():
        parent.mkdir(parents=True, exist_ok=True)
        print(f"making the environment of {name} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(parent / name)], check=True)
        for group in requirements:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *group], check=True)
        stamp.touch()
    return python


def run_peer(python: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of this folder in an environment; its last line of output is JSON."""
    done = subprocess.run(
        [str(python), str(HERE / script), *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
