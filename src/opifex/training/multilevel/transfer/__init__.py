"""Transfers between levels: everything that moves from one level to the next.

Parameters (`parameters`, by the description of layers in `axes`), learning rates (`rate_ratios`),
optimizer states (`states`), data on grids (`grids`), and the check that a transfer keeps the function
it promises to keep (`verification`).

The room may import `opifex.models` and `opifex.core`; never the training loop, the trainer,
objectives or smoothers.
"""

from opifex.training.multilevel.transfer.axes import (
    FAN_IN,
    FAN_IN_CENTRED,
    FAN_IN_MODES,
    FAN_OUT,
    FIXED,
    Axis,
    LayerAxes,
    lookup_axes,
    register_axes,
)
from opifex.training.multilevel.transfer.grids import (
    GRID_KINDS,
    ResolutionLevel,
    coarsest_grid,
    grids_nest,
    interpolate_field,
    interpolation_matrix,
    resolution_hierarchy,
    restrict_field,
    restriction_matrix,
)
from opifex.training.multilevel.transfer.parameters import (
    Placement,
    Transfer,
    TransferPlan,
    plan_transfer,
    prolongate,
    prolongate_correction,
    prolongate_fno_modes,
    prolongate_preserving,
    restrict,
    restrict_fno_modes,
    restrict_gradient,
)
from opifex.training.multilevel.transfer.rate_ratios import (
    parameter_path,
    rate_ratio,
    rate_ratios,
)
from opifex.training.multilevel.transfer.residual_correction import ResidualCorrection
from opifex.training.multilevel.transfer.states import (
    NotAffineError,
    SecondMomentStart,
    carried_fraction,
    leaves_by_path,
    same_method,
    transfer_optimizer_state,
)
from opifex.training.multilevel.transfer.verification import (
    TransferError,
    function_difference,
    inputs_for,
    verify_transfer,
)

__all__ = [
    "FAN_IN",
    "FAN_IN_CENTRED",
    "FAN_IN_MODES",
    "FAN_OUT",
    "FIXED",
    "GRID_KINDS",
    "Axis",
    "LayerAxes",
    "NotAffineError",
    "Placement",
    "ResidualCorrection",
    "ResolutionLevel",
    "SecondMomentStart",
    "Transfer",
    "TransferError",
    "TransferPlan",
    "carried_fraction",
    "coarsest_grid",
    "function_difference",
    "grids_nest",
    "inputs_for",
    "interpolate_field",
    "interpolation_matrix",
    "leaves_by_path",
    "lookup_axes",
    "parameter_path",
    "plan_transfer",
    "prolongate",
    "prolongate_correction",
    "prolongate_fno_modes",
    "prolongate_preserving",
    "rate_ratio",
    "rate_ratios",
    "register_axes",
    "resolution_hierarchy",
    "restrict",
    "restrict_field",
    "restrict_fno_modes",
    "restrict_gradient",
    "restriction_matrix",
    "same_method",
    "transfer_optimizer_state",
    "verify_transfer",
]
