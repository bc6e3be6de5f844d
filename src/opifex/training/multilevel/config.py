"""Settings of a multilevel run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from opifex.core.checks import (
    check_bool,
    check_fraction,
    check_index,
    check_nonnegative_int,
    check_positive_int,
)
from opifex.training.multilevel.faults import FaultPolicy
from opifex.training.placement import Placement
from opifex.training.precision import check_precision

__all__ = ["MultilevelConfig"]

_COARSEST_EPOCHS = 100


@dataclass(frozen=True)
class MultilevelConfig:
    """How many levels there are, how long each is trained, and what is checked on the way.

    Attributes:
        num_levels: number of levels, coarsest to finest.
        coarsening_factor: ratio of the widths of a level and the next finer one, in (0, 1).
        level_epochs: epochs per level, coarsest first; by default 100, 200, 400, ...
        warmup_epochs: extra epochs on the finest level, on top of ``level_epochs[-1]``.
        verify_transfers: whether `fit` checks at each transition, on a few rows of the data, that a
            transfer which promises to preserve the function does so.
        compile_ahead: whether `fit` compiles the next level's program in a thread while the present
            level trains.
        keep_programs: whether compiled programs are kept for later processes, in a folder of the user
            (see `opifex.training.program_cache`, also for what the environment may say).
        faults: what is done where the loss stops being finite, or explodes.
        precision: what the model is evaluated in by the loss: ``"float32"``, ``"float64"`` (which
            needs ``jax_enable_x64``) or ``"bfloat16"``, whatever the dtype of its parameters. These,
            the state of the optimizer, the formulas of the loss, transfers and metrics keep their
            dtypes. ``None`` leaves it to the dtypes of parameters and data.
        placement: how several devices share the work. By default that of ``jax.set_mesh``, or of data
            that are spread over a mesh, if that has an axis ``"data"``; else there is one device.

    Raises:
        TypeError: if a setting has the wrong type.
        ValueError: if a number is out of range, ``precision`` is unknown, or the length of
            ``level_epochs`` is not ``num_levels``.

    Example:
        >>> from opifex.training.multilevel import MultilevelConfig
        >>> config = MultilevelConfig(num_levels=3, warmup_epochs=50)
        >>> [config.epochs(level) for level in range(3)]
        [100, 200, 450]
    """

    num_levels: int = 3
    coarsening_factor: float = 0.5
    level_epochs: Sequence[int] | None = None
    warmup_epochs: int = 0
    verify_transfers: bool = True
    compile_ahead: bool = True
    keep_programs: bool = True
    faults: FaultPolicy = field(default_factory=FaultPolicy)
    precision: str | None = None
    placement: Placement | None = None

    def __post_init__(self) -> None:
        levels = check_positive_int("num_levels", self.num_levels)
        check_fraction("coarsening_factor", self.coarsening_factor)
        check_nonnegative_int("warmup_epochs", self.warmup_epochs)
        for name in ("verify_transfers", "compile_ahead", "keep_programs"):
            check_bool(name, getattr(self, name))
        if not isinstance(self.faults, FaultPolicy):
            raise TypeError(f"faults must be a FaultPolicy, got {self.faults!r}")
        check_precision("precision", self.precision)
        if self.placement is not None and not isinstance(self.placement, Placement):
            raise TypeError(f"placement must be a Placement, got {self.placement!r}")
        if self.level_epochs is None:
            epochs = tuple(_COARSEST_EPOCHS * 2**level for level in range(levels))
        else:
            # A mapping or a set has entries too, but their order says nothing about levels.
            if isinstance(self.level_epochs, str | Mapping | Set) or not isinstance(
                self.level_epochs, Iterable
            ):
                raise TypeError(
                    f"level_epochs must be a sequence of integers, got {self.level_epochs!r}"
                )
            epochs = tuple(
                check_positive_int(f"level_epochs[{i}]", e) for i, e in enumerate(self.level_epochs)
            )
        if len(epochs) != levels:
            raise ValueError(
                f"level_epochs must have num_levels={levels} entries, got {len(epochs)}: "
                f"{list(epochs)}"
            )
        object.__setattr__(self, "level_epochs", epochs)

    def epochs(self, level: int) -> int:
        """Epochs of a level, with the extra ones of the finest.

        Args:
            level: the level; 0 is the coarsest.

        Raises:
            TypeError: if ``level`` is not an integer.
            ValueError: if there is no such level.
        """
        check_index("level", level, self.num_levels)
        assert self.level_epochs is not None
        extra = self.warmup_epochs if level == self.num_levels - 1 else 0
        return self.level_epochs[level] + extra
