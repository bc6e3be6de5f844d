r"""Taylor-mode differentiation: derivatives along several directions in one sweep through a function.

At a point $x$ and for directions $v_1, \dots, v_D$, every intermediate value $y(x)$ is carried with its
derivatives $\partial_{v_i}^k y$ for $k < K$ and, of the highest order, only with the sum
$\sum_i \partial_{v_i}^K y$. By Faà di Bruno's formula the highest derivatives enter linearly, so that
their sum is all that is needed: *collapsed* Taylor mode (arXiv:2505.13644), which for $K = 2$ is the
forward Laplacian (arXiv:2307.08214).

The function is traced to its primitives, and each is treated in one of four ways: what is affine in
its arguments maps all derivatives alike; products follow Leibniz; elementwise functions follow Faà di
Bruno, with their own derivatives computed once for all directions; every other primitive, control
flow and custom rules included, is differentiated by nested forward mode, direction by direction. Only
the first three are faster than nested forward mode, and none is needed for correctness.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

__all__ = ["Derivatives", "propagate"]

# Names of JAX's primitives. One that is missing here is slower, not wrong.
AFFINE = """add add_any broadcast_in_dim concatenate convert_element_type copy cumsum dynamic_slice
    dynamic_update_slice fft gather neg pad reduce_sum reshape rev select_n slice split squeeze sub
    transpose""".split()  # noqa: SIM905
BILINEAR = ("conv_general_dilated", "dot_general", "mul")
ELEMENTWISE = """asinh atan cos cosh div erf erfc exp exp2 expm1 integer_pow log log1p logistic max min
    pow rsqrt sin sinh sqrt square tan tanh""".split()  # noqa: SIM905


class Derivatives(NamedTuple):
    """A value and its derivatives; ``None`` in the place of an array is an exact zero.

    Attributes:
        value: the value, an array.
        lower: for each direction its derivatives of order 1 to K - 1, each like ``value``.
        top: the sum over the directions of the derivatives of order K, like ``value``.
    """

    value: Any
    lower: tuple[tuple[Any, ...], ...]
    top: Any


_Function = Callable[..., Sequence[Any]]
"""Of arrays to a sequence of arrays."""


def propagate(
    f: Callable[[Array], Array], x: Array, directions: Sequence[Array], order: int
) -> Derivatives:
    """Derivatives of a function at a point along directions, the highest ones summed.

    Args:
        f: one array to one array.
        x: the point, of a floating-point dtype.
        directions: at least one array like ``x``.
        order: the highest order K, at least one.

    Returns:
        The derivatives of ``f``.
    """
    zeros = (None,) * (order - 2)
    if order == 1:
        point = Derivatives(x, tuple(() for _ in directions), _total(directions))
    else:
        point = Derivatives(x, tuple((v, *zeros) for v in directions), None)
    try:
        traced = jax.make_jaxpr(f)(x)
    except jax.errors.ConcretizationTypeError:
        # Python's control flow needs the numbers, which nested forward mode may know.
        return _by_nesting(lambda x: (f(x),), [point])[0]
    (result,) = _interpret(traced, [point])
    if isinstance(result, Derivatives):
        return result
    return Derivatives(result, tuple((None,) * (order - 1) for _ in directions), None)


def _interpret(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a traced function; arguments and results that depend on the point are `Derivatives`."""
    jaxpr = closed.jaxpr
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        with equation.ctx.manager:
            known.update(zip(equation.outvars, _apply(equation, inputs), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_inexact(variable: Any) -> bool:
    return bool(jnp.issubdtype(variable.aval.dtype, jnp.inexact))


def _apply(equation: Any, inputs: list[Any]) -> Sequence[Any]:
    primitive, results = equation.primitive, equation.outvars
    name, differentiable = primitive.name, [_is_inexact(v) for v in results]
    where = [i for i, given in enumerate(inputs) if isinstance(given, Derivatives)]
    given = [inputs[i] for i in where]
    values = [g.value if isinstance(g, Derivatives) else g for g in inputs]

    def f(*dependent: Any) -> Sequence[Any]:
        full = list(values)
        for i, value in zip(where, dependent, strict=True):
            full[i] = value
        out = primitive.bind(*full, **primitive.get_bind_params(equation.params))
        return out if primitive.multiple_results else (out,)

    def first(*dependent: Any) -> Any:
        return f(*dependent)[0]

    if not given or not any(differentiable):
        return f(*(g.value for g in given))
    if name == "jit":
        return _interpret(equation.params["jaxpr"], inputs)
    if name in BILINEAR and len(given) == 2:
        return [_by_leibniz(first, *given)]
    if all(differentiable) and (
        name in AFFINE or name in BILINEAR or (name, where) == ("div", [0])
    ):
        return _affine(f, given)
    if (
        name in ELEMENTWISE
        and len(given) == 1
        and results[0].aval.shape == given[0].value.shape
        and jnp.isrealobj(given[0].value)
    ):
        return [_elementwise(name, first, given[0])]
    smooth = iter(
        _by_nesting(
            lambda *dependent: [
                y for y, keep in zip(f(*dependent), differentiable, strict=True) if keep
            ],
            given,
        )
    )
    plain = differentiable if all(differentiable) else f(*(g.value for g in given))
    return [next(smooth) if keep else y for y, keep in zip(plain, differentiable, strict=True)]


def _total(terms: Iterable[Any]) -> Any:
    """The sum of arrays, of which some may be exact zeros."""
    present = [term for term in terms if term is not None]
    return functools.reduce(operator.add, present) if present else None


def _product(*factors: Any) -> Any:
    """The product of numbers and arrays, of which some may be exact zeros; ones are left out."""
    if any(factor is None for factor in factors):
        return None
    kept = [factor for factor in factors if not (isinstance(factor, int) and factor == 1)]
    return functools.reduce(operator.mul, kept) if kept else 1


def _filled(derivatives: Iterable[Any], given: Sequence[Derivatives]) -> list[Any]:
    """Derivatives, one of each argument, with arrays in the place of exact zeros."""
    pairs = zip(derivatives, given, strict=True)
    return [jnp.zeros_like(g.value) if d is None else d for d, g in pairs]


def _affine(f: _Function, given: Sequence[Derivatives]) -> list[Derivatives]:
    values = [g.value for g in given]
    results = f(*values)

    def slopes(derivatives: Sequence[Any]) -> Sequence[Any]:
        if all(d is None for d in derivatives):
            return [None] * len(results)
        return jax.jvp(f, values, _filled(derivatives, given))[1]

    lower = [
        [slopes(same_order) for same_order in zip(*along_one, strict=True)]
        for along_one in zip(*(g.lower for g in given), strict=True)
    ]
    top = slopes([g.top for g in given])
    return [
        Derivatives(y, tuple(tuple(order[i] for order in along) for along in lower), top[i])
        for i, y in enumerate(results)
    ]


def _by_leibniz(f: Callable[[Any, Any], Any], a: Derivatives, b: Derivatives) -> Derivatives:
    order = len(a.lower[0]) + 1

    def product(left: Any, right: Any) -> Any:
        return None if left is None or right is None else f(left, right)

    lower, tops = [], [product(a.value, b.top), product(a.top, b.value)]
    for of_a, of_b in zip(a.lower, b.lower, strict=True):
        left, right = (a.value, *of_a, None), (b.value, *of_b, None)
        *below, highest = (
            _total(_product(math.comb(k, i), product(left[i], right[k - i])) for i in range(k + 1))
            for k in range(1, order + 1)
        )
        lower.append(tuple(below))
        tops.append(highest)
    return Derivatives(f(a.value, b.value), tuple(lower), _total(tops))


def _tower(f: Callable[[Any], Any], x: Any, order: int) -> list[Any]:
    """Value and derivatives of an elementwise function, by nested forward mode."""

    def raised(below: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], tuple[Any, ...]]:
        def tower(x: Any) -> tuple[Any, ...]:
            values, slopes = jax.jvp(below, (x,), (jnp.ones_like(x),))
            return (*values, slopes[-1])

        return tower

    tower: Callable[[Any], tuple[Any, ...]] = lambda x: (f(x),)  # noqa: E731
    for _ in range(order):
        tower = raised(tower)
    return list(tower(x))


def _own_derivatives(name: str, f: Callable[[Any], Any], x: Any, order: int) -> list[Any]:
    """Value and derivatives of order 1 to ``order`` of an elementwise function at ``x``."""
    if name not in {"exp", "logistic", "sin", "cos", "tanh"}:
        return _tower(f, x, order)
    y = [f(x)]
    if name in {"sin", "cos"}:
        y.append(jnp.cos(x) if name == "sin" else -jnp.sin(x))
    while len(y) <= order:
        n = len(y) - 1
        if name == "exp":
            y.append(y[0])
        elif name in {"sin", "cos"}:
            y.append(-y[n - 1])
        else:
            # tanh' = 1 - tanh^2 and logistic' = logistic - logistic^2, and so on by Leibniz.
            square = _total(_product(math.comb(n, i), y[i], y[n - i]) for i in range(n + 1))
            if name == "logistic":
                y.append(y[n] - square)
            else:
                y.append(-square if n else 1 - square)
    return y


def _elementwise(name: str, f: Callable[[Any], Any], given: Derivatives) -> Derivatives:
    order = len(given.lower[0]) + 1
    own = _own_derivatives(name, f, given.value, order)
    lower = []
    # Per power m of the derivatives of the argument, what the highest order adds up from.
    highest: list[list[Any]] = [[] for _ in range(order + 1)]
    for along in given.lower:
        x = (None, *along, None)
        # Partial Bell polynomials B[n, m] (Comtet, Advanced Combinatorics, 1974, section 3.3).
        bell: dict[tuple[int, int], Any] = {(0, 0): 1}
        for n in range(1, order + 1):
            bell[n, 0] = None
            for m in range(1, n + 1):
                bell[n, m] = _total(
                    _product(math.comb(n - 1, i - 1), x[i], bell[n - i, m - 1])
                    for i in range(1, n - m + 2)
                )
        lower.append(
            tuple(
                _total(_product(own[m], bell[n, m]) for m in range(1, n + 1))
                for n in range(1, order)
            )
        )
        for m in range(2, order + 1):
            highest[m].append(bell[order, m])
    top = _total(
        _product(own[m], _total([given.top] if m == 1 else highest[m])) for m in range(1, order + 1)
    )
    return Derivatives(own[0], tuple(lower), top)


def _by_nesting(f: _Function, given: Sequence[Derivatives]) -> list[Derivatives]:
    """Nested forward mode, direction by direction."""

    def raised(below: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], tuple[Any, ...]]:
        def tower(rows: Any) -> tuple[Any, ...]:
            values, slopes = jax.jvp(below, (rows[:-1],), (rows[1:],))
            return (*values, slopes[-1])

        return tower

    columns = []
    for direction in range(len(given[0].lower)):
        tower: Callable[[Any], tuple[Any, ...]] = lambda rows: (list(f(*rows[0])),)  # noqa: E731
        for _ in range(len(given[0].lower[0]) + 1):
            tower = raised(tower)
        below = zip(*(g.lower[direction] for g in given), strict=True)
        # The sum of the highest derivatives enters linearly, hence with one direction only.
        highest = [g.top if direction == 0 else None for g in given]
        rows = [_filled(row, given) for row in (*below, highest)]
        columns.append(tower([[g.value for g in given], *rows]))
    return [
        Derivatives(
            value,
            tuple(tuple(order[i] for order in column[1:-1]) for column in columns),
            _total(column[-1][i] for column in columns),
        )
        for i, value in enumerate(columns[0][0])
    ]
