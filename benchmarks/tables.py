"""How the results of each benchmark are shown in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from common import median, ratio
from race import HIGH, MARGIN, quartiles

Results = dict[str, Any]


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


ONE_RATE = (
    "problem",
    "Adam",
    "rate",
    "largest peak",
    "of the typical loss",
    "without transition",
    "below 2",
    "median final loss",
    "median final error",
)


def one_rate(results: Results) -> str:
    """Cascades at one rate, then the curves over the rates."""
    rows = [{name: row[name] for name in ONE_RATE} for row in results["rows"]]
    return f"{table(rows)}\n\n{table(results['curves'])}"


def race_rows(results: Results) -> list[dict[str, Any]]:
    """One row per target of a race between a cascade and single networks."""
    return [
        {
            "target error": target["target"],
            "best single network, s": middle_time(target, "single"),
            "finest network alone, s": middle_time(target, "finest"),
            "cascade, s": middle_time(target, "cascade"),
            "single / cascade": spread(target["ratios"]["single_over_cascade"]),
            "training alone": spread(target["ratios"]["single_over_cascade_training"]),
            "finest / cascade": spread(target["ratios"]["finest_over_cascade"]),
        }
        for target in results["targets"]
    ]


def middle_time(target: Mapping[str, Any], side: str) -> float | None:
    """The median time to the target; a run that never reached it took infinitely long."""
    return median([run[side]["seconds"] for run in target["runs"]])


def spread(ratio: Mapping[str, Any]) -> str:
    """Median and lower quartile."""
    if ratio["median"] is None:
        return "neither reached it"
    found = f"{number(ratio['median'])} ({number(ratio['lower_quartile'])})"
    return found if not ratio["neither"] else f"{found}, {ratio['neither']} without"


def of_seed(run: Mapping[str, Any], sides: Sequence[str]) -> dict[str, Any]:
    """Times and last errors of one seed; the ratio is that of the first side to ours, the last one."""
    first, ours = sides[0], sides[-1]
    return {
        "seed": run["seed"],
        **{f"{side}: s": run[side]["seconds"] for side in sides},
        f"{first} / {ours}": run[f"{first}_over_{ours}"],
        **{f"{side} ends with": run[side]["final_error"] for side in sides},
    }


def races(results: Results) -> str:
    """A race between a cascade and single networks: the summary, then every seed."""
    parts = [table(race_rows(results))]
    for target in results["targets"]:
        rows = [of_seed(run, ("single", "finest", "cascade")) for run in target["runs"]]
        chosen = "; ".join(f"{side}: {entry}" for side, entry in target["entries"].items())
        parts.append(f"To {number(target['target'])} ({chosen}):\n\n{table(rows)}")
    tried = sorted({row["entry"].split(", rate")[0] for row in results["tuning"]})
    trials = [
        sum(row["side"] == side for row in results["tuning"]) for side in ("single", "cascade")
    ]
    parts.append(
        f"Tuned over {trials[0]} entries of single networks and {trials[1]} of cascades, of at most "
        f"{results['budget']:.0f} processor seconds of training each: {'; '.join(tried)}."
    )
    return "\n\n".join(parts)


def advice(results: Results) -> str:
    """What was proposed and how right it was; a proposal that the grid does not hold is not judged."""
    rows = [
        row | {"advice / best": row["advice / best"] or "not in the grid"}
        for row in results["summary"]
    ]
    return table(rows)


def races_by_grid(results: Results) -> str:
    """Races of several finest grids, one after the other."""
    return "\n\n".join(
        f"### Finest grid {grid} x {grid}\n\n{races(race)}"
        for grid, race in results["races"].items()
    )


def plain(*columns: str) -> Callable[[Results], str]:
    """The rows of a result, without nested columns."""

    def show(results: Results) -> str:
        rows = results["rows"]
        names = columns or [k for k, v in rows[0].items() if not isinstance(v, list | dict)]
        return table([{name.replace("_", " "): row[name] for name in names} for row in rows])

    return show


def tables_of(*parts: str) -> Callable[[Results], str]:
    """One table for each part of a result that is a list of rows."""

    def show(results: Results) -> str:
        return "\n\n".join(table(results[part]) for part in parts)

    return show


def cut_off_race(results: Results) -> str:
    """The tuning of a race that did not come to its end, and the seeds that did."""
    seeds = [
        {key.replace("_", " "): value for key, value in row.items()} for row in results["seeds"]
    ]
    return f"{plain()(results)}\n\n{table(seeds)}"


def grouped(results: Results, field: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of a result by the value of a field, in the order in which values come first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        groups.setdefault(row[field], []).append(row)
    return groups


def rounding(results: Results) -> str:
    """Median and upper quartile of the errors, and whether the goal is met."""
    rows = []
    for problem, runs in grouped(results, "problem").items():
        rows.append(
            {
                "problem": problem,
                "method": runs[0]["method"],
                "parameters": runs[0]["parameters"],
                "median error": middle(runs, "error"),
                "upper quartile": float(np.quantile([run["error"] for run in runs], 0.75)),
                "goal": runs[0]["goal"],
                "processor seconds": middle(runs, "processor seconds"),
                "within": runs[0]["within"],
                "seeds": len(runs),
            }
        )
    return table(rows)


def pinnacle_rows(results: Results) -> list[dict[str, Any]]:
    """For each case the errors of the chosen model, beside the lowest that were published."""
    rows = []
    for case, runs in grouped(results, "case").items():
        error = median([run["error"] for run in runs])
        rows.append(
            {
                "case": case,
                "model": runs[0]["model"],
                "errors": ", ".join(number(run["error"]) for run in runs),
                "median error": error,
                "published": runs[0]["best"],
                "published / ours": ratio(runs[0]["best"], error),
                "processor seconds": middle(runs, "processor seconds"),
                "of the choice": runs[0]["seconds of the choice"],
                "models tried": len(runs[0]["tried"]),
            }
        )
    return rows


def pinnacle(results: Results) -> str:
    """The rows and their commands."""
    return table(pinnacle_rows(results))


def nested_iteration(results: Results) -> str:
    """Times to the target of coarse features first and of one set of features."""
    rows = []
    for race in results["rows"]:
        for run in race["runs"]:
            rows.append(
                {
                    "problem": race["problem"],
                    "seed": run["seed"],
                    **{f"{side}: s": run[side]["seconds"] for side in ("single", "cascade")},
                    **{f"{side}: steps": run[side]["steps"] for side in ("single", "cascade")},
                    "single / cascade": run["single / cascade"],
                }
            )
    chosen = "\n".join(
        f"- {race['problem']}: {race['single']} against {race['cascade']}"
        for race in results["rows"]
    )
    return f"{table(rows)}\n\nChosen:\n\n{chosen}"


def peer_race(results: Results) -> str:
    """Our cascade and our single networks against the peer."""
    columns = {
        "seed": "seed",
        "peer's best error": "peer_best_error",
        "peer, s": "peer_seconds_to_best",
        "cascade to it, s": "seconds_to_peer_best",
        "peer / cascade": "ratio_to_peer",
        "training alone": "ratio_to_peer_training",
        "cascade ends with": "cascade_final_error",
        "peer ends with": "peer_final_error",
    }
    rows = [{title: run[name] for title, name in columns.items()} for run in results["runs"]]
    count = results["parameters"]
    return (
        f"{table(rows)}\n\nParameters: ours {count['ours']}, peer {count['peer']}. Peer: "
        f"neuraloperator {results['peer']['neuraloperator']} on torch {results['peer']['torch']}."
        f"\n\nAgainst single networks of ours:\n\n{races(results)}"
    )


def architecture_rows(results: Results) -> list[dict[str, Any]]:
    """One row per course of models of users: errors after the same seconds, times to the same error."""
    rows = []
    for course in results["courses"].values():
        runs, ratios = course["runs"], course["ratios"]

        def error(side: str, runs: Sequence[Mapping[str, Any]] = runs) -> float | None:
            return median([run[side]["final_error"] for run in runs])

        rows.append(
            {
                "model": course["title"],
                "problem": course["problem"],
                "seconds": course["budget"],
                "finest alone, error": error("alone"),
                "cascade, error": error("cascade"),
                "alone / cascade": spread(ratios["error_alone_over_cascade"]),
                "in half the seconds, error": error("half"),
                "the cascade ended": ended(ratios["error_alone_over_cascade"]),
            }
        )
    return rows


def sooner(course: Mapping[str, Any], factor: float, clock: str) -> str:
    """How many times sooner a cascade had an error than the finest model alone.

    Args:
        course: the runs.
        factor: the error, relative to that with which the finest model alone ended on the same seed.
        clock: ``"seconds"`` or ``"training_seconds"``.
    """
    column = 0 if clock == "training_seconds" else 1

    def time(run: Mapping[str, Any], side: str) -> float | None:
        if factor == 1:
            found: float | None = run[side][clock]
            return found
        target = factor * run["alone"]["final_error"]
        return next((row[column] for row in run[side]["curve"] if row[-1] <= target), None)

    found: list[float | None] = []
    for run in course["runs"]:
        ours = time(run, "cascade")
        found.append(0.0 if ours is None else ratio(time(run, "alone"), ours))
    return spread(quartiles(found))


def architecture_times(results: Results) -> list[dict[str, Any]]:
    """One row per course: how much sooner the cascade had the last error, and higher ones."""
    return [
        {
            "model": course["title"],
            "problem": course["problem"],
            **{
                f"{name}, {seconds}": sooner(course, factor, clock)
                for name, factor in (
                    ("last error", 1.0),
                    (f"{MARGIN:g} times it", MARGIN),
                    (f"{HIGH:g} times it", HIGH),
                )
                for seconds, clock in (
                    ("all seconds", "seconds"),
                    ("training alone", "training_seconds"),
                )
            },
        }
        for course in results["courses"].values()
    ]


def ended(ratio: Mapping[str, Any]) -> str:
    """Lower if the lower quartile of alone over cascade says so, higher if the median says so."""
    if ratio["lower_quartile"] > 1:
        return "lower"
    return "higher" if ratio["median"] < 1 else "with no clear difference"


def architectures(results: Results) -> str:
    """The summary, then every seed and all entries of the tuning of each course."""
    parts = [
        table(architecture_rows(results)),
        "Time of the finest model alone over that of the cascade, to the error with which the former "
        f"ends and to higher ones:\n\n{table(architecture_times(results))}",
    ]
    for course in results["courses"].values():
        rows = []
        for run in course["runs"]:
            row = {"seed": run["seed"]}
            for side in ("alone", "cascade", "half"):
                row |= {
                    f"{side}: error": run[side]["final_error"],
                    f"{side}: s": run[side]["all_seconds"],
                    f"{side}: of which training": run[side]["all_training_seconds"],
                    f"{side}: s to the error": run[side]["seconds"],
                }
            rows.append(row)
        tuned = [
            {
                "entry": row["entry"],
                "validation error": row["error"],
                "s": row["seconds"],
                "of which training": row["training_seconds"],
            }
            for row in course["tuning"]
        ]
        sides = "; ".join(f"{side}: {entry}" for side, entry in course["entries"].items())
        sizes = " to ".join(map(str, course["parameters"]))
        parts.append(
            f"### {course['title']}, {course['problem']}\n\nParameters of the sizes: {sizes}. {sides}."
            f"\n\n{table(rows)}\n\nTuning:\n\n{table(tuned)}"
        )
    return "\n\n".join(parts)


def growth(results: Results) -> str:
    """Cost of a step, and what levels cost."""
    return (
        plain()(results)
        + "\n\n![cost of a step](images/cost_growth.png)\n\nThe whole cascade, 50 steps per level:\n\n"
        + table(results["levels"])
    )


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
        by_method(results, PROCESSOR)
        + "\n\nWith the random keys of its own notebook the peer's script gives the losses that the "
        + f"notebook prints, and an error of {number(check['error'])} for Burgers' equation. "
        + f"jinns {results['peer']['versions']['jinns']}."
    )


def sample_cost_rows(results: Results) -> list[dict[str, Any]]:
    """One row per target of the race that counts the samples."""
    return [
        {
            "target error": race["target"],
            "single: s": middle_time(race, "single"),
            "corrected: s": middle_time(race, "corrected"),
            "single / corrected": spread(race["ratio"]),
            "single: training alone, s": middle(
                [run["single"] for run in race["runs"]], "training_seconds"
            ),
            "corrected: training alone, s": middle(
                [run["corrected"] for run in race["runs"]], "training_seconds"
            ),
        }
        for race in results["races"]
    ]


def sample_cost_seconds(results: Results) -> list[dict[str, Any]]:
    """Where the seconds of each side go, medians over the seeds, one row per target and side."""
    found = []
    for race in results["races"]:
        for side in ("single", "corrected"):
            runs = [run[side] for run in race["runs"]]
            parts = {
                name: median([run["parts"][name] for run in runs]) for name in runs[0]["parts"]
            }
            trained = [run["training_seconds"] or run["all_training_seconds"] for run in runs]
            found.append(
                {
                    "target error": race["target"],
                    "side": side,
                    **{
                        f"{name}, s": parts.get(name, 0.0)
                        for name in ("solving", "solver's compilation", "corrections")
                    },
                    "training with compilation, s": median(trained),
                    "seeds that reached the target": sum(
                        run["seconds"] is not None for run in runs
                    ),
                }
            )
    return found


def sample_cost(results: Results) -> str:
    """The summary, every seed with its corrections, and what every entry of the tuning ended with."""
    parts = [table(sample_cost_rows(results)), table(sample_cost_seconds(results))]
    for race in results["races"]:
        rows = [
            {
                **of_seed(run, ("single", "corrected")),
                "samples of each solver": ", ".join(
                    f"{count} of {cells} cells"
                    for cells, count in run["corrected"]["allocation"].items()
                ),
                "corrections (difference, then error)": "; ".join(
                    f"{number(found['difference'])}, {number(found['error'])}"
                    for found in run["corrected"]["corrections"]
                ),
            }
            for run in race["runs"]
        ]
        sides = "; ".join(f"{side}: {entry}" for side, entry in race["entries"].items())
        parts.append(f"To {number(race['target'])} ({sides}):\n\n{table(rows)}")
    tuned = [
        {
            "side": row["side"],
            "entry": row["entry"],
            "validation error": row["final_error"],
            "all seconds": row["all_seconds"],
        }
        for row in results["tuning"]
    ]
    parts.append(f"All entries, on the tuning seed:\n\n{table(tuned)}")
    return "\n\n".join(parts)
