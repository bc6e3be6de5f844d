r"""Residuals of a differential equation, point by point.

A PINN objective is a weighted sum of mean squares,
$L(u) = \sum_t w_t \frac{1}{N_t} \sum_{i} |r_t(u, x_i^t)|^2$. First-order optimizers need only its
value; Gauss-Newton methods need the vector of residuals, and they need it *per point*, since the
Jacobian row of one point is cheap (one reverse pass) while a reverse pass per row over the batched
residual is not. A `ResidualTerm` therefore describes what happens at a single point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opifex.core.checks import check_callable, check_positive, check_sequence

PointFunction = Callable[[Float[Array, " dim"]], Float[Array, " components"]]
"""A function of one point: shape (input_dim,) to shape (output_dim,). Every model is one."""

__all__ = [
    "PointFunction",
    "ResidualTerm",
    "check_points",
    "mean_square_loss",
    "residual_vector",
]


@dataclass(frozen=True)
class ResidualTerm:
    """One term of a least-squares objective.

    Attributes:
        name: what the term enforces, for instance ``"interior"`` or ``"boundary"``.
        residual: ``residual(u, x)`` with ``u`` a `PointFunction` and ``x`` one point (or one row of
            whatever data the term needs); returns a scalar or a vector of components.
        weight: factor of the term's mean square in the loss, a positive number. An array of shape ()
            is taken as it is, so that compiled code can compute weights.

    Raises:
        TypeError: if ``residual`` is not callable or ``weight`` is not a number.
        ValueError: if ``weight`` is not positive, or an array of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from opifex.core import ResidualTerm, mean_square_loss
        >>> from opifex.core.physics import laplacian
        >>> poisson = ResidualTerm("interior", lambda u, x: laplacian(u)(x) - 4)
        >>> points = jnp.ones((3, 2))
        >>> poisson.evaluate(lambda x: x @ x, points).shape
        (3, 1)
        >>> float(mean_square_loss([poisson], lambda x: x @ x, points))
        0.0
    """

    name: str
    residual: Callable[[PointFunction, Float[Array, " dim"]], Array]
    weight: float | Float[Array, ""] = 1.0

    def __post_init__(self) -> None:
        check_callable("residual", self.residual)
        if not isinstance(self.weight, jax.Array):
            check_positive("weight", self.weight)
        elif self.weight.shape != ():
            raise ValueError(f"weight must be one number, got shape {self.weight.shape}")

    def evaluate(self, u: PointFunction, points: Float[Array, "n dim"]) -> Float[Array, "n m"]:
        """Residuals at all points, without the weight.

        Args:
            u: function of one point, for instance a model.
            points: shape (n, dim).

        Returns:
            Shape (n, components), in the dtype that the residual has.
        """
        return jax.vmap(lambda x: self.at(u, x))(points)

    def at(self, u: PointFunction, point: Float[Array, " dim"]) -> Float[Array, " m"]:
        """The residual at one point, always a vector; an error in it says of which term it is.

        Args:
            u: function of one point.
            point: shape (dim,).

        Returns:
            Shape (components,).
        """
        try:
            return jnp.atleast_1d(self.residual(u, point))
        except Exception as error:
            # Twice where one evaluation is made of another.
            note = (
                f"In the residual term {self.name!r}: residual(u, x) got one row of its points as x, "
                f"of shape {jnp.shape(point)}."
            )
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise


def check_points(terms: Sequence[ResidualTerm], points: Sequence[Array]) -> None:
    """Check that there is one array of at least one point for each term.

    Args:
        terms: the terms of an objective.
        points: one array (points, dim) per term.

    Raises:
        ValueError: if the number of arrays is not the number of terms, or one has no rows.
        TypeError: if the points of a term are no array or several, such as points with their normals,
            or ``terms`` is not a sequence of `ResidualTerm`.
    """
    check_sequence("terms", terms)
    for i, term in enumerate(terms):
        if not isinstance(term, ResidualTerm):
            raise TypeError(f"terms[{i}] must be a ResidualTerm, got {term!r}")
    if len(terms) != len(points):
        raise ValueError(
            f"points must hold one array per term ({[t.name for t in terms]}), "
            f"got {len(points)} arrays"
        )
    for term, x in zip(terms, points, strict=True):
        if isinstance(x, tuple | list):
            raise TypeError(
                f"points of the term {term.name!r} must be one array, got a {type(x).__name__} of "
                f"{len(x)}: give the one that the term needs, or jnp.hstack of them as its rows"
            )
        if not hasattr(x, "dtype"):
            raise TypeError(
                f"points of the term {term.name!r} must be an array, got a {type(x).__name__}"
            )
        if not jnp.shape(x) or 0 in jnp.shape(x):
            raise ValueError(
                f"points of the term {term.name!r} must have at least one row, of at least one number, "
                f"got shape {jnp.shape(x)}"
            )


def residual_vector(
    terms: Sequence[ResidualTerm], u: PointFunction, *points: Float[Array, "_ _"]
) -> Float[Array, " total"]:
    r"""All residuals, scaled so that the sum of their squares is the loss.

    The residuals of term $t$ are multiplied by $\sqrt{w_t / N_t}$.

    Args:
        terms: the terms of the objective.
        u: function of one point.
        *points: one array (points, dim) per term.

    Returns:
        One vector, term after term: shape (sum of points times components,).

    Raises:
        ValueError: if the number of point arrays is not the number of terms, or one has no rows.
        TypeError: if the points of a term are no array or several, ``terms`` is not a sequence of
            `ResidualTerm`, or ``u`` is not callable.
    """
    check_callable("u", u)
    check_points(terms, points)
    return jnp.concatenate(
        [
            jnp.sqrt(term.weight / x.shape[0]) * term.evaluate(u, x).reshape(-1)
            for term, x in zip(terms, points, strict=True)
        ]
    )


def mean_square_loss(
    terms: Sequence[ResidualTerm], u: PointFunction, *points: Float[Array, "_ _"]
) -> Float[Array, ""]:
    """The weighted sum of mean squares; of several components the squares are added.

    Args:
        terms: the terms of the objective.
        u: function of one point.
        *points: one array (points, dim) per term.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: if the number of point arrays is not the number of terms, or one has no rows.
        TypeError: if the points of a term are no array or several, ``terms`` is not a sequence of
            `ResidualTerm`, or ``u`` is not callable.
    """
    check_callable("u", u)
    check_points(terms, points)
    return sum(
        (
            term.weight * jnp.mean(jnp.sum(term.evaluate(u, x) ** 2, axis=-1))
            for term, x in zip(terms, points, strict=True)
        ),
        start=jnp.zeros(()),
    )
