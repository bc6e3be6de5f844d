r"""Weights of residual terms that are computed, not chosen, while a level trains.

The weights are values of the compiled step, not constants in it: they change at any time without
another compilation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from opifex.core.checks import check_positive_int
from opifex.core.physics.gradnorm import (
    GradNormBalancer,
    gradient_norms,
    loss_ratios,
    updated_weights,
)
from opifex.core.residuals import ResidualTerm, mean_square_loss
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.training.objective import Objective, check_loss

__all__ = ["Balance", "Balanced", "Balancing", "GradNormBalancing", "JacobianBalancing"]


class Balance(NamedTuple):
    """State of a balancing on one level.

    Attributes:
        weights: the factors of the terms' mean squares, shape (terms,), in the default dtype.
        memory: whatever else the method carries from update to update, a tree of arrays.
    """

    weights: Float[Array, " terms"]
    memory: Any = None


class Balancing(Protocol):
    """A method that computes weights, as pure functions; hashable, since programs are kept by it."""

    def start(self, terms: tuple[ResidualTerm, ...]) -> Balance:
        """State before the first update on a level.

        Args:
            terms: the residual terms with the user's weights.
        """
        ...

    def update(
        self, objective: Objective, params: Any, balance: Balance, key: PRNGKeyArray
    ) -> Balance:
        """New weights; compiled.

        Args:
            objective: what is minimised, with all its data and the user's weights.
            params: trainable parameters of the level.
            balance: state from `start` or from the update before.
            key: random key.
        """
        ...


def _given_weights(terms: Sequence[ResidualTerm]) -> Float[Array, " terms"]:
    return jnp.array([term.weight for term in terms], jnp.result_type(float))


@dataclass(frozen=True)
class JacobianBalancing:
    r"""Weights that give every term the same share of the Jacobian.

    With $K_t = \frac{1}{N_t} \sum_i |\partial_\theta r_t(x_i)|^2$ the mean squared row norm of the
    Jacobian of term $t$ (of several components the squares are added) and the user's weights $c_t$,
    the weights are

    $$w_t = \frac{c_t}{K_t} \Big(\sum_s c_s\Big) \Big/ \Big(\sum_s \frac{c_s}{K_s}\Big).$$

    The rows of `residual_vector` that belong to a term then have a squared Frobenius norm in
    proportion to $c_t$: with equal $c_t$ all terms have the same diagonal mass of the neural tangent
    kernel (Wang, Yu and Perdikaris, arXiv:2007.14527, algorithm 1, where traces take the place of
    means and the total trace that of the sum of the weights). The sum of the weights is that of
    the user's. Units of an equation drop out: a residual times a constant gets a weight divided by
    its square. For random features it is a scaling of rows as in the random feature method (Chen,
    Chi, E and Yang, arXiv:2207.13380), with one factor per term instead of one per row, and means in
    the place of largest entries.

    A Jacobian that is zero or not finite leaves the weights as they are.

    Attributes:
        max_points: most points of a term to look at, a new random subset at every update; ``None``
            looks at all. A point costs about a reverse pass for each component of the residual, and
            the Jacobian is worked through in blocks, so that it is never stored.

    Raises:
        TypeError: if ``max_points`` is not an integer. In `fit`, if a parameter or a residual is not
            real and floating-point.
        ValueError: if ``max_points`` is not positive. In `fit`, if there is not one array of at least
            one point per term.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.core import ResidualTerm
        >>> from opifex.training.balancing import JacobianBalancing
        >>> from opifex.training.objective import Objective, split_model
        >>> terms = (
        ...     ResidualTerm("large", lambda u, x: 100 * u(x)),
        ...     ResidualTerm("small", lambda u, x: u(x)),
        ... )
        >>> model, points = nnx.Linear(1, 1, rngs=nnx.Rngs(0)), jnp.ones((4, 1))
        >>> graphdef, params, rest = split_model(model)
        >>> method, objective = JacobianBalancing(), Objective(terms, graphdef, (points, points), rest)
        >>> balance = method.update(objective, params, method.start(terms), jax.random.key(0))
        >>> round(float(balance.weights[1] / balance.weights[0])), round(float(sum(balance.weights)))
        (10000, 2)
    """

    max_points: int | None = 200

    def __post_init__(self) -> None:
        if self.max_points is not None:
            check_positive_int("max_points", self.max_points)

    def start(self, terms: tuple[ResidualTerm, ...]) -> Balance:
        """The user's weights."""
        return Balance(_given_weights(terms))

    def update(
        self, objective: Objective, params: Any, balance: Balance, key: PRNGKeyArray
    ) -> Balance:
        """Weights from the Jacobian at the parameters; see `Balancing.update`."""
        given = _given_weights(objective.terms)
        terms = [replace(term, weight=1.0) for term in objective.terms]
        keys = jax.random.split(key, len(objective.data))
        points = tuple(map(self._some, keys, objective.data))
        problem = FlatResiduals(terms, objective.bind, params, points)
        shares = given / problem.squared_norms(problem.start)
        weights = (shares * (jnp.sum(given) / jnp.sum(shares))).astype(given.dtype)
        usable = jnp.all(jnp.isfinite(weights) & (weights > 0))
        return balance._replace(weights=jnp.where(usable, weights, balance.weights))

    def _some(self, key: PRNGKeyArray, points: Float[Array, "n dim"]) -> Float[Array, "m dim"]:
        if self.max_points is None or len(points) <= self.max_points:
            return points
        # The largest of random numbers: compiles and runs faster than a permutation of all points.
        order = jax.random.uniform(key, (len(points),))
        return points[jax.lax.top_k(order, self.max_points)[1]]


@dataclass(frozen=True)
class GradNormBalancing:
    """`GradNormBalancer` as a method for `Balanced`, which makes one from a balancer.

    The losses are the terms' mean squares times the user's weights, over all points; the initial
    ones are those of the first update on a level. All trainable parameters count as shared.

    Attributes:
        alpha: see `GradNormBalancer`.
        learning_rate: see `GradNormBalancer`.
    """

    alpha: float
    learning_rate: float

    def start(self, terms: tuple[ResidualTerm, ...]) -> Balance:
        """The user's weights, and initial losses that are not known yet (NaN)."""
        given = _given_weights(terms)
        return Balance(given, jnp.full_like(given, jnp.nan))

    def update(
        self, objective: Objective, params: Any, balance: Balance, key: PRNGKeyArray
    ) -> Balance:
        """One step of the balancer; see `Balancing.update`."""
        del key  # of the protocol; GradNorm uses no random numbers
        terms, given = objective.terms, _given_weights(objective.terms)

        def losses_of(params: Any) -> Float[Array, " terms"]:
            model = objective.bind(params)
            pairs = zip(terms, objective.data, strict=True)
            return jnp.stack([mean_square_loss((term,), model, points) for term, points in pairs])

        losses = losses_of(params).astype(given.dtype)
        norms = gradient_norms(losses_of, params).astype(given.dtype)
        initial = jnp.where(jnp.isnan(balance.memory), losses, balance.memory)
        factors = updated_weights(
            balance.weights / given,
            norms,
            loss_ratios(losses, initial),
            alpha=self.alpha,
            learning_rate=self.learning_rate,
        )
        return Balance(factors * given, initial)


@dataclass(frozen=True)
class Balanced:
    """Residual terms whose weights are computed while a level trains; give it to ``fit`` as the loss.

    ``fit(Balanced(terms, JacobianBalancing()), points)`` balances the terms at the start of each
    level. The weights of the terms themselves stay as multipliers: a term of weight ten keeps ten
    times the share that it would have with weight one. Any optimizer or solver, any cycle, mini-batches
    and a `Resampled` go with it. In a cycle the level that the user stands on is balanced, and coarse
    levels that it visits for a correction minimise with the same weights.

    The losses of the history (and those that stopping criteria see) are those that are minimised, with
    the weights of their time: they jump where the weights change, and methods with a memory (momentum,
    quasi-Newton matrices) go on with what they learned before. The weights of every step are in
    ``history.weights``. For a measure that means the same all the time give ``fit`` a metric
    ``evaluate``: the error, or each term's mean square, ``{term.name: mean_square_loss([term], model,
    points), ...}``.

    The weights are computed over all points of the level, also with mini-batches, and after new points
    were drawn from these. A second ``fit`` with an equal method goes on from the state of the first, and
    each level starts afresh.

    Attributes:
        terms: the residual terms, one per entry of the data.
        balancing: `JacobianBalancing`; or a `GradNormBalancer` with ``num_losses`` equal to the number
            of terms, of which ``fit`` uses the settings and leaves the object as it is; or a
            `Balancing` of your own.
        every: epochs on a level from one update to the next (without mini-batches an epoch is a
            step). By default `JacobianBalancing` works once per level, and `GradNormBalancer`, whose
            steps are small, at every epoch. Each update interrupts the compiled loop, which for small
            networks costs as much as some steps.

    Raises:
        TypeError: if ``terms`` is a loss function or holds something else than terms, ``balancing`` is
            none of these, or ``every`` is not an integer.
        ValueError: if there are no terms, ``every`` is not positive, or ``num_losses`` of a
            `GradNormBalancer` is not the number of terms.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from opifex.models import MLP
        >>> from opifex.problems import Poisson
        >>> from opifex.training.multilevel import Balanced, CascadeTrainer, JacobianBalancing
        >>> problem = Poisson()
        >>> trainer = CascadeTrainer([MLP(2, 1, [8], rngs=nnx.Rngs(0))])
        >>> history = trainer.fit(
        ...     Balanced(problem.terms, JacobianBalancing(), every=2),
        ...     problem.sample_points(jax.random.key(0), 50, 20),
        ...     epochs=[4],
        ... )
        >>> history.weights.shape
        (4, 2)
    """

    terms: Any
    balancing: Any
    every: int | None = None

    def __post_init__(self) -> None:
        if callable(self.terms) and not isinstance(self.terms, ResidualTerm):
            raise TypeError(
                "terms must be a sequence of ResidualTerm, for instance problem.terms: a loss function "
                f"has no terms to balance, got {self.terms!r}"
            )
        object.__setattr__(self, "terms", check_loss(self.terms))
        if self.every is not None:
            check_positive_int("every", self.every)
        if isinstance(self.balancing, GradNormBalancer):
            if self.balancing.num_losses != len(self.terms):
                raise ValueError(
                    f"balancing must have num_losses={len(self.terms)}, the number of terms, got "
                    f"num_losses={self.balancing.num_losses}"
                )
            if self.every is None:
                object.__setattr__(self, "every", 1)
        elif isinstance(self.balancing, type) or not all(
            callable(getattr(self.balancing, name, None)) for name in ("start", "update")
        ):
            raise TypeError(
                "balancing must be a JacobianBalancing, a GradNormBalancer, or have methods start and "
                f"update, got {self.balancing!r} of type {type(self.balancing).__name__}"
            )

    @property
    def method(self) -> Balancing:
        """The method, as pure functions."""
        if isinstance(self.balancing, GradNormBalancer):
            return GradNormBalancing(self.balancing.alpha, self.balancing.learning_rate)
        method: Balancing = self.balancing
        return method
