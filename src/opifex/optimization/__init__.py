"""Methods of minimisation that know nothing of levels: Optax transformations, second-order solvers.

The room may import `opifex.core` (residual terms, checks); never models, problems or training.
"""

from opifex.optimization.age_corrected_adam import (
    AgeCorrectedAdamState,
    scale_by_age_corrected_adam,
)
from opifex.optimization.parameter_age import ParameterAgeState, scale_by_parameter_age
from opifex.optimization.width_scaling import (
    WidthScalingState,
    scale_by_width,
    set_width_factors,
    width_factors,
)

__all__ = [
    "AgeCorrectedAdamState",
    "ParameterAgeState",
    "WidthScalingState",
    "scale_by_age_corrected_adam",
    "scale_by_parameter_age",
    "scale_by_width",
    "set_width_factors",
    "width_factors",
]
