"""A small search for the learning rate on the coarsest level, where a step costs least.

With rates that fall with the width (``MultilevelAdam(rate, width_scaling=True)``), the rate that is best
on the coarsest level is about the best on all others, so that this is the only search that a hierarchy
needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from opifex.core.checks import (
    check_module,
    check_positive_int,
    check_positive_numbers,
    check_sequence,
)
from opifex.optimization import scale_by_age_corrected_adam
from opifex.training.errors import NonFiniteLossError
from opifex.training.multilevel.config import MultilevelConfig
from opifex.training.multilevel.optimizer import MultilevelOptimizer
from opifex.training.multilevel.trainer import CascadeTrainer
from opifex.training.objective import LossFunction
from opifex.training.smoother import Smoother, as_smoother

__all__ = ["RateSearch", "RateTrial", "tune_learning_rate"]

_EXTENSIONS = 3
"""How often the range is extended beyond a best rate that lies at its end."""

_TAIL = 0.2
"""Share of the losses of a run, its last ones, that it is judged by."""

_RATES = tuple(10.0 ** (exponent / 2) for exponent in range(-8, -2))


@dataclass(frozen=True)
class RateTrial:
    """One short run.

    Attributes:
        rate: the learning rate.
        loss: geometric mean of the last fifth of the losses, since a constant rate leaves spikes;
            infinite if the run diverged, which ended with a loss that is not finite or above the first.
    """

    rate: float
    loss: float

    @property
    def diverged(self) -> bool:
        """Whether the rate was too large."""
        return not math.isfinite(self.loss)


@dataclass(frozen=True)
class RateSearch:
    """What a search saw.

    Attributes:
        rate: the rate with the lowest loss.
        trials: all runs, by increasing rate.
        steps: number of steps of each.
    """

    rate: float
    trials: tuple[RateTrial, ...]
    steps: int

    @property
    def at_border(self) -> bool:
        """Whether the best rate is the smallest or the largest that was tried."""
        return self.rate in (self.trials[0].rate, self.trials[-1].rate)

    def __repr__(self) -> str:
        rows = [
            f"  {trial.rate:.3g}: {'diverged' if trial.diverged else f'{trial.loss:.3g}'}"
            + ("  <- best" if trial.rate == self.rate else "")
            for trial in self.trials
        ]
        border = "; the best is at the border of what was tried" if self.at_border else ""
        return "\n".join([f"Loss after {self.steps} steps by learning rate{border}", *rows])


def tune_learning_rate(
    model: nnx.Module | Sequence[nnx.Module],
    loss_fn: LossFunction | Sequence[Any],
    data: tuple[Any, ...] = (),
    *,
    rates: Sequence[float] = _RATES,
    steps: int = 300,
    batch_size: int | None = None,
) -> RateSearch:
    """Try learning rates of Adam in short runs from the same start, on the coarsest model only.

    Where the best of them is the smallest or the largest, further rates are tried beyond it, a few at
    most. All runs share one compiled program. Short runs favour large rates: a run that is much longer
    wants a smaller one, or a schedule that decays.

    Args:
        model: the coarsest model, or a hierarchy, coarsest first; it is not changed.
        loss_fn: as `CascadeTrainer.fit` takes it.
        data: data of the coarsest level.
        rates: learning rates to try.
        steps: epochs of each run; steps where ``batch_size`` is ``None``.
        batch_size: samples per step; ``None`` uses all data.

    Returns:
        The best rate and the losses of all.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is not positive, there is no model, or no rate keeps the loss below that
            of the first step.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.models import MLP
        >>> from opifex.training.multilevel import tune_learning_rate
        >>> x = jnp.linspace(-1.0, 1.0, 16)[:, None]
        >>> def loss_fn(model, x):
        ...     return jnp.mean((model(x) - x**2) ** 2)
        >>> found = tune_learning_rate(MLP(1, 1, [4], rngs=nnx.Rngs(0)), loss_fn, (x,), steps=50)
        >>> 1e-3 < found.rate < 1.0
        True
    """
    chosen = sorted(set(check_positive_numbers("rates", rates)))
    check_positive_int("steps", steps)
    if not isinstance(model, nnx.Module):
        check_sequence("model", model)
        if len(model) == 0:
            raise ValueError("model must be an nnx.Module or hold some, got an empty sequence")
    coarsest = model if isinstance(model, nnx.Module) else model[0]
    check_module("model", coarsest)
    method = _adam()

    def trial(rate: float) -> RateTrial:
        return RateTrial(rate, _loss_of(coarsest, method, rate, loss_fn, data, steps, batch_size))

    trials = {rate: trial(rate) for rate in chosen}
    for _ in range(_EXTENSIONS):
        beyond = list(_beyond(trials))
        if not beyond:
            break
        trials |= {rate: trial(rate) for rate in beyond}
    best = min(trials.values(), key=lambda found: found.loss)
    if best.diverged:
        raise ValueError(
            f"rates must include one that lowers the loss within {steps} steps; all that were tried, "
            f"{min(trials):.3g} to {max(trials):.3g}, diverged or raised it"
        )
    return RateSearch(best.rate, tuple(trials[rate] for rate in sorted(trials)), steps)


def _adam() -> Smoother:
    """Adam whose rate is data, so that one program serves all rates."""
    return as_smoother(
        optax.chain(
            scale_by_age_corrected_adam(),
            optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=1.0),
        )
    )


def _beyond(trials: dict[float, RateTrial]) -> Iterator[float]:
    """The rate next to the best one, by the spacing of the others, if that lies at the end."""
    rates = sorted(trials)
    best = min(trials.values(), key=lambda found: found.loss).rate
    ratio = rates[-1] / rates[-2] if len(rates) > 1 else math.sqrt(10.0)
    all_diverged = trials[best].diverged
    if best == rates[-1] and not all_diverged:
        yield best * ratio
    elif best == rates[0] or all_diverged:
        yield rates[0] / ratio


def _loss_of(
    model: nnx.Module,
    method: Smoother,
    rate: float,
    loss_fn: Any,
    data: Any,
    steps: int,
    batch_size: int | None,
) -> float:
    """What a run ends with; infinite if it diverged."""
    config = MultilevelConfig(num_levels=1, level_epochs=[steps])
    trainer = CascadeTrainer([model], MultilevelOptimizer(method), config=config)
    state = optax.tree.set(trainer.optimizer.state, learning_rate=jnp.asarray(rate, jnp.float32))
    trainer.optimizer.state = state
    try:
        losses = np.asarray(trainer.fit(loss_fn, data, batch_size=batch_size).losses, float)
    except NonFiniteLossError:
        return math.inf
    last = losses[-max(1, round(_TAIL * len(losses))) :]
    # A loss may be zero, or negative where it is an energy: then the mean is the arithmetic one.
    mean = float(np.exp(np.mean(np.log(last)))) if np.all(last > 0) else float(np.mean(last))
    return mean if mean <= losses[0] else math.inf
