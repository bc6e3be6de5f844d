"""Rows for MLflow, in a file of the own machine unless asked otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from opifex.core.optional import optional_module
from opifex.loggers.protocol import Outcome, Row, RunInfo

__all__ = ["MLflowLogger"]

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST_VALUE = 500


class MLflowLogger:
    """Logs a run to MLflow, without touching its global state.

    Args:
        folder: where the SQLite file ``mlflow.db`` goes if no server is named.
        tracking_uri: address of a tracking server instead.

    Raises:
        ImportError: if MLflow is missing.
    """

    def __init__(self, folder: str | os.PathLike[str], *, tracking_uri: str | None = None) -> None:
        self._module = optional_module("mlflow", "mlflow", "MLflowLogger")
        self._folder = Path(folder)
        self._uri = tracking_uri or f"sqlite:///{(self._folder / 'mlflow.db').resolve()}"
        self._client: Any = None
        self._run_id = ""

    def open(self, info: RunInfo) -> None:
        """Begin a run in the experiment named as the project, and write the configuration."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._client = self._module.MlflowClient(tracking_uri=self._uri)
        known = self._client.get_experiment_by_name(info.project)
        if known is None:
            artifacts = (self._folder / "artifacts").resolve().as_uri()
            experiment = self._client.create_experiment(info.project, artifact_location=artifacts)
        else:
            experiment = known.experiment_id
        run = self._client.create_run(experiment, run_name=info.name)
        self._run_id = run.info.run_id
        for name, value in info.settings.items():
            self._client.log_param(self._run_id, name, str(value)[:_LONGEST_VALUE])

    def log(self, step: int, row: Row) -> None:
        """Log a row."""
        for name, value in row.items():
            if name != "step":
                self._client.log_metric(self._run_id, name, float(value), step=step)

    def close(self, outcome: Outcome) -> None:
        """End the run with its status."""
        self._client.set_terminated(self._run_id, status=_STATUS[outcome])
