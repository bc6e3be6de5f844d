"""One run of one method on one problem of `second_order.py`, in a process of its own.

`rivals.py` starts it, in the environment of the package that the method needs, on one core. The last
line of its output is JSON. Clocks start with the first step of work, which is to draw points and
parameters, and leave out evaluations; seconds of processor and elapsed seconds include compilation,
``seconds`` do not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from opifex.core.residuals import mean_square_loss
from random_features import Settings, solve
from second_order import CASES, Case, data_of, methods, network, resampler, terms_of
from soap import scale_by_soap

STEPS = 25  # of a first-order method in one compiled call
EVALUATIONS = 60
VALIDATION = 2000  # points, of another key than those of training


@dataclass
class Clock:
    """Seconds of work since it was made, wall and processor, with compilation set apart."""

    compile_seconds: float = 0.0
    aside: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def __post_init__(self) -> None:
        self.start = self.raw()

    @staticmethod
    def raw() -> tuple[float, float]:
        """Wall and processor."""
        return time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """What runs inside is compilation."""
        began = time.perf_counter()
        yield
        self.compile_seconds += time.perf_counter() - began

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """What runs inside does not count."""
        began = self.raw()
        yield
        self.aside = [a + n - b for a, n, b in zip(self.aside, self.raw(), began, strict=True)]

    @property
    def processor(self) -> float:
        """Seconds of processor so far, with compilation."""
        return self.raw()[1] - self.start[1] - self.aside[1]

    def read(self) -> dict[str, float]:
        """All clocks, by the names of `second_order.Run`."""
        elapsed = self.raw()[0] - self.start[0] - self.aside[0]
        return {
            "seconds": elapsed - self.compile_seconds,
            "elapsed_seconds": elapsed,
            "processor_seconds": self.processor,
        }


class Judge:
    """Errors on the grid that no training sees, and the loss on validation points."""

    def __init__(self, case: Case, seed: int, reference: str) -> None:
        arrays = np.load(reference)
        self.grid, self.exact = jnp.asarray(arrays["points"]), jnp.asarray(arrays["exact"])
        self.terms = terms_of(case)
        level = replace(case.levels[-1], interior=VALIDATION)
        self.points = data_of(case, level, 10**6 + seed)

    def error(self, model: Any) -> jax.Array:
        """The relative error."""
        difference = jax.vmap(model)(self.grid) - self.exact
        return jnp.linalg.norm(difference) / jnp.linalg.norm(self.exact)

    def validation_loss(self, model: Any) -> jax.Array:
        """The case's own loss on points that are not those of the training."""
        return mean_square_loss(self.terms, model, *self.points)


@dataclass
class Report:
    """What a run did."""

    clock: Clock
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    parameters: int = 0
    validation_loss: float = float("inf")

    def add(self, error: float, loss: float) -> bool:
        """One more point of the curve; whether the numbers are still finite."""
        self.curve.append({"error": error, "loss": loss, "steps": self.steps, **self.clock.read()})
        return bool(np.isfinite(error))


class Training:
    """The finest network of a case with its data, as functions of flat parameters."""

    def __init__(self, case: Case, seed: int, judge: Judge) -> None:
        self.clock = Clock()
        level = case.levels[-1]
        self.graph, self.start = nnx.split(network(case, level, seed), nnx.Param)
        self.data = data_of(case, level, seed)
        self.terms, self.draw = terms_of(case), resampler(case)
        self.keys = jax.random.split(jax.random.key(seed), 10**4)
        self.report = Report(
            self.clock, parameters=sum(x.size for x in jax.tree.leaves(self.start))
        )
        with self.clock.evaluating():
            self.judged = jax.jit(lambda p: judge.error(self.model(p))).lower(self.start).compile()
            self.validated = jax.jit(lambda p: judge.validation_loss(self.model(p)))
        if self.draw is not None:
            draw = self.draw
            with self.clock.compiling():
                resample = jax.jit(lambda p, data, key: draw(self.model(p), data, key))
                arguments = (self.start, self.data, self.keys[0])
                self.resampled = resample.lower(*arguments).compile()

    def model(self, params: Any) -> Any:
        """The function with these parameters."""
        return nnx.merge(self.graph, params)

    def loss(self, params: Any, data: Any) -> jax.Array:
        """What is minimised."""
        return mean_square_loss(self.terms, self.model(params), *data)

    def note(self, params: Any, loss: Any) -> bool:
        """Evaluate and record."""
        with self.clock.evaluating():
            value, error = float(loss), float(self.judged(params))
        return self.report.add(error, value)

    def finish(self, params: Any) -> Report:
        """Judge the last parameters on validation points."""
        with self.clock.evaluating():
            self.report.validation_loss = float(self.validated(params))
        return self.report


def first_order(
    direction: Callable[..., optax.GradientTransformation],
    case: Case,
    seed: int,
    judge: Judge,
    settings: dict[str, Any],
    budget: float,
) -> Report:
    """Adam or SOAP; the rate falls like a cosine of the part of the budget that is spent.

    Settings: ``rate``, ``schedule`` (constant or cosine), and what the direction takes. New points
    are drawn at every evaluation where the case wants that.
    """
    rate, schedule = settings["rate"], settings["schedule"]
    own = {name: v for name, v in settings.items() if name not in ("rate", "schedule")}
    training, transformation = Training(case, seed, judge), direction(**own)

    def chunk(params: Any, state: Any, data: Any, size: jax.Array) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            loss, grads = jax.value_and_grad(training.loss)(params, data)
            updates, state = transformation.update(grads, state, params)
            return (jax.tree.map(lambda p, u: p - size * u, params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), None, STEPS)
        return params, state, losses[-1]

    params, data, state = training.start, training.data, transformation.init(training.start)
    size = jnp.asarray(rate)
    with training.clock.compiling():
        compiled = jax.jit(chunk).lower(params, state, data, size).compile()
    return in_chunks(
        training,
        budget,
        lambda params, state, data, size: compiled(params, state, data, jnp.asarray(size)),
        params,
        state,
        lambda part: rate * (0.5 * (1 + np.cos(np.pi * part)) if schedule == "cosine" else 1.0),
        STEPS,
    )


def in_chunks(
    training: Training,
    budget: float,
    compiled: Callable[..., Any],
    params: Any,
    state: Any,
    size: Callable[[float], float],
    steps: int,
) -> Report:
    """Call a compiled chunk until the budget is spent; look in and draw points now and then."""
    data, next_look = training.data, 0.0
    while True:
        part = min(1.0, training.clock.processor / budget)
        params, state, loss = compiled(params, state, data, size(part))
        loss.block_until_ready()
        training.report.steps += steps
        over = training.clock.processor >= budget
        if over or training.clock.processor >= next_look:
            finite = training.note(params, loss)
            if over or not finite:
                return training.finish(params)
            next_look = training.clock.processor + budget / EVALUATIONS
            if training.draw is not None:
                key = training.keys[len(training.report.curve)]
                data = training.resampled(params, data, key)


def limited_memory(
    case: Case, seed: int, judge: Judge, settings: dict[str, Any], budget: float
) -> Report:
    """L-BFGS of Optax with its line search; ``memory`` is the number of pairs. Points stay."""
    training, steps = Training(case, seed, judge), 5
    training.draw = None
    solver = optax.lbfgs(memory_size=settings["memory"])

    def chunk(params: Any, state: Any, data: Any) -> Any:
        def value(p: Any) -> jax.Array:
            return training.loss(p, data)

        reuse = optax.value_and_grad_from_state(value)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            loss, grads = reuse(params, state=state)
            updates, state = solver.update(
                grads, state, params, value=loss, grad=grads, value_fn=value
            )
            return (optax.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), None, steps)
        return params, state, losses[-1]

    params, state = training.start, solver.init(training.start)
    with training.clock.compiling():
        compiled = jax.jit(chunk).lower(params, state, training.data).compile()
    return in_chunks(
        training, budget, lambda p, s, d, _: compiled(p, s, d), params, state, lambda _: 0.0, steps
    )


def self_scaled(
    case: Case, seed: int, judge: Judge, settings: dict[str, Any], budget: float
) -> Report:
    """A solver of ``ssbroyden-optimistix``, its steps in a compiled loop.

    Settings: ``solver``, a name of that package; ``guess``, the first step of its line search;
    ``own``, further arguments of the solver; ``factor`` of the loss, which is what the first
    Hessian, the identity, is compared with; ``draws``, how often in the budget points are drawn anew,
    after which the Hessian begins as the identity again.
    """
    import equinox as eqx
    import ssbroyden_optimistix as package

    training, calls = Training(case, seed, judge), 20
    start, unravel = jax.flatten_util.ravel_pytree(training.start)
    factor, draws = settings["factor"], settings["draws"]
    solver = getattr(package, settings["solver"])(
        rtol=0.0,
        atol=0.0,
        search=package.Zoom(initial_guess_strategy=settings["guess"]),
        **settings.get("own", {}),
    )

    def value(y: jax.Array, data: Any) -> tuple[jax.Array, None]:
        return factor * training.loss(unravel(y), data), None

    shape = jax.ShapeDtypeStruct((), start.dtype)

    @jax.jit
    def begin(y: jax.Array, data: Any) -> Any:
        return eqx.filter(solver.init(value, y, data, {}, shape, None, frozenset()), eqx.is_array)

    with training.clock.compiling():
        fixed = eqx.filter(
            eqx.filter_eval_shape(
                solver.init, value, start, training.data, {}, shape, None, frozenset()
            ),
            lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct),
        )
        starting = begin.lower(start, training.data).compile()
        state = starting(start, training.data)

        def chunk(y: jax.Array, state: Any, data: Any) -> Any:
            def step(_: int, carry: Any) -> Any:
                y, arrays = carry
                y, new, _ = solver.step(value, y, data, {}, eqx.combine(arrays, fixed), frozenset())
                return y, eqx.filter(new, eqx.is_array)

            y, state = jax.lax.fori_loop(0, calls, step, (y, state))
            return y, state, value(y, data)[0] / factor

        compiled = jax.jit(chunk).lower(start, state, training.data).compile()
    y, data, next_look, redrawn = start, training.data, 0.0, 0
    while True:
        y, state, loss = compiled(y, state, data)
        loss.block_until_ready()
        training.report.steps += calls
        spent = training.clock.processor
        if spent < next_look and spent < budget:
            continue
        finite = training.note(unravel(y), loss)
        if spent >= budget or not finite:
            return training.finish(unravel(y))
        next_look = training.clock.processor + budget / EVALUATIONS
        if training.draw is not None and spent > (redrawn + 1) * budget / (draws + 1):
            redrawn += 1
            data = training.resampled(unravel(y), data, training.keys[redrawn])
            state = starting(y, data)


def features(
    case: Case, seed: int, judge: Judge, settings: dict[str, Any], budget: float
) -> Report:
    """Random features; it ends after its solves, or with the budget."""
    clock, own = Clock(), Settings(**settings)
    report, last = Report(clock, parameters=own.features), None
    for last in solve(case, own, seed, clock.compiling):
        with clock.evaluating():
            error = float(judge.error(last.model))
        report.steps = last.solves
        if not report.add(error, last.loss) or clock.processor >= budget:
            break
    if last is not None:
        report.validation_loss = float(judge.validation_loss(last.model))
    return report


def ours(case: Case, seed: int, judge: Judge, settings: dict[str, Any], budget: float) -> Report:
    """Levenberg-Marquardt on the finest network, as `second_order.py` runs it."""
    del judge, settings
    run = methods(case)["lm-alone"](seed, budget)
    level = case.levels[-1]
    leaves = jax.tree.leaves(nnx.state(network(case, level, seed), nnx.Param))
    report = Report(Clock(run.compile_seconds), run.curve, parameters=sum(x.size for x in leaves))
    report.validation_loss = float("nan")
    return report


RUNS: dict[str, Callable[..., Report]] = {
    "lm-alone": ours,
    "random-features": features,
    "ssbroyden": self_scaled,
    "soap": partial(first_order, scale_by_soap),
    "adam": partial(first_order, optax.scale_by_adam),
    "l-bfgs": limited_memory,
}


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {}
    for name in ("jax", "jaxlib", "optax", "scipy", "ssbroyden-optimistix", "optimistix"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main() -> None:
    """Run once and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", required=True, choices=list(CASES))
    parser.add_argument("--method", required=True, choices=list(RUNS))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--budget", type=float, required=True, help="seconds of processor")
    parser.add_argument("--reference", required=True, help="points and solution")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    case = CASES[given.problem]
    judge = Judge(case, given.seed, given.reference)
    report = RUNS[given.method](case, given.seed, judge, given.settings, given.budget)
    print(
        json.dumps(
            {
                "curve": report.curve,
                "compile_seconds": report.clock.compile_seconds,
                "steps": report.steps,
                "parameters": report.parameters,
                "validation_loss": report.validation_loss,
                "versions": versions(),
            }
        )
    )


if __name__ == "__main__":
    main()
