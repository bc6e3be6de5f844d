"""Stopping criteria: when a level has done its part, and the next one takes over.

`criteria` holds the protocol and what can be decided from the losses alone; `residual_spectrum`
uses the frequencies of what is left to learn, `explained_spectrum` at those in the weights of
Fourier layers. `early_stopping` is a callback: it can end the run too, and restore the best model. A
criterion of your own is a class with one method::

    class BelowThreshold:
        def should_stop(self, progress: LevelProgress) -> bool:
            return progress.losses[-1] < 1e-3

The room may import `opifex.core`, `opifex.storage`, `opifex.models` and
`opifex.training.multilevel.monitor` (for `LevelProgress`); never the training loop, the cycles or the
trainer, which call it.
"""

from opifex.training.multilevel.stopping.criteria import (
    FixedEpochs,
    LossPlateau,
    StoppingCriterion,
    WorkOptimal,
)
from opifex.training.multilevel.stopping.early_stopping import EarlyStopping
from opifex.training.multilevel.stopping.explained_spectrum import (
    ExplainedSpectrum,
    frequency_strengths,
)
from opifex.training.multilevel.stopping.residual_spectrum import ResidualSpectrum

__all__ = [
    "EarlyStopping",
    "ExplainedSpectrum",
    "FixedEpochs",
    "LossPlateau",
    "ResidualSpectrum",
    "StoppingCriterion",
    "WorkOptimal",
    "frequency_strengths",
]
