r"""Evolution equations in one space dimension, slab by slab in time, with elements that follow.

A slab is a short interval of time; in it the interval of space is divided into elements, and on each
of them the solution is a sum of the same random features, whose coefficients are found by
Gauss-Newton. Rows of the Jacobian are the equation at points of an element, initial values, boundary
values, and jumps of the solution and its derivatives between neighbours. They touch two neighbouring
elements at most, so that a step costs as much as so many small least-squares problems
(`opifex.optimization.second_order.block_bidiagonal_solution`). The end of a slab is the start of the
next one, for which the elements are chosen anew, short where the solution bends.

Space-time blocks with random features on elements: Dong and Li, CMAME 387, 2021, section 2.
Equidistribution of the elements and the choice of the slabs are not part of that paper.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float

from opifex.core.checks import check_callable, check_fraction, check_positive, check_positive_int
from opifex.core.residuals import PointFunction
from opifex.models import RandomFeatures, SpaceTimeFeatures, element_features
from opifex.optimization.second_order import block_bidiagonal_solution
from opifex.problems import Box
from opifex.training.equidistribution import equidistributed_nodes

__all__ = ["TimeMarching", "TimeSlab"]

Residual = Callable[[PointFunction, Float[Array, " 2"]], Array]
InitialValues = Callable[[Float[Array, "n 1"]], Float[Array, "n outputs"]]

EQUATIONS = 3
"""Points of the equation per independent feature."""

INITIAL, TIMES = 32, 16
"""Places of initial values on an element, times of its boundary values and jumps."""

CONDITIONS = 10.0
"""What residuals of conditions are multiplied by, next to those of the equation."""

GRID = 2001
"""Places on which the start of a slab is looked at for its elements."""

DEPENDENT = 10.0
"""Singular values of the features, in units of the machine precision, below which they depend."""

CONVERGED = 0.5
"""Ratio of residuals from step to step above which no further step is made."""

GROWTH, EASY = 1.4, 4.0
"""Growth of slabs whose residual is smaller than the tolerance by the second number."""

ENOUGH_GAIN = 0.7
"""Ratio of residuals above which half the length is no gain: the elements limit what is reached."""

TOLERABLE = 1e-2
"""Residuals of a slab, next to the solution, above which it is not kept for want of a better one."""

SHORTEST = 1e-5
"""Length of a slab, as a share of all times, below which the solution is given up."""


class TimeSlab(NamedTuple):
    """What is known about a slab.

    Attributes:
        start: its first time.
        length: of it.
        nodes: ends of its elements, shape (elements + 1,).
        coefficients: of the features, shape (elements, features, outputs).
        residuals: after each Gauss-Newton step, root mean squares over all points in the unit of the
            solution: those of the equation times the duration of all slabs, those of conditions times
            the number of slabs of this length in it. Solutions that do not grow have errors of about
            this size.
    """

    start: float
    length: float
    nodes: np.ndarray
    coefficients: Array
    residuals: tuple[float, ...]

    @property
    def end(self) -> float:
        """Its last time."""
        return self.start + self.length

    @property
    def residual(self) -> float:
        """The last of the residuals, infinite if Gauss-Newton found nothing."""
        return self.residuals[-1] if self.residuals else math.inf


@dataclass(frozen=True)
class TimeMarching:
    r"""Solves $r(u, (x, t)) = 0$ on an interval, from initial values on, slab by slab.

    The length of a slab is found on the way: it is halved while the residual that Gauss-Newton ends
    with is above ``tolerance``, and grows where it is far below. Where a shorter slab does not help,
    because elements or features are too few, the longer one is kept, a warning tells, and residuals
    may be twice as large from there on. Everything is compiled once. Use float64.

    Attributes:
        features: of two inputs, on [-1, 1] x [-1, 1], without patches; the first slope is that in
            space. All elements of all slabs use them.
        elements: in space.
        space_order: highest derivative in space: derivatives of lower order are continuous.
        tolerance: of the residuals of a slab, see `TimeSlab`.
        first_length: length of the first slab as a share of all times.
        max_steps: Gauss-Newton steps in a slab.
        regularization: of a step, see `opifex.optimization.second_order.GaussNewton`.

    Raises:
        ValueError: if a setting is out of range, or the features are others.
        TypeError: if a setting has the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.core.physics import gradient
        >>> from opifex.models import RandomFeatures
        >>> from opifex.problems import Box
        >>> from opifex.training import TimeMarching
        >>> features = RandomFeatures(2, 1, 30, slope=2.0, rngs=nnx.Rngs(0))
        >>> marching = TimeMarching(features, elements=4, space_order=1, tolerance=1e-2)
        >>> solution = marching.solve(
        ...     lambda u, x: gradient(u)(x) @ jnp.array([1.0, 1.0]),  # u_t + u_x = 0
        ...     lambda x: jnp.sin(x),
        ...     Box((0.0, 0.0), (2 * jnp.pi, 1.0)),
        ...     boundary="periodic",
        ... )
        >>> x = jnp.array([2.0, 1.0])
        >>> bool(abs(solution(x)[0] - jnp.sin(1.0)) < 1e-2)
        True
    """

    features: RandomFeatures
    elements: int
    space_order: int = 2
    tolerance: float = 1e-6
    first_length: float = 0.05
    max_steps: int = 8
    regularization: float = 1e-15

    def __post_init__(self) -> None:
        if not isinstance(self.features, RandomFeatures):
            raise TypeError(f"features must be RandomFeatures, got {type(self.features).__name__}")
        if self.features.input_dim != 2 or self.features.patches != (1, 1):
            raise ValueError(
                "features must have two inputs and one patch, got "
                f"{self.features.input_dim} and {self.features.patches}"
            )
        if check_positive_int("elements", self.elements) < 3:
            raise ValueError(f"elements must be at least 3, got {self.elements}")
        check_positive_int("space_order", self.space_order)
        check_positive("tolerance", self.tolerance)
        if not 0 < self.first_length <= 1:
            raise ValueError(f"first_length must be in (0, 1], got {self.first_length}")
        check_positive_int("max_steps", self.max_steps)
        check_fraction("regularization", self.regularization)

    def solve(
        self,
        equation: Residual,
        initial: InitialValues | Sequence[InitialValues],
        domain: Box,
        boundary: Residual | Literal["periodic"],
    ) -> SpaceTimeFeatures:
        """The solution on the whole domain.

        Args:
            equation: ``residual(u, x)`` at one point (place, time), a number or one per equation, as
                in `opifex.core.ResidualTerm`.
            initial: values at the first time, of places (n, 1), shape (n, outputs); or a sequence of
                functions, values and derivatives in time, as many as the order in time.
            domain: interval of space and times, (place, time).
            boundary: ``residual(u, x)`` at both ends of the interval, or ``"periodic"``.

        Raises:
            ValueError: if an argument does not fit.
            TypeError: if one has the wrong type.
            FloatingPointError: if Gauss-Newton finds no solution on the shortest slab.
        """
        return self.joined(list(self.slabs(equation, initial, domain, boundary)))

    def joined(self, slabs: Sequence[TimeSlab]) -> SpaceTimeFeatures:
        """Slabs that follow one another as one function, also before all are solved.

        Args:
            slabs: from the first on.

        Raises:
            ValueError: if there are none.
        """
        if not slabs:
            raise ValueError("slabs must hold at least one slab, got none")
        dtype = slabs[0].coefficients.dtype
        return SpaceTimeFeatures(
            self.features,
            jnp.asarray([slab.start for slab in slabs] + [slabs[-1].end], dtype),
            jnp.asarray(np.stack([slab.nodes for slab in slabs]), dtype),
            jnp.stack([slab.coefficients for slab in slabs]),
        )

    def slabs(
        self,
        equation: Residual,
        initial: InitialValues | Sequence[InitialValues],
        domain: Box,
        boundary: Residual | Literal["periodic"],
    ) -> Iterator[TimeSlab]:
        """The slabs, one by one, as they are solved; arguments and errors of `solve`."""
        start = tuple(initial) if isinstance(initial, Sequence) else (initial,)
        check_callable("equation", equation)
        if not start:
            raise ValueError("initial must hold at least the values, got an empty sequence")
        for function in start:
            check_callable("initial", function)
        if domain.dim != 2:
            raise ValueError(f"domain must have a place and a time, got {domain.dim} coordinates")
        if boundary != "periodic":
            check_callable("boundary", boundary)
        problem = _Slabs(self, equation, boundary, len(start), domain.upper[1] - domain.lower[1])
        return self._march(problem, problem.given(start), domain)

    def _march(
        self, problem: _Slabs, state: Callable[[np.ndarray], np.ndarray], domain: Box
    ) -> Iterator[TimeSlab]:
        (left, first), (right, end) = domain.lower, domain.upper
        places = np.linspace(left, right, GRID)
        time, length, allowed = first, self.first_length * (end - first), self.tolerance
        while time < end:
            nodes = equidistributed_nodes(
                places, state(places)[:, 0], self.elements, periodic=problem.periodic
            )
            values = problem.initial_values(state, nodes)
            refused: TimeSlab | None = None
            while True:
                # The last two slabs share what is left, so that none is tiny.
                left_over = end - time
                taken = left_over if length >= left_over else min(length, left_over / 2)
                slab = problem.solved(nodes, time, taken, values)
                if slab.residual <= allowed:
                    break
                if refused is not None and slab.residual > ENOUGH_GAIN * refused.residual:
                    # Elements or features are what limits, and longer slabs cost less.
                    slab, allowed = refused, 2 * refused.residual
                    _warn_of_limit(slab, self.tolerance)
                    break
                if taken < SHORTEST * (end - first):
                    raise FloatingPointError(
                        f"Gauss-Newton finds no solution at time {time:.6g}, also on a slab of length "
                        f"{taken:.1e} (residual {slab.residual:.1e})"
                    )
                refused = slab if problem.is_tolerable(slab, values) else None
                length = taken / 2
            yield slab
            time = slab.end if slab.end < end - 1e-9 * length else end
            length = slab.length * (GROWTH if slab.residual * EASY <= allowed else 1)
            state = problem.end_of(slab)


def _warn_of_limit(slab: TimeSlab, tolerance: float) -> None:
    warnings.warn(
        f"residuals stay at {slab.residual:.1e} from time {slab.start:.4g} on, above the tolerance "
        f"{tolerance:.1e}, also on shorter slabs: more elements or features are needed",
        stacklevel=4,
    )


class _Slabs:
    """Compiled steps of one problem."""

    def __init__(
        self,
        method: TimeMarching,
        equation: Residual,
        boundary: Residual | Literal["periodic"],
        time_order: int,
        duration: float,
    ) -> None:
        self.features, self.method, self.duration = method.features, method, duration
        self.equation, self.boundary, self.time_order = equation, boundary, time_order
        self.dtype = np.dtype(self.features.weights[...].dtype)
        self.places, self.times = _chebyshev(INITIAL), _chebyshev(TIMES)
        self.inverse = self._constant_in_time()
        self.basis = self._orthonormal()
        self.points = _points(EQUATIONS * self.basis.shape[1] // self.features.output_dim)
        self.step = jax.jit(self._step)
        self.at_end = jax.jit(self._at_end)

    @property
    def periodic(self) -> bool:
        """Whether the last element is a neighbour of the first."""
        return self.boundary == "periodic"

    def given(self, start: Sequence[InitialValues]) -> Callable[[np.ndarray], np.ndarray]:
        """Values and derivatives in time at places, shape (n, order in time, outputs)."""

        def state(places: np.ndarray) -> np.ndarray:
            where = jnp.asarray(places, self.dtype)[:, None]
            values = [np.asarray(function(where), self.dtype) for function in start]
            for value in values:
                if value.shape != (len(places), self.features.output_dim):
                    raise ValueError(
                        f"initial must return shape ({len(places)}, {self.features.output_dim}) for "
                        f"places of shape ({len(places)}, 1), got {value.shape}"
                    )
                if not np.isfinite(value).all():
                    raise ValueError("initial must return finite values")
            return np.stack(values, axis=1)

        return state

    def initial_values(self, state: Callable[[np.ndarray], np.ndarray], nodes: np.ndarray) -> Array:
        """Of all elements, shape (elements, places, order in time, outputs)."""
        lengths = np.diff(nodes)[:, None]
        places = nodes[:-1, None] + (self.places + 1) / 2 * lengths
        values = state(places.ravel())
        return jnp.asarray(values.reshape(*places.shape, *values.shape[1:]), self.dtype)

    def end_of(self, slab: TimeSlab) -> Callable[[np.ndarray], np.ndarray]:
        """Like `given`, at the end of a slab."""
        nodes = jnp.asarray(slab.nodes, self.dtype)
        return lambda places: np.asarray(
            self.at_end(
                slab.coefficients, nodes, slab.start, slab.length, jnp.asarray(places, self.dtype)
            )
        )

    def is_tolerable(self, slab: TimeSlab, values: Array) -> bool:
        """Whether residuals are small next to the solution at the beginning and the end."""
        # At the places of the initial values, for which the evaluation is compiled anyway.
        after = self.initial_values(self.end_of(slab), slab.nodes)
        size = max(float(jnp.abs(state).max()) for state in (values, after))
        return slab.residual < TOLERABLE * size * self.duration / slab.length

    def solved(self, nodes: np.ndarray, start: float, length: float, values: Array) -> TimeSlab:
        """Gauss-Newton steps from the initial values, held for the whole slab."""
        coefficients = jnp.einsum("ji,pio->pjo", self.inverse, values[:, :, 0])
        residuals: list[float] = []
        where = jnp.asarray(nodes, self.dtype)
        for _ in range(self.method.max_steps):
            found, loss = self.step(coefficients, where, start, length, values)
            residual = math.sqrt(float(loss)) * self.duration / length
            if not residual < (residuals[-1] if residuals else math.inf):
                break
            coefficients = found
            residuals.append(residual)
            if len(residuals) > 1 and residual > CONVERGED * residuals[-2]:
                break
        return TimeSlab(start, length, nodes, coefficients, tuple(residuals))

    def _constant_in_time(self) -> Array:
        """From values at the places of an element to coefficients of a function constant in time."""
        times = np.linspace(-1.0, 1.0, 5)
        x = np.stack(np.meshgrid(self.places, times, indexing="ij"), axis=-1).reshape(-1, 2)
        matrix = np.asarray(self.features.features(jnp.asarray(x, self.dtype)))
        # The first step mends what is cut off here, and large coefficients would hinder it.
        inverse = np.linalg.pinv(matrix, rcond=float(np.sqrt(np.finfo(self.dtype).eps)))
        return jnp.asarray(inverse.reshape(-1, len(self.places), len(times)).sum(axis=-1))

    def _orthonormal(self) -> Array:
        """Coefficients of functions that are orthonormal on an element, one function a column."""
        points = jnp.asarray(_points(EQUATIONS * self.features.num_features), self.dtype)
        values = np.asarray(self.features.features(points))
        _, singular, right = np.linalg.svd(values / math.sqrt(len(values)), full_matrices=False)
        kept = singular > DEPENDENT * float(np.finfo(self.dtype).eps) * singular[0]
        functions = right[kept].T / singular[kept]
        return jnp.asarray(np.kron(functions, np.eye(self.features.output_dim)))

    def _function(self, coefficients: Array, ends: Array, times: Array) -> PointFunction:
        """The solution on one element between two nodes and two times."""
        lower, upper = jnp.stack([ends, times], axis=1)
        return lambda x: element_features(self.features, x, lower, upper) @ coefficients

    def _own_rows(
        self, coefficients: Array, ends: Array, times: Array, values: Array, at_ends: Array
    ) -> Array:
        """Equation, initial and boundary values of one element; ``ends`` are its nodes."""
        lower, upper = jnp.stack([ends, times], axis=1)
        u, length = self._function(coefficients, ends, times), times[1] - times[0]
        at = lambda local: lower + (jnp.asarray(local, self.dtype) + 1) / 2 * (upper - lower)  # noqa: E731
        equation = length * _mean_rows(lambda x: self.equation(u, x), at(self.points))
        start = np.stack([self.places, np.full(INITIAL, -1.0)], axis=1)
        found = jax.vmap(lambda x: self._time_derivatives(u, x))(at(start))
        scale = (length / 4) ** jnp.arange(self.time_order)
        initial = ((found - values) * scale[:, None]).ravel() / math.sqrt(INITIAL)
        rows = [equation, CONDITIONS * initial]
        if not self.periodic:
            for side, inside in enumerate(at_ends):
                local = np.stack([np.full(TIMES, 2.0 * side - 1), self.times], axis=1)
                found = _mean_rows(lambda x: self.boundary(u, x), at(local))  # type: ignore[operator]
                rows.append(jnp.where(inside, CONDITIONS * found, 0.0))
        return jnp.concatenate(rows)

    def _jumps(
        self, own: Array, following: Array, ends: Array, times: Array, joined: Array
    ) -> Array:
        """Between an element and the next one, derivatives scaled by the shorter length."""
        first = self._function(own, ends[:2], times)
        second = self._function(following, ends[1:], times)
        scale = jnp.minimum(ends[1] - ends[0], ends[2] - ends[1]) / 4

        def jump(time: Array) -> Array:
            x = jnp.stack([ends[1], time])
            sides = [_derivatives(u, x, 0, self.method.space_order) for u in (first, second)]
            powers = scale ** jnp.arange(self.method.space_order)
            return (sides[0] - sides[1]) * powers[:, None]

        when = times[0] + (jnp.asarray(self.times, self.dtype) + 1) / 2 * (times[1] - times[0])
        return jnp.where(joined, CONDITIONS * _mean_rows(jump, when), 0.0)

    def _time_derivatives(self, u: PointFunction, x: Array) -> Array:
        return _derivatives(u, x, 1, self.time_order)

    def _step(
        self, coefficients: Array, nodes: Array, start: Array, length: Array, values: Array
    ) -> tuple[Array, Array]:
        """Coefficients after a full step, and the mean over the elements of squared residuals there."""
        elements, size, outputs = coefficients.shape
        times = self._interval(start, length)
        # The element behind the last is the first, one period on.
        behind = nodes[-1:] + nodes[1:2] - nodes[:1]
        ends = jnp.stack([nodes[:-1], nodes[1:], jnp.append(nodes[2:], behind)], axis=1)
        number = jnp.arange(elements)
        at_ends = jnp.stack([number == 0, number == elements - 1], axis=1)
        joined = (number < elements - 1) | self.periodic
        fixed = (ends, values, at_ends, joined)

        def rows(own: Array, following: Array, element: Any) -> Array:
            where, known, sides, is_joined = element
            return jnp.concatenate(
                [
                    self._own_rows(own, where[:2], times, known, sides),
                    self._jumps(own, following, where, times, is_joined),
                ]
            )

        def linearized(element: Any) -> tuple[Array, Array, Array]:
            own, following, rest = element
            value = rows(own, following, rest)
            diagonal = jax.jacfwd(rows)(own, following, rest)
            where, _, _, is_joined = rest
            jumps = jax.jacfwd(self._jumps, argnums=1)(own, following, where, times, is_joined)
            flat = (-1, size * outputs)
            return value, diagonal.reshape(flat), jumps.reshape(flat)

        following = jnp.roll(coefficients, -1, axis=0)
        value, diagonal, upper = jax.lax.map(linearized, (coefficients, following, fixed))
        direction = block_bidiagonal_solution(
            diagonal @ self.basis,
            upper @ self.basis,
            -value,
            self.method.regularization,
            cyclic=self.periodic,
        )
        found = coefficients + (direction @ self.basis.T).reshape(coefficients.shape)
        after = jax.lax.map(
            lambda element: rows(*element), (found, jnp.roll(found, -1, axis=0), fixed)
        )
        return found, jnp.sum(after**2) / elements

    def _at_end(
        self, coefficients: Array, nodes: Array, start: Array, length: Array, places: Array
    ) -> Array:
        times = self._interval(start, length)
        u = SpaceTimeFeatures(self.features, times, nodes[None], coefficients[None])
        points = jnp.stack([places, jnp.full_like(places, times[1])], axis=1)
        return jax.lax.map(lambda x: self._time_derivatives(u, x), points, batch_size=256)

    def _interval(self, start: Array, length: Array) -> Array:
        return jnp.stack([jnp.asarray(time, self.dtype) for time in (start, start + length)])


def _points(count: int) -> np.ndarray:
    """Of [-1, 1] x [-1, 1]."""
    # A power of two is what Sobol points are balanced for.
    return (
        2 * scipy.stats.qmc.Sobol(2, seed=0).random_base2(math.ceil(math.log2(count)))[:count] - 1
    )


def _chebyshev(count: int) -> np.ndarray:
    return np.cos(np.pi * (np.arange(count) + 0.5) / count)


def _derivatives(u: PointFunction, x: Array, axis: int, count: int) -> Array:
    """A function and its first derivatives along an axis, shape (count, outputs)."""
    if count == 1:
        return u(x)[None]
    direction = jnp.zeros(2, x.dtype).at[axis].set(1.0)

    def slope(f: PointFunction) -> PointFunction:
        return lambda y: jax.jvp(f, (y,), (direction,))[1]

    found = [u]
    for _ in range(count - 1):
        found.append(slope(found[-1]))
    return jnp.stack([f(x) for f in found])


def _mean_rows(residual: Callable[[Array], Array], points: Array) -> Array:
    """Residuals at points, divided by the root of their number."""
    found = jax.vmap(lambda x: jnp.atleast_1d(residual(x)))(points)
    return found.ravel() / math.sqrt(len(points))
