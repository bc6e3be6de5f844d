"""Boundary and initial value problems: domain, residuals, conditions, points and solution.

The room may import `opifex.core` and `opifex.models` (for trial functions).
"""

from opifex_multilevel import require_own_package

require_own_package()  # before the first import that fails where another package is mixed with this one

from opifex.problems.allen_cahn import AllenCahn
from opifex.problems.base import Problem
from opifex.problems.burgers import Burgers
from opifex.problems.heat import Heat
from opifex.problems.helmholtz import Helmholtz
from opifex.problems.planar_region import BoundaryPoints, PlanarRegion
from opifex.problems.points import (
    UNIT_SQUARE,
    Box,
    generate_boundary_points,
    grid_points,
    interior_points,
)
from opifex.problems.poisson import Poisson

__all__ = [
    "UNIT_SQUARE",
    "AllenCahn",
    "BoundaryPoints",
    "Box",
    "Burgers",
    "Heat",
    "Helmholtz",
    "PlanarRegion",
    "Poisson",
    "Problem",
    "generate_boundary_points",
    "grid_points",
    "interior_points",
]
