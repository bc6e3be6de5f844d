"""Second-order methods: least-squares solvers, which see residuals, and Adam followed by L-BFGS.

The room may import `opifex.core`.
"""

from opifex.optimization.second_order.block_bidiagonal import block_bidiagonal_solution
from opifex.optimization.second_order.damping import AdaptiveDamping
from opifex.optimization.second_order.gauss_newton import GaussNewton, GaussNewtonState
from opifex.optimization.second_order.hybrid import (
    HybridOptimizer,
    HybridOptimizerConfig,
    HybridOptimizerState,
)
from opifex.optimization.second_order.levenberg_marquardt import (
    LevenbergMarquardt,
    LevenbergMarquardtState,
)
from opifex.optimization.second_order.matrix_free_gauss_newton import MatrixFreeGaussNewton
from opifex.optimization.second_order.memory import ProblemSize, StepMemory, available_bytes
from opifex.optimization.second_order.natural_gradient import (
    EnergyNaturalGradient,
    EnergyNaturalGradientState,
)
from opifex.optimization.second_order.random_subspace import (
    RandomSubspace,
    RandomSubspaceState,
)
from opifex.optimization.second_order.self_scaled_broyden import (
    SelfScaledBroydenState,
    scale_by_self_scaled_broyden,
    self_scaled_broyden,
)

__all__ = [
    "AdaptiveDamping",
    "EnergyNaturalGradient",
    "EnergyNaturalGradientState",
    "GaussNewton",
    "GaussNewtonState",
    "HybridOptimizer",
    "HybridOptimizerConfig",
    "HybridOptimizerState",
    "LevenbergMarquardt",
    "LevenbergMarquardtState",
    "MatrixFreeGaussNewton",
    "ProblemSize",
    "RandomSubspace",
    "RandomSubspaceState",
    "SelfScaledBroydenState",
    "StepMemory",
    "available_bytes",
    "block_bidiagonal_solution",
    "scale_by_self_scaled_broyden",
    "self_scaled_broyden",
]
