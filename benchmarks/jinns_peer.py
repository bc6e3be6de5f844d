"""PINNs of jinns on the problems of `second_order.py`: Helmholtz, Burgers, Allen-Cahn.

In float64, measured by the relative L2 error on the grid of `second_order.py`, which no training sees.
Every run is a fresh process on one core with one thread, in an environment made on demand, and gets the
processor seconds, compilation included, of ``lm-alone`` in the results of `second_order.py`: the same
budget as the methods of `rivals.py`.

What jinns documents: of our problems only Burgers' equation, with viscosity 1/(100 pi), in the notebook
"Burgers equation in 1D (PINN & SPINN)" (Notebooks/PDE/1D_non_stationary_Burgers.ipynb in its
repository, mirror revision 092d8211) and its introduction. It has no example for Allen-Cahn or
Helmholtz, and for Poisson only an inverse problem.

- ``jinns``: all settings of that notebook for the PINN: a network with three hidden layers of 16 and
  tanh; 900 interior, 2000 border (1000 times at both ends) and 2000 initial points, uniformly random,
  all of them in every iteration; weights 1 for equation, initial and boundary condition;
  ``vanilla_ngd()``, natural gradient with its defaults (ridge 1e-5, at most 15 steps of backtracking),
  300 iterations. That optimizer is also what the front page of the documentation recommends. For the
  other two problems these are settings that nobody recommended; the equations, and periodicity for
  Allen-Cahn, are written as its own kinds of loss.
- ``jinns, our weights``: the same with the weights that our problems give to the conditions.
- ``jinns, trial functions``: conditions by construction, through input and output transforms as in its
  notebook on pipe flow with hard constraints; trial function, widths and points are those of
  ``lm-alone`` (at its start: jinns keeps its points). Only its optimizer and its loop are left.

After the documented iterations a run goes on with the same settings until the budget is spent; a row
has both errors. With the random keys of the notebook the peer's script gives the losses that the
notebook prints, which the results record under ``check``. Finished runs are kept: a command that was
interrupted goes on where it was.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import numpy as np
from rich.console import Console

from common import command, parser, read_results, write_results
from opifex.problems import AllenCahn, Burgers, Helmholtz, Problem
from peers.environment import environment, first_core, on_cores, run_peer, with_ours
from rivals import budget_of, show, write_reference
from second_order import CASES, Run, data_of

CONSOLE = Console(width=140)
VERSION = "1.10.2"
REQUIREMENTS = with_ours(f"jinns=={VERSION}")
PROBLEMS = ("helmholtz", "burgers", "allen-cahn")
ITERATIONS = 300
PRINTED_LOSSES = (0.504458257302837, 1.7184374969268857e-07)  # in the notebook, first and last
DOCUMENTED, WEIGHTED, TRIAL = "jinns", "jinns, our weights", "jinns, trial functions"
METHODS = (DOCUMENTED, WEIGHTED, TRIAL)


def constants_of(problem: Problem) -> dict[str, float]:
    """The numbers in the equation, as the peer's script names them."""
    names: tuple[str, ...]
    if isinstance(problem, Burgers):
        names = ("viscosity",)
    elif isinstance(problem, AllenCahn):
        names = ("diffusivity", "reaction")
    elif isinstance(problem, Helmholtz):
        names = ("wave_number", "half_waves", "amplitude")
    else:
        raise TypeError(f"problem must be one of {', '.join(PROBLEMS)}, not {problem!r}")
    return {name: getattr(problem, name) for name in names}


def weights_of(problem: Problem, method: str) -> dict[str, float]:
    """Weights of the peer's loss terms: 1 as in its documentation, or those of our problem."""
    if method == TRIAL:
        return {"dyn_loss": 1.0}
    names = ["dyn_loss", "boundary_loss"]
    if not isinstance(problem, Helmholtz):
        names.insert(1, "initial_condition")
    return {
        name: float(term.weight) if method == WEIGHTED else 1.0
        for name, term in zip(names, problem.terms, strict=True)
    }


def peer_arguments(name: str, method: str, seed: int, folder: Path) -> list[str]:
    """What the peer's script needs to know of a problem."""
    case = CASES[name]
    weights = json.dumps(weights_of(case.problem, method))
    constants = json.dumps(constants_of(case.problem))
    known = ["--problem", name, "--data", str(folder / f"{name}.npz"), "--seed", str(seed)]
    known += ["--weights", weights, "--constants", constants, "--iterations", str(ITERATIONS)]
    if method != TRIAL:
        return known
    finest, path = case.levels[-1], folder / f"{name}-{seed}.npz"
    with jax.enable_x64(True):
        np.savez(path, interior=np.asarray(data_of(case, finest, seed)[0])[:, :2])
    return [*known, "--interior", str(path), "--hidden", json.dumps(finest.hidden)]


def check_notebook(python: Path, folder: Path) -> dict[str, Any]:
    """Repeat the run of the notebook with its keys, and compare with the losses it prints.

    Raises:
        RuntimeError: if a loss differs by more than one in a thousand.
    """
    arguments = peer_arguments("burgers", DOCUMENTED, 2, folder)
    result = run_peer(python, "jinns_pinns.py", *arguments, "--notebook-keys")
    losses = [result["first_loss"], result["final_loss"]]
    if not np.allclose(losses, PRINTED_LOSSES, rtol=1e-3, atol=0):
        raise RuntimeError(f"losses {losses} are not those of the notebook, {PRINTED_LOSSES}")
    last = result["curve"][-1]
    kept = {"error": last["error"], "iterations": last["steps"], "seconds": last["seconds"]}
    return {"losses": losses, "printed_losses": list(PRINTED_LOSSES), **kept}


def row_of(key: dict[str, Any], budget: float, found: dict[str, Any]) -> dict[str, Any]:
    """A run as a row: at the end of the budget, and after the documented iterations."""
    case, curve = CASES[key["problem"]], found["curve"]
    documented = curve[min(ITERATIONS, len(curve)) - 1]
    return {
        **key,
        "target": case.target,
        "documented_problem": key["problem"] == "burgers",
        "weights": weights_of(case.problem, key["method"]),
        "budget": budget,
        "command": command(),
        "documented_error": documented["error"],
        "documented_iterations": documented["steps"],
        "documented_processor_seconds": documented["processor_seconds"],
        **{name: found[name] for name in ("compile_seconds", "steps", "parameters", "versions")},
        **Run(curve, found["compile_seconds"]).row(case.target),
    }


def main() -> None:
    """Make the runs that are not recorded yet."""
    options = parser(__doc__)
    options.add_argument("--problem", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    options.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--peers", help="folder for the peers' environments")
    options.add_argument("--cores", type=int, nargs="+", default=[first_core()])
    options.add_argument("--dry-run", action="store_true", help="do not write the results")
    given = options.parse_args()
    python = environment("jinns", REQUIREMENTS, given.peers)
    recorded = read_results("jinns") or {}
    # Rows of earlier versions of this benchmark have no budget.
    rows: list[dict[str, Any]] = [r for r in recorded.get("rows", []) if "budget" in r]
    check, lock = recorded.get("check") if rows else None, Lock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for problem in {*given.problem, "burgers"}:
            write_reference(problem, folder)
        if check is None:
            check = check_notebook(python, folder)
            CONSOLE.print({"notebook": check})
        keys = [
            {"problem": problem, "method": method, "seed": seed}
            for problem in given.problem
            for method in given.method
            for seed in given.seeds
        ]
        missing = [key for key in keys if not any(key.items() <= row.items() for row in rows)]

        def work(key: dict[str, Any], core: int) -> None:
            arguments = peer_arguments(key["problem"], key["method"], key["seed"], folder)
            budget = budget_of(key["problem"])
            found = run_peer(
                python, "jinns_pinns.py", *arguments, "--budget", str(budget), core=core
            )
            with lock:
                rows.append(row_of(key, budget, found))
                rows.sort(
                    key=lambda r: (
                        PROBLEMS.index(r["problem"]),
                        METHODS.index(r["method"]),
                        r["seed"],
                    )
                )
                CONSOLE.print({k: v for k, v in rows[-1].items() if k != "curve"})
                if not given.dry_run:
                    write_results(
                        "jinns",
                        peer={
                            "versions": rows[-1]["versions"],
                            "settings": {
                                "precision": "float64",
                                "hidden": [16, 16, 16],
                                "activation": "tanh",
                                "points": {"interior": 900, "border": 2000, "initial": 2000},
                                "optimizer": "jinns.optimizers.vanilla_ngd()",
                                "iterations": ITERATIONS,
                            },
                        },
                        check=check,
                        rows=rows,
                    )

        on_cores(given.cores, missing, work)
    show(rows)


if __name__ == "__main__":
    main()
