"""Multilevel (coarse-to-fine) training of physics-informed networks and neural operators.

The rooms, from the ground up: `opifex.core` (argument checks, residual terms, metrics, differential
operators); `opifex.models`; side by side `opifex.problems`, `opifex.data`, `opifex.optimization` and
`opifex.storage`; `opifex.training`, with `opifex.training.multilevel` as its centre; side by side
`opifex.viz` and `opifex.loggers`; and `opifex.cli`, the command line. A room may import those before
it, never those after it or beside it; what each one says about itself is checked by the tests.

This file imports none of them: ``import opifex`` is cheap, and names come from their rooms. It warns
where another distribution has put files into the package of this name.
"""

from opifex_multilevel import warn_of_namesake

__version__ = "0.1.0"

__all__ = ["__version__"]

warn_of_namesake()
