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

from common import compare_runs, median_ratios, parser, write_results
from incremental_fno import compare_with_peer, evaluation_curve, incremental_fno_runs
from operator_time_to_accuracy import CONSOLE, Case, Experiment, tune
from opifex.data import OperatorData, load_darcy_small
from opifex.models import FNO
from opifex.viz import comparison_table

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
    """The peer on every seed, on the file that comes with the package."""
    with resources.as_file(resources.files("opifex.data") / "files" / "darcy_small.npz") as data:
        return incremental_fno_runs(data, seeds, folder)


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
        runs.append(
            {
                "seed": seed,
                **compare_with_peer(peer["curve"], evaluation_curve(many)),
                **compare_runs(one, many),
                "curve_peer": peer["curve"],
            }
        )
        shown = [{k: v for k, v in r.items() if not k.startswith("curve")} for r in runs]
        for row in shown:
            CONSOLE.print(row)
    summary = median_ratios(runs)
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
