"""Networks: plain ``nnx.Module`` classes that know nothing of training; models of other libraries, too.

The room may import `opifex.core`.
"""

from opifex.models.corrected import CorrectedModel, FrozenVariable, freeze
from opifex.models.fno import FNO, FourierBlock, SpectralConv
from opifex.models.mlp import MLP, HiddenLayer
from opifex.models.multiscale import FourierFeatures, FrequencyBand, MultiscaleMLP
from opifex.models.normalized import NormalizedModel, Normalizer
from opifex.models.partition_of_unity import PartitionOfUnity
from opifex.models.pytree_models import EquinoxModel, FunctionalModel
from opifex.models.random_features import RandomFeatures
from opifex.models.space_time_features import SpaceTimeFeatures, element_features
from opifex.models.trial_function import SymmetricModel, TrialFunction

__all__ = [
    "FNO",
    "MLP",
    "CorrectedModel",
    "EquinoxModel",
    "FourierBlock",
    "FourierFeatures",
    "FrequencyBand",
    "FrozenVariable",
    "FunctionalModel",
    "HiddenLayer",
    "MultiscaleMLP",
    "NormalizedModel",
    "Normalizer",
    "PartitionOfUnity",
    "RandomFeatures",
    "SpaceTimeFeatures",
    "SpectralConv",
    "SymmetricModel",
    "TrialFunction",
    "element_features",
    "freeze",
]
