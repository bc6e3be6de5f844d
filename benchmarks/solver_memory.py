"""Memory of one step of the least-squares solvers: the estimate, and what XLA allots.

Poisson's equation in its trial function, tanh networks, float64. Programs are compiled and never run:
the largest of them would not fit into many machines. XLA's figure is ``temp_size_in_bytes`` of
``memory_analysis()``; the workspace of the eigendecomposition, which the library routine allocates
for itself, is in neither column of it and is estimated apart.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

from common import write_results
from opifex.models import MLP
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
)
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.problems import Poisson
from opifex.viz import comparison_table

# Width, hidden layers, points.
SIZES = ((16, 2, 2000), (32, 3, 5000), (128, 3, 2000), (128, 3, 10000), (256, 4, 10000))
SOLVERS = (LevenbergMarquardt(), EnergyNaturalGradient(), MatrixFreeGaussNewton())


def measure(width: int, layers: int, count: int, solver: Any) -> dict[str, Any]:
    """One row: sizes, estimate and XLA's figure."""
    problem = Poisson()
    network = MLP(2, 1, [width] * layers, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(problem.trial_function(network))
    points = (problem.sample_points(jax.random.key(0), count, 4)[0],)
    terms = problem.terms[:1]

    def bind(params: Any) -> Any:
        return nnx.merge(graphdef, params)

    size = FlatResiduals(terms, bind, params, points).size
    estimate = solver.step_memory(size)
    step = jax.jit(lambda params, state, points: solver.step(terms, bind, params, state, points))
    compiled: Any = step.lower(params, solver.init(params), points).compile()
    found = {
        "Jacobian, MiB": size.parameters * size.residuals * size.dtype.itemsize,
        "estimate, MiB": estimate.arrays,
        "XLA, MiB": compiled.memory_analysis().temp_size_in_bytes,
        "workspace, MiB": estimate.workspace,
    }
    return {
        "parameters": size.parameters,
        "points": count,
        "solver": type(solver).__name__,
        **{name: round(value / 2**20) for name, value in found.items()},
    }


def main() -> None:
    """All sizes and solvers."""
    jax.config.update("jax_enable_x64", True)
    rows = [measure(*size, solver) for size in SIZES for solver in SOLVERS]
    Console().print(comparison_table(rows, title="Memory of one step"))
    write_results("solver_memory", rows=rows)


if __name__ == "__main__":
    main()
