"""Spectra of the error at the end of every visit of a level, kept in the run folder."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from opifex.cli.run_folder import RunFolder
from opifex.cli.tasks import TrainingTask
from opifex.training.multilevel import LevelProgress
from opifex.viz import Spectrum, radial_spectrum

__all__ = ["SpectraLog", "read_spectra"]

_FILE = "spectra.json"


class SpectraLog:
    """A callback that adds a spectrum to ``spectra.json`` when a visit of a level ends.

    Args:
        folder: the run folder.
        task: what is trained; without a regular grid nothing is written.
        step: the step from which a run goes on: later spectra are dropped. ``None`` drops all.
    """

    def __init__(self, folder: RunFolder, task: TrainingTask, step: int | None) -> None:
        self._folder, self._task = folder, task
        known = folder.read_json(_FILE).get("spectra", [])
        self._rows = [] if step is None else [row for row in known if row["step"] <= step]

    def __call__(self, progress: LevelProgress) -> None:
        """Add the present spectrum if the visit ends, and is not one that corrects a finer level."""
        if progress.last and not progress.correcting:
            where = {name: getattr(progress, name) for name in ("step", "level", "epoch", "cycle")}
            self.record(progress.model, **where)

    def record(
        self, model: nnx.Module, step: int = 0, level: int = 0, epoch: int = 0, cycle: int = 0
    ) -> None:
        """Add the spectrum of a model: the root mean square over the task's samples.

        Args:
            model: the model.
            step: steps so far.
            level: its level.
            epoch: epochs of this visit.
            cycle: number of the cycle.
        """
        kind = self._task.waves
        if kind is None:
            return
        fields = self._task.error_fields(model)
        found = [radial_spectrum(field, kind=kind) for field in fields]
        amplitudes = np.sqrt(np.mean([a**2 for _, a in found], axis=0))
        row = {"step": step, "level": level, "epoch": epoch, "cycle": cycle, "kind": kind}
        self._rows.append(
            {**row, "wavenumbers": found[0][0].tolist(), "amplitudes": amplitudes.tolist()}
        )
        self._folder.write_json(_FILE, {"spectra": self._rows})


def read_spectra(folder: RunFolder) -> list[Spectrum]:
    """The spectra of a run folder, in order; none where there was no regular grid."""

    def spectrum(step: int, wavenumbers: Any, amplitudes: Any, **where: Any) -> Spectrum:
        return Spectrum(
            wavenumbers=np.asarray(wavenumbers), amplitudes=np.asarray(amplitudes), **where
        )

    return [spectrum(**row) for row in folder.read_json(_FILE).get("spectra", [])]
