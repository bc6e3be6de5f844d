"""Transfers between levels: everything that moves from one level to the next.

Parameters (`parameters`), by a plan (`placements`) that is inferred from what the models do
(`inference`, `tracing`), a start from which new units learn sooner (`plasticity`), learning rates
(`rate_ratios`), optimizer states (`states`), data on grids (`grids`), and the check that a transfer
keeps the function it promises to keep (`verification`).

The room may import `opifex.models` and `opifex.core`; never the training loop, the trainer,
objectives or smoothers.
"""

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
from opifex.training.multilevel.transfer.inference import plan_transfer, traced_with
from opifex.training.multilevel.transfer.parameters import (
    Transfer,
    prolongate,
    prolongate_correction,
    prolongate_fno_modes,
    prolongate_preserving,
    restrict,
    restrict_fno_modes,
    restrict_gradient,
)
from opifex.training.multilevel.transfer.placements import Placement, TransferPlan
from opifex.training.multilevel.transfer.plasticity import PlasticProlongation
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
from opifex.training.multilevel.transfer.tracing import StructureError, accepted_inputs
from opifex.training.multilevel.transfer.verification import (
    TransferError,
    function_difference,
    verify_transfer,
)

__all__ = [
    "GRID_KINDS",
    "NotAffineError",
    "Placement",
    "PlasticProlongation",
    "ResidualCorrection",
    "ResolutionLevel",
    "SecondMomentStart",
    "StructureError",
    "Transfer",
    "TransferError",
    "TransferPlan",
    "accepted_inputs",
    "carried_fraction",
    "coarsest_grid",
    "function_difference",
    "grids_nest",
    "interpolate_field",
    "interpolation_matrix",
    "leaves_by_path",
    "parameter_path",
    "plan_transfer",
    "prolongate",
    "prolongate_correction",
    "prolongate_fno_modes",
    "prolongate_preserving",
    "rate_ratio",
    "rate_ratios",
    "resolution_hierarchy",
    "restrict",
    "restrict_field",
    "restrict_fno_modes",
    "restrict_gradient",
    "restriction_matrix",
    "same_method",
    "traced_with",
    "transfer_optimizer_state",
    "verify_transfer",
]
