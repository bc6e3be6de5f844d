"""PINNs of jinns against our cascade of Levenberg-Marquardt: Helmholtz, Burgers, Allen-Cahn.

Both sides are measured in one command on one core, in float64, by the relative L2 error on the grid
of `second_order.py`, which no training sees. Our side is its method ``lm-cascade``. The peer runs
in an environment of its own, made on demand.

Settings of jinns, and where they come from:

- Burgers with viscosity 1/(100 pi) is an example of jinns's documentation, the notebook "Burgers
  equation in 1D (PINN & SPINN)" (Notebooks/PDE/1D_non_stationary_Burgers.ipynb in its repository,
  mirror revision 092d8211). All of its settings for the PINN are used: float64; a network with
  three hidden layers of 16 and tanh; 900 interior, 2000 border (1000 times at both ends) and 2000
  initial points, uniformly random, all of them in every iteration; weights 1 for equation, initial
  and boundary condition; ``vanilla_ngd()``, natural gradient with its defaults (ridge 1e-5, at most
  15 steps of backtracking), 300 iterations. That optimizer is also what the front page of the
  documentation recommends as the default since version 1.9.
- jinns has no example for Allen-Cahn or for Helmholtz as forward problems. They run with the same
  settings; the equations, and periodicity for Allen-Cahn, are written as its own kinds of loss.
- ``jinns, our weights`` is the same with the weights that our problems give to the conditions.

With the random keys of the notebook the peer's script gives the losses that the notebook prints
(0.504458257302837 at first, 1.7184e-07 at last), which the results record under ``check``.

After the documented iterations the peer goes on with the same settings until it has trained as
many seconds as our side of the same seed, so that a row also says what it reaches in equal time. Elapsed
seconds are all but those of evaluations: with set-up, compilation and our transfers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from common import median, parser, write_results
from opifex.problems import AllenCahn, Burgers, Helmholtz, Problem
from peers.environment import environment, run_peer
from second_order import CASES, Case, Run, methods

CONSOLE = Console(width=140)
VERSION = "1.10.2"
REQUIREMENTS = ([f"jinns=={VERSION}"],)
PROBLEMS = ("helmholtz", "burgers", "allen-cahn")
ITERATIONS = 300
SECONDS_CAP = 600.0
PRINTED_LOSSES = (0.504458257302837, 1.7184374969268857e-07)  # in the notebook, first and last
OURS, DOCUMENTED, WEIGHTED = "opifex lm-cascade", "jinns", "jinns, our weights"


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


def weights_of(problem: Problem, ours: bool) -> dict[str, float]:
    """Weights of the peer's loss terms: 1 as in its documentation, or those of our problem."""
    names = ["dyn_loss", "boundary_loss"]
    if not isinstance(problem, Helmholtz):
        names.insert(1, "initial_condition")
    return {
        name: float(term.weight) if ours else 1.0
        for name, term in zip(names, problem.terms, strict=True)
    }


def thinned(curve: list[Any], most: int = 60) -> list[list[float]]:
    """At most so many points of a curve, with its last, to four digits."""
    stride = -(-len(curve) // (most - 1))
    return [[float(f"{x:.4g}") for x in point] for point in [*curve[:-1:stride], curve[-1]]]


def our_row(run: Run, target: float) -> dict[str, Any]:
    """What our side did."""
    row = run.row(target)
    curve = [[c["seconds"], c["elapsed_seconds"], c["error"]] for c in run.curve]
    kept = ("seconds", "elapsed_seconds", "processor_seconds_with_compilation")
    reached = ("seconds_to_target", "elapsed_seconds_to_target")
    return {
        "error": row["error"],
        "lowest_error": row["lowest_error"],
        **{name: row[name] for name in (*kept, *reached)},
        "curve": thinned(curve),
    }


def peer_row(result: dict[str, Any], target: float) -> dict[str, Any]:
    """What the peer did: after the documented iterations, and at the end of its longer training."""
    curve = result["curve"]
    documented = curve[min(ITERATIONS, len(curve)) - 1]
    reached = next((c for c in curve if c[3] <= target), None)
    return {
        "error": documented[3],
        "iterations": documented[0],
        "seconds": documented[1],
        "elapsed_seconds": documented[2],
        "lowest_error": min(c[3] for c in curve),
        "seconds_to_target": reached and reached[1],
        "elapsed_seconds_to_target": reached and reached[2],
        "longer_error": curve[-1][3],
        "longer_iterations": curve[-1][0],
        "longer_seconds": curve[-1][1],
        "longer_elapsed_seconds": curve[-1][2],
        "compile_seconds": result["compile_seconds"],
        "processor_seconds": result["processor_seconds"],
        "curve": [c[1:] for c in thinned(curve)],
    }


def export(name: str, problem: Problem, folder: Path) -> Path:
    """Write the points and the solution that errors are measured with."""
    grid = problem.evaluation_points()
    data = folder / f"{name}.npz"
    np.savez(data, points=np.asarray(grid), exact=np.asarray(problem.exact(grid)))
    return data


def peer_arguments(name: str, problem: Problem, data: Path, *, ours: bool = False) -> list[str]:
    """What the peer's script needs to know of a problem."""
    weights, constants = json.dumps(weights_of(problem, ours)), json.dumps(constants_of(problem))
    known = ["--problem", name, "--data", str(data), "--weights", weights]
    return [*known, "--constants", constants, "--iterations", str(ITERATIONS)]


def check_notebook(python: Path, folder: Path) -> dict[str, Any]:
    """Repeat the run of the notebook with its keys, and compare with the losses it prints.

    Raises:
        RuntimeError: if a loss differs by more than one in a thousand.
    """
    problem = CASES["burgers"].problem
    arguments = peer_arguments("burgers", problem, export("check", problem, folder))
    result = run_peer(python, "jinns_pinns.py", *arguments, "--seed", "2", "--notebook-keys")
    losses = (result["first_loss"], result["final_loss"])
    if not np.allclose(losses, PRINTED_LOSSES, rtol=1e-3, atol=0):
        raise RuntimeError(f"losses {losses} are not those of the notebook, {PRINTED_LOSSES}")
    row = peer_row(result, CASES["burgers"].target)
    kept = {name: row[name] for name in ("error", "iterations", "seconds")}
    return {"losses": losses, "printed_losses": PRINTED_LOSSES, **kept}


def compare(
    name: str, case: Case, seeds: list[int], python: Path, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows of a problem, and what the peer says of itself."""
    data = export(name, case.problem, folder)
    rows: list[dict[str, Any]] = []
    peer: dict[str, Any] = {}
    for seed in seeds:
        ours = our_row(methods(case)["lm-cascade"](seed, None), case.target)
        found = {OURS: ours}
        for method in (DOCUMENTED, WEIGHTED):
            weighted = method == WEIGHTED
            peer = run_peer(
                python,
                "jinns_pinns.py",
                *peer_arguments(name, case.problem, data, ours=weighted),
                *("--seed", str(seed), "--seconds", str(ours["seconds"])),
                *("--cap", str(SECONDS_CAP)),
            )
            weights = weights_of(case.problem, weighted)
            found[method] = {"weights": weights, **peer_row(peer, case.target)}
        for method, row in found.items():
            label = {"problem": name, "method": method, "seed": seed, "target": case.target}
            rows.append(label | row)
            CONSOLE.print({k: v for k, v in rows[-1].items() if k != "curve"})
    return rows, peer


def summary_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the seeds of every method on every problem."""
    found = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        for method in (OURS, DOCUMENTED, WEIGHTED):
            mine = [r for r in rows if (r["problem"], r["method"]) == (problem, method)]
            names = ("error", "seconds", "elapsed_seconds", "seconds_to_target")
            longer = ("longer_error", "longer_seconds") if method != OURS else ()
            medians = {n: median([r[n] for r in mine]) for n in (*names, *longer)}
            found.append({"problem": problem, "method": method, **medians})
    return found


def show(summary: list[dict[str, Any]]) -> None:
    """Print the medians as a table."""
    table = Table(title="medians over the seeds")
    columns = list(summary[1])
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in summary:
        cells = [row.get(c) for c in columns]
        table.add_row(
            *("-" if c is None else c if isinstance(c, str) else f"{c:.3g}" for c in cells)
        )
    CONSOLE.print(table)


def main() -> None:
    """Run both sides on the chosen problems and seeds."""
    options = parser(__doc__)
    options.add_argument("--problem", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    options.add_argument("--peers", help="folder for the peers' environments")
    options.add_argument("--dry-run", action="store_true", help="do not write the results")
    given = options.parse_args()
    python = environment("jinns", REQUIREMENTS, given.peers)
    rows: list[dict[str, Any]] = []
    peer: dict[str, Any] = {}
    with jax.enable_x64(True), tempfile.TemporaryDirectory() as folder:
        check = check_notebook(python, Path(folder))
        CONSOLE.print({"notebook": check})
        for name in given.problem:
            found, peer = compare(name, CASES[name], given.seeds, python, Path(folder))
            rows += found
    summary = summary_of(rows)
    show(summary)
    if given.dry_run:
        return
    write_results(
        "jinns",
        peer={
            "versions": peer["versions"],
            "parameters": peer["parameters"],
            "settings": {
                "precision": "float64",
                "hidden": [16, 16, 16],
                "activation": "tanh",
                "points": {"interior": 900, "border": 2000, "initial": 2000},
                "optimizer": "jinns.optimizers.vanilla_ngd()",
                "iterations": ITERATIONS,
                "seconds_cap": SECONDS_CAP,
            },
        },
        ours={name: [vars(level) for level in CASES[name].levels] for name in given.problem},
        check=check,
        median=summary,
        rows=rows,
    )


if __name__ == "__main__":
    main()
