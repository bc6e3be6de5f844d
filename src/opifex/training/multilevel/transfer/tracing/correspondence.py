"""What two traced models have in common: which axes belong together, and what has to hold.

`walk` fills a `Correspondence` by going through both programs in step; `preservation` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from opifex.training.multilevel.transfer.tracing.constants import Constants
from opifex.training.multilevel.transfer.tracing.index_maps import IndexMap, MapConflictError
from opifex.training.multilevel.transfer.tracing.program import Operation, Program, Value

__all__ = ["Correspondence", "Need", "StructureError", "Tensor"]


class StructureError(ValueError):
    """Two models are not the same program at two sizes."""


@dataclass
class Tensor:
    """An array of the fine model and its counterpart.

    Attributes:
        maps: where the coarse entries sit, axis by axis; ``None`` for a constant that shrinks.
        ratio: fine over coarse value of the old entries.
        coarse: the value in the coarse program.
    """

    maps: list[IndexMap] | None
    ratio: float
    coarse: Value


@dataclass(frozen=True)
class Need:
    """Something that has to hold for the function to be preserved.

    Attributes:
        kind: ``"contraction"``: the new entries of a product's contracted axes contribute nothing to
            old ones; ``"vanish"``: a value is zero at new entries of some axes; ``"repeat"``: it
            repeats its old entries there; ``"absent"``: a value is zero everywhere; ``"factor"``: it is
            multiplied.
        value: the value, or the result of the product.
        axes: the axes.
        place: where in the source of the model it arises.
        factor: by what to multiply.
    """

    kind: Literal["contraction", "vanish", "repeat", "absent", "factor"]
    value: Value
    axes: tuple[int, ...]
    place: str
    factor: float = 1.0


@dataclass
class Correspondence:
    """What two programs have in common.

    Attributes:
        coarse: the coarse program.
        fine: the fine program.
        operations: the operations of the fine program that the coarse one has too.
        tensors: counterpart and maps of the values of the fine program, by identity.
        needs: what has to hold for the function to be preserved.
        obstacles: why it cannot be preserved, whatever is done.
        constants: the constants of both.
    """

    coarse: Program
    fine: Program
    operations: list[Operation] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    needs: list[Need] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    constants: Constants = field(default_factory=Constants)

    def maps(self, value: Value) -> list[IndexMap]:
        """The maps of its axes."""
        found = self.tensors[id(value)].maps
        if found is None:
            raise MapConflictError("a constant shrinks from the coarse to the fine level")
        return found

    def users(self) -> dict[int, list[Operation]]:
        """The operations that read each value of the fine program."""
        found: dict[int, list[Operation]] = {}
        for operation in self.operations:
            for value in operation.inputs:
                found.setdefault(id(value), []).append(operation)
        return found
