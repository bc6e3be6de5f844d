"""How the cost of a step grows: seconds and peak memory against width, modes, grid and levels.

Each point is the compiled training step of one model (median seconds of a few calls of the trainer's
loop) and XLA's own count of the temporary and argument memory of its program. A figure goes to
``docs/images/cost_growth.png``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from common import parser, start_cold, write_results
from opifex.core.metrics import relative_l2
from opifex.models import FNO, MLP
from opifex.problems import Poisson
from opifex.training.loop import CompiledLoop, LoopState
from opifex.training.multilevel import CascadeTrainer, MultilevelConfig, create_network_hierarchy
from opifex.training.objective import Objective, split_model
from opifex.training.smoother import as_smoother
from opifex.viz import comparison_table

mpl.use("Agg")
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "cost_growth.png"


def step_cost(model: Any, loss: Any, data: tuple[Any, ...], rounds: int) -> tuple[float, float]:
    """Median seconds per step and mebibytes of one level."""
    smoother = as_smoother(optax.adam(1e-3))
    graphdef, params, rest = split_model(model)
    objective = Objective(loss, graphdef, data)
    state = LoopState.start(params, rest, smoother.init(params), jax.random.key(0))
    step = jax.jit(smoother.step).lower(objective.at(rest=rest), params, state.smoother)
    memory = step.compile().memory_analysis()
    loop = CompiledLoop(objective, smoother, state)
    state, _, _ = loop.run(state, objective, 1)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        state, _, _ = loop.run(state, objective, 3)
        times.append((time.perf_counter() - start) / 3)
    size = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return float(np.median(times)), size / 2**20


def network(width: int) -> tuple[Any, Any, tuple[Any, ...]]:
    """A PINN of the page."""
    problem = Poisson()
    points = problem.sample_points(jax.random.key(0), 1000, 100)
    return MLP(2, 1, [width] * 3, rngs=nnx.Rngs(0)), problem.loss, points


def operator(modes: int, grid: int) -> tuple[Any, Any, tuple[Any, ...]]:
    """A two-dimensional operator on a batch of 16."""
    model = FNO(modes, 32, num_layers=4, spatial_dims=2, grid_kind="periodic", rngs=nnx.Rngs(0))
    fields = jax.random.normal(jax.random.key(0), (16, grid, grid, 1))
    return model, lambda m, x, y: relative_l2(m(x), y), (fields, jnp.ones_like(fields))


SWEEPS: dict[str, tuple[list[int], Callable[[int], Any]]] = {
    "MLP width, 1000 points": ([16, 32, 64, 128, 256], network),
    "FNO modes on 64 x 64": ([4, 8, 16, 24], lambda modes: operator(modes, 64)),
    "FNO grid points per axis, 8 modes": ([16, 32, 64, 96], lambda grid: operator(8, grid)),
}


def whole_cascade(levels: int) -> dict[str, Any]:
    """Overhead of levels: 50 steps on each, everything included."""
    start_cold()
    problem = Poisson()
    trainer = CascadeTrainer(
        create_network_hierarchy(2, 1, [64] * 3, levels, 0.5, rngs=nnx.Rngs(0)),
        config=MultilevelConfig(num_levels=levels, level_epochs=[50] * levels),
    )
    history = trainer.fit(problem.loss, problem.sample_points(jax.random.key(0), 1000, 100))
    return {
        "levels": levels,
        "seconds in all": history.wall_seconds,
        "training": history.seconds,
        "waiting for compilation": history.compile_seconds,
        "transfer": history.transfer_seconds,
    }


def draw(rows: list[dict[str, Any]]) -> None:
    """One panel per sweep."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(SWEEPS), figsize=(12, 3.6), layout="constrained")
    for panel, name in zip(panels, SWEEPS, strict=True):
        chosen = [row for row in rows if row["sweep"] == name]
        sizes = [row["size"] for row in chosen]
        panel.loglog(sizes, [row["ms per step"] for row in chosen], "o-", label="ms per step")
        panel.loglog(sizes, [row["MiB"] for row in chosen], "s--", label="MiB")
        panel.set_xlabel(name)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.xaxis.set_minor_formatter("")
        panel.legend()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    """All sweeps."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args().rounds
    rows = []
    for name, (sizes, build) in SWEEPS.items():
        for size in sizes:
            seconds, memory = step_cost(*build(size), rounds)
            rows.append({"sweep": name, "size": size, "ms per step": 1000 * seconds, "MiB": memory})
    levels = [whole_cascade(n) for n in (1, 2, 3, 4)]
    Console().print(comparison_table(rows))
    Console().print(comparison_table(levels))
    draw(rows)
    write_results("cost_growth", rows=rows, levels=levels)


if __name__ == "__main__":
    main()
