"""Train a PINN with jinns on one of our problems; run by `jinns_peer.py` in jinns's own environment.

Network, collocation points, loss weights, optimizer, iterations and precision are those of the
notebook "Burgers equation in 1D" of jinns's documentation (Notebooks/PDE/1D_non_stationary_Burgers,
the PINN part); see `jinns_peer.py`. With ``--interior`` the conditions hold by construction, by
input and output transforms as in its notebook "Navier Stokes in a pipe flow (stationary 2D) with
hard constraints", and the points are given. Time stamps and parameters are taken after every
iteration by a validation module, jinns's own hook, and errors are computed after the training, off
the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import time
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jinns
import numpy as np
from flax import nnx
from jax.experimental import io_callback
from jinns.optimizers import vanilla_ngd
from jinns.validation import AbstractValidationModule

import opifex.problems

HIDDEN = (16, 16, 16)
INTERIOR, BORDER, INITIAL = 900, 2000, 2000


class Stopwatch:
    """Keeps what a run went through and says when it is over, on the side of the host."""

    def __init__(self, iterations: int, budget: float) -> None:
        self.iterations, self.budget = iterations, budget
        self.start = time.process_time()
        self.times: list[float] = []
        self.processor: list[float] = []
        self.networks: list[Any] = []

    def __call__(self, network: Any) -> np.bool_:
        """Note the time and the network; true once the budget, or the iterations, are over."""
        self.times.append(time.perf_counter())
        self.processor.append(time.process_time() - self.start)
        self.networks.append(jax.tree.map(np.array, network))
        if self.budget > 0:
            return np.bool_(self.processor[-1] >= self.budget)
        return np.bool_(len(self.times) >= self.iterations)


class Watched(AbstractValidationModule):
    """Calls a stopwatch after every iteration; it may end the training, and selects nothing."""

    stopwatch: Stopwatch = eqx.field(static=True, kw_only=True)
    call_every: int = eqx.field(static=True, kw_only=True, default=1)

    def __call__(self, params: Any) -> tuple[Any, Any, Any, Any]:
        """The module itself, whether to stop, a criterion (unused), whether it is the best."""
        shape = jax.ShapeDtypeStruct((), jnp.bool_)
        over = io_callback(self.stopwatch, shape, params.nn_params, ordered=True)
        return self, over, jnp.zeros(()), False


class AllenCahn(jinns.loss.PDENonStatio):
    """The residual u_t - epsilon u_xx - rho (u - u^3) at a point (t, x)."""

    def equation(self, t_x: jax.Array, u: Any, params: Any) -> jax.Array:
        """One value, as a vector."""

        def value(y: jax.Array) -> jax.Array:
            return u(y, params).squeeze()

        slopes = jax.grad(value)
        v = value(t_x)
        v_xx = jax.grad(lambda y: slopes(y)[1])(t_x)[1:2]
        constants = params.eq_params
        return slopes(t_x)[:1] - constants.diffusivity * v_xx - constants.reaction * (v - v**3)


class Helmholtz(jinns.loss.PDEStatio):
    """The residual of the Helmholtz problem with the solution of two waves."""

    half_waves: int = eqx.field(static=True, kw_only=True, default=4)

    def equation(self, x: jax.Array, u: Any, params: Any) -> jax.Array:
        """One value, as a vector."""
        constants = params.eq_params
        squared = constants.wave_number**2

        def wave(n: int) -> jax.Array:
            return jnp.sin(n * jnp.pi * x[0]) * jnp.sin(n * jnp.pi * x[1])

        source = (squared - 2 * jnp.pi**2) * wave(1)
        fine = constants.amplitude * wave(self.half_waves)
        source += (squared - 2 * (self.half_waves * jnp.pi) ** 2) * fine
        curvature = jinns.loss.laplacian_rev(x, u, params, eq_type="PDEStatio")
        return curvature + squared * u(x, params) - source


class Periodic(jinns.loss.BoundaryConditionAbstract):
    """Equal values and slopes at both ends; a border point holds both ends at one time."""

    def equation_u(self, inputs: jax.Array, u: Any, params: Any) -> tuple[jax.Array, ...]:
        """The jumps of value and slope."""

        def value(y: jax.Array) -> jax.Array:
            return u(y, params).squeeze()

        left, right = inputs[:, 0], inputs[:, 1]
        jump = u(right, params) - u(left, params)
        return jump, (jax.grad(value)(right) - jax.grad(value)(left))[1:2]

    def equation_f(
        self, inputs: jax.Array, params: Any, gridify: bool = False
    ) -> tuple[jax.Array, ...]:
        """Both jumps shall be zero."""
        return jnp.zeros((1,)), jnp.zeros((1,))


def keys_of(seed: int, notebook: bool) -> tuple[jax.Array, jax.Array]:
    """Keys of the network and of the points; those of the notebook if its seed, 2, is given."""
    key = jax.random.key(seed)
    if not notebook:
        return tuple(jax.random.split(key))
    # The notebook's second split serves its separable network and then its points.
    key, network_key = jax.random.split(key)
    return network_key, jax.random.split(key)[1]


class Odd(eqx.Module):
    """The part of a network that is odd in its first input."""

    network: Any

    def __call__(self, y: jax.Array) -> jax.Array:
        """The value at one point."""
        return (self.network(y) - self.network(y.at[0].multiply(-1))) / 2


def trial_function(problem: str, constants: dict[str, float]) -> Any:
    """Our trial function around a stand-in for the network: its offset, factor and embedding."""
    kinds = {
        "burgers": opifex.problems.Burgers,
        "allen-cahn": opifex.problems.AllenCahn,
        "helmholtz": opifex.problems.Helmholtz,
    }
    settings = {k: int(v) if k == "half_waves" else v for k, v in constants.items()}
    return kinds[problem](**settings).trial_function(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))


def build(
    problem: str,
    keys: tuple[jax.Array, jax.Array],
    weights: dict[str, float],
    constants: dict[str, float],
    hidden: tuple[int, ...] = HIDDEN,
    interior: np.ndarray | None = None,
) -> Any:
    """Network, parameters, loss and collocation points of a problem.

    Args:
        problem: ``burgers``, ``allen-cahn`` or ``helmholtz``.
        keys: of the network and of the points.
        weights: of jinns's loss terms, by its names.
        constants: of the equation, by our names.
        hidden: widths of the network.
        interior: points (n, 2) with time last; given, the conditions hold by construction.
    """
    network_key, points_key = keys
    layers: list[tuple[Any, ...]] = []
    for inputs, outputs in pairwise((2, *hidden, 1)):
        layers += [(eqx.nn.Linear, inputs, outputs), (jax.nn.tanh,)]
    stationary, hard = problem == "helmholtz", interior is not None
    kind = "PDEStatio" if stationary else "PDENonStatio"
    order = slice(None, None, 1 if stationary else -1)  # jinns puts time first, we put it last
    if hard:
        trial = trial_function(problem, constants)
        inner = jinns.nn.MLP(key=network_key, eqx_list=tuple(layers[:-1]))
        u, network = jinns.nn.PINN_MLP.create(
            eqx_network=Odd(inner) if problem == "burgers" else inner,
            eq_type=kind,
            input_transform=lambda y, _: trial.embed(y[order]),
            output_transform=lambda y, value, _: (
                trial.offset(y[order]) + trial.factor(y[order]) * value
            ).squeeze(),
        )
    else:
        u, network = jinns.nn.PINN_MLP.create(
            key=network_key, eqx_list=tuple(layers[:-1]), eq_type=kind
        )
    if problem == "burgers":
        constants = {"nu": constants["viscosity"]}
    numbers = {k: jnp.asarray(v) for k, v in constants.items() if k != "half_waves"}
    params = jinns.parameters.Params(nn_params=network, eq_params=numbers)
    count = len(interior) if interior is not None else INTERIOR
    if stationary:
        points = jinns.data.CubicMeshPDEStatio(
            key=points_key,
            n=count,
            nb=None if hard else BORDER,
            dim=2,
            min_pts=(0.0, 0.0),
            max_pts=(1.0, 1.0),
            method="uniform",
        )
        loss = jinns.loss.LossPDEStatio(
            u=u,
            loss_weights=jinns.loss.LossWeightsPDEStatio(**weights),
            dynamic_loss=Helmholtz(half_waves=int(constants["half_waves"])),
            boundary_condition=None if hard else jinns.loss.Dirichlet(),
            params=params,
        )
    else:
        points = jinns.data.CubicMeshPDENonStatio(
            key=points_key,
            n=count,
            nb=None if hard else BORDER,
            ni=None if hard else INITIAL,
            dim=1,
            min_pts=(-1.0,),
            max_pts=(1.0,),
            tmin=0.0,
            tmax=1.0,
            method="uniform",
        )
        burgers = problem == "burgers"
        conditions = {
            "boundary_condition": jinns.loss.Dirichlet() if burgers else Periodic(),
            "initial_condition_fun": (
                (lambda x: -jnp.sin(jnp.pi * x))
                if burgers
                else (lambda x: x**2 * jnp.cos(jnp.pi * x))
            ),
        }
        loss = jinns.loss.LossPDENonStatio(
            u=u,
            loss_weights=jinns.loss.LossWeightsPDENonStatio(**weights),
            dynamic_loss=jinns.loss.BurgersEquation(Tmax=1) if burgers else AllenCahn(),
            **({} if hard else conditions),
            params=params,
        )
    if interior is not None:
        ours = jnp.asarray(interior)[:, order]
        points = eqx.tree_at(lambda d: d.omega if stationary else d.domain, points, ours)
    return u, params, loss, points


def seconds_in(output: str, what: str) -> float:
    """A duration that jinns printed."""
    found = re.search(rf"{what} took\s+([0-9.e+-]+)", output)
    if found is None:
        raise RuntimeError(f"jinns printed no duration of its {what.lower()}: {output[-500:]!r}")
    return float(found.group(1))


def main() -> None:
    """Train once and print the curve as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", required=True, choices=["burgers", "allen-cahn", "helmholtz"])
    parser.add_argument("--data", required=True, help="points (x, t) or (x, y) and solution")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--notebook-keys", action="store_true", help="random keys as there")
    parser.add_argument("--weights", type=json.loads, required=True)
    parser.add_argument("--constants", type=json.loads, required=True)
    parser.add_argument("--hidden", type=json.loads, default=list(HIDDEN))
    parser.add_argument("--interior", help="our points; conditions then hold by construction")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument(
        "--budget", type=float, default=0.0, help="processor seconds, in place of the iterations"
    )
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    arrays = np.load(given.data)
    exact = jnp.asarray(arrays["exact"]).reshape(-1)
    where = jnp.asarray(arrays["points"])[:, :: (1 if given.problem == "helmholtz" else -1)]
    interior = None if given.interior is None else np.load(given.interior)["interior"]
    stopwatch = Stopwatch(given.iterations, given.budget)
    start = time.perf_counter()
    keys = keys_of(given.seed, given.notebook_keys)
    u, params, loss, points = build(
        given.problem, keys, given.weights, given.constants, tuple(given.hidden), interior
    )
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        losses = jinns.solve(
            init_params=params,
            data=points,
            optimizer=vanilla_ngd(),
            loss=loss,
            # With a budget the stopwatch ends the run.
            n_iter=given.iterations if given.budget <= 0 else 100 * given.iterations,
            print_loss_every=100,
            validation=Watched(stopwatch=stopwatch),
        )[1]
        jax.effects_barrier()
    training = seconds_in(output.getvalue(), "Training")

    @jax.jit
    def error(network: Any) -> jax.Array:
        trained = eqx.tree_at(lambda p: p.nn_params, params, network)
        values = jax.vmap(lambda x: u(x, trained).squeeze())(where)
        return jnp.linalg.norm(values - exact) / jnp.linalg.norm(exact)

    last = stopwatch.times[-1]
    stamps = zip(
        stopwatch.times, stopwatch.processor, stopwatch.networks, losses.tolist(), strict=False
    )
    print(
        json.dumps(
            {
                "curve": [
                    {
                        "error": float(error(network)),
                        "loss": value,
                        "steps": i + 1,
                        "seconds": training - (last - now),
                        "elapsed_seconds": now - start,
                        "processor_seconds": processor,
                    }
                    for i, (now, processor, network, value) in enumerate(stamps)
                ],
                "first_loss": float(losses[0]),
                "final_loss": float(losses[len(stopwatch.times) - 1]),
                "compile_seconds": seconds_in(output.getvalue(), "Compilation"),
                "steps": len(stopwatch.times),
                "parameters": int(sum(x.size for x in jax.tree.leaves(params.nn_params))),
                "versions": {n: version(n) for n in ("jinns", "jax", "equinox", "optax")},
            }
        )
    )


if __name__ == "__main__":
    main()
