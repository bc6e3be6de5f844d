"""What the trainer costs beside a bare compiled loop, at every level of the page's problem.

The bare loop is ``jit`` around ``lax.scan`` with donated buffers around ``value_and_grad`` and
``optax.adam``: no history, no checks. One call of `fit` runs in pieces; after each piece, in a
callback, the bare loop runs a piece of as many steps. The time of the trainer's piece is everything
between two callbacks: steps, checks, copies of the last good state, history. The ratio is the median
over the pieces of the quotients of neighbours, since the speed of a shared machine drifts; its
quartiles are shown too. The first piece, which waits for compilation, is left out on both sides; what
it costs beyond compilation is reported.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from common import parser, start_cold, write_results
from opifex.problems import Poisson
from opifex.training.multilevel import (
    CascadeTrainer,
    Monitor,
    MultilevelConfig,
    create_network_hierarchy,
)
from opifex.viz import comparison_table

PIECE_SECONDS = 1.0


def bare_loop(model: Any, problem: Poisson, points: Any, steps: int) -> tuple[Any, Any]:
    """The loop a user would write, and its first carry."""
    graph, params = nnx.split(model)
    params = jax.tree.map(lambda leaf: leaf.copy(), params)
    optimizer = optax.adam(1e-3)

    def loss(values: Any, *data: Any) -> Any:
        return problem.loss(nnx.merge(graph, values), *data)

    @partial(jax.jit, donate_argnums=0)
    def run(carry: Any, data: Any) -> Any:
        def body(carry: Any, _: None) -> Any:
            values, state = carry
            value, gradient = jax.value_and_grad(loss)(values, *data)
            updates, state = optimizer.update(gradient, state, values)
            return (optax.apply_updates(values, updates), state), value

        return jax.lax.scan(body, carry, None, length=steps)

    return run, (params, optimizer.init(params))


def measure_level(level: int, model: Any, rounds: int) -> dict[str, Any]:
    """Seconds per step of both loops on one level."""
    start_cold()
    problem = Poisson()
    points = problem.sample_points(jax.random.key(0), 1000, 100)
    trial_steps = 20
    run, carry = bare_loop(model, problem, points, trial_steps)
    carry, _ = run(carry, points)
    start = time.perf_counter()
    jax.block_until_ready(run(carry, points))
    per_step = (time.perf_counter() - start) / trial_steps
    steps = max(20, round(PIECE_SECONDS / per_step))
    run, carry = bare_loop(model, problem, points, steps)
    carry, _ = jax.block_until_ready(run(carry, points))
    bare, ours = [], []
    clock = [time.perf_counter()]

    def take_turns(_: Any) -> None:
        nonlocal carry
        ours.append(time.perf_counter() - clock[0])
        start = time.perf_counter()
        carry, losses = run(carry, points)
        np.asarray(losses)
        bare.append(time.perf_counter() - start)
        clock[0] = time.perf_counter()

    trainer = CascadeTrainer(
        [model],
        optax.adam(1e-3),
        config=MultilevelConfig(
            num_levels=1, level_epochs=[steps * (rounds + 1)], compile_ahead=False
        ),
    )
    history = trainer.fit(
        problem.loss, points, monitor=Monitor(every=steps, callbacks=[take_turns])
    )
    first = ours.pop(0) - history.compile_seconds
    bare.pop(0)
    quotients = np.divide(ours, bare)
    return {
        "level": level,
        "hidden_dims": list(model.hidden_dims),
        "steps": steps,
        "bare_ms_per_step": 1000 * float(np.median(bare)) / steps,
        "trainer_ms_per_step": 1000 * float(np.median(ours)) / steps,
        "ratio": float(np.median(quotients)),
        "quartiles": [float(q) for q in np.quantile(quotients, [0.25, 0.75])],
        "first_piece_extra_ms": 1000 * (first - float(np.median(ours))),
        "rounds": [{"bare": b, "trainer": o} for b, o in zip(bare, ours, strict=True)],
    }


def main() -> None:
    """All levels."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=25)
    given = options.parse_args()
    models = create_network_hierarchy(2, 1, [128] * 3, 3, rngs=nnx.Rngs(0))
    rows = [measure_level(level, model, given.rounds) for level, model in enumerate(models)]
    Console(width=140).print(
        comparison_table([{k: str(v) for k, v in row.items() if k != "rounds"} for row in rows])
    )
    write_results("overhead", rows=rows)


if __name__ == "__main__":
    main()
