"""What comparisons with neuraloperator's incremental FNO share: its runs, and how they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import ratio
from opifex.data import OperatorData
from opifex.training.multilevel import History
from peers.environment import environment, run_peer

REQUIREMENTS = (["torch==2.13.0"], ["neuraloperator==2.0.0"])


def evaluation_curve(history: History) -> list[list[float]]:
    """Training seconds, elapsed seconds and error of every evaluation of a run of ours."""
    return [[e.seconds, e.elapsed_seconds, e.metrics["error"]] for e in history.evaluations]


def write_peer_data(path: Path, train: OperatorData, test: OperatorData) -> None:
    """The data file that the peer's script reads: fields of shape (samples, rows, columns)."""
    arrays = {
        "train_x": train.inputs,
        "train_y": train.outputs,
        "test_x": test.inputs,
        "test_y": test.outputs,
    }
    np.savez(path, **{key: np.asarray(field)[..., 0] for key, field in arrays.items()})  # type: ignore[arg-type]


def incremental_fno_runs(
    data: Path,
    seeds: Sequence[int],
    folder: str | None,
    *,
    epochs: int = 20,
    seconds: float | None = None,
) -> list[dict[str, Any]]:
    """The peer on every seed, in an environment that is made on demand.

    Args:
        data: file as `write_peer_data` writes it.
        seeds: one run for each.
        folder: parent folder of the environment; the temporary folder by default.
        epochs: most epochs of a run.
        seconds: no epoch begins after this much training time; ``None`` sets no limit.
    """
    python = environment("neuraloperator", REQUIREMENTS, folder)
    limit = [] if seconds is None else ["--seconds", str(seconds)]
    return [
        run_peer(
            python,
            "neuraloperator_incremental.py",
            "--data",
            str(data),
            "--seed",
            str(seed),
            "--epochs",
            str(epochs),
            *limit,
        )
        for seed in seeds
    ]


def compare_with_peer(
    peer_curve: Sequence[Sequence[float]], curve: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """How much faster a run of ours first reaches the lowest test error that the peer ever has.

    Args:
        peer_curve: seconds and error after every epoch of the peer.
        curve: training seconds, elapsed seconds (with compilation and transfers) and error at every
            evaluation of ours; each of the two clocks gives a ratio.

    Returns:
        Errors, seconds and ratios; a missing value means that the error was not reached.
    """
    best_seconds, best = min(peer_curve, key=lambda point: point[1])
    reached, elapsed = next(
        ((seconds, elapsed) for seconds, elapsed, error in curve if error <= best), (None, None)
    )
    return {
        "peer_best_error": best,
        "peer_seconds_to_best": best_seconds,
        "peer_final_error": peer_curve[-1][1],
        "peer_seconds": peer_curve[-1][0],
        "seconds_to_peer_best": reached,
        "elapsed_seconds_to_peer_best": elapsed,
        "ratio_to_peer": ratio(best_seconds, reached),
        "ratio_to_peer_with_compilation_and_transfers": ratio(best_seconds, elapsed),
    }
