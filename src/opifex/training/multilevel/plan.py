"""How long each level is trained in a call of ``fit``, from what was given and what was done."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from opifex.core.checks import check_nonnegative_int, check_sequence
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.multilevel.cycle import Cycle
from opifex.training.multilevel.history import History

__all__ = ["planned_epochs"]


def planned_epochs(
    epochs: Sequence[int] | None,
    cycle: Cycle,
    level: int,
    config: MultilevelConfig,
    history: History,
) -> list[int] | None:
    """Epochs of every level for a call of ``fit``.

    Args:
        epochs: what was given to ``fit``: one entry per level, or one per level from the present one
            on; ``None`` stands for what is left of ``config``'s.
        cycle: order of the levels.
        level: the present level.
        config: the epochs planned for each level.
        history: the epochs done.

    Returns:
        One entry per level; ``None`` if the cycle says how long to smooth.

    Raises:
        TypeError: if ``epochs`` is not a sequence of integers.
        ValueError: if it has another number of entries, a negative one, or nothing but zeros; or if
            nothing is left of the planned epochs.

    Warns:
        UserWarning: if an entry is not used, since the trainer has passed its level.
    """
    # A cycle without visits of coarser levels never comes back to those that were passed.
    upwards = cycle.coarse is None
    if epochs is None:
        if getattr(cycle, "says_epochs", False):
            return None
        return _left(level, config, history) if upwards else list(_whole(config))
    check_sequence("epochs", epochs)
    entries = [check_nonnegative_int(f"epochs[{i}]", n) for i, n in enumerate(epochs)]
    levels = config.num_levels
    if level and upwards and len(entries) == levels - level:
        entries = [0] * level + entries
    if len(entries) != levels:
        rest = f", or one per level from {level} on ({levels - level})" if level and upwards else ""
        raise ValueError(f"epochs must have one entry per level ({levels}){rest}, got {entries}")
    if not any(entries[level:] if upwards else entries):
        raise ValueError(
            f"epochs must hold a positive number for a level from {level} on, got {list(epochs)}"
        )
    if upwards and any(entries[:level]):
        left = entries[level:]
        warnings.warn(
            f"epochs={list(epochs)}: the trainer stands on level {level} and does not go back to "
            f"level {level - 1}; epochs={left} and epochs={[0] * level + left} say what is trained",
            stacklevel=3,
        )
    return entries


def _whole(config: MultilevelConfig) -> list[int]:
    return [config.epochs(level) for level in range(config.num_levels)]


def _left(level: int, config: MultilevelConfig, history: History) -> list[int]:
    """What is left of the planned epochs; an epoch that was begun counts as not done."""
    left = [0] * config.num_levels
    for number in range(level, config.num_levels):
        done = math.floor(history.epochs(number) + 1e-9)  # a sum of fractions
        left[number] = max(0, config.epochs(number) - done)
    if not any(left):
        raise ValueError(
            f"epochs must be given: all {config.epochs(level)} epochs planned for level {level} are "
            f"done; epochs=[{config.epochs(level)}] trains it as long again"
        )
    return left
