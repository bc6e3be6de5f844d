r"""Residual-based adaptive sampling of collocation points.

Wu, Zhu, Tan, Kartha, Lu: A comprehensive study of non-adaptive and residual-based adaptive sampling
for physics-informed neural networks, CMAME 403 (2023) 115671. RAD draws points with probability
$p(x) \propto |r(x)|^k / \operatorname{mean}|r|^k + c$ (equation 2); RAR-D adds points drawn so to
the ones there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from opifex.core.checks import (
    check_callable,
    check_key,
    check_nonnegative,
    check_nonnegative_int,
    check_positive_int,
)
from opifex.core.residuals import PointFunction, ResidualTerm

__all__ = ["GrowingPoints", "RADSampler", "RARDSampler", "ResidualRefiner", "ResidualResampler"]


@dataclass(frozen=True)
class RADSampler:
    """Draws points where the residual is large, without replacement.

    Attributes:
        k: exponent of the residual; 0 makes all points alike.
        c: uniform part; large values approach uniform sampling.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if a number is negative.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from opifex.training.adaptive_sampling import RADSampler
        >>> points = jnp.linspace(0.0, 1.0, 100)[:, None]
        >>> residuals = jnp.where(points > 0.9, 1.0, 0.0)
        >>> chosen = RADSampler(c=0.0).sample(points, residuals, 5, jax.random.key(0))
        >>> chosen.shape, bool(jnp.all(chosen > 0.9))
        ((5, 1), True)
    """

    k: float = 1.0
    c: float = 1.0

    def __post_init__(self) -> None:
        check_nonnegative("k", self.k)
        check_nonnegative("c", self.c)

    def probabilities(self, residuals: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """Probability of each candidate.

        Args:
            residuals: residual at each candidate; several components count by their norm. Inside
                compiled code, where no error can be raised, NaN and infinity count as the largest
                finite residual.

        Returns:
            Shape (n,), with sum one.

        Raises:
            ValueError: if ``residuals`` has no axis, or outside of compiled code holds NaN or
                infinity.
        """
        values = jnp.asarray(residuals)
        if values.ndim == 0:
            raise ValueError("residuals must have one entry per point, got a single number")
        flat = values.reshape(values.shape[0], -1)
        size = jnp.abs(flat[:, 0]) if flat.shape[1] == 1 else jnp.linalg.norm(flat, axis=1)
        finite = jnp.isfinite(size)
        if not isinstance(finite, jax.core.Tracer) and not bool(jnp.all(finite)):
            raise ValueError(
                f"residuals must be finite, got NaN or infinity at {int(jnp.sum(~finite))} of "
                f"{finite.shape[0]} points"
            )
        # One bad point must not turn the density of all others into NaN.
        size = jnp.where(finite, size, jnp.max(size, where=finite, initial=0.0))
        # Scaling first keeps |r|^k from under- or overflowing; the density does not notice.
        largest = jnp.max(size)
        power = (size / jnp.where(largest > 0, largest, 1.0)) ** self.k
        mean = jnp.mean(power)
        density = jnp.where(mean > 0, power / jnp.where(mean > 0, mean, 1.0), 1.0) + self.c
        return density / jnp.sum(density)

    def sample_indices(
        self, residuals: Float[Array, "n ..."], batch_size: int, key: PRNGKeyArray
    ) -> Int[Array, " batch"]:
        """Indices of a sample without replacement (Gumbel top-k); jit-compatible.

        Args:
            residuals: residual at each candidate.
            batch_size: number of indices, a Python integer.
            key: random key.

        Returns:
            Shape (batch_size,), int32, all different.

        Raises:
            TypeError: if ``batch_size`` is not an integer, or ``key`` is no random key.
            ValueError: if ``batch_size`` is not in 1..n.
        """
        check_positive_int("batch_size", batch_size)
        check_key("key", key)
        probability = self.probabilities(residuals)
        # Points of probability zero come last, in random order, instead of all being -infinity.
        log_probability = jnp.log(jnp.maximum(probability, jnp.finfo(probability.dtype).tiny))
        if batch_size > log_probability.shape[0]:
            raise ValueError(
                f"batch_size must be at most the {log_probability.shape[0]} points, got {batch_size}"
            )
        noise = jax.random.gumbel(key, log_probability.shape, log_probability.dtype)
        return jax.lax.top_k(log_probability + noise, batch_size)[1]

    def sample(
        self,
        points: Float[Array, "n dim"],
        residuals: Float[Array, "n ..."],
        batch_size: int,
        key: PRNGKeyArray,
    ) -> Float[Array, "batch dim"]:
        """Draw points without replacement; jit-compatible with a static ``batch_size``.

        Args:
            points: candidates.
            residuals: residual at each of them.
            batch_size: how many to draw.
            key: random key.

        Returns:
            The points drawn, shape (batch_size, dim).

        Raises:
            TypeError: if ``batch_size`` is not an integer, or ``key`` is no random key.
            ValueError: if the numbers of points and residuals differ, or ``batch_size`` is out of
                range.
        """
        points, residuals = jnp.asarray(points), jnp.asarray(residuals)
        if points.shape[:1] != residuals.shape[:1] or points.ndim == 0:
            raise ValueError(
                f"residuals must have one entry per point, got shape {residuals.shape} for points "
                f"of shape {points.shape}"
            )
        return points[self.sample_indices(residuals, batch_size, key)]


class GrowingPoints(NamedTuple):
    """A set of points that grows inside arrays of fixed size.

    Attributes:
        points: shape (capacity, dim); rows from ``size`` on repeat earlier points.
        size: number of points in use.
    """

    points: Float[Array, "capacity dim"]
    size: Int[Array, ""]

    @property
    def mask(self) -> Array:
        """Which rows are in use."""
        return jnp.arange(self.points.shape[0]) < self.size


@dataclass(frozen=True)
class RARDSampler:
    """RAR-D: adds points drawn by the residual's distribution to a growing set.

    Attributes:
        k: exponent of the residual; the paper recommends 2.
        c: uniform part; the paper recommends 0.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if a number is negative.
    """

    k: float = 2.0
    c: float = 0.0

    def __post_init__(self) -> None:
        check_nonnegative("k", self.k)
        check_nonnegative("c", self.c)

    def start(self, points: Float[Array, "n dim"], capacity: int) -> GrowingPoints:
        """A set with room for further points.

        Args:
            points: the first points.
            capacity: most points that the set can hold.

        Raises:
            TypeError: if ``capacity`` is not an integer.
            ValueError: if ``capacity`` is less than the number of points.
        """
        if check_positive_int("capacity", capacity) < points.shape[0]:
            raise ValueError(
                f"capacity must be at least the {points.shape[0]} starting points, got {capacity}"
            )
        rows = jnp.arange(capacity) % points.shape[0]
        return GrowingPoints(points[rows], jnp.asarray(points.shape[0], jnp.int32))

    def add(
        self,
        current: GrowingPoints,
        candidates: Float[Array, "n dim"],
        residuals: Float[Array, "n ..."],
        num_new: int,
        key: PRNGKeyArray,
    ) -> GrowingPoints:
        """Add points; those beyond the capacity are dropped. Jit-compatible, static ``num_new``.

        Args:
            current: the set so far.
            candidates: points to draw from.
            residuals: residual at each of them.
            num_new: how many to draw.
            key: random key.

        Returns:
            The larger set, in arrays of the same shapes.

        Raises:
            TypeError: if ``num_new`` is not an integer, or ``key`` is no random key.
            ValueError: if the numbers of candidates and residuals differ or ``num_new`` is out of
                range.
        """
        new = RADSampler(self.k, self.c).sample(candidates, residuals, num_new, key)
        capacity = current.points.shape[0]
        rows = current.size + jnp.arange(num_new)
        points = current.points.at[rows].set(new, mode="drop")
        return GrowingPoints(points, jnp.minimum(current.size + num_new, capacity))


def _check_choice(
    term: Any, candidates: Any, sampler: Any, kind: type[RADSampler | RARDSampler], index: Any
) -> None:
    """Check what a residual and candidates are chosen by.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``index`` is negative.
    """
    if not isinstance(term, ResidualTerm):
        raise TypeError(f"term must be a ResidualTerm, got {term!r}")
    check_callable("candidates", candidates)
    if not isinstance(sampler, kind):
        raise TypeError(f"sampler must be a {kind.__name__}, got {sampler!r}")
    check_nonnegative_int("index", index)


def _points_of(data: tuple[Any, ...], index: int) -> Float[Array, "n dim"]:
    """The entry of the data that holds the points.

    Raises:
        ValueError: if there is none.
    """
    if index >= len(data):
        raise ValueError(f"index must be below the {len(data)} entries of data, got {index}")
    return data[index]


def _chosen(
    choice: ResidualResampler | ResidualRefiner,
    sampler: RADSampler,
    model: PointFunction,
    points: Float[Array, "n dim"],
    count: int,
    key: PRNGKeyArray,
) -> Float[Array, "count dim"]:
    """Points drawn from new candidates where the residual of a model is large.

    Raises:
        ValueError: if there are fewer candidates than points to choose.
    """
    draw, choose = jax.random.split(key)
    candidates = choice.candidates(points, draw)
    if candidates.shape[0] < count:
        raise ValueError(
            f"candidates must return at least the {count} points to choose, got "
            f"{candidates.shape[0]}"
        )
    return sampler.sample(candidates, choice.term.evaluate(model, candidates), count, choose)


@dataclass(frozen=True)
class ResidualResampler:
    """Moves collocation points to where a residual is large, while a level trains.

    It is the ``draw`` of a `Resampled`: ``fit(terms, Resampled(points, ResidualResampler(...)))``.

    Attributes:
        term: whose residual counts.
        candidates: ``candidates(points, key)`` returning more points than ``points``, of the same
            columns, to choose from; ``points`` are the present ones.
        sampler: how to choose.
        index: which entry of the data holds the points; the others stay.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if ``index`` is negative.

    Example:
        >>> import jax
        >>> from opifex.problems import Poisson
        >>> from opifex.training.adaptive_sampling import ResidualResampler
        >>> def candidates(points, key):
        ...     return jax.random.uniform(key, (500, 2))
        >>> problem = Poisson()
        >>> draw = ResidualResampler(problem.terms[0], candidates)
        >>> data = problem.sample_points(jax.random.key(0), 50, 20)
        >>> new = draw(lambda x: x[:1] ** 3, data, jax.random.key(1))
        >>> new[0].shape, new[1] is data[1]
        ((50, 2), True)
    """

    term: ResidualTerm
    candidates: Callable[[Float[Array, "n dim"], PRNGKeyArray], Float[Array, "many dim"]]
    sampler: RADSampler = field(default_factory=RADSampler)
    index: int = 0

    def __post_init__(self) -> None:
        _check_choice(self.term, self.candidates, self.sampler, RADSampler, self.index)

    def __call__(
        self, model: PointFunction, data: tuple[Any, ...], key: PRNGKeyArray
    ) -> tuple[Any, ...]:
        """The data with new points in place of the old.

        Args:
            model: the present model, a function of one point.
            data: the present data.
            key: random key.

        Returns:
            A tuple like ``data``.

        Raises:
            ValueError: if ``data`` has no entry ``index``, or there are fewer candidates than points.
        """
        points = _points_of(data, self.index)
        new = _chosen(self, self.sampler, model, points, points.shape[0], key)
        return (*data[: self.index], new, *data[self.index + 1 :])


@dataclass(frozen=True)
class ResidualRefiner:
    """Adds collocation points where a residual is large, while a level trains (RAR-D).

    It is the ``draw`` of a `Resampled`. The arrays of a level keep their shape, so that the points need
    room from the start: ``RARDSampler().start(points, capacity).points`` has it, in rows that repeat
    earlier points and that new ones replace. Once no row repeats another the set stays as it is.

    Attributes:
        term: whose residual counts.
        candidates: ``candidates(points, key)`` returning at least ``num_new`` points to choose from, of
            the columns of ``points``.
        num_new: how many points to add at a time; the last time fewer, if there is no room for more.
        sampler: how to choose.
        index: which entry of the data holds the points; the others stay.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if ``num_new`` is not positive or ``index`` is negative.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from opifex.problems import Poisson
        >>> from opifex.training.adaptive_sampling import RARDSampler, ResidualRefiner
        >>> def candidates(points, key):
        ...     return jax.random.uniform(key, (500, 2))
        >>> problem = Poisson()
        >>> interior, boundary = problem.sample_points(jax.random.key(0), 50, 20)
        >>> room = RARDSampler().start(interior, capacity=80).points
        >>> draw = ResidualRefiner(problem.terms[0], candidates, num_new=20)
        >>> new, _ = draw(lambda x: x[:1] ** 3, (room, boundary), jax.random.key(1))
        >>> len(jnp.unique(room, axis=0)), len(jnp.unique(new, axis=0))
        (50, 70)
    """

    term: ResidualTerm
    candidates: Callable[[Float[Array, "n dim"], PRNGKeyArray], Float[Array, "many dim"]]
    num_new: int = 10
    sampler: RARDSampler = field(default_factory=RARDSampler)
    index: int = 0

    def __post_init__(self) -> None:
        _check_choice(self.term, self.candidates, self.sampler, RARDSampler, self.index)
        check_positive_int("num_new", self.num_new)

    def __call__(
        self, model: PointFunction, data: tuple[Any, ...], key: PRNGKeyArray
    ) -> tuple[Any, ...]:
        """The data with new points in rows that repeated others.

        Args:
            model: the present model, a function of one point.
            data: the present data.
            key: random key.

        Returns:
            A tuple like ``data``.

        Raises:
            ValueError: if ``data`` has no entry ``index``, or there are fewer candidates than
                ``num_new``.
        """
        points = _points_of(data, self.index)
        sampler = RADSampler(self.sampler.k, self.sampler.c)
        new = _chosen(self, sampler, model, points, self.num_new, key)
        # Where fewer rows repeat others, the fill value lies outside and those points are dropped.
        rows = jnp.nonzero(repeats(points), size=self.num_new, fill_value=points.shape[0])[0]
        refined = points.at[rows].set(new, mode="drop")
        return (*data[: self.index], refined, *data[self.index + 1 :])


def repeats(points: Float[Array, "n dim"]) -> Bool[Array, " n"]:
    """Which rows equal an earlier one.

    Args:
        points: shape (n, dim).

    Returns:
        Shape (n,); the first of equal rows is not among them.
    """
    order = jnp.lexsort(points.T)  # stable: the first of equal rows comes first
    ordered = points[order]
    same = jnp.all(ordered[1:] == ordered[:-1], axis=1)
    return jnp.zeros(points.shape[0], bool).at[order[1:]].set(same)
