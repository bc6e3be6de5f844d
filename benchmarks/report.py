"""Write docs/benchmarks.md and the table of the README from the last results of all benchmarks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, median, read_results

ROOT = Path(__file__).parent.parent

Results = dict[str, Any]
NOT_MEASURED = "-"  # results of an older measurement, which left this out


def number(value: Any) -> str:
    """A number for a table; a missing one is 'not reached'."""
    if value is None:
        return "not reached"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Sequence):
        return ", ".join(number(entry) for entry in value)
    magnitude = abs(float(value))
    if magnitude and (magnitude < 1e-2 or magnitude >= 1e4):
        return f"{value:.2e}"
    return f"{value:.3g}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(number(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def origin(results: Results) -> str:
    """Where the numbers come from."""
    used = results["versions"]
    rows = results.get("rows", [])
    commands = dict.fromkeys(row["command"] for row in rows if "command" in row)
    given = "`, `".join(commands or [results["command"]])
    return (
        f"`{given}`, JAX {used['jax']}, Flax {used['flax']}, Optax {used['optax']}, "
        f"Python {used['python']}; {used['machine']}."
    )


def races(results: Results) -> str:
    """Runs of a cascade against the finest network alone."""
    rows = [
        {
            "seed": run["seed"],
            "target error": run["target_error"],
            "alone, s": run["alone_seconds"],
            "cascade to target, s": run["cascade_seconds_to_target"],
            "ratio": run["ratio"],
            "with compilation and transfers": run.get(
                "ratio_with_compilation_and_transfers", NOT_MEASURED
            ),
            "first to first": run["ratio_first_to_first"],
            "to lowest": run["ratio_to_lowest"],
            "cascade ends with": run["cascade_final_error"],
        }
        for run in results["runs"]
    ]
    chosen = ", ".join(
        f"{side}: rate {number(results[side]['rate'])} {results[side]['schedule']}"
        for side in ("alone", "cascade")
    )
    medians = ", ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in results["median"].items())
    return f"{table(rows)}\n\nMedians: {medians}. Chosen on validation: {chosen}."


def plain(*columns: str) -> Callable[[Results], str]:
    """The rows of a result, without nested columns."""

    def show(results: Results) -> str:
        rows = results["rows"]
        names = columns or [k for k, v in rows[0].items() if not isinstance(v, list | dict)]
        return table([{name.replace("_", " "): row[name] for name in names} for row in rows])

    return show


def against_peer(run: Mapping[str, Any]) -> dict[str, Any]:
    """What every comparison with a peer's learning curve shows of one seed."""
    return {
        "seed": run["seed"],
        "peer's best error": run["peer_best_error"],
        "peer, s": run["peer_seconds_to_best"],
        "cascade to it, s": run["seconds_to_peer_best"],
        "ratio": run["ratio_to_peer"],
        "with compilation and transfers": run.get(
            "ratio_to_peer_with_compilation_and_transfers", NOT_MEASURED
        ),
        "cascade ends with": run["cascade_final_error"],
    }


def peer_race(results: Results) -> str:
    """Our cascade, our finest network alone, and the peer."""
    rows = [
        {
            **against_peer(run),
            "peer ends with": run["peer_final_error"],
            "alone ends with": run["target_error"],
            "ratio to alone": run["ratio"],
        }
        for run in results["runs"]
    ]
    count = results["parameters"]
    return (
        table(rows)
        + f"\n\nParameters: ours {count['ours']}, peer {count['peer']}. Peer: neuraloperator "
        + f"{results['peer']['neuraloperator']} on torch {results['peer']['torch']}."
    )


def limited_peer_race(results: Results) -> str:
    """Our recorded cascade against a peer that was stopped at a time limit."""
    rows = [{**against_peer(run), "peer's epochs": run["peer_epochs"]} for run in results["runs"]]
    return (
        f"{table(rows)}\n\nThe peer was stopped after {results['settings']['limit_seconds']:.0f} "
        "seconds of training, while its error was still falling; one seed was run. Its example does "
        "not use the symmetries of the square, our side does. The ratio says that its start is slow, "
        "not what it would reach."
    )


def growth(results: Results) -> str:
    """Cost of a step, and what levels cost."""
    return (
        plain()(results)
        + "\n\n![cost of a step](images/cost_growth.png)\n\nThe whole cascade, 50 steps per level:\n\n"
        + table(results["levels"])
    )


JINNS = {
    "seconds": "seconds",
    "with compilation and transfers": "elapsed_seconds",
    "seconds to goal": "seconds_to_target",
    "median error, equal time": "longer_error",
}
PROCESSOR = {
    "processor seconds, with compilation": "processor_seconds_with_compilation",
    "of which to goal": "processor_seconds_to_target",
}


def middle(rows: Sequence[Mapping[str, Any]], name: str) -> float | str | None:
    """The median of a field over the seeds; a dash where no row has it."""
    found = [row[name] for row in rows if name in row]
    return median(found) if found else "-"


def by_method(results: Results, fields: Mapping[str, str]) -> str:
    """One row per problem and method: the errors of all seeds, and medians of other fields.

    Args:
        results: whose rows to show.
        fields: title to name of these fields.
    """
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in results["rows"]:
        groups.setdefault((row["problem"], row["method"]), []).append(row)

    def line(problem: str, method: str, rows: Sequence[Any]) -> dict[str, Any]:
        return {
            "problem": problem,
            "method": method,
            "errors of seeds " + ", ".join(sorted({str(r["seed"]) for r in results["rows"]})): [
                f"{row['error']:.1e}" for row in rows
            ],
            "goal": f"{rows[0]['target']:.0e}",
            **{title: middle(rows, name) for title, name in fields.items()},
        }

    return table([line(*key, rows) for key, rows in groups.items()])


def against_jinns(results: Results) -> str:
    """Both sides, and what the peer's script was checked against."""
    check = results["check"]
    return (
        by_method(results, JINNS)
        + "\n\nWith the random keys of its own notebook the peer's script gives the losses that the "
        + f"notebook prints, and an error of {number(check['error'])} for Burgers' equation. "
        + f"jinns {results['peer']['versions']['jinns']}."
    )


SECTIONS: list[tuple[str, str, str, Callable[[Results], str]]] = [
    (
        "pinn_poisson",
        "Poisson PINN",
        "The page's problem, hidden widths (128, 128, 128). Goal: at least 3 times less time.",
        races,
    ),
    (
        "pinn_helmholtz",
        "Helmholtz PINN",
        "k = 4 pi, a smooth part and a wave of half-period 1/4; sums of bands of sines, widths 16, 32, "
        "64. Goal: at least 3 times less time, or an error ten times lower at equal time. With tanh "
        "networks of widths (128, 128, 128) and the problem's own boundary weight neither side learned "
        "anything in 1000 steps of Adam (errors of 0.5 to 0.7), so that no ratio could be told. What "
        "limits the ratio: the finest network alone falls fast at first, to the error at which coarse "
        "levels stall, in about a quarter of its budget; and runs of ten seconds are no longer than "
        "the compilation of three levels.",
        races,
    ),
    (
        "operator_burgers",
        "Burgers operator",
        "Viscosity 0.1, 512 points, 64 modes, four levels (modes and grid). Goal: at least 4 times.",
        races,
    ),
    (
        "operator_burgers-fronts",
        "Burgers operator with fronts",
        "The same with viscosity 0.01, whose fronts coarse levels cannot represent.",
        races,
    ),
    (
        "operator_darcy",
        "Darcy operator on 128 x 128",
        "Binary permeability, 1000 samples of the package's finite-volume solver, four levels (modes "
        "and grid), random symmetries of the square for both sides. Goal: at least 5 times. On 64 x 64 "
        "without the symmetries the median was 1.8: coarse levels learned the samples by heart, and a "
        "coarse grid cannot show the solution's detail. On 128 x 128 a finest step costs four of the "
        "next coarser level, which is where all seeds reach the target. At its full budget the finest "
        "network alone is a little better with rate 0.01 (0.0145, 0.0145, 0.0139) than with the one "
        "that tuning chose; against that run, and with the same rate, the median was 7.6.",
        races,
    ),
    (
        "operator_darcy_peer",
        "Darcy operator on 128 x 128 against neuraloperator",
        "The same samples, the peer with the settings of its own example.",
        limited_peer_race,
    ),
    (
        "darcy_small",
        "Darcy operator on 16 x 16 against neuraloperator",
        "The peer's own small data set and example settings. Goal: at least 5 times less time than "
        "the peer at its best test error, and a lower final error.",
        peer_race,
    ),
    (
        "overhead",
        "Overhead of the loop",
        "Against a bare hand-written `jit(scan)`. Goal: at most 1.05.",
        plain(),
    ),
    (
        "namesake",
        "Against `opifex` 0.2.0",
        "Its documented loop against `fit`, seconds per step. Goal: at least 10 times.",
        plain(),
    ),
    (
        "laplacian",
        "Laplacian",
        "A compiled PINN step of a 3 x 128 tanh network on 1000 points. Goal: at least twice as fast "
        "as the trace of `jax.hessian`.",
        plain(),
    ),
    (
        "transfer_choices",
        "Transitions",
        "Prolongation and optimizer state on the page's Poisson problem, Adam 1e-3, 400 + 600 + 1000 "
        "steps. Jumps and peaks are relative to the loss before the transition.",
        plain(),
    ),
    (
        "second_order",
        "Second-order smoothers",
        "PINNs in float64, one core. Poisson is the page's; Burgers' has viscosity 0.01/pi; all but "
        "Poisson use the problem's trial function, for every method. `lm` is Levenberg-Marquardt, "
        "`lm-continuation` has the finest network on every level. All methods get the processor "
        "seconds of `lm-cascade`; wall times are not shown, since other programs shared the core.",
        lambda results: by_method(results, PROCESSOR),
    ),
    (
        "jinns",
        "Second order against jinns",
        "`jinns` at its documented settings (its Burgers notebook, natural gradient, 300 iterations; "
        "the other two problems with the same settings), with its weights of 1 and with ours, "
        "against `lm-cascade` in one command. Ours has its conditions by construction, `jinns` trains "
        "them, as its notebook does.",
        against_jinns,
    ),
    (
        "multistage_fit",
        "Residual correction",
        "Fit of a smooth function in stages, float64. Goal: at most 1e-12 in at most four stages.",
        plain("seed", "error after each stage", "held-out error", "seconds with compilation"),
    ),
    (
        "cycles",
        "Cycles",
        "V-cycle, W-cycle, full multigrid against cascade and finest alone at equal work.",
        plain(),
    ),
    ("cost_growth", "How cost grows", "Seconds and memory of one step.", growth),
]

RULES = """# Benchmarks

Every section is one command under `benchmarks/`, run from the root of the project;
`benchmarks/results/` holds the last results, from which `python benchmarks/report.py` writes this
page. All seeds are shown and medians quoted. *Ratio* is the training time of the finest network
alone over the time until the cascade first reaches the held-out error that the former ends with
(geometric mean over the last tenth of its evaluations). *With compilation and transfers* takes all
seconds but those of evaluations on both sides, and every run begins without compiled programs.
*First to first* stops the clock of the finest network alone, too, when it first reaches that error;
*to lowest* takes the lowest error that it ever has as the target of both.
Both sides use the same compiled loop, optimizer, data and precision, and rates tuned over the
same grid on other seeds and points. Timings are from a shared machine and noisy.
"""


def headline() -> list[dict[str, Any]]:
    """The rows of the README's table, as far as they have been measured."""
    rows = []

    def add(work: str, against: str, faster: Any, compiled: Any = "-") -> None:
        rows.append(
            {
                "work": work,
                "against": against,
                "times faster, median": faster,
                "with all compilation and transfers": compiled,
            }
        )

    for name, title, *_ in SECTIONS:
        results = read_results(name)
        if results is None or not isinstance(results.get("median"), dict):
            continue
        if name == "operator_darcy_peer":  # cut off: a ratio that needs its explanation beside it
            continue
        medians = results["median"]
        if name == "darcy_small":
            add(
                "Darcy operator on 16 x 16",
                "`neuraloperator` 2.0.0, incremental trainer",
                medians["ratio_to_peer"],
                medians.get("ratio_to_peer_with_compilation_and_transfers", NOT_MEASURED),
            )
        else:
            add(
                title,
                "its finest network alone, compiled",
                medians["ratio"],
                medians.get("ratio_with_compilation_and_transfers", NOT_MEASURED),
            )
    results = read_results("namesake")
    if results is not None:
        for row in (results["rows"][0], results["rows"][-1]):
            add(f"one step, level {row['level']} of 0..2", "`opifex` 0.2.0", row["ratio"])
    results = read_results("overhead")
    if results is not None:
        for row in results["rows"]:
            add(
                f"one step, level {row['level']} of 0..2",
                "a bare `jit(scan)` loop (our goal: at least 0.95)",
                1 / row["ratio"],
            )
    return rows


def accuracy() -> list[dict[str, Any]]:
    """Errors of second-order smoothers beside Adam's and jinns's, medians over the seeds."""
    ours, theirs = read_results("second_order"), read_results("jinns")
    if ours is None:
        return []

    def of_method(results: Results | None, problem: str, method: str, name: str) -> Any:
        rows = (results or {"rows": []})["rows"]
        return middle([r for r in rows if (r["problem"], r["method"]) == (problem, method)], name)

    problems = dict.fromkeys(row["problem"] for row in ours["rows"])
    return [
        {
            "PINN": problem,
            "Levenberg-Marquardt cascade": of_method(ours, problem, "lm-cascade", "error"),
            "finest network alone": of_method(ours, problem, "lm-alone", "error"),
            "Adam, same time": of_method(ours, problem, "adam-alone", "error"),
            "jinns as documented, same time": of_method(theirs, problem, "jinns", "longer_error"),
            "seconds with compilation": of_method(
                ours, problem, "lm-cascade", "processor_seconds_with_compilation"
            ),
        }
        for problem in problems
    ]


def main() -> None:
    """Write both files."""
    parts = [RULES]
    for name, title, explanation, show in SECTIONS:
        results = read_results(name)
        if results is None:
            print(f"no results of {name} in {RESULTS.name}")
            continue
        notes = results.get("notes", "")
        parts.append(
            f"## {title}\n\n{explanation}\n\n{show(results)}\n\n"
            + (f"{notes}\n\n" if notes else "")
            + f"{origin(results)}\n"
        )
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = f"<!-- measured -->\n{table(headline())}\n"
    if accuracy():
        block += (
            "\nRelative L2 errors of small networks in float64, conditions by construction (but for "
            f"Poisson):\n\n{table(accuracy())}\n"
        )
    block += "<!-- /measured -->"
    readme = re.sub(
        r"<!-- measured -->.*<!-- /measured -->", lambda _: block, readme, flags=re.DOTALL
    )
    (ROOT / "README.md").write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
