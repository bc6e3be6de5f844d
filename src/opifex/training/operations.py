"""How many floating-point operations a compiled program performs.

XLA counts matrix products, convolutions and elementwise operations. It misses two things that
matter in training: it counts the body of a loop once, however often the loop turns, and it counts
next to nothing for matrix factorisations, which it hands to LAPACK or to a vendor's library. Both
are added here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

__all__ = ["count_operations"]


def count_operations(traced: jax.stages.Traced) -> float | None:
    """Floating-point operations of a traced program.

    XLA's count is the basis; three rules complete it:

    - The body of a ``scan`` (and of a ``fori_loop`` or ``map``, which become one) counts as often
      as it runs. The body of a ``while`` counts once, since nobody knows how often it runs: for a
      training loop that is one step.
    - Of the branches of a ``cond`` the dearest counts.
    - Cholesky, QR, LU, symmetric eigenvalue and singular value decompositions and triangular solves
      count as the textbook says, for every matrix of a batch. A triangular solve takes n^2
      operations per right-hand side (Golub and Van Loan, Matrix Computations, 4th ed., section
      3.1), LU 2 n^3 / 3 (3.2), Cholesky n^3 / 3 (4.2), Householder QR 2 n^2 (m - n / 3) and the same
      again for the thin orthogonal factor (5.1, 5.2, with pivoting 5.4), eigenvalues and
      eigenvectors 9 n^3 (8.3), the singular value decomposition by the cheaper of the two methods
      of their table (8.6).

    An operation on complex numbers counts as one, as in XLA's count. Exponentials and the like are
    not counted.

    Args:
        traced: the program, for instance ``jax.jit(step).trace(*arguments)``. Its lowering is kept
            by JAX, so that a program which is compiled anyway is not lowered twice.

    Returns:
        The number of operations, or ``None`` where nothing can be counted. Nothing is raised.
    """
    try:
        count = _xla_count(traced.lower()) + _missing(traced.jaxpr.jaxpr)
    except Exception:  # A count is a by-product: whatever fails here, the training must go on.
        return None
    return count if 0 < count < math.inf else None


def _xla_count(lowered: jax.stages.Lowered) -> float:
    analysis: Any = lowered.cost_analysis()
    if isinstance(analysis, Sequence):
        analysis = analysis[0] if analysis else None
    return float((analysis or {}).get("flops", 0.0))


def _lowered(jaxpr: ClosedJaxpr) -> jax.stages.Lowered:
    return jax.jit(jaxpr_as_fun(jaxpr)).lower(*jaxpr.in_avals)


def _counted_alone(eqn: JaxprEqn) -> float:
    """XLA's share of one equation, which depends on the backend and on how loops are unrolled."""
    alone = jax.jit(lambda *operands: eqn.primitive.bind(*operands, **eqn.params))
    return _xla_count(alone.lower(*[variable.aval for variable in eqn.invars]))


def _missing(jaxpr: Jaxpr) -> float:
    """What has to be added to XLA's count of a program."""
    return sum(map(_missing_of, jaxpr.eqns))


def _missing_of(eqn: JaxprEqn) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        body = params["jaxpr"]
        every_time = _xla_count(_lowered(body)) + _missing(body.jaxpr)
        return params["length"] * every_time - _counted_alone(eqn)
    if name == "cond":
        missing = [_missing(branch.jaxpr) for branch in params["branches"]]
        if not any(missing):
            return 0.0
        counts = [_xla_count(_lowered(branch)) for branch in params["branches"]]
        return max(map(sum, zip(counts, missing, strict=True))) - max(counts)
    if name == "custom_linear_solve":  # Its other parts are for derivatives, and do not run.
        return _missing(params["jaxprs"].solve.jaxpr)
    if name in _TEXTBOOK:
        avals: list[Any] = [variable.aval for variable in (*eqn.invars, *eqn.outvars)]
        shapes = [aval.shape for aval in avals]
        batch = math.prod(shapes[0][:-2])
        matrices = [shape[len(shapes[0]) - 2 :] for shape in shapes]
        return batch * _TEXTBOOK[name](params, *matrices) - _counted_alone(eqn)
    return sum(map(_missing, _inner(params.values())))


def _inner(values: Any) -> Iterator[Jaxpr]:
    """The programs among the parameters of an equation."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inner(value)
        elif isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _reflections(shape: Any, k: int) -> float:
    """Applying k Householder reflections, one row shorter each, to a matrix."""
    m, n = shape
    return 4 * m * n * k - 2 * (m + n) * k**2 + 4 * k**3 / 3


def _qr(params: Any, a: Any, q: Any, *results: Any) -> float:
    k = min(a)
    return _reflections(a, k) + _reflections(q, k)


def _svd(params: Any, a: Any, *results: Any) -> float:
    n, m = sorted(a)
    if not params["compute_uv"]:
        return min(4 * m * n**2 - 4 * n**3 / 3, 2 * m * n**2 + 2 * n**3)
    if params["full_matrices"]:
        return 4 * m**2 * n + min(8 * m * n**2 + 9 * n**3, 22 * n**3)
    return min(14 * m * n**2 + 8 * n**3, 6 * m * n**2 + 20 * n**3)


# Operations from the parameters of the primitive and the shapes, without batch axes, of its operands
# and results.
_TEXTBOOK: Mapping[str, Callable[..., float]] = {
    "cholesky": lambda params, a, *_: a[0] ** 3 / 3,
    "eigh": lambda params, a, *_: 9 * a[0] ** 3,
    "geqp3": lambda params, a, *_: _reflections(a, min(a)),
    "geqrf": lambda params, a, *_: _reflections(a, min(a)),
    "householder_product": lambda params, a, taus, q: _reflections(q, *taus),
    "lu": lambda params, a, *_: _reflections(a, min(a)) / 2,
    "qr": _qr,
    "svd": _svd,
    "triangular_solve": lambda params, a, b, x: a[0] * b[0] * b[1],
}
