"""What two models have in common, found by tracing both and walking through their programs in step.

`program` writes a model out as a flat list of operations, `index_maps` knows where coarse entries of an
axis sit on the fine one, `walk` goes through two programs in step, by the `rules` of operations
(`indexing_rules`), without layers that only the fine one has (`added_terms`), and writes down a
`correspondence`. `preservation` works out from it which new entries must be zero or repeat old ones: it
follows an axis (`axes_behind`), places that have to vanish (`zeros_behind`) and factors
(`factors_behind`) back to parameters. `axis_roles` reads the settings of operations, `constants`
evaluates constants, `evaluation` whole models, and `example_inputs` finds inputs to trace with.

The room may import `opifex.models`.
"""

from opifex.training.multilevel.transfer.tracing.axes_behind import contracted_axes
from opifex.training.multilevel.transfer.tracing.correspondence import (
    Correspondence,
    StructureError,
)
from opifex.training.multilevel.transfer.tracing.evaluation import evaluated, evaluation
from opifex.training.multilevel.transfer.tracing.example_inputs import (
    accepted_inputs,
    guessed_inputs,
)
from opifex.training.multilevel.transfer.tracing.index_maps import (
    old_entries,
    resolved,
    source_entries,
)
from opifex.training.multilevel.transfer.tracing.preservation import Preservation, preservation
from opifex.training.multilevel.transfer.tracing.program import (
    Path,
    path_text,
    trace,
    transferable,
)
from opifex.training.multilevel.transfer.tracing.walk import correspondence

__all__ = [
    "Correspondence",
    "Path",
    "Preservation",
    "StructureError",
    "accepted_inputs",
    "contracted_axes",
    "correspondence",
    "evaluated",
    "evaluation",
    "guessed_inputs",
    "old_entries",
    "path_text",
    "preservation",
    "resolved",
    "source_entries",
    "trace",
    "transferable",
]
