"""Point sets: interior, boundary and grids of a box, all of them deterministic or keyed.

Sets are nested where it says so: the first ``n`` points of a longer set are the shorter set, so that
coarse levels train on a subset of the points of finer ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import (
    check_choice,
    check_finite,
    check_key,
    check_positive_int,
    check_sequence,
)

__all__ = ["UNIT_SQUARE", "Box", "generate_boundary_points", "grid_points", "interior_points"]


@dataclass(frozen=True)
class Box:
    """An axis-parallel box.

    Attributes:
        lower: smallest coordinates.
        upper: largest coordinates.

    Raises:
        TypeError: if one is not a sequence of numbers.
        ValueError: if the two differ in length, a number is not finite, or the box is empty.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, bounds in (("lower", self.lower), ("upper", self.upper)):
            check_sequence(name, bounds)
            for i, bound in enumerate(bounds):
                check_finite(f"{name}[{i}]", bound)
        if len(self.lower) != len(self.upper) or not self.lower:
            raise ValueError(f"lower and upper must match, got {self.lower} and {self.upper}")
        if any(not a < b for a, b in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"lower must be below upper, got {self.lower} and {self.upper}")

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.lower)

    def scale(self, unit: np.ndarray | Array) -> np.ndarray | Array:
        """Points of the unit cube to points of the box, both of shape (..., dim)."""
        lower, upper = np.asarray(self.lower), np.asarray(self.upper)
        return lower + unit * (upper - lower)


UNIT_SQUARE = Box((0.0, 0.0), (1.0, 1.0))
"""The box $[0, 1]^2$, the default domain of all functions here."""


def _check_domain(domain: Any) -> None:
    if not isinstance(domain, Box):
        raise TypeError(f"domain must be a Box, got {domain!r}")


def interior_points(
    num_points: int,
    domain: Box = UNIT_SQUARE,
    *,
    key: PRNGKeyArray | None = None,
    method: str = "uniform",
) -> Float[Array, "n dim"]:
    """Points inside a box.

    Args:
        num_points: how many.
        domain: the box.
        key: random key; the default is ``jax.random.key(0)``.
        method: ``"uniform"`` (independent) or ``"sobol"`` (scrambled Sobol sequence, SciPy; the
            key gives the scrambling). Both are nested for equal keys.

    Returns:
        Shape (num_points, dim), of JAX's default floating-point type.

    Raises:
        TypeError: if ``num_points`` is not an integer, ``domain`` no `Box` or ``key`` no random key.
        ValueError: if ``num_points`` is not positive or ``method`` is unknown.
    """
    _check_domain(domain)
    check_positive_int("num_points", num_points)
    check_choice("method", method, ["uniform", "sobol"])
    key = jax.random.key(0) if key is None else key
    check_key("key", key)
    seed = np.asarray(jax.random.key_data(key)).astype(np.uint32).tolist()
    if method == "sobol":
        sequence = scipy.stats.qmc.Sobol(domain.dim, scramble=True, rng=np.random.default_rng(seed))
        unit = sequence.random_base2(int(np.ceil(np.log2(num_points))))[:num_points]
    else:
        # Filled row by row, so that a longer set begins with the shorter one.
        unit = np.random.default_rng(seed).random((num_points, domain.dim))
    return jnp.asarray(domain.scale(unit), jnp.result_type(float))


def generate_boundary_points(
    num_points: int, domain: Box = UNIT_SQUARE, *, key: PRNGKeyArray | None = None
) -> Float[Array, "n dim"]:
    """Points on the boundary of a box, spread evenly over its faces.

    Args:
        num_points: how many in total; faces get equal numbers, the first ones one more if it does
            not divide.
        domain: the box, the unit square by default.
        key: random key; without it the points of each face are evenly spaced (two dimensions) or a
            Halton sequence (more).

    Returns:
        Shape (num_points, dim), of JAX's default floating-point type.

    Raises:
        TypeError: if ``num_points`` is not an integer, ``domain`` no `Box` or ``key`` no random key.
        ValueError: if ``num_points`` is not positive.
    """
    _check_domain(domain)
    check_positive_int("num_points", num_points)
    if key is not None:
        check_key("key", key)
    dim, faces = domain.dim, 2 * domain.dim
    per_face = [num_points // faces + (face < num_points % faces) for face in range(faces)]
    pieces = []
    for face, count in enumerate(per_face):
        axis, side = divmod(face, 2)
        others = _face_points(
            count, dim - 1, None if key is None else jax.random.fold_in(key, face)
        )
        pieces.append(np.insert(others, axis, float(side), axis=1))
    return jnp.asarray(domain.scale(np.concatenate(pieces)), jnp.result_type(float))


def _face_points(count: int, dim: int, key: PRNGKeyArray | None) -> np.ndarray:
    if dim == 0 or count == 0:
        return np.zeros((count, dim))
    if key is not None:
        return np.asarray(jax.random.uniform(key, (count, dim)))
    if dim == 1:
        return (np.arange(count)[:, None] + 0.5) / count
    return scipy.stats.qmc.Halton(dim, scramble=False).random(count)


def grid_points(shape: Sequence[int], domain: Box = UNIT_SQUARE) -> Float[Array, "n dim"]:
    """A tensor grid with its end points on the boundary, last coordinate fastest.

    Args:
        shape: number of points per axis.
        domain: the box.

    Returns:
        Shape (product of ``shape``, dim), of JAX's default floating-point type.

    Raises:
        TypeError: if ``shape`` is not a sequence of integers, or ``domain`` no `Box`.
        ValueError: if ``shape`` does not have one positive entry per axis.
    """
    check_sequence("shape", shape)
    _check_domain(domain)
    if len(shape) != domain.dim:
        raise ValueError(f"shape must have {domain.dim} entries, got {tuple(shape)}")
    axes = [
        np.linspace(a, b, check_positive_int(f"shape[{i}]", n))
        for i, (n, a, b) in enumerate(zip(shape, domain.lower, domain.upper, strict=True))
    ]
    mesh = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return jnp.asarray(mesh.reshape(-1, domain.dim), jnp.result_type(float))
