"""Importing the library brings in what it needs, and nothing that only a part of it needs."""

import json
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "import_time.json"
HEAVY = {
    "alembic", "equinox", "fsspec", "grain", "h5netcdf", "h5py", "IPython", "matplotlib", "mlflow",
    "orbax", "pandas", "pyarrow", "pydantic", "pytest", "safetensors", "scipy.fft",
    "scipy.interpolate", "scipy.linalg", "scipy.optimize", "scipy.sparse", "scipy.spatial",
    "scipy.special", "scipy.stats", "shapely", "tensorboardX", "tensorstore", "trackio", "typer",
    "wandb", "xarray", "zarr",
}  # fmt: skip


def loaded(statements):
    """Names of the modules that statements add, one after the other in a fresh interpreter."""
    program = (
        "import sys, json\nfor statement in json.loads(sys.argv[1]):\n    before = set(sys.modules)\n"
        "    exec(statement)\n    print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    command = [sys.executable, "-c", program, json.dumps(statements)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {s: json.loads(line) for s, line in zip(statements, lines, strict=True)}
    # Packages and their first subpackages.
    return {
        s: {".".join(n.split(".")[:k]) for n in found for k in (1, 2)} for s, found in names.items()
    }


def test_no_heavy_module_is_imported():
    ours = [f"import opifex.{room}" for room in ("training.multilevel", "problems", "storage")]
    found = loaded(["import jax, flax.nnx, optax", *ours, "import scipy.stats"])
    assert "opifex.training" in found[ours[0]]
    assert {statement: found[statement] & HEAVY for statement in ours} == {
        key: set() for key in ours
    }
    # What this test would find.
    assert found["import scipy.stats"] & HEAVY


def test_the_measured_ratio_is_within_the_goal():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    ratios = {row["import"].strip("`"): row["ratio"] for row in results["rows"]}
    assert ratios["import jax, flax.nnx, optax"] == 1
    assert ratios["import opifex.training.multilevel"] <= results["goal"] == 1.3
