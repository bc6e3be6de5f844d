"""Darcy flow on 16 x 16: our cascade, its finest network alone, and neuraloperator's incremental FNO.

The peer runs with the settings of its own example for this trainer and these data; its environment
is made on demand. Our rate and schedule are chosen on a tenth of the training samples; then both
train on all of them. Errors are relative L2 on the 50 test samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import jax
import numpy as np
from flax import nnx

from common import compare_runs, median, parser, ratio, seconds_to, write_results
from operator_time_to_accuracy import CONSOLE, Case, Experiment, tune
from opifex.data import OperatorData, load_darcy_small
from opifex.models import FNO
from opifex.viz import comparison_table
from peers.environment import environment, run_peer

CASE = Case(
    "darcy_small",
    train=1000,
    validation=0,
    test=50,
    modes=(4, 8),
    shapes=((8, 8), (16, 16)),
    alone_epochs=20,
    cascade_epochs=(5, 20),
    grid_kind="cell",
)
REQUIREMENTS = (["torch==2.13.0"], ["neuraloperator==2.0.0"])


def joined(*parts: OperatorData) -> OperatorData:
    """Samples of several sets, one after the other."""
    return OperatorData(
        *(np.concatenate(fields) for fields in zip(*parts, strict=True))  # type: ignore[arg-type]
    )


def parameters(case: Case) -> int:
    """Number of parameters of our finest network."""
    model = FNO(
        case.modes[-1], case.width, spatial_dims=2, append_coordinates=True, rngs=nnx.Rngs(0)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def peer_runs(seeds: Sequence[int], folder: str | None) -> list[dict[str, Any]]:
    """The peer on every seed."""
    python = environment("neuraloperator", REQUIREMENTS, folder)
    with resources.as_file(resources.files("opifex.data") / "files" / "darcy_small.npz") as data:
        return [
            run_peer(
                python,
                "neuraloperator_incremental.py",
                "--data",
                str(data),
                "--seed",
                str(seed),
            )
            for seed in seeds
        ]


def main() -> None:
    """Tune, run the three sides on all seeds."""
    options = parser(__doc__)
    options.add_argument("--peers", help="folder for the peers' environments")
    given = options.parse_args()
    train, test = load_darcy_small()
    data = joined(train, test)
    best_alone, best_cascade, trials = tune(
        Experiment(replace(CASE, train=900, validation=100), data)
    )
    peers = peer_runs(given.seeds, given.peers)
    experiment = Experiment(CASE, data)
    error = experiment.error(experiment.test)
    runs: list[dict[str, Any]] = []
    for seed, peer in zip(given.seeds, peers, strict=True):
        one = experiment.alone(best_alone["rate"], best_alone["schedule"], seed, error)
        many = experiment.cascade(best_cascade["rate"], best_cascade["schedule"], seed, error)
        peer_best = min(peer["curve"], key=lambda point: point[1])
        reached = seconds_to(many, peer_best[1])
        runs.append(
            {
                "seed": seed,
                "peer_best_error": peer_best[1],
                "peer_seconds_to_best": peer_best[0],
                "peer_final_error": peer["curve"][-1][1],
                "peer_seconds": peer["curve"][-1][0],
                "seconds_to_peer_best": reached,
                "ratio_to_peer": ratio(peer_best[0], reached),
                "ratio_to_peer_with_compilation": ratio(
                    peer_best[0], None if reached is None else reached + many.compile_seconds
                ),
                **compare_runs(one, many),
                "curve_peer": peer["curve"],
            }
        )
        shown = [{k: v for k, v in r.items() if not k.startswith("curve")} for r in runs]
        for row in shown:
            CONSOLE.print(row)
    summary = {
        key: median([run[key] for run in runs]) for key in runs[0] if key.startswith("ratio")
    }
    CONSOLE.print(comparison_table([{k: str(v) for k, v in summary.items()}], title="medians"))
    write_results(
        "darcy_small",
        settings={k: v for k, v in vars(CASE).items() if k != "name"},
        parameters={"ours": parameters(CASE), "peer": peers[0]["parameters"]},
        peer={"neuraloperator": "2.0.0", "torch": peers[0]["torch"]},
        tuning=trials,
        alone=best_alone,
        cascade=best_cascade,
        runs=runs,
        median=summary,
    )


if __name__ == "__main__":
    main()
