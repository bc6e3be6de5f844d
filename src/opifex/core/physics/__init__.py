"""Derivatives of networks and balancing of physical losses."""

from opifex.core.physics.gradnorm import GradNormBalancer, gradient_norms
from opifex.core.physics.operators import divergence, gradient, hessian_diagonal, laplacian

__all__ = [
    "GradNormBalancer",
    "divergence",
    "gradient",
    "gradient_norms",
    "hessian_diagonal",
    "laplacian",
]
