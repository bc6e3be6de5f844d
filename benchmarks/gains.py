"""Where a hierarchy was sooner than the best single network, and where not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common import read_results
from tables import middle_time, number, spread

RACES = {
    "operator_burgers": "Burgers operator, smooth",
    "operator_burgers-fronts": "Burgers operator, fronts",
    "operator_darcy": "Darcy operator, two phases, 128 x 128",
    "darcy_small": "Darcy operator, two phases, 16 x 16",
    "pinn_poisson": "Poisson PINN, Adam",
    "pinn_helmholtz": "Helmholtz PINN, Adam",
}
SAMPLE_RACES = {
    "sample_cost": "gas with shocks in one dimension",
    "sample_cost_square": "gas with shocks in two dimensions",
}


@dataclass(frozen=True)
class Gain:
    """A race to its low target.

    Attributes:
        problem: what is learned.
        target: relative error.
        single: median seconds of the best single network; ``None`` where it did not arrive.
        ours: median seconds of the hierarchy; ``None`` where it did not arrive.
        ratio: median and lower quartile of the first over the second, as in the results.
    """

    problem: str
    target: float
    single: float | None
    ours: float | None
    ratio: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """Sooner if three of four seeds say so, later if most say so."""
        if self.ratio["median"] is None:
            return "neither arrived"
        if self.ratio["lower_quartile"] > 1:
            return "sooner"
        return "later" if self.ratio["median"] < 1 else "no clear difference"


def of_race(problem: str, results: Mapping[str, Any]) -> Gain:
    """The low target of a race between a cascade and single networks."""
    low = results["targets"][0]
    return Gain(
        problem,
        low["target"],
        middle_time(low, "single"),
        middle_time(low, "cascade"),
        low["ratios"]["single_over_cascade"],
    )


def by_grid() -> dict[int, Mapping[str, Any]]:
    """The races of `grid_growth.py` by the points of the finest grid along an axis."""
    races = (read_results("grid_growth") or {"races": {}})["races"]
    return {int(grid): race for grid, race in races.items()}


def sample_races() -> dict[str, Mapping[str, Any]]:
    """The races that count what samples cost, by their problem."""
    found = {problem: read_results(name) for name, problem in SAMPLE_RACES.items()}
    return {problem: results for problem, results in found.items() if results is not None}


def gains() -> list[Gain]:
    """All races, the largest gain first."""
    found = [
        of_race(f"Darcy operator, three phases, {grid} x {grid}", race)
        for grid, race in by_grid().items()
    ]
    for name, problem in RACES.items():
        results = read_results(name)
        if results is not None:
            found.append(of_race(problem, results))
    for problem, samples in sample_races().items():
        low = samples["races"][0]
        found.append(
            Gain(
                f"{problem}, solving included",
                low["target"],
                middle_time(low, "single"),
                middle_time(low, "corrected"),
                low["ratio"],
            )
        )
    return sorted(found, key=lambda gain: -(gain.ratio["median"] or 0.0))


def rows() -> list[dict[str, str]]:
    """The rows of the table."""
    return [
        {
            "problem": gain.problem,
            "target error": number(gain.target),
            "best single network, s": number(gain.single),
            "hierarchy, s": number(gain.ours),
            "single / hierarchy": spread(gain.ratio),
            "the hierarchy was": gain.verdict,
        }
        for gain in gains()
    ]


def trials() -> dict[str, list[tuple[str, float, float]]]:
    """All entries of the tuning of every race: side, seconds and error of each."""
    found = {
        f"Darcy, three phases, {grid} x {grid}": race["tuning"]
        for grid, race in list(by_grid().items())[-1:]
    }
    for name, problem in RACES.items():
        results = read_results(name)
        if results is not None:
            found[problem.replace(" operator", "")] = results["tuning"]
    return {
        problem: [
            (row["side"], row["seconds_with_compilation_and_transfers"], row["error"])
            for row in tuning
        ]
        for problem, tuning in found.items()
    }


def samples() -> dict[str, list[tuple[str, float, float]]]:
    """All entries of the tuning of the races that count samples: side, seconds, error of each."""
    return {
        problem: [
            (row["side"], row["all_seconds"], row["final_error"]) for row in results["tuning"]
        ]
        for problem, results in sample_races().items()
    }


def envelope(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both seconds and error, soonest first."""
    found: list[tuple[float, float]] = []
    for seconds, error in sorted(points):
        if not found or error < found[-1][1]:
            found.append((seconds, error))
    return found
