"""Tables and figures of runs and solutions. Figures need the extra ``viz`` (Matplotlib).

The room may import `opifex.core`, `opifex.problems` and `opifex.training`; nothing imports it.
"""

from opifex.viz.figures import plot_history, plot_solution
from opifex.viz.tables import comparison_table, history_table

__all__ = ["comparison_table", "history_table", "plot_history", "plot_solution"]
