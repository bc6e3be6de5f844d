"""Seconds per step on the page's problem: our compiled `fit` against the loop of ``opifex`` 0.2.0.

The namesake's loop is the one that its documentation shows: ``nnx.value_and_grad`` and an optimizer
update, operation by operation. Its environment is made on demand.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from common import parser, write_results
from opifex.problems import Poisson
from opifex.training.multilevel import CascadeTrainer, MultilevelConfig, create_network_hierarchy
from opifex.viz import comparison_table
from peers.environment import environment, run_peer

STEPS = 100


def main() -> None:
    """Time both."""
    options = parser(__doc__)
    options.add_argument("--peers", help="folder for the peers' environments")
    given = options.parse_args()
    python = environment("namesake", (["opifex==0.2.0"],), given.peers)
    problem = Poisson()
    points = problem.sample_points(jax.random.key(0), 1000, 100)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.npz"
        np.savez(path, interior=points[0], boundary=points[1])
        peer = run_peer(python, "namesake_loop.py", "--points", str(path), "--steps", "20")
    trainer = CascadeTrainer(
        create_network_hierarchy(2, 1, [128] * 3, 3, rngs=nnx.Rngs(0)),
        config=MultilevelConfig(num_levels=3, level_epochs=[STEPS] * 3, compile_ahead=False),
    )
    history = trainer.fit(problem.loss, points)
    table = history.table()
    per_step = np.diff(np.concatenate([[0.0], table["seconds"]]))
    rows: list[dict[str, Any]] = []
    for entry in peer["rows"]:
        ours = float(np.median(per_step[table["level"] == entry["level"]]))
        rows.append(
            {
                "level": entry["level"],
                "namesake ms per step": 1000 * entry["seconds_per_step"],
                "ms per step": 1000 * ours,
                "ratio": entry["seconds_per_step"] / ours,
            }
        )
    Console().print(comparison_table(rows))
    write_results(
        "namesake",
        rows=rows,
        peer={"opifex": peer["opifex"], "jax": peer["jax"]},
        compile_seconds=history.compile_seconds,
    )


if __name__ == "__main__":
    main()
