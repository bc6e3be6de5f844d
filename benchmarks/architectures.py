"""Models of users (U-Net, attention, DeepONet): the finest one alone against a cascade, equal seconds.

The models know nothing of levels (`models_of_users.py`); all transfers are inferred. Clocks, tuning and
errors are those of `race.py`: processor seconds of one thread from the first to the last, with
compilation, transfers and their verification and without evaluations; rates and plans are chosen by the
validation error on a seed of their own, where the finest model alone has three rates, and each of the
two plans of a cascade the best of these; errors are relative L2 on test samples. Other than in a race
both sides get the same seconds *with* compilation: what a plan spends on that is measured first, and its
levels share the rest.

Every seed then runs the finest model alone, the best plan, and the best plan in half the seconds. The
*time to the same error* is that to the error with which the finest model alone ends on that seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
from flax import nnx

from common import final, parser, read_results, write_results
from darcy_small import all_samples
from models_of_users import AttentionOperator, DeepONet, UNet, grid_points
from operator_time_to_accuracy import OperatorCourse, halved
from opifex.core.metrics import relative_l2
from opifex.data import generate_burgers_operator_data
from opifex.training.multilevel import History
from race import CONSOLE, TUNING_SEED, Entry, Plan, advantage, label, outcome, quartiles

NAME = "architectures"


def call_with_field(model: Any, inputs: Any) -> Any:
    """The output of a model that takes a field."""
    return model(inputs)


def call_with_places(model: Any, inputs: Any) -> Any:
    """The output, on the points of the input, of a model that also takes places."""
    return model(inputs, grid_points(inputs.shape[1:-1]))


@dataclass(frozen=True)
class UserCourse(OperatorCourse):
    """Models of somebody's own instead of Fourier operators.

    Attributes:
        title: the architecture.
        problem: what is learned.
        widths: of each size.
        build: makes a model, ``build(width, rngs=rngs)``.
        call: ``call(model, inputs)`` gives the outputs.
    """

    title: str = ""
    problem: str = ""
    widths: tuple[int, ...] = ()
    build: Callable[..., nnx.Module] = UNet
    call: Callable[[Any, Any], Any] = call_with_field

    @property
    def sizes(self) -> Sequence[str]:  # type: ignore[override]
        """Widths and grids."""
        return [
            f"width {width} on {' x '.join(map(str, shape))}"
            for width, shape in zip(self.widths, self.shapes, strict=True)
        ]

    @cache  # noqa: B019 (one course lives as long as the program)
    def network(self, level: int, seed: int) -> Any:
        """A model of one size; trainers copy it."""
        return self.build(self.widths[level], rngs=nnx.Rngs(seed))

    def loss(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """Mean relative error of the samples."""
        return relative_l2(self.output_scale.denormalize(self.call(model, inputs)), outputs)

    __hash__ = object.__hash__


RATES = (1e-3, 3e-3, 6e-3)
"""Of the finest model alone; both plans of a cascade then start from the best one."""

HALF = 0.5
"""Share of the seconds that tuning and the short runs get."""


def darcy(title: str, build: Callable[..., nnx.Module], **more: Any) -> UserCourse:
    """A course on the shipped Darcy data."""
    settings: dict[str, Any] = {
        "shapes": ((8, 8), (16, 16), (16, 16)),
        "generate": all_samples,
        "train": 900,
        "validation": 100,
        "test": 50,
        "grid_kind": "cell",
    }
    return course(title, "Darcy, 16 x 16", build, settings | more)


def burgers_fronts(title: str, build: Callable[..., nnx.Module], **more: Any) -> UserCourse:
    """A course on Burgers' equation with fronts."""
    settings: dict[str, Any] = {
        "shapes": ((64,), (128,), (128,)),
        "generate": lambda samples: generate_burgers_operator_data(samples, 128, viscosity=0.01),
        "train": 512,
        "validation": 100,
        "test": 100,
        "grid_kind": "periodic",
    }
    return course(title, "Burgers, 128 points", build, settings | more)


def course(
    title: str, problem: str, build: Callable[..., nnx.Module], settings: dict[str, Any]
) -> UserCourse:
    """A course of three sizes: narrow on a coarse grid, narrow on the finest one, finest."""
    defaults: dict[str, Any] = {
        "modes": (1, 1, 1),
        "cascades": (halved((1, 2), (0.5, 0.5)), halved((0, 2), (0.5, 0.5))),
        "rates": RATES,
        "probe": 2,
        "evaluations": 30,
        "budget": 20.0,
    }
    return UserCourse(
        name=f"{title}, {problem}", title=title, problem=problem, build=build, **defaults | settings
    )


# The sensors of a DeepONet are inputs like others: its grid cannot be coarser, only it can be narrower.
NARROWER: dict[str, Any] = {
    "call": call_with_places,
    "widths": (32, 64, 128),
    "cascades": (halved((1, 2), (0.5, 0.5)), halved((0, 1, 2), (0.25, 0.25, 0.5))),
    "budget": 12.0,
}
COURSES = {
    "unet-darcy": darcy("U-Net", partial(UNet, depth=2, axes=2), widths=(4, 4, 8), budget=30.0),
    "attention-darcy": darcy(
        "attention", partial(AttentionOperator, blocks=2, axes=2), widths=(16, 16, 32)
    ),
    "unet-burgers": burgers_fronts(
        "U-Net", partial(UNet, depth=2, axes=1, padding="CIRCULAR"), widths=(8, 8, 16), budget=30.0
    ),
    "attention-burgers": burgers_fronts(
        "attention",
        partial(AttentionOperator, blocks=2, axes=1, periodic=True),
        widths=(16, 16, 32),
    ),
    "deeponet-burgers": burgers_fronts(
        "DeepONet",
        partial(DeepONet, sensors=128, axes=1),
        shapes=((128,), (128,), (128,)),
        **NARROWER,
    ),
    "deeponet-darcy": darcy(
        "DeepONet",
        partial(DeepONet, sensors=256, axes=2),
        shapes=((16, 16), (16, 16), (16, 16)),
        **NARROWER,
    ),
}


@dataclass(frozen=True)
class Price:
    """What a plan costs, in processor seconds.

    Attributes:
        fixed: compilation, transfers and their verification.
        epochs: an epoch of each of its levels.
    """

    fixed: float
    epochs: tuple[float, ...]

    def affordable(self, plan: Plan, seconds: float) -> list[int]:
        """Epochs of each level, so that all together takes so many seconds."""
        left = max(0.0, seconds - self.fixed)
        return [
            max(1, round(share * left / epoch))
            for share, epoch in zip(plan.shares, self.epochs, strict=True)
        ]


def price_of(history: History, epochs: Sequence[int]) -> Price:
    """What a plan has cost in a run with so many epochs on each of its levels."""
    spent = [
        sum(stretch.seconds for stretch in history.stretches if stretch.level == level)
        for level in range(len(epochs))
    ]
    return Price(
        history.elapsed_seconds - history.seconds,
        tuple(seconds / count for seconds, count in zip(spent, epochs, strict=True)),
    )


@dataclass(frozen=True)
class Trial:
    """A run of an entry on the tuning seed.

    Attributes:
        entry: the entry.
        history: of the run.
        price: what it has cost.
    """

    entry: Entry
    history: History
    price: Price

    @property
    def error(self) -> float:
        """What it ended with on validation data."""
        return final(self.history)


def tuned(course: UserCourse, alone: Plan) -> list[Trial]:
    """Half the seconds on the tuning seed: the finest model with every rate, plans with the best."""
    metric, seconds, trials = course.metric("validation"), HALF * course.budget, []

    def run(plan: Plan, rates: Sequence[float]) -> None:
        first = Entry(plan, rates[0], "cosine", seconds)
        probes = [course.probe] * len(plan.levels)
        price = price_of(course.run(first, TUNING_SEED, None, probes), probes)
        for rate in rates:
            entry, epochs = replace(first, rate=rate), price.affordable(plan, seconds)
            history = course.run(entry, TUNING_SEED, metric, epochs)
            price = price_of(history, epochs)
            trials.append(Trial(entry, history, price))
            CONSOLE.print(f"{course.name}: {label(course, entry)}: {trials[-1].error:.3g}")

    run(alone, course.rates)
    best = min(trials, key=lambda trial: trial.error).entry.rate
    for plan in course.cascades:
        run(plan, [best])
    return trials


def compare(course: UserCourse, seeds: Sequence[int]) -> dict[str, Any]:
    """Tune, then run all seeds of one course."""
    alone = Plan((len(course.sizes) - 1,))
    trials = tuned(course, alone)
    single, ours = (
        min((t for t in trials if (t.entry.plan == alone) == is_alone), key=lambda t: t.error)
        for is_alone in (True, False)
    )
    sides = {
        "alone": (replace(single.entry, budget=course.budget), single.price),
        "cascade": (replace(ours.entry, budget=course.budget), ours.price),
        "half": (ours.entry, ours.price),
    }
    metric, runs = course.metric("test"), []
    for seed in seeds:
        histories = {
            side: course.run(entry, seed, metric, price.affordable(entry.plan, entry.budget))
            for side, (entry, price) in sides.items()
        }
        target = final(histories["alone"])
        run: dict[str, Any] = {side: outcome(found, target) for side, found in histories.items()}
        for side in ("cascade", "half"):
            run[f"alone_over_{side}"] = advantage(run["alone"], run[side], "seconds")
            run[f"error_alone_over_{side}"] = target / run[side]["final_error"]
        runs.append({"seed": seed, **run})
        CONSOLE.print(
            {"seed": seed}
            | {side: round(run[side]["final_error"], 4) for side in sides}
            | {f"{side}, s": round(run[side]["all_seconds"], 1) for side in sides}
            | {name: value for name, value in run.items() if "_over_" in name}
        )
    return {
        "title": course.title,
        "problem": course.problem,
        "parameters": [
            sum(leaf.size for leaf in jax.tree.leaves(nnx.state(course.network(i, 0), nnx.Param)))
            for i in range(len(course.sizes))
        ],
        "budget": course.budget,
        "tuning": [
            {
                "side": "alone" if trial.entry.plan == alone else "cascade",
                "entry": label(course, trial.entry),
                "error": trial.error,
                "seconds": trial.history.elapsed_seconds,
                "training_seconds": trial.history.seconds,
            }
            for trial in trials
        ],
        "entries": {side: label(course, entry) for side, (entry, _) in sides.items()},
        "runs": runs,
        "ratios": {
            name: quartiles([run[name] for run in runs]) for name in runs[0] if "_over_" in name
        },
    }


def main() -> None:
    """Run all courses, or some, and keep those that were run before."""
    options = parser(__doc__)
    options.set_defaults(seeds=[0, 1, 2])
    options.add_argument("--courses", nargs="+", choices=list(COURSES), default=list(COURSES))
    options.add_argument("--quick", action="store_true", help="seconds only, to see that it runs")
    given = options.parse_args()
    kept = {} if given.quick else (read_results(NAME) or {}).get("courses", {})
    for name in given.courses:
        chosen = COURSES[name]
        if given.quick:
            chosen = replace(chosen, budget=1.0, probe=1, rates=RATES[:1])
        kept[name] = compare(chosen, given.seeds)
        if not given.quick:  # a long run that is cut off leaves what it had
            found = {key: kept[key] for key in COURSES if key in kept}
            # What makes all of the file, whichever calls have made its parts.
            write_results(NAME, command="python benchmarks/architectures.py", courses=found)


if __name__ == "__main__":
    main()
