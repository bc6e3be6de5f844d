"""Differential operators for functions of one point, and balancing of the losses they make.

The room may import `opifex.core`.
"""

from opifex.core.physics.gradnorm import GradNormBalancer, gradient_norms
from opifex.core.physics.operators import (
    directional_derivatives,
    divergence,
    gradient,
    hessian_diagonal,
    laplacian,
)

__all__ = [
    "GradNormBalancer",
    "directional_derivatives",
    "divergence",
    "gradient",
    "gradient_norms",
    "hessian_diagonal",
    "laplacian",
]
