"""Darcy flow on 16 x 16: our cascade, our single networks, and neuraloperator's incremental FNO.

Our sides race as in `race.py`, tuned on a tenth of the training samples, which they do not train on.
The peer trains on all of them with the settings of its own example for this trainer and these data;
its environment is made on demand. Errors are relative L2 on the 50 test samples; all clocks are
processor seconds, the peer's without its set-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import jax
import numpy as np
from flax import nnx

from common import median_ratios, parser, ratio, write_results
from operator_time_to_accuracy import OperatorCourse, halved
from opifex.data import OperatorData, load_darcy_small
from peers.environment import environment, run_peer
from race import CONSOLE, race

REQUIREMENTS = (["torch==2.13.0"], ["neuraloperator==2.0.0"])


def all_samples(count: int) -> OperatorData:
    """Training samples, then test samples."""
    train, test = load_darcy_small()
    found = OperatorData(
        *(np.concatenate(fields) for fields in zip(train, test, strict=True))  # type: ignore[arg-type]
    )
    assert len(found.inputs) == count
    return found


COURSE = OperatorCourse(
    "darcy_small",
    all_samples,
    train=900,
    validation=100,
    test=50,
    modes=(4, 8),
    shapes=((8, 8), (16, 16)),
    grid_kind="cell",
    cascades=(
        halved((0, 1), (0.1, 0.9)),
        halved((0, 1), (0.4, 0.6)),
    ),
    rates=(1e-3, 3e-3, 1e-2),
    budget=20.0,
)


def peer_runs(seeds: Sequence[int], folder: str | None) -> list[dict[str, Any]]:
    """The peer on every seed, on the file that comes with the package."""
    python = environment("neuraloperator", REQUIREMENTS, folder)
    with resources.as_file(resources.files("opifex.data") / "files" / "darcy_small.npz") as data:
        arguments = ["neuraloperator_incremental.py", "--data", str(data), "--seed"]
        return [run_peer(python, *arguments, str(seed)) for seed in seeds]


def compare_with_peer(
    peer_curve: Sequence[Sequence[float]], ours: dict[str, Any]
) -> dict[str, Any]:
    """How much sooner a run of ours first reaches the lowest test error that the peer ever has.

    Args:
        peer_curve: seconds and error after every epoch of the peer.
        ours: a run, as `race.outcome` gives it.

    Returns:
        Errors, seconds and ratios; a missing value means that the error was not reached.
    """
    best_seconds, best = min(peer_curve, key=lambda point: point[1])
    training, elapsed = next(
        ((seconds, elapsed) for seconds, elapsed, _, error in ours["curve"] if error <= best),
        (None, None),
    )
    return {
        "peer_best_error": best,
        "peer_seconds_to_best": best_seconds,
        "peer_final_error": peer_curve[-1][1],
        "seconds_to_peer_best": elapsed,
        "cascade_final_error": ours["final_error"],
        "ratio_to_peer": ratio(best_seconds, elapsed),
        "ratio_to_peer_training": ratio(best_seconds, training),
        "curve_peer": peer_curve,
    }


def main() -> None:
    """Race our sides, run the peer, compare."""
    options = parser(__doc__)
    options.add_argument("--peers", help="folder for the peers' environments")
    given = options.parse_args()
    peers = peer_runs(given.seeds, given.peers)
    result = race(COURSE, given.seeds)
    low = result["targets"][0]["runs"]
    runs = [
        {"seed": run["seed"], **compare_with_peer(peer["curve"], run["cascade"])}
        for run, peer in zip(low, peers, strict=True)
    ]
    for run in runs:
        CONSOLE.print({k: v for k, v in run.items() if not k.startswith("curve")})
    size = sum(p.size for p in jax.tree.leaves(nnx.state(COURSE.network(1, 0), nnx.Param)))
    write_results(
        "darcy_small",
        **result,
        runs=runs,
        median=median_ratios(runs),
        parameters={"ours": size, "peer": peers[0]["parameters"]},
        peer={"neuraloperator": "2.0.0", "torch": peers[0]["torch"]},
    )


if __name__ == "__main__":
    main()
