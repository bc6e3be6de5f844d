"""From how much work a device on it pays to use more of them: what `Placement.least_work` should be.

One step of a data-parallel training is timed on every number of devices that divides all of them, for
growing numbers of samples. Twice as many devices pay where the step is faster; the least work, samples
times parameters on each of the many, at which that was so for each network is what is asked for.

Without accelerators ``--devices`` makes devices of the processor. They share its cores and its memory:
more of them than cores say how large the overhead is, and nothing about speed.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from common import parser, write_results
from opifex.models import MLP
from opifex.training.loop import CompiledLoop, LoopState, owned
from opifex.training.objective import Objective, count_parameters, split_model
from opifex.training.placement import Placement
from opifex.training.smoother import as_smoother

STEPS, ROUNDS = 20, 5
ADAM = as_smoother(optax.adam(1e-3))


def loss(model: Any, inputs: Any, targets: Any) -> Any:
    return jnp.mean((model(inputs) - targets) ** 2)


def seconds_of_a_step(devices: int, width: int, samples: int) -> float:
    """Median over some calls of the compiled loop, after one that warms up."""
    placement = Placement(Mesh(np.array(jax.devices()[:devices]), ("data",)))
    graphdef, params, rest = split_model(MLP(2, 1, [width, width], rngs=nnx.Rngs(0)))
    place = placement.at(0, samples, 1)
    inputs = np.random.default_rng(0).normal(size=(samples, 2)).astype(np.float32)
    data = inputs, np.sin(inputs).sum(axis=1, keepdims=True)
    objective = Objective(loss, graphdef, data, placement=place).placed()
    with placement.active():
        state = LoopState.start(params, rest, ADAM.init(params), jax.random.key(0), objective.data)
        loop = CompiledLoop(objective, ADAM, state.placed(place), keep_programs=False)
        times = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            state = loop.run(owned(state.placed(place)), objective, STEPS)[0]
            times.append((time.perf_counter() - start) / STEPS)
    return statistics.median(times[1:])


def least_work(seconds: list[dict[str, float]], parameters: int) -> float | None:
    """The least work of a device at which, and above which, doubling their number paid."""
    pays = {
        row["samples"] * parameters / row["devices"]: row["seconds"] < half["seconds"]
        for row in seconds
        for half in seconds
        if (half["samples"], 2 * half["devices"]) == (row["samples"], row["devices"])
    }
    least = None
    for work in sorted(pays, reverse=True):
        if not pays[work]:
            break
        least = work
    return least


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--devices", type=int, default=8, help="where there are no accelerators")
    options.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256])
    options.add_argument("--samples", type=int, nargs="+", default=[2**10, 2**13, 2**16])
    asked = options.parse_args()
    flag = f"--xla_force_host_platform_device_count={asked.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    numbers = [2**i for i in range(jax.device_count().bit_length())]
    networks = []
    for width in asked.widths:
        parameters = count_parameters(MLP(2, 1, [width, width], rngs=nnx.Rngs(0)))
        rows: list[dict[str, float]] = []
        for samples in asked.samples:
            for devices in numbers:
                seconds = seconds_of_a_step(devices, width, samples)
                rows.append({"samples": samples, "devices": devices, "seconds": seconds})
                print(f"width {width}, {samples} samples, {devices} devices: {seconds:.2e} s")
        least = least_work(rows, parameters)
        print(f"least_work of {parameters} parameters: {least}")
        networks.append({"parameters": parameters, "least_work": least, "steps": rows})
    write_results("devices", devices=jax.device_count(), networks=networks)


if __name__ == "__main__":
    main()
