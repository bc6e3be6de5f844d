"""Darcy flow on the finest grid of our benchmark: neuraloperator's incremental FNO on the same data.

The peer runs with the settings of its own example for this trainer, 20 epochs or until the time limit,
on the encoding that its own Darcy data have: the indicator of the binary permeability, and outputs
scaled by one number to the standard deviation of those data, which changes no relative error. Like
its example, it does not use the symmetries of the square, which our side does. It is compared with
the cascades that `operator_time_to_accuracy.py --operator darcy` recorded on the same samples: run
that first, on the same machine.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common import median_ratios, parser, read_results, write_results
from incremental_fno import compare_with_peer, incremental_fno_runs, write_peer_data
from operator_time_to_accuracy import CASES, CONSOLE, Case
from opifex.data import OperatorData, load_darcy_small


def recorded_runs(case: Case) -> dict[int, dict[str, Any]]:
    """Our recorded runs by seed, if they are runs of this case.

    Raises:
        SystemExit: if there are none, or their settings are others.
    """
    results = read_results(f"operator_{case.name}")
    settings = json.loads(json.dumps({k: v for k, v in asdict(case).items() if k != "name"}))
    if results is None or results["settings"] != settings:
        raise SystemExit(
            f"run operator_time_to_accuracy.py --operator {case.name} first: there are no results "
            "with the present settings"
        )
    return {run["seed"]: run for run in results["runs"]}


def peer_data(case: Case) -> tuple[OperatorData, OperatorData]:
    """Train and test samples of a case in the peer's encoding."""
    inputs, outputs = case.generate()
    inputs = (inputs > np.mean([inputs.min(), inputs.max()])).astype(np.float32)
    factor = load_darcy_small().train.outputs.std() / outputs[: case.train].std()
    outputs = outputs * factor
    first_test = case.train + case.validation
    return (
        OperatorData(inputs[: case.train], outputs[: case.train]),
        OperatorData(
            inputs[first_test : first_test + case.test],
            outputs[first_test : first_test + case.test],
        ),
    )


def main() -> None:
    """Run the peer on all seeds and compare."""
    options = parser(__doc__)
    options.add_argument("--peers", help="folder for the peers' environments")
    options.add_argument("--seconds", type=float, default=900.0, help="limit of a peer's training")
    given = options.parse_args()
    case = CASES["darcy"]
    ours = recorded_runs(case)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "darcy.npz"
        write_peer_data(data, *peer_data(case))
        peers = incremental_fno_runs(data, given.seeds, given.peers, seconds=given.seconds)
    runs = []
    for seed, peer in zip(given.seeds, peers, strict=True):
        run = ours[seed]
        curve = [[seconds, elapsed, e] for seconds, elapsed, _, e in run["curve_cascade"]]
        runs.append(
            {
                "seed": seed,
                **compare_with_peer(peer["curve"], curve),
                "cascade_final_error": run["cascade_final_error"],
                "peer_epochs": len(peer["curve"]),
                "curve_peer": peer["curve"],
            }
        )
        CONSOLE.print({k: v for k, v in runs[-1].items() if not k.startswith("curve")})
    write_results(
        "operator_darcy_peer",
        settings={"train": case.train, "test": case.test, "limit_seconds": given.seconds},
        peer={
            "neuraloperator": "2.0.0",
            "torch": peers[0]["torch"],
            "threads": peers[0]["threads"],
            "parameters": peers[0]["parameters"],
        },
        runs=runs,
        median=median_ratios(runs),
    )


if __name__ == "__main__":
    main()
