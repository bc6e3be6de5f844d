"""The Laplacian inside a compiled PINN step: forward mode against the trace of ``jax.hessian``.

A step is loss and gradient of the mean squared Laplacian of a 3 x 128 tanh network on 1000 points.
The variants take turns; medians over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import jet
from rich.console import Console

from common import parser, write_results
from opifex.core.physics import laplacian
from opifex.models import MLP
from opifex.viz import comparison_table


def trace_of_hessian(u: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The usual way."""
    return lambda x: jnp.trace(jax.hessian(lambda y: u(y)[0])(x))


def nested_vmapped(u: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Second derivatives along all axes as one batched forward-over-forward pass."""

    def at(x: Any) -> Any:
        def second(direction: Any) -> Any:
            return jax.jvp(lambda y: jax.jvp(u, (y,), (direction,))[1], (x,), (direction,))[1]

        return jnp.sum(jax.vmap(second)(jnp.eye(x.shape[0], dtype=x.dtype)))

    return at


def taylor_mode(u: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Second derivatives by propagating Taylor series."""

    def at(x: Any) -> Any:
        def second(direction: Any) -> Any:
            _, (_, curvature) = jet.jet(u, (x,), ((direction, jnp.zeros_like(x)),))
            return curvature

        return jnp.sum(jax.vmap(second)(jnp.eye(x.shape[0], dtype=x.dtype)))

    return at


VARIANTS: dict[str, Callable[[Any], Any]] = {
    "trace of jax.hessian": trace_of_hessian,
    "nested jvp, vmapped": nested_vmapped,
    "jet (Taylor mode)": taylor_mode,
    "opifex.core.physics.laplacian": laplacian,
}


def add_folx() -> None:
    """The library folx, if it is installed; it is not a dependency."""
    try:
        import folx
    except ImportError:
        return
    operator = folx.ForwardLaplacianOperator(0)
    VARIANTS["folx"] = lambda u: lambda x: operator(lambda y: u(y)[0])(x)[0]


def main() -> None:
    """Time all variants."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15)
    rounds = options.parse_args().rounds
    add_folx()
    graph, params = nnx.split(MLP(2, 1, [128] * 3, rngs=nnx.Rngs(0)))
    points = jax.random.uniform(jax.random.key(0), (1000, 2))
    steps, values = {}, {}
    for name, operator in VARIANTS.items():

        def loss(p: Any, x: Any, operator: Any = operator) -> Any:
            return jnp.mean(jax.vmap(operator(nnx.merge(graph, p)))(x) ** 2)

        steps[name] = jax.jit(jax.value_and_grad(loss))
        values[name] = float(jax.block_until_ready(steps[name](params, points))[0])
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, points))
            times[name].append(time.perf_counter() - start)
    reference = float(np.median(times["trace of jax.hessian"]))
    rows = [
        {
            "variant": name,
            "ms per step": 1000 * float(np.median(times[name])),
            "speed-up": reference / float(np.median(times[name])),
            "loss": values[name],
        }
        for name in VARIANTS
    ]
    Console(width=140).print(comparison_table(rows))
    write_results("laplacian", rows=rows, rounds=rounds)


if __name__ == "__main__":
    main()
