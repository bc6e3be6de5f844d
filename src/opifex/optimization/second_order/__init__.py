"""Second-order methods: least-squares solvers that see residuals, and hybrids for Optax."""

from opifex.optimization.second_order.hybrid import (
    HybridOptimizer,
    HybridOptimizerConfig,
    HybridOptimizerState,
)
from opifex.optimization.second_order.levenberg_marquardt import (
    LevenbergMarquardt,
    LevenbergMarquardtState,
)

__all__ = [
    "HybridOptimizer",
    "HybridOptimizerConfig",
    "HybridOptimizerState",
    "LevenbergMarquardt",
    "LevenbergMarquardtState",
]
