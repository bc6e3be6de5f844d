"""Multilevel training: hierarchies, transfer operators, optimizers that follow, strategies."""

from opifex.training.errors import NonFiniteLossError
from opifex.training.multilevel.advance import (
    AdvanceRule,
    FixedEpochs,
    LevelProgress,
    PlateauAdvance,
    ResidualSpectrumAdvance,
    WorkOptimalAdvance,
)
from opifex.training.multilevel.advisor import ScheduleAdvice, recommend_schedule
from opifex.training.multilevel.age_corrected_adam import (
    AgeCorrectedAdamState,
    scale_by_age_corrected_adam,
)
from opifex.training.multilevel.axes import (
    FIXED,
    READS,
    READS_CENTRED,
    WRITES,
    Axis,
    LayerAxes,
    register_axes,
)
from opifex.training.multilevel.cascade import CascadeTrainer
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.multilevel.cycles import FullMultigrid, VCycle, WCycle
from opifex.training.multilevel.explained_spectrum import ExplainedSpectrumAdvance
from opifex.training.multilevel.hierarchy import (
    create_depth_hierarchy,
    create_fno_hierarchy,
    create_multiscale_hierarchy,
    create_network_hierarchy,
)
from opifex.training.multilevel.history import Evaluation, History, Transition
from opifex.training.multilevel.optimizer import (
    MultilevelAdam,
    MultilevelOptimizer,
    OnTransition,
)
from opifex.training.multilevel.parameter_age import scale_by_parameter_age
from opifex.training.multilevel.residual_correction import (
    ResidualCorrection,
    Stage,
    fit_in_stages,
    sine_network,
)
from opifex.training.multilevel.resolution import (
    ResolutionLevel,
    coarsest_grid,
    interpolate_field,
    resolution_hierarchy,
    restrict_field,
)
from opifex.training.multilevel.state_transfer import (
    SecondMomentStart,
    transfer_optimizer_state,
)
from opifex.training.multilevel.strategies import Cascade, Strategy
from opifex.training.multilevel.transfer import (
    prolongate,
    prolongate_correction,
    prolongate_fno_modes,
    prolongate_preserving,
    restrict,
    restrict_fno_modes,
    restrict_gradient,
)

__all__ = [
    "FIXED",
    "READS",
    "READS_CENTRED",
    "WRITES",
    "AdvanceRule",
    "AgeCorrectedAdamState",
    "Axis",
    "Cascade",
    "CascadeTrainer",
    "Evaluation",
    "ExplainedSpectrumAdvance",
    "FixedEpochs",
    "FullMultigrid",
    "History",
    "LayerAxes",
    "LevelProgress",
    "MultilevelAdam",
    "MultilevelConfig",
    "MultilevelOptimizer",
    "NonFiniteLossError",
    "OnTransition",
    "PlateauAdvance",
    "ResidualCorrection",
    "ResidualSpectrumAdvance",
    "ResolutionLevel",
    "ScheduleAdvice",
    "SecondMomentStart",
    "Stage",
    "Strategy",
    "Transition",
    "VCycle",
    "WCycle",
    "WorkOptimalAdvance",
    "coarsest_grid",
    "create_depth_hierarchy",
    "create_fno_hierarchy",
    "create_multiscale_hierarchy",
    "create_network_hierarchy",
    "fit_in_stages",
    "interpolate_field",
    "prolongate",
    "prolongate_correction",
    "prolongate_fno_modes",
    "prolongate_preserving",
    "recommend_schedule",
    "register_axes",
    "resolution_hierarchy",
    "restrict",
    "restrict_field",
    "restrict_fno_modes",
    "restrict_gradient",
    "scale_by_age_corrected_adam",
    "scale_by_parameter_age",
    "sine_network",
    "transfer_optimizer_state",
]
