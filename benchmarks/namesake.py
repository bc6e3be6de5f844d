"""Seconds per step on the page's problem: our compiled `fit` against the loop of ``opifex``.

The namesake documents a loop that takes *uncompiled* steps: ``nnx.value_and_grad`` and an optimizer
update, operation by operation. Nothing in it is compiled unless the user does so, and nothing
forbids that: the same step, wrapped in ``nnx.jit`` as any user of Flax would, is measured as well.
The first ratio therefore says what its documented loop costs, the second what its code costs.

Its multilevel code is that of its version 0.2.0, which earlier versions of this benchmark measured;
the results record whether it still is. It needs Python 3.12; its environment is made on demand, by
the interpreter that ``--python`` names.
"""

from __future__ import annotations

import shutil
import sys
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
VERSION = "0.2.10"
# SHA-256 over names and texts of the modules of its multilevel folder in version 0.2.0.
MULTILEVEL_0_2_0 = "464410ada727db3234e40a84f716498125208fe58cc9c68e21065ae56ed2ff70"


def newer_python() -> str:
    """An interpreter of 3.12, if there is one on the path, or this one."""
    if sys.version_info >= (3, 12):
        return sys.executable
    return shutil.which("python3.12") or sys.executable


def main() -> None:
    """Time both."""
    options = parser(__doc__)
    options.add_argument("--peers", help="folder for the peers' environments")
    options.add_argument("--python", default=newer_python(), help="interpreter of 3.12 or newer")
    given = options.parse_args()
    requirements = ([f"opifex=={VERSION}"],)
    python = environment(f"opifex-{VERSION}", requirements, given.peers, given.python)
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
                "namesake compiled by the user, ms per step": 1000 * entry["compiled_per_step"],
                "ms per step": 1000 * ours,
                "ratio": entry["seconds_per_step"] / ours,
                "ratio to compiled": entry["compiled_per_step"] / ours,
            }
        )
    Console(width=140).print(comparison_table(rows))
    write_results(
        "namesake",
        rows=rows,
        peer={
            **{name: peer[name] for name in ("opifex", "jax", "python")},
            "multilevel code is that of 0.2.0": peer["multilevel"] == MULTILEVEL_0_2_0,
            "seconds to compile": [entry["compile_seconds"] for entry in peer["rows"]],
        },
        compile_seconds=history.compile_seconds,
    )


if __name__ == "__main__":
    main()
