"""Layers that only the fine model has: terms of a sum, which are taken out of its program."""

from __future__ import annotations

from collections.abc import Sequence

from opifex.training.multilevel.transfer.tracing.correspondence import StructureError
from opifex.training.multilevel.transfer.tracing.program import (
    Operation,
    Path,
    Program,
    Value,
    path_text,
)

__all__ = ["check_added", "remove_added_terms"]


def remove_added_terms(fine: Program, added: set[Path]) -> list[tuple[Value, str]]:
    """Take the layers that only the fine model has out of its program, where they are terms of sums.

    Args:
        fine: the fine program, whose operations are changed.
        added: paths of the variables that only the fine model has.

    Returns:
        The terms, and where they stand; they have to vanish.
    """
    new = {id(value) for path, value in fine.parameters.items() if path in added}
    while True:
        before = len(new)
        _spread(fine, new)
        if len(new) == before or not any(o.name == "carry" for o in fine.operations):
            break
    replaced: dict[int, Value] = {}
    terms = []
    for operation in fine.operations:
        operation.inputs = [replaced.get(id(value), value) for value in operation.inputs]
        term = _added_term(operation, new)
        if term is not None:
            kept = operation.inputs[1 - term]
            replaced[id(operation.outputs[0])] = kept
            terms.append((operation.inputs[term], operation.place))
    fine.outputs = [replaced.get(id(value), value) for value in fine.outputs]
    return terms


def _added_term(operation: Operation, new: set[int]) -> int | None:
    """Which operand of a sum belongs to an added layer, if the other one does not."""
    if operation.name not in ("add", "add_any", "sub"):
        return None
    belongs = [id(value) in new for value in operation.inputs]
    shape = operation.outputs[0].shape
    for term in (1, 0) if operation.name != "sub" else (1,):
        if belongs[term] and not belongs[1 - term] and operation.inputs[1 - term].shape == shape:
            return term
    return None


def _spread(fine: Program, new: set[int]) -> None:
    for operation in fine.operations:
        if _added_term(operation, new) is not None:
            continue
        depends = any(id(value) in new for value in operation.inputs)
        if operation.name == "carry" and operation.partner is not None:
            depends |= id(operation.partner.inputs[1]) in new
        if depends:
            new.update(id(value) for value in operation.outputs)


def check_added(operations: Sequence[Operation], added: set[Path]) -> None:
    """Refuse parameters that only the fine model has and that its program still reads.

    Args:
        operations: operations of the fine program.
        added: paths of the variables that only the fine model has.

    Raises:
        StructureError: if there are any; the message names the place.
    """
    for operation in operations:
        for value in operation.inputs:
            if value.parameter in added:
                raise StructureError(
                    f"{path_text(value.parameter)} exists only on the fine level and has no gate that "
                    f"turns its layer into the identity: the layer at {operation.place} is no term of "
                    "a sum that could start at zero, so the coarse function cannot be preserved; add "
                    "its output to its input (a residual branch), build the models with "
                    "depth_gates=True, or use prolongate"
                )
