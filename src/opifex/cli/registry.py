"""Names that a configuration may use: problems, methods of minimisation, activations, cycles."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx

import opifex.problems
from opifex.cli.settings import OptimizerSettings, ProblemSettings, StrategySettings
from opifex.optimization import scale_by_age_corrected_adam, scale_by_width
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    GaussNewton,
    HybridOptimizer,
    HybridOptimizerConfig,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
    self_scaled_broyden,
)
from opifex.problems import Problem
from opifex.training.multilevel import (
    Cascade,
    Cycle,
    FullMultigrid,
    MultilevelOptimizer,
    VCycle,
    WCycle,
)

__all__ = [
    "ACTIVATIONS",
    "METHODS",
    "PROBLEMS",
    "Method",
    "make_cycle",
    "make_optimizer",
    "make_problem",
]


def _kebab(name: str) -> str:
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


PROBLEMS: Mapping[str, type[Problem]] = {
    _kebab(name): value
    for name, value in sorted(vars(opifex.problems).items())
    if inspect.isclass(value)
    and issubclass(value, Problem)
    and value is not Problem
    and dataclasses.is_dataclass(value)
}
"""Problems by the names that configurations use."""


def make_problem(settings: ProblemSettings) -> Problem:
    """A problem with its parameters.

    Equal settings give the same object: programs are kept by the functions in it, so that a second run
    in a process compiles nothing.

    Args:
        settings: name and parameters.

    Raises:
        TypeError: if a parameter has the wrong type.
        ValueError: if a parameter is out of range.
    """
    return _problem(settings.name, tuple(sorted(settings.parameters.items())))


@lru_cache(maxsize=16, typed=True)
def _problem(name: str, parameters: tuple[tuple[str, float], ...]) -> Problem:
    return PROBLEMS[name](**dict(parameters))


ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "gelu": nnx.gelu,
    "swish": nnx.swish,
}
"""Activations of networks."""


@dataclass(frozen=True)
class Method:
    """A method of minimisation that a configuration may name.

    Attributes:
        make: builds it; its keyword arguments are the options.
        learning_rate: the step size where none is given; ``None`` if the method has none.
        scheduled: whether the step size may be a schedule.
        least_squares: whether it needs residual terms.
        full_batch: whether it needs all data at every step.
        summary: what it is, in a few words.
    """

    make: Callable[..., Any]
    summary: str
    learning_rate: float | None = None
    scheduled: bool = False
    least_squares: bool = False
    full_batch: bool = False

    @property
    def options(self) -> list[str]:
        """Names of the options."""
        names = inspect.signature(self.make).parameters
        return [name for name in names if name != "learning_rate"]


def _multilevel_adam(
    learning_rate: Any,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    width_scaling: bool = False,
    warm_up_steps: int = 0,
) -> Any:
    return optax.chain(
        scale_by_age_corrected_adam(b1=b1, b2=b2, eps=eps, warm_up_steps=warm_up_steps),
        optax.scale_by_learning_rate(learning_rate),
        *([scale_by_width()] if width_scaling else []),
    )


def _adam(learning_rate: Any, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Any:
    return optax.adam(learning_rate, b1, b2, eps)


def _adamw(
    learning_rate: Any,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> Any:
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)


def _sgd(learning_rate: Any, momentum: float | None = None, nesterov: bool = False) -> Any:
    return optax.sgd(learning_rate, momentum, nesterov)


def _lbfgs(memory_size: int = 10) -> Any:
    return optax.lbfgs(memory_size=memory_size)


def _adam_then_lbfgs(
    learning_rate: float,
    criterion: str = "loss-variance",
    window: int = 50,
    switch_step: int = 1000,
    min_adam_steps: int = 0,
    max_adam_steps: int | None = None,
    memory_size: int = 10,
) -> Any:
    return HybridOptimizer(
        HybridOptimizerConfig(
            learning_rate=learning_rate,
            criterion=criterion,
            window=window,
            switch_step=switch_step,
            min_adam_steps=min_adam_steps,
            max_adam_steps=max_adam_steps,
            memory_size=memory_size,
        )
    )


METHODS: Mapping[str, Method] = {
    "multilevel-adam": Method(
        _multilevel_adam, "Adam whose moments know the age of each entry", 1e-3, scheduled=True
    ),
    "adam": Method(_adam, "Adam", 1e-3, scheduled=True),
    "adamw": Method(_adamw, "Adam with decoupled weight decay", 1e-3, scheduled=True),
    "sgd": Method(_sgd, "gradient descent, with momentum if asked", 1e-2, scheduled=True),
    "lbfgs": Method(_lbfgs, "L-BFGS with a zoom line search", full_batch=True),
    "adam-then-lbfgs": Method(_adam_then_lbfgs, "Adam, then L-BFGS", 1e-3, full_batch=True),
    "self-scaled-broyden": Method(
        self_scaled_broyden, "quasi-Newton with a dense matrix", full_batch=True
    ),
    "levenberg-marquardt": Method(
        LevenbergMarquardt, "damped Gauss-Newton, dense", least_squares=True, full_batch=True
    ),
    "gauss-newton": Method(
        GaussNewton, "Gauss-Newton by QR, undamped", least_squares=True, full_batch=True
    ),
    "natural-gradient": Method(
        EnergyNaturalGradient, "natural gradient of the energy", least_squares=True, full_batch=True
    ),
    "matrix-free-gauss-newton": Method(
        MatrixFreeGaussNewton,
        "Gauss-Newton by conjugate gradients",
        least_squares=True,
        full_batch=True,
    ),
}
"""Methods of minimisation by the names that configurations use."""


def make_optimizer(settings: OptimizerSettings, level_steps: Sequence[int]) -> MultilevelOptimizer:
    """A new optimizer, for one trainer.

    Args:
        settings: the method.
        level_steps: planned steps of every level, over which a cosine schedule falls.

    Raises:
        TypeError: if an option has the wrong type.
        ValueError: if an option is out of range.
    """
    method = METHODS[settings.name]
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.options.items()
    }
    make = partial(_made, settings.name, tuple(options.items()))
    if method.learning_rate is None:
        return MultilevelOptimizer(make(None, None))
    rate = settings.learning_rate or method.learning_rate
    if settings.schedule == "constant":
        return MultilevelOptimizer(make(rate, None))
    return MultilevelOptimizer([make(rate, steps) for steps in level_steps])


@lru_cache(maxsize=64, typed=True)
def _made(
    name: str, options: tuple[tuple[str, Any], ...], rate: float | None, steps: int | None
) -> Any:
    """The same object for equal settings, by which compiled programs are kept."""
    given = dict(options)
    if rate is not None:
        cosine = steps is not None
        given["learning_rate"] = optax.cosine_decay_schedule(rate, steps) if cosine else rate
    return METHODS[name].make(**given)


def make_cycle(settings: StrategySettings) -> Cycle:
    """The order of the levels.

    Args:
        settings: the strategy, with ``coarse`` decided.
    """
    kinds: dict[str, type[VCycle]] = {
        "v-cycle": VCycle,
        "w-cycle": WCycle,
        "full-multigrid": FullMultigrid,
    }
    if settings.name not in kinds:
        return Cascade()
    coarse = "rediscretised" if settings.coarse == "auto" else settings.coarse
    return kinds[settings.name](cycles=settings.cycles, coarse=coarse)
