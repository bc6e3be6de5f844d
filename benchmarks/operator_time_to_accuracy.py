"""Seconds to a given error for Fourier neural operators: a cascade against the best single network.

See `race.py` for the rules. A size is a number of modes and a grid: a level with few modes trains on
fields restricted to a coarse grid, alone or as part of a cascade, where each level starts from half
the rate of the one before. Every error is measured on held-out samples on the *finest* grid, whatever
the size.

Coarse levels pass over the samples many times for little work, and fit them by heart, if there are
few. Where the operator commutes with the symmetries of the square or cube, both sides therefore train
on a random one of the 8 or 48 images of each mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common import parser
from opifex.core.metrics import relative_l2
from opifex.data import (
    FieldNormalizer,
    OperatorData,
    generate_burgers_operator_data,
    generate_darcy_data,
)
from opifex.models import FNO
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelConfig,
    MultilevelOptimizer,
    resolution_hierarchy,
)
from pinn_time_to_accuracy import transformation
from race import Course, Entry, Metric, Plan, measure


def random_image(inputs: Any, outputs: Any, key: Any) -> tuple[Any, Any]:
    """Fields of shape (samples, n, ..., n, channels) under one random symmetry of the square or cube.

    A reflection of each axis with probability one half, and a random order of the axes. Reflections
    map the centres of cells onto each other.
    """
    dimensions = inputs.ndim - 2
    of_reflections, of_order = jax.random.split(key)
    reflected = jax.random.bernoulli(of_reflections, shape=(dimensions,))
    orders = list(permutations(range(1, dimensions + 1)))
    chosen = jax.random.randint(of_order, (), 0, len(orders))

    def image(field: Any) -> Any:
        for axis in range(dimensions):
            field = jnp.where(reflected[axis], jnp.flip(field, axis + 1), field)
        turned = [partial(jnp.transpose, axes=(0, *order, dimensions + 1)) for order in orders]
        return jax.lax.switch(chosen, turned, field)

    return image(inputs), image(outputs)


def in_parts(fields: np.ndarray, size: int) -> jax.Array:
    """Samples in parts of about so many, along a new first axis."""
    return jnp.asarray(np.stack(np.array_split(fields, max(1, len(fields) // size))))


@dataclass(frozen=True)
class OperatorCourse(Course):
    """An operator on grids, with networks of several sizes.

    Attributes:
        generate: makes all samples, in the order train, validation, test.
        train: samples to train on.
        validation: samples to tune on.
        test: samples of the reported errors.
        modes: of each size.
        shapes: the grid of each size.
        grid_kind: where the points of a grid lie.
    """

    name: str
    generate: Callable[[int], OperatorData]
    train: int
    validation: int
    test: int
    modes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    grid_kind: str
    cascades: Sequence[Plan]
    rates: Sequence[float]
    budget: float
    width: int = 32
    num_layers: int = 4
    batch_size: int = 16
    symmetries: bool = False
    schedules: Sequence[str] = field(default=("cosine",))
    probe: int = 1
    keeps_programs: bool = False
    evaluations: int = 60

    @property
    def sizes(self) -> Sequence[str]:  # type: ignore[override]
        """Modes and grids."""
        return [
            f"{modes} modes on {' x '.join(map(str, shape))}"
            for modes, shape in zip(self.modes, self.shapes, strict=True)
        ]

    @cached_property
    def samples(self) -> OperatorData:
        """All samples."""
        return self.generate(self.train + self.validation + self.test)

    @cached_property
    def output_scale(self) -> FieldNormalizer:
        """The map between the network's outputs and the fields."""
        return FieldNormalizer.fit(self.samples.outputs[: self.train])

    def part(self, first: int, count: int) -> OperatorData:
        """Some of the samples, inputs normalised as those of the training samples."""
        inputs, outputs = self.samples
        scale = FieldNormalizer.fit(inputs[: self.train])
        chosen = slice(first, first + count)
        return OperatorData(scale.normalize(inputs[chosen]).astype(np.float32), outputs[chosen])

    @cached_property
    def levels(self) -> Sequence[Any]:
        """The training samples on every grid."""
        return resolution_hierarchy(
            *self.part(0, self.train), self.modes, shapes=self.shapes, grid_kind=self.grid_kind
        )

    def loss(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """Mean relative error of the samples."""
        return relative_l2(self.output_scale.denormalize(model(inputs)), outputs)

    def loss_of_image(self, model: Any, inputs: Any, outputs: Any, key: Any) -> Any:
        """The same for a random image of the samples under the symmetries of the square or cube."""
        return self.loss(model, *random_image(inputs, outputs, key))

    def held_out(self, which: str) -> OperatorData:
        """The samples to tune on (``"validation"``) or to report on (``"test"``)."""
        if which == "test":
            return self.part(self.train + self.validation, self.test)
        return self.part(self.train, self.validation)

    def metric(self, which: str) -> Metric:
        """The loss of held-out samples on the finest grid, in slices that fit the cache."""
        inputs, outputs = (in_parts(fields, 25) for fields in self.held_out(which))

        def error(model: Any) -> Any:
            graph, state = nnx.split(model)
            return jnp.mean(
                jax.lax.map(
                    lambda pair: self.loss(nnx.merge(graph, state), *pair), (inputs, outputs)
                )
            )

        return error

    def network(self, level: int, seed: int) -> FNO:
        """A network of one size."""
        return FNO(
            self.modes[level],
            self.width,
            num_layers=self.num_layers,
            spatial_dims=len(self.shapes[level]),
            # Boundary values break translation invariance: the network must know where it is.
            append_coordinates=self.grid_kind != "periodic",
            grid_kind=self.grid_kind,
            rngs=nnx.Rngs(seed),
        )

    def trainer(
        self, levels: Sequence[int], epochs: Sequence[int], entry: Entry, seed: int
    ) -> tuple[CascadeTrainer, dict[str, Any]]:
        """The networks of the levels, and the samples on each grid."""
        models = [self.network(level, 1000 * level + seed) for level in levels]
        steps = self.train // self.batch_size
        _ = self.output_scale  # made here and not while the loss is traced
        optimizer = MultilevelOptimizer(
            [
                transformation(factor * entry.rate, entry.schedule, count * steps)
                for factor, count in zip(entry.plan.factors, epochs, strict=True)
            ],
            on_transition="restart",
        )
        config = MultilevelConfig(
            num_levels=len(models), level_epochs=list(epochs), compile_ahead=False
        )
        return CascadeTrainer(models, optimizer, config=config), {
            "loss_fn": self.loss_of_image if self.symmetries else self.loss,
            "data": [(self.levels[level].inputs, self.levels[level].outputs) for level in levels],
            "batch_size": self.batch_size,
            "key": jax.random.key(seed),
        }

    __hash__ = object.__hash__


def burgers(viscosity: float) -> Callable[[int], OperatorData]:
    """Samples of Burgers' equation on 512 points."""
    return lambda samples: generate_burgers_operator_data(
        samples, 512, viscosity=viscosity, progress=True
    )


def halved(levels: Sequence[int], shares: Sequence[float]) -> Plan:
    """A plan whose levels start from half the rate of the one before."""
    return Plan(tuple(levels), tuple(shares), tuple(0.5**i for i in range(len(levels))))


BURGERS = OperatorCourse(
    "operator_burgers",
    burgers(0.1),
    train=512,
    validation=100,
    test=200,
    modes=(8, 16, 32, 64, 64),
    shapes=((32,), (64,), (128,), (256,), (512,)),
    grid_kind="periodic",
    cascades=(
        halved((0, 1), (0.5, 0.5)),
        halved((1, 2), (0.5, 0.5)),
        halved((1, 2), (0.8, 0.2)),
        halved((1, 2, 3), (0.5, 0.3, 0.2)),
        halved((1, 2, 3, 4), (0.4, 0.3, 0.2, 0.1)),
    ),
    rates=(1e-3, 3e-3),
    budget=24.0,
)
COURSES = {
    "burgers": BURGERS,
    "burgers-fronts": replace(BURGERS, name="operator_burgers-fronts", generate=burgers(0.01)),
    "darcy": OperatorCourse(
        "operator_darcy",
        lambda samples: generate_darcy_data(samples, 128, progress=True),
        train=1000,
        validation=50,
        test=100,
        modes=(8, 12, 12),
        shapes=((32, 32), (64, 64), (128, 128)),
        grid_kind="cell",
        cascades=(
            halved((0, 1), (0.3, 0.7)),
            halved((0, 1), (0.6, 0.4)),
            halved((0, 1, 2), (0.3, 0.4, 0.3)),
        ),
        rates=(1e-2, 2e-2),
        budget=30.0,
        width=16,
        symmetries=True,
    ),
}


def main() -> None:
    """Run one operator."""
    options = parser(__doc__)
    options.add_argument("--operator", choices=sorted(COURSES), default="burgers")
    options.add_argument("--quick", action="store_true", help="a few epochs, to see that it runs")
    given = options.parse_args()
    course = COURSES[given.operator]
    if given.quick:
        course = replace(course, budget=1.0, rates=course.rates[:1], cascades=course.cascades[:1])
    measure(course, given.seeds, write=not given.quick)


if __name__ == "__main__":
    main()
