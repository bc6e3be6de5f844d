"""Multilevel training: hierarchies, transfers, cycles, and the trainer that composes them.

Level 0 is the coarsest, and a finer level has a larger number (algebraic multigrid codes such as PyAMG
count the other way).

`hierarchy` builds models from coarse to fine; `transfer/` moves everything between levels; `cycle`
says in which order levels are visited and `stopping/` when to leave one; `train` carries a cycle out
on the immutable `state`; `history` records what it did and cost; `trainer` is the face of it all.

The room may import `opifex.core`, `opifex.models`, `opifex.problems`, `opifex.data`,
`opifex.optimization`, `opifex.storage` and the rest of `opifex.training`; never `opifex.viz`.
"""

from opifex_multilevel import require_own_package

require_own_package()  # before the first import that fails where another package is mixed with this one

from opifex.optimization import (
    AgeCorrectedAdamState,
    scale_by_age_corrected_adam,
    scale_by_parameter_age,
    scale_by_width,
)
from opifex.training.balancing import Balanced, JacobianBalancing
from opifex.training.errors import LossExplosionError, NonFiniteLossError
from opifex.training.multilevel.advisor import ScheduleAdvice, recommend_schedule
from opifex.training.multilevel.checkpointing import Checkpoints, saved_history
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.multilevel.cycle import (
    Cascade,
    Correct,
    Cycle,
    Enter,
    FullMultigrid,
    Interpolate,
    Restrict,
    Smooth,
    VCycle,
    WCycle,
    draw,
)
from opifex.training.multilevel.data import Resampled
from opifex.training.multilevel.faults import FaultAction, FaultPolicy
from opifex.training.multilevel.hierarchy import (
    Hierarchy,
    create_depth_hierarchy,
    create_fno_hierarchy,
    create_hierarchy,
    create_multiscale_hierarchy,
    create_network_hierarchy,
)
from opifex.training.multilevel.history import Evaluation, History, Stretch, Transition
from opifex.training.multilevel.monitor import LevelProgress, Monitor, Phase, RunObserver
from opifex.training.multilevel.optimizer import (
    MultilevelAdam,
    MultilevelOptimizer,
    OnTransition,
)
from opifex.training.multilevel.rate_search import RateSearch, RateTrial, tune_learning_rate
from opifex.training.multilevel.staged_fit import Stage, fit_in_stages, sine_network
from opifex.training.multilevel.stopping import (
    EarlyStopping,
    ExplainedSpectrum,
    FixedEpochs,
    LossPlateau,
    ResidualSpectrum,
    StoppingCriterion,
    WorkOptimal,
)
from opifex.training.multilevel.stored_resolutions import resolution_batches
from opifex.training.multilevel.streaming import Streamed
from opifex.training.multilevel.trainer import CascadeTrainer
from opifex.training.multilevel.transfer import (
    PlasticProlongation,
    ResidualCorrection,
    ResolutionLevel,
    SecondMomentStart,
    TransferError,
    coarsest_grid,
    interpolate_field,
    prolongate,
    prolongate_correction,
    prolongate_fno_modes,
    prolongate_preserving,
    resolution_hierarchy,
    restrict,
    restrict_field,
    restrict_fno_modes,
    restrict_gradient,
    transfer_optimizer_state,
    verify_transfer,
)
from opifex.training.placement import Placement

__all__ = [
    "AgeCorrectedAdamState",
    "Balanced",
    "Cascade",
    "CascadeTrainer",
    "Checkpoints",
    "Correct",
    "Cycle",
    "EarlyStopping",
    "Enter",
    "Evaluation",
    "ExplainedSpectrum",
    "FaultAction",
    "FaultPolicy",
    "FixedEpochs",
    "FullMultigrid",
    "Hierarchy",
    "History",
    "Interpolate",
    "JacobianBalancing",
    "LevelProgress",
    "LossExplosionError",
    "LossPlateau",
    "Monitor",
    "MultilevelAdam",
    "MultilevelConfig",
    "MultilevelOptimizer",
    "NonFiniteLossError",
    "OnTransition",
    "Phase",
    "Placement",
    "PlasticProlongation",
    "RateSearch",
    "RateTrial",
    "Resampled",
    "ResidualCorrection",
    "ResidualSpectrum",
    "ResolutionLevel",
    "Restrict",
    "RunObserver",
    "ScheduleAdvice",
    "SecondMomentStart",
    "Smooth",
    "Stage",
    "StoppingCriterion",
    "Streamed",
    "Stretch",
    "TransferError",
    "Transition",
    "VCycle",
    "WCycle",
    "WorkOptimal",
    "coarsest_grid",
    "create_depth_hierarchy",
    "create_fno_hierarchy",
    "create_hierarchy",
    "create_multiscale_hierarchy",
    "create_network_hierarchy",
    "draw",
    "fit_in_stages",
    "interpolate_field",
    "prolongate",
    "prolongate_correction",
    "prolongate_fno_modes",
    "prolongate_preserving",
    "recommend_schedule",
    "resolution_batches",
    "resolution_hierarchy",
    "restrict",
    "restrict_field",
    "restrict_fno_modes",
    "restrict_gradient",
    "saved_history",
    "scale_by_age_corrected_adam",
    "scale_by_parameter_age",
    "scale_by_width",
    "sine_network",
    "transfer_optimizer_state",
    "tune_learning_rate",
    "verify_transfer",
]
