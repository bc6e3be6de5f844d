"""What all reference solutions share: the suite's data files and the result files.

A script that evaluates its solution at the suite's own points needs those points once: pass the
folder `ref` of a checkout of https://github.com/i207M/PINNacle as `--suite`. Without it, the points
are taken from the result file that lies beside the script, and the distances recorded there are
kept as they are.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
HERE = Path(__file__).parent


def parsed(description: str | None) -> argparse.Namespace:
    """The command line, which is the same for all scripts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", type=Path, help="folder `ref` of a checkout of PINNacle")
    return parser.parse_args()


@dataclass
class SuiteData:
    """Points of a case and, where the suite's file was given, its values there."""

    points: Array
    values: Array | None


def read(case: str, folder: Path | None, file: str, dimension: int = 2) -> SuiteData:
    """All points of the suite's file, or those of our last result if there is no such file."""
    if folder is None:
        with np.load(HERE / f"{case}.npz") as last:
            return SuiteData(last["points"], None)
    table = np.loadtxt(folder / file, comments="%")
    return SuiteData(table[:, :dimension], table[:, dimension:])


def distance(found: Array, other: Array) -> float:
    """Relative L2 distance over all points and components together."""
    return float(np.linalg.norm(found - other) / np.linalg.norm(other))


def distances(found: Array, other: Array) -> list[float]:
    """Relative L2 distance of each component."""
    return [distance(a, b) for a, b in zip(found.T, other.T, strict=True)]


def write(
    case: str,
    points: Array,
    values: Array,
    error: float,
    suite_values: Array | None = None,
    every: int = 1,
    **more: object,
) -> None:
    """Store and print a result: each `every`-th point, the distance over all points.

    Distances are relative to our values: they say how far the suite's reference is from ours.
    """
    entries: dict[str, object] = {"error": error, **more}
    file = HERE / f"{case}.npz"
    if suite_values is not None:
        entries["suite_distance"] = distance(suite_values, values)
        entries["suite_distance_per_component"] = distances(suite_values, values)
    elif file.exists():
        with np.load(file) as last:
            kept = ("suite_distance", "suite_distance_per_component")
            entries |= {name: last[name] for name in kept if name in last}
    np.savez_compressed(
        file,
        points=points[::every],
        values=values[::every],
        **{name: np.asarray(entry) for name, entry in entries.items()},
    )
    print(f"{file.name}: {len(points[::every])} points, {file.stat().st_size / 1e3:.0f} kB")
    for name, entry in entries.items():
        print(f"  {name}: {entry}" if np.size(entry) < 9 else f"  {name}: {np.shape(entry)}")
