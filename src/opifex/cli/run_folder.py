"""A run folder describes itself: what is in it, where, and in which words."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax

from opifex.cli.errors import CommandError

__all__ = ["RunFolder", "RunStatus", "versions"]

RunStatus = Literal["running", "interrupted", "failed", "finished"]
"""Where a run stands."""

_PACKAGES = ("opifex-multilevel", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, or of several seeds of one.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def given_configuration(self) -> Path:
        """The configuration as it was given."""
        return self.path / "configuration.yaml"

    @property
    def configuration(self) -> Path:
        """The configuration with everything decided."""
        return self.path / "configuration.resolved.yaml"

    @property
    def state(self) -> Path:
        """Folder of the checkpoints that ``resume`` starts from, with a folder for each part."""
        return self.path / "state"

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.path / "model"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def events(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "events"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def seed(self, seed: int) -> RunFolder:
        """The folder of one of several seeds."""
        return RunFolder(self.path / f"seed-{seed}")

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file in one piece: a reader sees the old one or the new one."""
        self.path.mkdir(parents=True, exist_ok=True)
        new = self.path / f"{name}.new"
        new.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(new, self.path / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file; an empty dictionary if there is none.

        Raises:
            CommandError: if the file is damaged.
        """
        path = self.path / name
        if not path.exists():
            return {}
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CommandError(f"{path} is damaged: {error}") from error
        return values

    def set_status(self, status: RunStatus, **facts: Any) -> None:
        """Write where the run stands, with the time, and further facts."""
        known = self.read_json("status.json")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        started = known.get("started", now)
        self.write_json(
            "status.json",
            {**known, "status": status, "started": started, "changed": now, **facts},
        )

    @property
    def status(self) -> RunStatus | None:
        """Where the run stands; ``None`` if it has not begun."""
        status: RunStatus | None = self.read_json("status.json").get("status")
        return status

    def require(self) -> RunFolder:
        """The folder itself.

        Raises:
            CommandError: if it is no run folder.
        """
        if not self.configuration.exists():
            raise CommandError(
                f"{self.path} is no run folder: it has no {self.configuration.name} "
                "(opifex-multilevel run CONFIG.yaml makes one)"
            )
        return self

    def check_free(self) -> None:
        """Raise unless a new run may go here.

        Raises:
            CommandError: if there is a file of that name, or a folder with something in it.
        """
        if self.path.is_dir() and any(self.path.iterdir()):
            raise CommandError(
                f"output {self.path} is not empty: choose another folder with --output, go on with "
                f"opifex-multilevel resume {shlex.quote(str(self.path))}, or give --overwrite"
            )
        if self.path.exists() and not self.path.is_dir():
            raise CommandError(f"output {self.path} is a file, not a folder")


def versions() -> dict[str, str]:
    """What a run depends on: Python, packages, devices, the machine and the command."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    kinds = [device.device_kind for device in jax.devices()]
    found["devices"] = f"{len(kinds)} x {kinds[0]} ({jax.default_backend()})"
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found["processors"] = str(os.cpu_count())
    found["command"] = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return found
