"""Tables and figures of runs and solutions. Figures need the extra ``viz`` (Matplotlib).

The room may import `opifex.core`, `opifex.problems` and `opifex.training`; nothing imports it.
"""

from opifex.viz.curves import plot_history, shade_levels
from opifex.viz.fields import plot_fields, plot_solution
from opifex.viz.jumps import TransferJump, plot_transfer_jump, transfer_jumps
from opifex.viz.style import PALETTE, level_colors, publication_style
from opifex.viz.tables import comparison_table, history_table
from opifex.viz.timeline import plot_timeline

__all__ = [
    "PALETTE",
    "TransferJump",
    "comparison_table",
    "history_table",
    "level_colors",
    "plot_fields",
    "plot_history",
    "plot_solution",
    "plot_timeline",
    "plot_transfer_jump",
    "publication_style",
    "shade_levels",
    "transfer_jumps",
]
