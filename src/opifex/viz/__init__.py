"""Tables and figures of runs and solutions. Figures need the extra ``viz`` (Matplotlib).

The room may import `opifex.core`, `opifex.problems` and `opifex.training`; nothing imports it.
"""

from opifex_multilevel import require_own_package

require_own_package()  # before the first import that fails where another package is mixed with this one

from opifex.viz.animation import animate_solution
from opifex.viz.curves import plot_history, shade_levels
from opifex.viz.fields import plot_fields, plot_solution
from opifex.viz.jumps import TransferJump, plot_transfer_jump, transfer_jumps
from opifex.viz.rates import plot_rate_transfer
from opifex.viz.snapshots import Snapshot, SnapshotRecorder
from opifex.viz.spectra import (
    Spectrum,
    error_spectra,
    plot_spectra,
    plot_spectral_history,
    radial_spectrum,
)
from opifex.viz.style import PALETTE, level_colors, publication_style
from opifex.viz.tables import comparison_table, history_table
from opifex.viz.timeline import plot_timeline

__all__ = [
    "PALETTE",
    "Snapshot",
    "SnapshotRecorder",
    "Spectrum",
    "TransferJump",
    "animate_solution",
    "comparison_table",
    "error_spectra",
    "history_table",
    "level_colors",
    "plot_fields",
    "plot_history",
    "plot_rate_transfer",
    "plot_solution",
    "plot_spectra",
    "plot_spectral_history",
    "plot_timeline",
    "plot_transfer_jump",
    "publication_style",
    "radial_spectrum",
    "shade_levels",
    "transfer_jumps",
]
