"""Cases of PINNacle with second order: one rule for all of them, relative errors, seconds.

The rule knows the statement and no solution. On seed 100 it chooses the model by the loss on other
points (all losses with the same weights, those of the first model):

1. Random features with sines, fewer of them. Starting with one patch and slopes of three, the slopes
   or the patches along one axis or along all are doubled, or the slopes along one axis multiplied by
   sixteen (many waves are invisible to slopes between), whichever lowers the loss most, as long as
   that is by half or more and a patch keeps twenty features. A loss of 1e-14 of the first one is low
   enough: then twice as many features are taken and nothing else is tried.
2. All features, with these slopes and patches, and, as long as that lowers the loss, with twice as
   many patches along every axis.
3. Two networks, trained by Levenberg-Marquardt: three hidden layers of tanh, one of sines. Points of
   the equation are drawn anew every so many steps, denser where its residual is large.

Nonlinear evolution equations in one space dimension are marched in time slabs instead, with 16, 32, ...
elements, as long as more of them lower the largest residual of a slab by half or more.

Where measurements are noisy, the networks are the only models. A fifth of the measurements of seed 100
is held out, and the network that meets them best is chosen. The weights are those of the statement,
not balanced: their Jacobians do not know the noise. Parameters have a normal prior of variance one,
against the variance of the noise. A network first fits all terms but the equation, whose products of
unknown functions lead a random start astray, then all of them, at one set of points.

The networks are left out where the residuals are linear and there are at most three dimensions, and the
features where there are more.

Random features are solved by `GaussNewton`: two steps where the residuals are linear, else more.
Weights are balanced by their Jacobians. The model with the lowest loss is then trained on every seed:
that seed draws points, noise, features and networks. Seconds are those of the processor, on however
many cores the process may use, with compilation and points; those of the choice are told beside them.
Errors are relative L2 errors over all components together, at the points of the reference.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from rich.console import Console

from common import command, parser, read_results, start_cold, write_results
from opifex.core import ResidualTerm, mean_square_loss
from opifex.models import MLP, RandomFeatures, TrialFunction
from opifex.optimization.second_order import GaussNewton, LevenbergMarquardt
from opifex.training import TimeMarching
from opifex.training.adaptive_sampling import ResidualResampler
from opifex.training.multilevel import Balanced, CascadeTrainer, JacobianBalancing, Resampled
from opifex.viz import comparison_table
from pinnacle_cases import CASES, MEASUREMENT, Case

CONSOLE = Console(width=150)
CHOICE_SEED, HELD_OUT_SEED = 100, 101
FEW, MANY, MANY_NONLINEAR = 900, 4800, 1800  # coefficients of random features, of all outputs
REDRAWN = 30  # steps of a network from one set of points to the next
NETWORKS = ((20, 20, 20), jnp.tanh), ((40,), jnp.sin)
MEASURED_STEPS = 20, 80  # without the equation, with it
SLAB_FEATURES, TOLERANCE = 160, 1e-4  # of time slabs
SOLVED = 1e-14  # of the loss of the first model


@dataclass(frozen=True)
class Features:
    """Random features: slopes and patches along every axis, and coefficients in all."""

    slopes: tuple[float, ...]
    patches: tuple[int, ...]
    coefficients: int

    def __str__(self) -> str:
        slopes, patches = (" x ".join(f"{n:g}" for n in of) for of in (self.slopes, self.patches))
        return f"{self.coefficients} features, slopes {slopes}, patches {patches}"

    def model(self, case: Case, seed: int) -> nnx.Module:
        """The model of a seed; patches get equal numbers of features."""
        number = math.prod(self.patches)
        return RandomFeatures(
            case.box.dim,
            case.outputs,
            max(1, self.coefficients // case.outputs // number) * number,
            domain=tuple(zip(case.box.lower, case.box.upper, strict=True)),
            slope=self.slopes,
            patches=self.patches,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(seed),
        )

    def fits(self, case: Case) -> bool:
        """Whether every patch gets twenty features or more."""
        return math.prod(self.patches) * 20 * case.outputs <= self.coefficients

    def neighbours(self, case: Case) -> list[Features]:
        """Twice the slope or twice the patches, along one axis or all; sixteen times the slope."""
        dims = len(self.slopes)
        one = [
            [k if axis == chosen else 1 for axis in range(dims)]
            for chosen in range(dims)
            for k in (2, 16)
        ]
        near = [self.scaled(slopes=factors) for factors in [*one, [2] * dims]]
        near += [self.scaled(patches=factors) for factors in [*one[::2], [2] * dims]]
        return [choice for choice in near if choice.fits(case)]

    def scaled(
        self, slopes: Sequence[int] | None = None, patches: Sequence[int] | None = None
    ) -> Features:
        """With slopes and patches multiplied by factors, one per axis."""
        ones = (1,) * len(self.slopes)
        return Features(
            tuple(s * f for s, f in zip(self.slopes, slopes or ones, strict=True)),
            tuple(n * f for n, f in zip(self.patches, patches or ones, strict=True)),
            self.coefficients,
        )

    def finer(self) -> Features:
        """Twice as many patches along every axis."""
        return self.scaled(patches=(2,) * len(self.patches))

    def points(self, case: Case) -> int:
        """Three residuals of the equation per coefficient."""
        return 3 * self.coefficients // case.equations

    def solver(self, case: Case) -> tuple[Any, int]:
        """The method and its steps."""
        return GaussNewton(), 2 if case.linear else 6


@dataclass(frozen=True)
class Network:
    """A network whose features are trained."""

    widths: tuple[int, ...]
    activation: Callable[[Array], Array]

    def __str__(self) -> str:
        name = getattr(self.activation, "__name__", str(self.activation))
        return f"network, {name}, {' x '.join(map(str, self.widths))}"

    def model(self, case: Case, seed: int) -> nnx.Module:
        """The model of a seed, inputs scaled to [-1, 1]."""
        network = MLP(
            case.box.dim,
            case.outputs,
            self.widths,
            activation=self.activation,
            input_scale=2.0,
            bias_scale=1.0,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(seed),
        )
        lower, upper = (np.asarray(bound) for bound in (case.box.lower, case.box.upper))
        return TrialFunction(
            network,
            offset=lambda x: jnp.zeros_like(x[..., :1]),
            factor=lambda x: jnp.ones_like(x[..., :1]),
            embed=lambda x: (2 * x - lower - upper) / (upper - lower),
        )

    def points(self, case: Case) -> int:
        """For the equation."""
        del case
        return 3000

    def solver(self, case: Case) -> tuple[Any, int]:
        """The method and its steps."""
        del case
        return LevenbergMarquardt(), 120


@dataclass(frozen=True)
class Slabs:
    """Time slabs of random features."""

    elements: int

    def __str__(self) -> str:
        return f"time slabs, {SLAB_FEATURES} features on {self.elements} elements"

    def solution(self, case: Case, seed: int) -> tuple[nnx.Module, float]:
        """The solution of a seed, and the largest residual of a slab."""
        assert case.evolution is not None
        initial, boundary, order = case.evolution
        features = RandomFeatures(
            2, 1, SLAB_FEATURES, slope=(3.0, 1.0), param_dtype=jnp.float64, rngs=nnx.Rngs(seed)
        )
        marching = TimeMarching(features, self.elements, space_order=order, tolerance=TOLERANCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # residuals are told instead
            slabs = list(marching.slabs(case.terms[0].residual, initial, case.box, boundary))
        return marching.joined(slabs), max(slab.residual for slab in slabs)


Choice = Features | Network | Slabs


def trained(case: Case, choice: Choice, seed: int) -> tuple[nnx.Module, tuple[float, ...], float]:
    """The trained model, the weights it was trained with, and its loss over that of the start.

    Of time slabs instead of the loss the largest residual of a slab.
    """
    if isinstance(choice, Slabs):
        solution, residual = choice.solution(case, seed)
        return solution, (), residual
    solver, steps = choice.solver(case)
    data: Any = tuple(map(jnp.asarray, case.points(seed, choice.points(case))))
    if case.noise:
        return regularized(case, choice.model(case, seed), solver, data)
    if isinstance(choice, Network):
        pool = jnp.asarray(case.points(seed + 1000, 10 * choice.points(case))[0])
        draw = ResidualResampler(case.terms[0], lambda points, key: pool)
        data = Resampled(data, draw, every=REDRAWN)
    trainer = CascadeTrainer([choice.model(case, seed)], solver)
    history = trainer.fit(Balanced(case.terms, JacobianBalancing()), data, epochs=[steps])
    weights = tuple(np.asarray(history.weights[-1], float).tolist())
    return trainer.model, weights, float(history.losses[-1] / history.losses[0])


def parameters(u: Any, row: Array) -> Array:
    """All parameters of a model: the residual of their prior, whatever the point."""
    del row
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(nnx.state(u, nnx.Param))])


def regularized(
    case: Case, model: nnx.Module, solver: Any, data: tuple[Array, ...]
) -> tuple[nnx.Module, tuple[float, ...], float]:
    """A model trained on noisy measurements, its weights and its loss, as of `trained`."""
    prior = ResidualTerm("prior", parameters, MEASUREMENT * case.noise**2 / len(data[1]))
    terms, points = (*case.terms, prior), (*data, jnp.zeros((1, 1)))
    for first, steps in zip((1, 0), MEASURED_STEPS, strict=True):
        trainer = CascadeTrainer([model], solver)
        history = trainer.fit(terms[first:], points[first:], epochs=[steps])
        model = trainer.model
    weights = tuple(float(term.weight) for term in terms)
    return model, weights, float(history.losses[-1] / history.losses[0])


def weighted(terms: tuple[ResidualTerm, ...], weights: tuple[float, ...]) -> list[ResidualTerm]:
    """The terms with other weights."""
    return [replace(t, weight=w) for t, w in zip(terms, weights, strict=True)]


def choose(case: Case) -> tuple[Choice, list[dict[str, Any]]]:
    """The model of lowest loss on other points, and all that was tried."""
    if case.evolution is not None:
        return choose_elements(case)
    if case.noise:
        return choose_by_measurements(case)
    held_out = tuple(map(jnp.asarray, case.points(HELD_OUT_SEED, 4096)))
    tried: list[dict[str, Any]] = []
    weights: list[tuple[float, ...]] = []

    def loss(choice: Choice) -> float:
        start_cold()
        model, own, fallen = trained(case, choice, CHOICE_SEED)
        weights.append(own)
        terms = weighted(case.terms, weights[0])
        value = float(nnx.jit(lambda u: mean_square_loss(terms, u, *held_out))(model))
        tried.append({"model": str(choice), "loss": value})
        CONSOLE.print(case.name, tried[-1])
        return value if math.isfinite(value) and fallen < 1 else math.inf

    losses: dict[Choice, float] = {}
    if case.box.dim <= 3:
        features, lowest = search(case, loss)
        losses[features] = lowest
    if case.box.dim > 3 or not case.linear:
        losses |= {network: loss(network) for network in (Network(*n) for n in NETWORKS)}
    return min(losses, key=lambda choice: losses[choice]), tried


def choose_by_measurements(case: Case) -> tuple[Network, list[dict[str, Any]]]:
    """The network that is closest to a fifth of the measurements, trained on the others."""
    measurements = np.asarray(case.points(CHOICE_SEED, 16)[1])
    order = np.random.default_rng(HELD_OUT_SEED).permutation(len(measurements))
    held_out, kept = np.split(order, [len(order) // 5])
    meets = replace(case.terms[1], weight=1.0)

    def fewer(seed: int, count: int) -> tuple[Array, ...]:
        interior, _, *others = case.points(seed, count)
        return interior, measurements[kept], *others

    tried: list[dict[str, Any]] = []
    misfits: dict[Network, float] = {}
    for network in (Network(*n) for n in NETWORKS):
        start_cold()
        model, *_ = trained(replace(case, points=fewer), network, CHOICE_SEED)
        misfit = float(mean_square_loss([meets], model, jnp.asarray(measurements[held_out])))
        misfits[network] = misfit
        tried.append({"model": str(network), "misfit": misfit})
        CONSOLE.print(case.name, tried[-1])
    return min(misfits, key=lambda network: misfits[network]), tried


def choose_elements(case: Case) -> tuple[Slabs, list[dict[str, Any]]]:
    """Time slabs with as many elements as help."""
    tried: list[dict[str, Any]] = []
    best, lowest, elements = Slabs(16), math.inf, 16
    while True:
        start_cold()
        _, residual = Slabs(elements).solution(case, CHOICE_SEED)
        tried.append({"model": str(Slabs(elements)), "residual": residual})
        CONSOLE.print(case.name, tried[-1])
        if residual >= lowest / 2:
            return best, tried
        best, lowest = Slabs(elements), residual
        if residual <= TOLERANCE:
            return best, tried
        elements *= 2


def search(case: Case, loss: Callable[[Choice], float]) -> tuple[Features, float]:
    """Random features of full size, and their loss."""
    dims = case.box.dim
    best = Features((3.0,) * dims, (1,) * dims, FEW)
    first = lowest = loss(best)
    if math.isinf(first):  # a start from zero that is a stationary point
        return best, first
    gain = 0.0
    while gain < 0.5 and lowest > SOLVED * first:
        losses = {near: loss(near) for near in best.neighbours(case)}
        near = min(losses, key=lambda key: losses[key])
        gain = losses[near] / lowest
        if gain < 0.5:
            best, lowest = near, losses[near]
    if lowest <= SOLVED * first:
        return replace(best, coefficients=2 * FEW), lowest
    full = replace(best, coefficients=MANY if case.linear else MANY_NONLINEAR)
    lowest = loss(full)
    while full.finer().fits(case):
        finer = loss(full.finer())
        if finer >= lowest:
            break
        full, lowest = full.finer(), finer
    return full, lowest


def errors(case: Case, model: Any) -> tuple[float, list[float]]:
    """Of all components together, and of each."""
    where, exact = case.reference()
    found = np.asarray(jax.lax.map(model, jnp.asarray(where), batch_size=1000))
    difference = found - exact
    return (
        float(np.linalg.norm(difference) / np.linalg.norm(exact)),
        (np.linalg.norm(difference, axis=0) / np.linalg.norm(exact, axis=0)).tolist(),
    )


def main() -> None:
    """All chosen cases and seeds."""
    options = parser(__doc__)
    options.set_defaults(seeds=[0, 1, 2])
    options.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    options.add_argument("--keep", action="store_true", help="keep rows of other cases")
    given = options.parse_args()
    old = (read_results("pinnacle") or {"rows": []})["rows"] if given.keep else []
    rows = [row for row in old if row["case"] not in given.case]
    with jax.enable_x64(True):
        for name in given.case:
            case = CASES[name]()
            began = time.process_time()
            choice, tried = choose(case)
            seconds = time.process_time() - began
            chosen = {"model": str(choice), "seconds of the choice": seconds, "tried": tried}
            for seed in given.seeds:
                start_cold()
                began = time.process_time()
                model, _, fallen = trained(case, choice, seed)
                spent = time.process_time() - began
                error, each = errors(case, model)
                rows.append(
                    {"case": name, "seed": seed, "error": error, "errors": each, "best": case.best}
                    | {"processor seconds": spent, "loss over start": fallen}
                    | {"command": command()}
                    | chosen
                )
                CONSOLE.print({k: v for k, v in rows[-1].items() if k != "tried"})
            order = list(CASES)
            rows.sort(key=lambda row: (order.index(row["case"]), row["seed"]))
            write_results("pinnacle", rows=rows)
    shown = [{k: str(v) for k, v in row.items() if k != "tried"} for row in rows]
    CONSOLE.print(comparison_table(shown))


if __name__ == "__main__":
    main()
