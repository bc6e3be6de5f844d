"""Runs of the command in a folder of its own, in this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli_configurations import POISSON
from opifex.cli.app import app


class Command:
    """The command in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, text: str, name: str = "config.yaml") -> str:
        (self.folder / name).write_text(text, encoding="utf-8")
        return name

    def __call__(self, *arguments: str, code: int = 0) -> str:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
        finally:
            os.chdir(before)
        assert result.exit_code == code, (result.output, result.exception)
        return result.output


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A folder with the finished run ``out``, with figures; not to be changed."""
    command = Command(tmp_path_factory.mktemp("finished"))
    command.write(POISSON.replace("loggers: []", "loggers: [tensorboard]"))
    command("run", "config.yaml")
    return command
