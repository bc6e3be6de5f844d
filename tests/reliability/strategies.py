"""Small runs of every strategy, that a test can break off and take up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import Poisson
from opifex.training.multilevel import (
    Balanced,
    Cascade,
    CascadeTrainer,
    Checkpoints,
    EarlyStopping,
    FullMultigrid,
    JacobianBalancing,
    LossPlateau,
    Monitor,
    Resampled,
    ResidualCorrection,
    Streamed,
    VCycle,
    create_network_hierarchy,
)

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32)[:, None]
POISSON = Poisson()


def square_loss(model: Any, x: Any) -> Any:
    return jnp.mean((model(x) - jnp.sin(3 * x)) ** 2)


def noisy_loss(model: Any, x: Any, *, key: Any) -> Any:
    return square_loss(model, x + 0.01 * jax.random.normal(key, x.shape))


def error(model: Any) -> Any:
    return jnp.sqrt(square_loss(model, X))


def networks() -> Any:
    return create_network_hierarchy(1, 1, [8], num_levels=3, rngs=nnx.Rngs(0))


def pinns() -> list[Any]:
    return [MLP(2, 1, [width], rngs=nnx.Rngs(width)) for width in (4, 8)]


def uniform(model: Any, data: Any, key: Any) -> Any:
    del model
    return (jax.random.uniform(key, data[0].shape), data[1])


def collocation() -> tuple[Any, ...]:
    return POISSON.sample_points(jax.random.key(1), 24, 12)


def shuffled_batches() -> Streamed:
    """Four batches in another order in every epoch, in windows that do not divide an epoch."""
    samples = grain.MapDataset.source(X).seed(5).shuffle()
    batches = samples.batch(8, drop_remainder=True).map(lambda x: (x,))
    return Streamed(batches, batches_at_once=3)


@dataclass(frozen=True)
class Strategy:
    """How to make a trainer and to call it.

    Attributes:
        trainer: makes a new one.
        arguments: makes the arguments of ``fit``, without monitor and checkpoint.
        callbacks: makes the callbacks.
        every: the evaluation interval.
    """

    trainer: Callable[[], CascadeTrainer]
    arguments: Callable[[], dict[str, Any]]
    callbacks: Callable[[], list[Any]] = field(default=list)
    every: int = 4

    def run(self, folder: Any = None, watch: Callable[[Any], Any] | None = None) -> CascadeTrainer:
        """Train to the end, or until ``watch``, a callback, raises."""
        trainer = self.trainer()
        callbacks = [*self.callbacks(), *([] if watch is None else [watch])]
        keeping: dict[str, Any] = {}
        if folder is not None:
            keeping = {"checkpoint": Checkpoints(folder, every=0.0), "resume": "auto"}
        trainer.fit(
            **self.arguments(), monitor=Monitor(every=self.every, callbacks=callbacks), **keeping
        )
        return trainer


def fitted(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"loss_fn": square_loss, "data": (X,), "evaluate": error, **more}


STRATEGIES: dict[str, Strategy] = {
    "cascade": Strategy(lambda: CascadeTrainer(networks()), fitted(epochs=[10, 10, 10])),
    "mini-batches": Strategy(
        lambda: CascadeTrainer(networks(), optax.adam(optax.cosine_decay_schedule(1e-2, 90))),
        lambda: {"loss_fn": noisy_loss, "data": (X,), "epochs": [6, 6, 6], "batch_size": 10},
        every=2,
    ),
    "early stopping": Strategy(
        lambda: CascadeTrainer(networks(), optax.adam(0.1)),
        fitted(epochs=[30, 30, 30], cycle=Cascade(stop=LossPlateau(window=8, min_epochs=16))),
        callbacks=lambda: [EarlyStopping(patience=2)],
    ),
    "v-cycle": Strategy(
        lambda: CascadeTrainer(networks()), fitted(epochs=[12, 12, 12], cycle=VCycle(cycles=2))
    ),
    "full multigrid": Strategy(
        lambda: CascadeTrainer(networks()),
        fitted(
            cycle=FullMultigrid(cycles=1, pre=3, post=2, coarsest=5, coarse="galerkin"),
            batch_size=16,
        ),
        every=2,
    ),
    "streamed": Strategy(
        lambda: CascadeTrainer(networks()),
        lambda: {"loss_fn": noisy_loss, "data": shuffled_batches(), "epochs": [5, 5, 5]},
        every=2,
    ),
    "residual correction": Strategy(
        lambda: CascadeTrainer(networks(), optax.adam(1e-2), ResidualCorrection()),
        fitted(epochs=[10, 10, 10]),
    ),
    "least squares": Strategy(
        lambda: CascadeTrainer(pinns(), LevenbergMarquardt()),
        lambda: {
            "loss_fn": Balanced(POISSON.terms, JacobianBalancing(), every=3),
            "data": Resampled(collocation(), uniform, every=2),
            "epochs": [6, 6],
        },
        every=2,
    ),
}
"""Every strategy by name."""


def record(trainer: CascadeTrainer) -> dict[str, Any]:
    """Everything but times: what must be the same, bit for bit, however often a run was broken off."""
    history = trainer.history
    return {
        "parameters": [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(trainer.model))],
        "optimizer": [np.asarray(leaf) for leaf in jax.tree.leaves(trainer.optimizer.state)],
        "losses": history.losses,
        "weights": history.weights,
        "work": [history.work],
        "levels": history.table()["level"],
        "cycles": history.table()["cycle"],
        "epochs": history.table()["epoch"],
        "evaluations": [
            (e.step, e.level, e.epoch, e.cycle, e.work, *e.metrics.values())
            for e in history.evaluations
        ],
        "transitions": [(t.step, t.from_level, t.to_level, t.work) for t in history.transitions],
        "level": [trainer.current_level],
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is not the same, bit for bit."""

    def same(a: Any, b: Any) -> bool:
        if len(a) != len(b):
            return False
        return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))

    return [name for name in one if not same(one[name], other[name])]
