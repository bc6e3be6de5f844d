"""What the first training of a process pays for its programs, with an empty and with a filled folder.

Fresh processes train a cascade, first with an empty folder of programs, then with the one that the
process before has filled, and then once more in the same process with an equal trainer, which traces and
compiles nothing. Processor seconds of one thread, medians over the rounds; the programs of a level are
not compiled while another one trains, so that every second has an account.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

from common import parser, write_results
from opifex.problems import Helmholtz, Poisson
from opifex.training.multilevel import (
    CascadeTrainer,
    History,
    MultilevelAdam,
    MultilevelConfig,
    create_network_hierarchy,
)
from opifex.training.stopwatch import Stopwatch
from opifex.viz import comparison_table

ACCOUNTS = ("seconds", "compile_seconds", "transfer_seconds", "other_seconds")


def adam() -> tuple[Any, Any, Any, list[int]]:
    """Three levels of the page's problem, Adam."""
    models = create_network_hierarchy(2, 1, [64, 64], 3, rngs=nnx.Rngs(0))
    problem = Poisson()
    return models, MultilevelAdam(1e-3), problem, [100, 200, 400]


def levenberg_marquardt() -> tuple[Any, Any, Any, list[int]]:
    """Three levels of a Helmholtz equation in the plane, Levenberg-Marquardt in double precision."""
    from opifex.optimization.second_order import LevenbergMarquardt

    jax.config.update("jax_enable_x64", True)
    models = create_network_hierarchy(2, 1, [16, 16], 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    return models, LevenbergMarquardt(), Helmholtz(), [20, 20, 40]


CASES: dict[str, Callable[[], tuple[Any, Any, Any, list[int]]]] = {
    "Adam": adam,
    "Levenberg-Marquardt": levenberg_marquardt,
}


def child(case: str) -> None:
    """Train twice, and print what the first and the second time cost."""
    models, optimizer, problem, epochs = CASES[case]()
    points = problem.sample_points(jax.random.key(0), 1000, 100)
    config = MultilevelConfig(num_levels=len(models), compile_ahead=False)
    found: dict[str, Any] = {}
    for which in ("first", "again"):
        method = MultilevelAdam(1e-3) if isinstance(optimizer, MultilevelAdam) else optimizer
        trainer = CascadeTrainer(models, method, config=config)
        trainer.history.stopwatch = Stopwatch(time.process_time)
        clock = time.process_time()
        history: History = trainer.fit(problem.terms, points, epochs=epochs)
        found[which] = time.process_time() - clock
        found |= {f"{which}, {name}": getattr(history, name) for name in ACCOUNTS}
    print(json.dumps(found))


def trained(case: str, folder: str) -> dict[str, float]:
    """What a fresh process measures with a folder of programs."""
    run = subprocess.run(
        [sys.executable, __file__, "--child", case],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OPIFEX_PROGRAM_CACHE": folder},
    )
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--child", choices=list(CASES))
    given = options.parse_args()
    if given.child:
        child(given.child)
        return
    rows = []
    for case in CASES:
        measured: dict[str, list[dict[str, float]]] = {"empty": [], "filled": []}
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as folder:
                os.chmod(folder, 0o700)
                for state, runs in measured.items():
                    runs.append(trained(case, folder))
                    print(case, state, {k: round(v, 2) for k, v in runs[-1].items()}, flush=True)
        bare = statistics.median(run["again"] for run in measured["filled"])
        for state, runs in measured.items():
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows.append(
                {
                    "method": case,
                    "folder": state,
                    "first fit, s": middle["first"],
                    "without programs to make, s": bare,
                    "ratio": bare / middle["first"],
                    "programs, s": middle["first, compile_seconds"],
                    "transfers, s": middle["first, transfer_seconds"],
                    "training, s": middle["first, seconds"],
                    "rest, s": middle["first, other_seconds"],
                }
            )
    Console(width=160).print(
        comparison_table([{k: str(v) for k, v in row.items()} for row in rows])
    )
    write_results("compile_cost", rows=rows, rounds=given.rounds)


if __name__ == "__main__":
    main()
