"""The long form of ``poisson_cascade.py``: larger networks, more points, more epochs.

Run it with ``make compare``; it takes some minutes and writes ``outputs/poisson_comparison.png``.
"""

from __future__ import annotations

from poisson_cascade import Settings, main

LONG = Settings(
    hidden_dims=(128, 128, 128),
    level_epochs=(400, 600, 1000),
    learning_rate=1e-3,
    interior_points=1000,
    boundary_points=100,
    small_level_epochs=(60, 200),
    name="poisson_comparison",
)


if __name__ == "__main__":
    main(settings=LONG)
