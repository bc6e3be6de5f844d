"""What an installed package must do; run outside of the source tree, by scripts/smoke_test.sh.

    python smoke_test.py ARTEFACT

Prints one line, the versions it ran with.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import files, metadata, version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def check_installed_files() -> None:
    """The package comes from this environment, with type information and licences."""
    import opifex
    from opifex_multilevel import check_installation

    site = Path(sysconfig.get_path("purelib")).resolve()
    assert check_installation().resolve().is_relative_to(site), check_installation()
    assert metadata("opifex-multilevel")["Version"] == opifex.__version__
    installed = {str(path) for path in files("opifex-multilevel") or ()}
    assert "opifex/py.typed" in installed
    assert "opifex/data/files/darcy_small.npz" in installed
    licences = {Path(name).name for name in installed if "licenses/" in name}
    assert licences == {"LICENSE", "LICENSE-neuraloperator.txt"}, licences


def train() -> nnx.Module:
    """A cascade learns."""
    from opifex.problems import Poisson
    from opifex.training.multilevel import CascadeTrainer, MultilevelAdam, create_network_hierarchy

    problem = Poisson()
    models = create_network_hierarchy(2, 1, [16, 16], num_levels=2, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer(models, MultilevelAdam(1e-3))
    points = problem.sample_points(jax.random.key(0), 100, 40)
    history = trainer.fit(problem.loss, points, epochs=[20, 20], evaluate=problem.relative_l2_error)
    assert history.losses[-1] < history.losses[0]
    return trainer.model


def keep(model: nnx.Module, folder: Path) -> None:
    """Models are saved in both formats and exported; shipped and own data are read."""
    from opifex.data import load_darcy_small, read_fields
    from opifex.storage import export_function, load_function, load_model, save_model

    x = jnp.full((3, 2), 0.5)
    for weights in ("orbax", "safetensors"):
        again = load_model(save_model(model, folder / weights, weights=weights))
        assert bool(jnp.all(again(x) == model(x)))
    serve = load_function(export_function(model, x, folder / "function"))
    assert bool(jnp.allclose(serve(x), model(x), rtol=1e-4, atol=1e-6))
    data = load_darcy_small().test
    np.savez(folder / "darcy.npz", a=data.inputs, u=data.outputs)
    assert read_fields(folder / "darcy.npz").inputs.shape == data.inputs.shape


def main() -> None:
    """Run all checks."""
    check_installed_files()
    with tempfile.TemporaryDirectory() as folder:
        keep(train(), Path(folder))
    command = Path(sysconfig.get_path("scripts")) / "opifex-multilevel"
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    print(platform.python_version(), *map(version, ("jax", "flax", "optax", "numpy")))


if __name__ == "__main__":
    sys.exit(main())
