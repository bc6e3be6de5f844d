r"""How many bytes a step of a least-squares solver takes, without compiling it.

Every solver works through the points in blocks, so that what a network itself needs stays below a
budget, ``block_bytes``. What grows with the problem are the few matrices named here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

__all__ = [
    "BLOCK_BYTES",
    "COLUMN",
    "CURVATURE",
    "PASS",
    "REVERSE",
    "SIDE_BY_SIDE",
    "MeasuredSolver",
    "ProblemSize",
    "StepMemory",
    "available_bytes",
    "check_memory",
    "dense_step_memory",
    "largest_divisor",
    "matrix_free_step_memory",
    "orthogonal_step_memory",
]

BLOCK_BYTES = 32 * 2**20
"""Budget for one block of points: the intermediate results of all passes that run side by side.

Blocks that fit a processor's cache are faster than larger ones; an accelerator may want more.
"""

# What a pass over points holds at a time, in units of the numbers that reverse mode keeps for them;
# measured with XLA for four equations and a plain fit, on networks of one to four hidden layers.
PASS = 1.0
"""An evaluation, beside the Jacobian, or a linearisation that is kept: measured 0.1 to 1.2."""
CURVATURE = 2.0
"""Second derivatives along one direction after another: measured 1.7 to 2.4."""
REVERSE = 0.4
"""A reverse pass for one right-hand side, in addition to the pass that it reverses."""
COLUMN = 0.8
"""A product of J^T J with one vector, in addition to the linearisation: measured 0.4 to 1."""
SIDE_BY_SIDE = 8
"""Most products at once. Memory grows with them, and on a processor they get no faster."""


class ProblemSize(NamedTuple):
    """What the memory of a step depends on.

    Attributes:
        parameters: how many.
        residuals: how many, over all terms and components.
        dtype: of the computation.
        intermediates: numbers that reverse mode keeps for all residuals of a device together;
            ``None`` where they are not known, which counts as a full block of points.
        devices: how many share the residuals; bytes are those of each.
    """

    parameters: int
    residuals: int
    dtype: Any = jnp.float64
    intermediates: int | None = None
    devices: int = 1

    @property
    def is_primal(self) -> bool:
        """Whether there are at most as many parameters as residuals."""
        return self.parameters <= self.residuals


class StepMemory(NamedTuple):
    """Bytes that a step takes in addition to parameters, points and state.

    Attributes:
        arrays: intermediate results, which the compiler places: ``temp_size_in_bytes`` of
            ``compiled.memory_analysis()``.
        workspace: what the library routine of the factorisation takes for itself while it runs.
    """

    arrays: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.arrays + self.workspace


def largest_divisor(number: int, bound: float) -> int:
    """The largest divisor of a number that is at most ``bound``; one if there is none."""
    return max(d for d in range(1, number + 1) if number % d == 0 and (d == 1 or d <= bound))


def _block(size: ProblemSize, passes: float, block_bytes: float) -> float:
    """Bytes of the passes over one block of points."""
    if size.intermediates is None:
        return block_bytes
    return min(block_bytes, passes * size.intermediates * jnp.dtype(size.dtype).itemsize)


def _searching(size: ProblemSize, candidates: int, block_bytes: float) -> float:
    """Bytes of the search over candidate steps, which are listed before and after they are added."""
    listed = 2 * candidates * size.parameters * jnp.dtype(size.dtype).itemsize
    return listed + _block(size, PASS, block_bytes)


def dense_step_memory(
    size: ProblemSize, *, candidates: int, curved: bool, block_bytes: float
) -> StepMemory:
    """Bytes of a step that factors the smaller Gram matrix.

    Args:
        size: of the problem.
        candidates: steps whose losses are compared.
        curved: whether second derivatives are needed.
        block_bytes: budget for one block of points.
    """
    item = jnp.dtype(size.dtype).itemsize
    rows = size.parameters * size.residuals * item
    own = rows // size.devices
    gram = min(size.parameters, size.residuals) ** 2 * item
    jacobian = (own if own <= block_bytes else 0) if size.is_primal else rows
    # A block lies beside the Jacobian into which it is written, or its product beside the sum of all
    # before; what devices have of the rows lies beside all of them; later the Gram matrix lies beside
    # its eigenvectors.
    if jacobian:
        written = 0 if size.is_primal else own if size.devices > 1 else min(own, block_bytes)
        building = jacobian + max(written, _block(size, PASS, block_bytes))
    else:
        building = 2 * gram + block_bytes
    factoring = jacobian + 2 * gram
    passes = CURVATURE if jacobian else CURVATURE + REVERSE
    curving = jacobian + gram + _block(size, passes, block_bytes) * curved
    searching = _searching(size, candidates, block_bytes)
    # Divide and conquer, LAPACK's syevd: 1 + 6 k + 2 k^2 numbers.
    return StepMemory(int(max(building, factoring, curving, searching)), int(2 * gram))


def orthogonal_step_memory(size: ProblemSize, *, candidates: int, block_bytes: float) -> StepMemory:
    """Bytes of a step by QR of the Jacobian and the singular values of its triangle.

    Args:
        size: of the problem.
        candidates: steps whose losses are compared.
        block_bytes: budget for one block of points.
    """
    item = jnp.dtype(size.dtype).itemsize
    rows = size.parameters * size.residuals * item
    square = min(size.parameters, size.residuals) ** 2 * item
    building = rows + max(min(rows, block_bytes), _block(size, PASS, block_bytes))
    # The Jacobian beside its factors; the triangle beside left and right vectors and a copy.
    factoring = max(2 * rows + square, (rows if not size.is_primal else 0) + 4 * square)
    searching = _searching(size, candidates, block_bytes)
    # Divide and conquer, LAPACK's gesdd: about 4 k^2 numbers.
    return StepMemory(int(max(building, factoring, searching)), int(4 * square))


def matrix_free_step_memory(
    size: ProblemSize, *, candidates: int, rank: int, block_bytes: float
) -> StepMemory:
    """Bytes of a step from products with the Jacobian.

    Args:
        size: of the problem.
        candidates: steps whose losses are compared.
        rank: of the preconditioner.
        block_bytes: budget for one block of points.
    """
    rank = min(rank, size.parameters)
    sketch = rank * size.parameters * jnp.dtype(size.dtype).itemsize
    columns = largest_divisor(rank, SIDE_BY_SIDE)
    # Random vectors, their products, the root of the approximation, its singular vectors, a copy.
    multiplying = 2 * sketch + _block(size, PASS + COLUMN * columns, block_bytes)
    searching = sketch + _searching(size, candidates, block_bytes)
    return StepMemory(int(max(5 * sketch, multiplying, searching)), 0)


class MeasuredSolver(Protocol):
    """A least-squares solver that knows what its steps take."""

    def step_memory(self, size: ProblemSize) -> StepMemory:
        """Bytes of one step."""
        ...


def available_bytes(device: jax.Device | None = None) -> int | None:
    """Memory of a device: what its runtime may use, or the machine's; ``None`` if nobody says.

    Args:
        device: the device; by default the one on which JAX computes.
    """
    if device is None:
        device = jnp.zeros(()).addressable_shards[0].device
    statistics = getattr(device, "memory_stats", lambda: None)() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_memory(
    solver: MeasuredSolver, size: ProblemSize, limit: float, others: Sequence[MeasuredSolver] = ()
) -> None:
    """Raise ``MemoryError`` if a step takes more than a limit, and name the solvers that fit.

    Args:
        solver: the solver.
        size: of the problem.
        limit: bytes that there are.
        others: solvers to recommend.
    """
    needed = solver.step_memory(size).total
    if needed <= limit:
        return
    fitting = [
        f"{type(other).__name__} ({_readable(other.step_memory(size).total)})"
        for other in others
        if other.step_memory(size).total <= limit
    ]
    shared = f" on each of {size.devices} devices" if size.devices > 1 else ""
    raise MemoryError(
        f"a step of {type(solver).__name__} for {size.parameters} parameters and {size.residuals} "
        f"residuals needs about {_readable(needed)}{shared}, and {_readable(limit)} are available; "
        + (f"these fit: {', '.join(fitting)}" if fitting else "no least-squares solver fits")
        + "; fewer points per step (batch_size) take less. LeastSquaresSmoother(solver, "
        "memory_limit=bytes) sets another limit"
    )


def _readable(size: float) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
