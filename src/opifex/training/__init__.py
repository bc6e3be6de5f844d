"""Training: objectives, smoothers, the compiled loop, sampling; and `multilevel` on top of them.

A smoother is a method that improves the parameters of one level step by step: in multigrid a
relaxation such as Gauss-Seidel, here an optimizer or a least-squares solver.

The room may import `opifex.core`, `opifex.models`, `opifex.problems`, `opifex.data`,
`opifex.optimization` and `opifex.storage`; never `opifex.viz`.
"""

from opifex.training.time_marching import TimeMarching, TimeSlab

__all__ = ["TimeMarching", "TimeSlab"]
