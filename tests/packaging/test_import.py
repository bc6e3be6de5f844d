"""Importing the library brings in what it needs, and nothing that only a part of it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "import_time.json"
HEAVY = {
    "alembic", "fsspec", "h5netcdf", "h5py", "IPython", "matplotlib", "mlflow", "orbax", "pandas",
    "pyarrow", "pydantic", "pytest", "safetensors", "scipy.fft", "scipy.interpolate", "scipy.linalg",
    "scipy.optimize", "scipy.sparse", "scipy.spatial", "scipy.special", "scipy.stats", "shapely",
    "tensorboardX", "tensorstore", "trackio", "typer", "wandb", "xarray", "zarr",
}  # fmt: skip


def loaded(statement):
    program = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    names = json.loads(run.stdout)
    return {part for name in names for part in (name.split(".")[0], ".".join(name.split(".")[:2]))}


@pytest.fixture(scope="module")
def needed():
    return loaded("import jax, flax.nnx, optax")


@pytest.mark.parametrize("room", ["opifex.training.multilevel", "opifex.problems", "opifex.storage"])
def test_no_heavy_module_is_imported(room, needed):
    extra = loaded(f"import {room}") - needed
    assert room.rpartition(".")[0] in extra
    assert extra & HEAVY == set()


def test_a_heavy_module_would_be_found(needed):
    assert (loaded("import opifex.training.multilevel, scipy.stats") - needed) & HEAVY


def test_the_measured_ratio_is_within_the_goal():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    ratios = {row["import"].strip("`"): row["ratio"] for row in results["rows"]}
    assert ratios["import jax, flax.nnx, optax"] == 1
    assert ratios["import opifex.training.multilevel"] <= results["goal"] == 1.3
