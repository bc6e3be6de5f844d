"""Seconds to a given error for PINNs: a cascade against the best single network, see `race.py`.

Both sides use Adam in the same compiled loop in the same precision. The size of a network goes with
the number of its points. Validation errors are measured on random points, reported errors on a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import jax
import optax
from flax import nnx

from common import parser
from opifex.models import MLP
from opifex.problems import Helmholtz, Poisson, Problem, interior_points
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelConfig,
    MultilevelOptimizer,
    create_multiscale_hierarchy,
)
from race import Course, Entry, Metric, Plan, measure


@dataclass(frozen=True)
class Size:
    """A network and the number of its interior points."""

    hidden_dims: tuple[int, ...]
    interior: int


def plain_network(size: Size, rngs: nnx.Rngs) -> nnx.Module:
    """A tanh network."""
    return MLP(2, 1, size.hidden_dims, rngs=rngs)


def frequency_bands(size: Size, rngs: nnx.Rngs) -> nnx.Module:
    """A sine network in three bands of frequencies."""
    frequencies = (5.0, 10.0, 20.0)
    return create_multiscale_hierarchy(2, 1, size.hidden_dims, frequencies, bands=[3], rngs=rngs)[0]


@cache
def transformation(rate: float, schedule: str, steps: int) -> optax.GradientTransformation:
    """Adam with one of the schedules; the same object again, so that its programs can be used again."""
    if schedule == "constant":
        return optax.adam(rate)
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


@dataclass(frozen=True)
class PinnCourse(Course):
    """A boundary value problem with networks of several sizes."""

    name: str
    problem: Problem
    networks: tuple[Size, ...]
    cascades: Sequence[Plan]
    rates: Sequence[float]
    boundary: int
    budget: float = 12.0
    build: Callable[[Size, nnx.Rngs], nnx.Module] = plain_network
    schedules: Sequence[str] = field(default=("constant", "cosine"))
    probe: int = 200

    @property
    def sizes(self) -> Sequence[str]:  # type: ignore[override]
        """Widths and interior points."""
        return [f"{list(size.hidden_dims)} on {size.interior} points" for size in self.networks]

    def trainer(
        self, levels: Sequence[int], epochs: Sequence[int], entry: Entry, seed: int
    ) -> tuple[CascadeTrainer, dict[str, Any]]:
        """The networks of the levels, and the points of each."""
        chosen = [self.networks[level] for level in levels]
        models = [self.build(size, nnx.Rngs(1000 * i + seed)) for i, size in enumerate(chosen)]
        optimizer = MultilevelOptimizer(
            [
                transformation(factor * entry.rate, entry.schedule, steps)
                for factor, steps in zip(entry.plan.factors, epochs, strict=True)
            ],
            on_transition="restart",
        )
        config = MultilevelConfig(
            num_levels=len(models), level_epochs=list(epochs), compile_ahead=False
        )
        key = jax.random.key(seed)
        data = [self.problem.sample_points(key, size.interior, self.boundary) for size in chosen]
        return CascadeTrainer(models, optimizer, config=config), {
            "loss_fn": self.problem.loss,
            "data": data,
        }

    def metric(self, which: str) -> Metric:
        """The relative error, on random points or on the grid."""
        domain = self.problem.domain
        points = (
            self.problem.evaluation_points()
            if which == "test"
            else interior_points(2000, domain, key=jax.random.key(12345))
        )
        return lambda model: self.problem.relative_l2_error(model, points)


COURSES = {
    "poisson": PinnCourse(
        "pinn_poisson",
        Poisson(),
        (
            Size((32, 32), 250),
            Size((64, 64), 500),
            Size((128, 128), 1000),
            Size((32, 32, 32), 250),
            Size((64, 64, 64), 500),
            Size((128, 128, 128), 1000),
        ),
        (
            Plan((0, 1), (0.5, 0.5), (1.0, 1.0)),
            Plan((0, 1, 2), (0.3, 0.3, 0.4), (1.0, 1.0, 1.0)),
            Plan((3, 4), (0.5, 0.5), (1.0, 1.0)),
            Plan((3, 4), (0.5, 0.5), (1.0, 0.3)),
            Plan((3, 4, 5), (0.3, 0.3, 0.4), (1.0, 1.0, 1.0)),
            Plan((3, 4, 5), (0.15, 0.25, 0.6), (1.0, 0.5, 0.3)),
        ),
        rates=(3e-3, 1e-2),
        boundary=100,
    ),
    # Residuals are k^2 times as large as the solution: with a weight of 100 the loss hardly sees the
    # boundary, and waves that satisfy the equation alone stay in the error. Bands of tanh stay at
    # losses a hundred times as high; one hidden layer of sines per band solves it in seconds.
    "helmholtz": PinnCourse(
        "pinn_helmholtz",
        Helmholtz(boundary_weight=1e4),
        (Size((16,), 250), Size((32,), 500), Size((64,), 500), Size((128,), 1000)),
        (
            Plan((0, 1), (0.4, 0.6), (1.0, 0.5)),
            Plan((1, 2), (0.4, 0.6), (1.0, 0.5)),
            Plan((0, 1, 2), (0.2, 0.2, 0.6), (1.0, 1.0, 0.3)),
            Plan((1, 2, 3), (0.2, 0.2, 0.6), (1.0, 1.0, 0.3)),
        ),
        rates=(4e-2, 8e-2),
        boundary=200,
        build=frequency_bands,
    ),
}


def main() -> None:
    """Run the chosen problem."""
    options = parser(__doc__)
    options.add_argument("--problem", choices=sorted(COURSES), default="poisson")
    options.add_argument("--quick", action="store_true", help="a second each, to see that it runs")
    given = options.parse_args()
    course = COURSES[given.problem]
    if given.quick:
        course = replace(course, budget=0.5, rates=course.rates[:1], schedules=("cosine",))
    measure(course, given.seeds, write=not given.quick)


if __name__ == "__main__":
    main()
