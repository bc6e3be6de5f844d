"""Keeping a run on disk while it goes on, and going on with it in another process.

`checkpoints` is what users say, `point` what a run is at a moment when it can be taken up again, and
`recorder` writes such points beside the training; `saved` reads the record of one without a run.
`opifex.training.multilevel.resumption` takes a run to one of them.

The room may import `opifex.core`, `opifex.storage`, `opifex.training` and its own package.
"""

from opifex.training.multilevel.checkpointing.checkpoints import Checkpoints, Resume
from opifex.training.multilevel.checkpointing.point import VISIT_PARTS, Point, Within, versions
from opifex.training.multilevel.checkpointing.recorder import Recorder
from opifex.training.multilevel.checkpointing.saved import saved_history

__all__ = [
    "VISIT_PARTS",
    "Checkpoints",
    "Point",
    "Recorder",
    "Resume",
    "Within",
    "saved_history",
    "versions",
]
