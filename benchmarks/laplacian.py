"""Derivatives inside a compiled PINN step: the Laplacian, and all derivatives along one axis.

Laplacian: loss and gradient of the mean square for a 3 x 128 tanh network on 1000 points. Derivatives
along x up to u_x, ..., u_xxxx: the same of the sum of their mean squares, 3 x 64, 2000 points. The
variants take turns; medians over the rounds. The library folx is no dependency of this project: its
row appears where it is installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import jet
from rich.console import Console

from common import parser, write_results
from opifex.core.physics import directional_derivatives, laplacian
from opifex.models import MLP
from opifex.viz import comparison_table

Operator = Callable[[Callable[[Any], Any]], Callable[[Any], Any]]
"""Of a network to a function of one point."""


def trace_of_hessian(u: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The usual way."""
    return lambda x: jnp.trace(jax.hessian(u)(x))


def nested_vmapped(u: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Second derivatives along all axes as one batched forward-over-forward pass."""

    def at(x: Any) -> Any:
        seconds = jax.vmap(lambda v: nested(u, v, 2)(x)[2])(jnp.eye(x.shape[0], dtype=x.dtype))
        return jnp.sum(seconds)

    return at


def jet_vmapped(u: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Second derivatives by JAX's Taylor mode."""

    def at(x: Any) -> Any:
        return jnp.sum(
            jax.vmap(lambda v: by_jet(u, v, 2)(x)[2])(jnp.eye(x.shape[0], dtype=x.dtype))
        )

    return at


def nested(u: Callable[[Any], Any], v: Any, order: int) -> Callable[[Any], Any]:
    """Value and derivatives along ``v`` by forward mode in forward mode."""

    def raised(below: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def at(x: Any) -> Any:
            values, slopes = jax.jvp(below, (x,), (v,))
            return (*values, slopes[-1])

        return at

    at: Callable[[Any], Any] = lambda x: (u(x),)  # noqa: E731
    for _ in range(order):
        at = raised(at)
    return at


def by_jet(u: Callable[[Any], Any], v: Any, order: int) -> Callable[[Any], Any]:
    """Value and derivatives along ``v`` by JAX's Taylor mode."""

    def at(x: Any) -> Any:
        value, above = jet.jet(u, (x,), ((v, *[jnp.zeros_like(x)] * (order - 1)),))
        return (value, *above)

    return at


LAPLACIANS: dict[str, Operator] = {
    "trace of jax.hessian": trace_of_hessian,
    "nested jvp, vmapped": nested_vmapped,
    "jet (Taylor mode)": jet_vmapped,
    "opifex.core.physics.laplacian": laplacian,
}
ALONG_AN_AXIS: dict[str, Callable[..., Callable[[Any], Any]]] = {
    "nested jvp": nested,
    "jet (Taylor mode)": by_jet,
    "opifex.core.physics.directional_derivatives": directional_derivatives,
}


def add_folx() -> None:
    """The forward Laplacian of the library folx, if it is installed."""
    try:
        import folx
    except ImportError:
        print("folx is not installed: no row for it (pip install folx)")
        return
    operator = folx.ForwardLaplacianOperator(0)
    LAPLACIANS[f"folx {version('folx')}"] = lambda u: lambda x: operator(u)(x)[0]


def measure(
    operators: dict[str, Operator], width: int, num_points: int, rounds: int
) -> list[dict[str, Any]]:
    """One row per operator; speed-ups are relative to the first."""
    graph, params = nnx.split(MLP(2, 1, [width] * 3, rngs=nnx.Rngs(0)))
    points = jax.random.uniform(jax.random.key(0), (num_points, 2))
    steps, values = {}, {}
    for name, operator in operators.items():

        def loss(p: Any, x: Any, operator: Operator = operator) -> Any:
            found = jax.vmap(operator(lambda y: nnx.merge(graph, p)(y)[0]))(x)
            return sum(jnp.mean(part**2) for part in jax.tree.leaves(found))

        steps[name] = jax.jit(jax.value_and_grad(loss))
        values[name] = float(jax.block_until_ready(steps[name](params, points))[0])
    times: dict[str, list[float]] = {name: [] for name in operators}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, points))
            times[name].append(time.perf_counter() - start)
    reference = float(np.median(next(iter(times.values()))))
    return [
        {
            "variant": name,
            "ms per step": 1000 * float(np.median(times[name])),
            "speed-up": reference / float(np.median(times[name])),
            "loss": values[name],
        }
        for name in operators
    ]


def main() -> None:
    """Time all variants."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15)
    rounds = options.parse_args().rounds
    add_folx()
    rows = measure(LAPLACIANS, 128, 1000, rounds)
    along_x = jnp.array([1.0, 0.0])
    derivatives = []
    for order in range(1, 5):
        operators: dict[str, Operator] = {
            name: lambda u, make=make, order=order: make(u, along_x, order)
            for name, make in ALONG_AN_AXIS.items()
        }
        found = measure(operators, 64, 2000, rounds)
        derivatives += [{"up to": f"u_{'x' * order}", **row} for row in found]
    for table in (rows, derivatives):
        Console(width=140).print(comparison_table(table))
    write_results("laplacian", rows=rows, derivatives=derivatives, rounds=rounds)


if __name__ == "__main__":
    main()
