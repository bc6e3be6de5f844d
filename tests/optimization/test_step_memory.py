"""A step that does not fit into memory is refused before any work is done."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.core.residuals import ResidualTerm
from opifex.models.mlp import MLP
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
    ProblemSize,
    StepMemory,
    available_bytes,
)
from opifex.training import smoother
from opifex.training.multilevel import CascadeTrainer
from opifex.training.smoother import LeastSquaresSmoother

FIT = ResidualTerm("fit", lambda u, x: u(x)[0] - x[0] * x[1])
POINTS = (jnp.asarray(np.random.default_rng(0).uniform(size=(200, 2)), jnp.float32),)


def networks(*units: int):
    return [MLP(2, 1, (n,), rngs=nnx.Rngs(n)) for n in units]


def test_estimates_of_large_problems():
    size = ProblemSize(parameters=198401, residuals=10000)
    jacobian, gram = 198401 * 10000 * 8, 10000**2 * 8
    for dense in (LevenbergMarquardt(), EnergyNaturalGradient()):
        assert dense.step_memory(size).arrays == jacobian + 2 * gram
        assert dense.step_memory(size).total == jacobian + 4 * gram
    free = MatrixFreeGaussNewton().step_memory(size).total
    assert free < 0.05 * jacobian
    assert MatrixFreeGaussNewton().step_memory(size._replace(residuals=10**8)).total == free
    # Single precision takes half.
    single = LevenbergMarquardt().step_memory(size._replace(dtype="float32"))
    assert single == StepMemory((jacobian + 2 * gram) // 2, gram)
    # With more residuals than parameters the Jacobian is not kept.
    many = ProblemSize(parameters=1000, residuals=10**7)
    assert LevenbergMarquardt().step_memory(many).total < 10**8


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "solver_memory.json"
ROWS = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]


def test_the_published_estimates_agree_with_the_compiler_and_with_this_version():
    for row in ROWS:
        assert 0.5 < row["estimate, MiB"] / row["XLA, MiB"] < 2
        if row["parameters"] > 1000 and row["solver"] == "LevenbergMarquardt":
            size = ProblemSize(row["parameters"], row["points"])
            estimate = LevenbergMarquardt().step_memory(size).arrays
            assert abs(estimate / 2**20 - row["estimate, MiB"]) < 1
    for free in (row for row in ROWS if row["solver"] == "MatrixFreeGaussNewton"):
        if free["Jacobian, MiB"] > 50:
            same = (row for row in ROWS if row["parameters"] == free["parameters"])
            others = [row for row in same if row["solver"] != free["solver"]]
            assert 2 * free["XLA, MiB"] < min(row["XLA, MiB"] for row in others)


def test_a_fine_level_that_does_not_fit_is_refused_before_the_coarse_one_trains():
    models = networks(2, 300)
    before = jax.tree.leaves(nnx.state(models[0], nnx.Param))
    # The last level has 1201 parameters, and 200 residuals.
    limit = LevenbergMarquardt().step_memory(ProblemSize(1201, 200, jnp.float32, 0)).total - 1
    trainer = CascadeTrainer(models, LeastSquaresSmoother(LevenbergMarquardt(), limit))
    with pytest.raises(MemoryError) as raised:
        trainer.fit((FIT,), POINTS, epochs=[2, 2])
    for part in ("LevenbergMarquardt", "1201 parameters", "200 residuals", "batch_size"):
        assert part in str(raised.value)
    after = jax.tree.leaves(nnx.state(trainer.model, nnx.Param))
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    # Fewer points per step fit.
    history = trainer.fit((FIT,), POINTS, epochs=[1, 1], batch_size=50)
    assert history.num_steps == 8


def test_the_message_names_what_fits(monkeypatch):
    monkeypatch.setattr(smoother, "available_bytes", lambda: 12 * 2**20)
    # 3901 parameters and 1000 residuals: the Jacobian alone takes 15 MB.
    points = (jnp.ones((1000, 2)),)
    trainer = CascadeTrainer([MLP(2, 1, (60, 60), rngs=nnx.Rngs(0))], LevenbergMarquardt())
    with pytest.raises(MemoryError, match="12 MiB are available; these fit: MatrixFreeGaussNewton"):
        trainer.fit((FIT,), points, epochs=[1])


def test_infinity_is_no_limit(monkeypatch):
    monkeypatch.setattr(smoother, "available_bytes", lambda: 1)
    unlimited = LeastSquaresSmoother(LevenbergMarquardt(), math.inf)
    assert CascadeTrainer(networks(2), unlimited).fit((FIT,), POINTS, epochs=[1]).num_steps == 1
    with pytest.raises(MemoryError, match="no least-squares solver fits"):
        CascadeTrainer(networks(2), LevenbergMarquardt()).fit((FIT,), POINTS, epochs=[1])


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1.0, ValueError), ("8 GB", TypeError)]
)
def test_bad_limits_are_named(limit, error):
    with pytest.raises(error, match="memory_limit"):
        LeastSquaresSmoother(LevenbergMarquardt(), limit)


def test_a_device_says_how_much_memory_it_has():
    class Device:
        def __init__(self, statistics):
            self.memory_stats = lambda: statistics

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_bytes(Device({"bytes_limit": 12345, "bytes_in_use": 5})) == 12345
    assert available_bytes(Device(None)) == available_bytes(Device({})) == machine
    assert available_bytes() is not None
