"""Valid arguments of every public callable, and bad values to put in the place of one or two of them.

Arguments are made anew for each call: some objects belong to one trainer, and generators are used up.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from opifex.core import ResidualTerm
from opifex.data import FieldNormalizer, StoredFields, open_fields
from opifex.models import FNO, MLP, RandomFeatures
from opifex.optimization import scale_by_width
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import Box, Poisson
from opifex.training.adaptive_sampling import RADSampler, RARDSampler
from opifex.training.multilevel import (
    CascadeTrainer,
    FaultPolicy,
    JacobianBalancing,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    VCycle,
    create_network_hierarchy,
    prolongate,
)

__all__ = ["BAD", "ENTRIES", "NOT_CALLED", "ROOMS", "Entry", "documented_errors"]

ROOMS = (
    "opifex.core",
    "opifex.core.physics",
    "opifex.data",
    "opifex.models",
    "opifex.optimization",
    "opifex.optimization.second_order",
    "opifex.problems",
    "opifex.training.adaptive_sampling",
    "opifex.training.balancing",
    "opifex.training.multilevel",
)

NOT_CALLED = {
    "Balancing": "a protocol",
    "Cycle": "a protocol",
    "Normalizer": "a protocol",
    "RunObserver": "a protocol",
    "StoppingCriterion": "a protocol",
    "Problem": "abstract",
    "PointFunction": "a type",
    "FaultAction": "a type",
    "FieldsTransform": "a type",
    "OnTransition": "a type",
    "Phase": "a type",
    "SecondMomentStart": "a type",
    # Records that the library makes, and their users read.
    **dict.fromkeys(
        [
            "AgeCorrectedAdamState",
            "Balance",
            "BoundaryPoints",
            "Correct",
            "DarcySmall",
            "EnergyNaturalGradientState",
            "Enter",
            "Evaluation",
            "Fields",
            "GaussNewtonState",
            "GradNormBalancing",
            "GrowingPoints",
            "Hierarchy",
            "History",
            "HybridOptimizerState",
            "Interpolate",
            "LevelProgress",
            "LevenbergMarquardtState",
            "LossExplosionError",
            "NonFiniteLossError",
            "OperatorData",
            "ParameterAgeState",
            "ProblemSize",
            "RandomSubspaceState",
            "RateSearch",
            "RateTrial",
            "ResolutionLevel",
            "Restrict",
            "ScheduleAdvice",
            "SelfScaledBroydenState",
            "Smooth",
            "Stage",
            "StepMemory",
            "Stretch",
            "TransferError",
            "Transition",
            "WidthScalingState",
        ],
        "a record",
    ),
    "FrozenVariable": "a kind of variable of Flax",
    "default_cache_dir": "takes nothing",
    "load_darcy_small": "takes nothing",
    "scale_by_self_scaled_broyden": "takes nothing",
    "FixedEpochs": "takes nothing",
    "scale_by_width": "takes nothing",
}
"""Public names that are not called with bad values, and why."""


@dataclass(frozen=True)
class Entry:
    """A callable with valid arguments.

    Attributes:
        name: what it is called in reports.
        call: takes the arguments by name.
        documented: where the errors are documented.
        arguments: makes valid arguments, in which bad values take places.
    """

    name: str
    call: Callable[..., Any]
    documented: Any
    arguments: Callable[[], dict[str, Any]]


def documented_errors(function: Any) -> tuple[type[Exception], ...]:
    """The errors in the section *Raises* of a docstring.

    Args:
        function: a function, method or class.
    """
    found = re.search(
        r"^Raises:\n((?:[ ]+.*\n?|\n)*)", inspect.getdoc(function) or "", re.MULTILINE
    )
    names = re.findall(r"^ {4}(\w+):", found.group(1), re.MULTILINE) if found else []
    rooms = [importlib.import_module(room) for room in ("builtins", *ROOMS)]
    rooms.append(importlib.import_module("opifex.training.multilevel.transfer.states"))
    kinds = [next(getattr(r, name) for r in rooms if hasattr(r, name)) for name in names]
    return tuple(kinds)


# -- what the arguments are made of ---------------------------------------------------------

TERM = ResidualTerm("fit", lambda u, x: u(x)[0] - x[0])
POINTS = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 1)), jnp.float32)
FIELDS = np.random.default_rng(1).normal(size=(3, 8, 1)).astype(np.float32)
SQUARE = np.linspace(0.5, 1.5, 16).reshape(4, 4)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def network(width: int = 4, seed: int = 0) -> MLP:
    return MLP(1, 1, [width], rngs=nnx.Rngs(seed))


def equinox_network() -> Any:
    return importlib.import_module("equinox").nn.MLP(1, 1, 2, 1, key=jax.random.key(0))


def operator(modes: int = 3) -> FNO:
    return FNO(modes, 2, num_layers=1, rngs=rngs())


def features() -> RandomFeatures:
    return RandomFeatures(2, 1, 4, rngs=rngs())


def squared(model: Any, x: Any) -> Any:
    return jnp.mean((model(x) - x) ** 2)


@lru_cache
def stored() -> Any:
    """Fields in a file, which stays open."""
    path = os.path.join(tempfile.mkdtemp(), "fields.npz")
    np.savez(path, inputs=FIELDS, outputs=FIELDS)
    return open_fields(path)


def sum_of_squares(x: Any) -> Any:
    return jnp.sum(x**2)


def candidates(points: Any, key: Any) -> Any:
    return jax.random.uniform(key, (12, 1))


def state_of(model: Any, optimizer: Any) -> Any:
    return optimizer.init(nnx.state(model, nnx.Param))


ADAM = optax.adam(1e-3)


def at_a_point(operator: Any) -> Callable[..., Any]:
    return lambda u, x: operator(u)(x)


def losses_of(params: Any) -> Any:
    return jnp.stack([jnp.sum(params**2), jnp.sum(params)])


def fit(**arguments: Any) -> Any:
    """A run of one or two steps on two tiny levels."""
    config = MultilevelConfig(2, level_epochs=[1, 1], compile_ahead=False, keep_programs=False)
    models = [network(2), network(4)]
    return CascadeTrainer(models, ADAM, config=config).fit(**arguments)


def step(**arguments: Any) -> Any:
    return CascadeTrainer([network()], ADAM).step(**arguments)


def solve(terms: Any, bind: Any, params: Any, points: Any) -> Any:
    solver = LevenbergMarquardt()
    return solver.step(terms, bind, params, solver.init(jnp.ones(1)), points)


def in_room(room: str) -> Callable[..., Entry]:
    module = importlib.import_module(room)

    def entry(name: str, /, **arguments: Callable[[], Any]) -> Entry:
        function: Any = module
        for part in name.split("."):
            function = getattr(function, part)
        return Entry(
            name,
            function,
            function,
            lambda: {key: make() for key, make in arguments.items()},
        )

    return entry


def value(given: Any) -> Callable[[], Any]:
    return lambda: given


def _entries() -> list[Entry]:
    core, physics = in_room("opifex.core"), in_room("opifex.core.physics")
    data, models = in_room("opifex.data"), in_room("opifex.models")
    optimization = in_room("opifex.optimization")
    second = in_room("opifex.optimization.second_order")
    problems, sampling = in_room("opifex.problems"), in_room("opifex.training.adaptive_sampling")
    balancing = in_room("opifex.training.balancing")
    multilevel = in_room("opifex.training.multilevel")
    module = importlib.import_module("opifex.core")

    def by_points(name: str) -> Entry:
        function = getattr(module, name)
        return Entry(
            name,
            lambda terms, u, points: function(terms, u, points),
            function,
            lambda: {"terms": [TERM], "u": network(), "points": POINTS},
        )

    def verify(coarse_model: Any, fine_model: Any, inputs: Any) -> Any:
        return importlib.import_module("opifex.training.multilevel").verify_transfer(
            coarse_model, fine_model, inputs
        )

    def grown() -> Any:
        return create_network_hierarchy(1, 1, [4], num_levels=2, rngs=rngs())

    def pair() -> dict[str, Any]:
        coarse, fine = grown()
        return {"coarse_model": coarse, "fine_model": fine}

    levels = importlib.import_module("opifex.training.multilevel")
    cycle = {
        "cycles": value(2),
        "coarse": value("galerkin"),
        "pre": value(1),
        "post": value(1),
        "coarsest": value(2),
        "gradient_scale": value(1.0),
        "backtracking_steps": value(3),
    }
    operator_pair = {
        "coarse_model": lambda: operator(2),
        "fine_model": lambda: operator(3),
    }
    rates = {"learning_rate": value(1e-3), "b1": value(0.9), "b2": value(0.99), "eps": value(1e-8)}
    lengths = value((1.0, 0.5))
    return [
        # -- core
        core("ResidualTerm", name=value("fit"), residual=value(TERM.residual), weight=value(2.0)),
        by_points("mean_square_loss"),
        by_points("residual_vector"),
        physics(
            "GradNormBalancer", num_losses=value(2), alpha=value(1.0), learning_rate=value(0.1)
        ),
        Entry(
            "directional_derivatives",
            lambda u, direction, order, x: physics("directional_derivatives").call(
                u, direction, order
            )(x),
            physics("directional_derivatives").call,
            lambda: {"u": sum_of_squares, "direction": jnp.ones(2), "order": 2, "x": jnp.ones(2)},
        ),
        *(
            Entry(
                name,
                at_a_point(physics(name).call),
                physics(name).call,
                lambda u=u: {"u": u, "x": jnp.ones(2)},
            )
            for name, u in [
                ("gradient", sum_of_squares),
                ("laplacian", sum_of_squares),
                ("hessian_diagonal", sum_of_squares),
                ("divergence", jnp.sin),
            ]
        ),
        physics("gradient_norms", losses_fn=value(losses_of), params=lambda: jnp.ones(3)),
        # -- data
        data("FieldNormalizer", mean=lambda: jnp.zeros(1), deviation=lambda: jnp.ones(1)),
        data("FieldNormalizer.fit", fields=value(FIELDS), smallest_deviation=value(1e-6)),
        data(
            "gaussian_random_field",
            num_samples=value(2),
            shape=value((6, 5)),
            smoothness=value(2.0),
            inverse_length=value(3.0),
            scale=value(1.0),
            boundary=value("neumann"),
            modes=value(3),
            random_mean=value(True),
            seed=value(0),
        ),
        data(
            "generate_burgers_operator_data",
            num_samples=value(2),
            resolution=value(8),
            viscosity=value(0.5),
            final_time=value(0.5),
            smoothness=value(2.0),
            inverse_length=value(5.0),
            scale=value(1.0),
            seed=value(0),
            progress=value(False),
            cache_dir=value(None),
        ),
        data(
            "generate_darcy_data",
            num_samples=value(2),
            resolution=value(4),
            low=value(3.0),
            high=value(12.0),
            smoothness=value(2.0),
            inverse_length=value(3.0),
            modes=value(3),
            source=value(1.0),
            seed=value(0),
            workers=value(1),
            progress=value(False),
            cache_dir=value(None),
        ),
        *(
            data(
                name,
                path=value("missing.npz"),
                inputs=value("a"),
                outputs=value("u"),
                layout=value("channels-last"),
                times=value((0, -1)),
                channel_axis=value(True),
            )
            for name in ("open_fields", "read_fields")
        ),
        Entry(
            "StoredFields.batches",
            lambda **arguments: stored().batches(**arguments),
            StoredFields.batches,
            lambda: {"batch_size": 2, "seed": 1, "shuffle": True},
        ),
        Entry(
            "StoredFields.cached",
            lambda **arguments: stored().cached(**arguments),
            StoredFields.cached,
            lambda: {"path": "copy.npz", "description": "a copy"},
        ),
        data("solve_burgers", initial=value(SQUARE), viscosity=value(0.5), final_time=value(0.5)),
        data("solve_darcy", permeability=value(SQUARE), source=value(1.0)),
        # -- models
        models(
            "FNO",
            modes=value(3),
            width=value(2),
            input_dim=value(1),
            output_dim=value(1),
            num_layers=value(1),
            spatial_dims=value(1),
            activation=value(nnx.gelu),
            projection_dim=value(2),
            grid_kind=value("cell"),
            append_coordinates=value(True),
            transform=value("fft"),
            param_dtype=value(jnp.float32),
            rngs=rngs,
        ),
        models(
            "MLP",
            input_dim=value(1),
            output_dim=value(1),
            hidden_dims=value([2, 2]),
            activation=value(jnp.tanh),
            depth_gates=value(False),
            input_scale=value(1.0),
            bias_scale=value(0.5),
            param_dtype=value(jnp.float32),
            rngs=rngs,
        ),
        Entry("MLP.__call__", lambda x: network()(x), MLP.__call__, lambda: {"x": np.ones((3, 1))}),
        Entry("FNO.__call__", lambda x: operator()(x), FNO.__call__, lambda: {"x": FIELDS}),
        Entry(
            "FNO.with_modes",
            lambda modes, rngs: operator().with_modes(modes, rngs=rngs),
            FNO.with_modes,
            lambda: {"modes": 2, "rngs": rngs()},
        ),
        models("CorrectedModel", base=network, correction=network, scale=value(0.5)),
        models("EquinoxModel", module=equinox_network, batched=value(True)),
        models("FunctionalModel", params=lambda: {"a": jnp.ones(2)}, apply=value(squared)),
        models(
            "FourierBlock",
            width=value(2),
            modes=value(2),
            spatial_dims=value(1),
            transform=value("auto"),
            param_dtype=value(jnp.float32),
            rngs=rngs,
        ),
        models("FourierFeatures", input_dim=value(1), num_features=value(4), rngs=rngs),
        models(
            "FrequencyBand",
            input_dim=value(1),
            output_dim=value(1),
            hidden_dims=value([2]),
            frequency=value(2.0),
            rngs=rngs,
        ),
        models(
            "HiddenLayer",
            input_size=value(2),
            output_size=value(2),
            activation=value(jnp.tanh),
            gated=value(True),
            param_dtype=value(jnp.float32),
            rngs=rngs,
        ),
        models(
            "MultiscaleMLP",
            input_dim=value(1),
            output_dim=value(1),
            hidden_dims=value([2]),
            frequencies=value((1.0, 2.0)),
            rngs=rngs,
        ),
        models(
            "NormalizedModel",
            network=operator,
            inputs=lambda: FieldNormalizer.fit(FIELDS),
            outputs=lambda: FieldNormalizer.fit(FIELDS),
        ),
        models("PartitionOfUnity", bounds=lambda: np.array([[0.0, 1.0]]), patches=value([2])),
        models(
            "RandomFeatures",
            input_dim=value(1),
            output_dim=value(1),
            num_features=value(4),
            domain=value([(0.0, 1.0)]),
            slope=value(2.0),
            patches=value([2]),
            activation=value(jnp.tanh),
            param_dtype=value(jnp.float32),
            rngs=rngs,
        ),
        models(
            "SpaceTimeFeatures",
            features=features,
            times=lambda: jnp.array([0.0, 1.0]),
            nodes=lambda: jnp.array([[0.0, 0.5, 1.0]]),
            coefficients=lambda: jnp.zeros((1, 2, 4, 1)),
        ),
        models(
            "SpectralConv",
            input_size=value(2),
            output_size=value(2),
            modes=value((2,)),
            spatial_dims=value(1),
            transform=value("matmul"),
            param_dtype=value(jnp.float32),
            rngs=rngs,
        ),
        models("SymmetricModel", network=network, reflection=value(jnp.negative), odd=value(True)),
        models(
            "TrialFunction",
            network=network,
            offset=value(jnp.sin),
            factor=value(jnp.cos),
            embed=value(jnp.sin),
        ),
        models(
            "element_features",
            features=features,
            x=lambda: jnp.ones((3, 2)),
            lower=lambda: jnp.zeros((3, 2)),
            upper=lambda: 2 * jnp.ones((3, 2)),
        ),
        models("freeze", model=network),
        # -- optimization
        optimization(
            "scale_by_age_corrected_adam", b1=value(0.9), b2=value(0.99), warm_up_steps=value(2)
        ),
        optimization("scale_by_parameter_age", schedule=value(optax.constant_schedule(1.0))),
        optimization(
            "set_width_factors",
            state=lambda: scale_by_width().init({"a": jnp.ones(2)}),
            factor=value(lambda path: 0.5),
        ),
        optimization("width_factors", state=lambda: scale_by_width().init({"a": jnp.ones(2)})),
        second(
            "AdaptiveDamping",
            initial=value(1e-3),
            minimum=value(1e-8),
            maximum=value(10.0),
            decrease=value(0.3),
            increase=value(10.0),
        ),
        second(
            "EnergyNaturalGradient",
            momentum=value(0.5),
            step_lengths=lengths,
            block_bytes=value(1e6),
        ),
        second(
            "GaussNewton", regularization=value(1e-8), step_lengths=lengths, block_bytes=value(1e6)
        ),
        second(
            "HybridOptimizerConfig",
            learning_rate=value(1e-3),
            criterion=value("loss-variance"),
            window=value(5),
            variance_tolerance=value(1e-4),
            improvement_tolerance=value(1e-2),
            gradient_tolerance=value(1e-4),
            switch_step=value(10),
            min_adam_steps=value(0),
        ),
        second("HybridOptimizer", config=value(None)),
        second(
            "LevenbergMarquardt",
            initial_damping=value(1e-3),
            damping_factors=value((0.1, 1.0, 10.0)),
            min_damping=value(1e-16),
            max_damping=value(1e3),
            step_lengths=lengths,
            geodesic_acceleration=value(True),
            block_bytes=value(1e6),
        ),
        Entry(
            "LevenbergMarquardt.step",
            solve,
            LevenbergMarquardt.step,
            lambda: {
                "terms": (TERM,),
                "bind": lambda params: lambda x: params * x,
                "params": jnp.ones(1),
                "points": (POINTS,),
            },
        ),
        second(
            "MatrixFreeGaussNewton",
            step_lengths=lengths,
            rank=value(4),
            tolerance=value(1e-3),
            max_iterations=value(5),
            seed=value(0),
            block_bytes=value(1e6),
        ),
        second("RandomSubspace", method=LevenbergMarquardt, parameters=value(3), seed=value(0)),
        second("available_bytes", device=value(None)),
        second(
            "block_bidiagonal_solution",
            diagonal=lambda: jnp.ones((2, 3, 2)) + jnp.eye(3, 2),
            upper=lambda: jnp.ones((2, 1, 2)),
            right_hand_side=lambda: jnp.ones((2, 3)),
            regularization=value(1e-3),
            cyclic=value(False),
        ),
        second("self_scaled_broyden", max_backtracking_steps=value(3)),
        # -- problems
        problems(
            "AllenCahn", diffusivity=value(1e-3), reaction=value(5.0), condition_weight=value(1.0)
        ),
        problems("Box", lower=value((0.0,)), upper=value((1.0,))),
        problems("Burgers", viscosity=value(0.01), condition_weight=value(1.0)),
        problems("Heat", diffusivity=value(0.1), condition_weight=value(1.0)),
        problems(
            "Helmholtz",
            wave_number=value(3.0),
            half_waves=value(2),
            amplitude=value(0.5),
            boundary_weight=value(1.0),
        ),
        problems("Poisson", boundary_weight=value(1.0)),
        Entry(
            "Poisson.sample_points",
            Poisson().sample_points,
            Poisson.sample_points,
            lambda: {
                "key": jax.random.key(0),
                "num_interior": 4,
                "num_boundary": 4,
                "method": "uniform",
            },
        ),
        Entry(
            "PlanarRegion.box",
            lambda lower, upper: problems("PlanarRegion").call.box(lower, upper),
            problems("PlanarRegion.box").call,
            lambda: {"lower": (0.0, 0.0), "upper": (1.0, 1.0)},
        ),
        problems(
            "PlanarRegion",
            geometry=lambda: problems("PlanarRegion").call.box((0.0, 0.0), (1.0, 1.0)).geometry,
        ),
        problems(
            "generate_boundary_points",
            num_points=value(5),
            domain=value(Box((0.0, 0.0), (1.0, 2.0))),
            key=lambda: jax.random.key(0),
        ),
        problems("grid_points", shape=value((2, 3)), domain=value(Box((0.0, 0.0), (1.0, 2.0)))),
        problems(
            "interior_points",
            num_points=value(5),
            domain=value(Box((0.0, 0.0), (1.0, 2.0))),
            key=lambda: jax.random.key(0),
            method=value("uniform"),
        ),
        # -- sampling and balancing
        sampling("RADSampler", k=value(1.0), c=value(1.0)),
        sampling("RARDSampler", k=value(2.0), c=value(0.0)),
        sampling(
            "ResidualRefiner",
            term=value(TERM),
            candidates=value(candidates),
            num_new=value(2),
            sampler=RARDSampler,
            index=value(0),
        ),
        sampling(
            "ResidualResampler",
            term=value(TERM),
            candidates=value(candidates),
            sampler=RADSampler,
            index=value(0),
        ),
        balancing(
            "Balanced", terms=value([TERM]), balancing=value(JacobianBalancing()), every=value(2)
        ),
        balancing("JacobianBalancing", max_points=value(10)),
        # -- multilevel
        multilevel("Cascade", stop=value(None)),
        multilevel(
            "CascadeTrainer",
            hierarchy=lambda: [network(2), network(4)],
            optimizer=lambda: MultilevelAdam(1e-3),
            prolongate_fn=value(prolongate),
            config=value(MultilevelConfig(2)),
        ),
        Entry(
            "CascadeTrainer(sizes)",
            CascadeTrainer,
            CascadeTrainer,
            lambda: {
                "input_dim": 1,
                "output_dim": 1,
                "base_hidden_dims": [4],
                "config": MultilevelConfig(2),
                "rngs": rngs(),
            },
        ),
        Entry(
            "CascadeTrainer.fit",
            fit,
            CascadeTrainer.fit,
            lambda: {
                "loss_fn": squared,
                "data": (POINTS,),
                "epochs": [1, 1],
                "batch_size": None,
                "cycle": "cascade",
                "key": jax.random.key(0),
                "evaluate": None,
                "monitor": Monitor(),
                "checkpoint": None,
                "resume": None,
            },
        ),
        Entry(
            "CascadeTrainer.step",
            step,
            CascadeTrainer.step,
            lambda: {"grads": nnx.state(network(), nnx.Param)},
        ),
        Entry(
            "MultilevelConfig.epochs",
            MultilevelConfig(2).epochs,
            MultilevelConfig.epochs,
            lambda: {"level": 1},
        ),
        multilevel("Checkpoints", folder=value("kept"), every=value(10.0), keep=value(2)),
        multilevel("saved_history", folder=value("kept")),
        multilevel(
            "FaultPolicy",
            action=value("rollback"),
            explosion=value(10.0),
            tries=value(2),
            step_factor=value(0.5),
        ),
        multilevel(
            "EarlyStopping",
            patience=value(2),
            metric=value("error"),
            min_delta=value(0.1),
            restore_best=value(True),
            scope=value("run"),
        ),
        multilevel(
            "ExplainedSpectrum",
            explained=value(0.9),
            buffer=value(1),
            min_epochs=value(1),
            loss=value(squared),
        ),
        multilevel("FullMultigrid", **cycle),
        multilevel("VCycle", **cycle),
        multilevel("WCycle", **cycle),
        multilevel(
            "LossPlateau", window=value(2), relative_improvement=value(0.1), min_epochs=value(1)
        ),
        multilevel(
            "Monitor",
            every=value(2),
            callbacks=value(()),
            progress=value(False),
            observers=value(()),
        ),
        multilevel(
            "MultilevelAdam",
            **rates,
            width_scaling=value(False),
            warm_up_steps=value(0),
            on_transition=value("carry"),
        ),
        multilevel(
            "MultilevelConfig",
            num_levels=value(2),
            coarsening_factor=value(0.5),
            level_epochs=value([1, 2]),
            warmup_epochs=value(0),
            verify_transfers=value(True),
            compile_ahead=value(True),
            keep_programs=value(True),
            faults=FaultPolicy,
            precision=value("float32"),
            placement=value(None),
        ),
        multilevel(
            "Placement",
            mesh=lambda: jax.make_mesh((1,), ("data",)),
            data_axis=value("data"),
            model_axis=value(None),
            devices=value([1]),
            least_work=value(0.0),
            parts=value(1),
        ),
        multilevel(
            "MultilevelOptimizer",
            transformation=value(ADAM),
            second_moment_start=value("fresh"),
            on_transition=value("carry"),
        ),
        multilevel("Resampled", data=value((POINTS,)), draw=value(candidates), every=value(2)),
        multilevel(
            "Streamed",
            source=value(range(4)),
            steps_per_epoch=value(2),
            batches_at_once=value(2),
        ),
        multilevel("ResidualCorrection", scale=value(0.1)),
        multilevel(
            "ResidualSpectrum",
            residual_fn=value(squared),
            modes=value((2, 4)),
            spatial_dims=value(1),
            energy_fraction=value(0.5),
        ),
        multilevel("WorkOptimal", window=value(2), optimism=value(0.5), min_epochs=value(4)),
        multilevel(
            "coarsest_grid",
            modes=value(3),
            finest_shape=value((16,)),
            oversampling=value(2.0),
            grid_kind=value("periodic"),
            nested=value(True),
        ),
        multilevel(
            "create_depth_hierarchy",
            input_dim=value(1),
            output_dim=value(1),
            hidden_dim=value(2),
            depths=value([1, 2]),
            activation=value(jnp.tanh),
            param_dtype=value(jnp.float32),
            rngs=rngs,
        ),
        multilevel(
            "create_fno_hierarchy",
            base_modes=value(2),
            width=value(2),
            num_levels=value(2),
            reduction_factor=value(2.0),
            input_dim=value(1),
            output_dim=value(1),
            num_layers=value(1),
            activation=value(nnx.gelu),
            spatial_dims=value(1),
            grid_kind=value("cell"),
            rngs=rngs,
        ),
        multilevel(
            "create_hierarchy",
            build=value(lambda size, rngs: MLP(1, 1, [size], rngs=rngs)),
            sizes=value([2, 4]),
            rngs=rngs,
        ),
        multilevel(
            "create_multiscale_hierarchy",
            input_dim=value(1),
            output_dim=value(1),
            hidden_dims=value([2]),
            frequencies=value((1.0, 2.0)),
            bands=value([1, 2]),
            coarsening_factor=value(1.0),
            activation=value(jnp.sin),
            fourier_features=value(None),
            rngs=rngs,
        ),
        multilevel(
            "create_network_hierarchy",
            input_dim=value(1),
            output_dim=value(1),
            base_hidden_dims=value([4]),
            num_levels=value(2),
            coarsening_factor=value(0.5),
            activation=value(jnp.tanh),
            param_dtype=value(jnp.float32),
            rngs=rngs,
        ),
        multilevel(
            "draw", cycle=value(VCycle(cycles=1)), num_levels=value(2), epochs=value([1, 1])
        ),
        multilevel(
            "fit_in_stages",
            function=value(jnp.sin),
            points=value(POINTS),
            make_model=value(lambda stage: network()),
            num_stages=value(1),
            steps=value(1),
            solver=LevenbergMarquardt,
        ),
        multilevel(
            "interpolate_field",
            field=value(FIELDS),
            shape=value((16,)),
            grid_kind=value("cell"),
            method=value("auto"),
        ),
        multilevel(
            "restrict_field",
            field=value(FIELDS),
            shape=value((4,)),
            grid_kind=value("cell"),
            method=value("average"),
        ),
        *(
            Entry(name, getattr(levels, name), getattr(levels, name), pair)
            for name in ("prolongate", "prolongate_preserving", "restrict")
        ),
        Entry(
            "prolongate_correction",
            levels.prolongate_correction,
            levels.prolongate_correction,
            lambda: {"coarse_tree": nnx.state(grown()[0], nnx.Param), **pair()},
        ),
        Entry(
            "restrict_gradient",
            levels.restrict_gradient,
            levels.restrict_gradient,
            lambda: {"fine_tree": nnx.state(grown()[1], nnx.Param), **pair(), "scale": 1.0},
        ),
        multilevel("PlasticProlongation", outgoing=value(0.1), ascent_steps=value(2)),
        multilevel("prolongate_fno_modes", **operator_pair),
        multilevel("restrict_fno_modes", **operator_pair),
        multilevel(
            "recommend_schedule",
            source=value((FIELDS, FIELDS)),
            finest_model=operator,
            budget=value(10),
        ),
        multilevel(
            "resolution_hierarchy",
            inputs=value(FIELDS),
            outputs=value(FIELDS),
            modes=value([1, 2]),
            shapes=value([(4,), (8,)]),
            oversampling=value(2.0),
            grid_kind=value("cell"),
            input_method=value("auto"),
            output_method=value("auto"),
        ),
        multilevel(
            "resolution_batches",
            fields=stored,
            modes=value([1, 2]),
            batch_size=value(2),
            seed=value(0),
            shuffle=value(True),
            cache=value(None),
        ),
        multilevel(
            "scale_by_age_corrected_adam",
            b1=value(0.9),
            b2=value(0.99),
            eps=value(1e-8),
            warm_up_steps=value(2),
        ),
        multilevel(
            "sine_network", hidden_dims=value((2,)), param_dtype=value(jnp.float32), rngs=rngs
        ),
        Entry(
            "transfer_optimizer_state",
            levels.transfer_optimizer_state,
            levels.transfer_optimizer_state,
            lambda: {
                "transformation": ADAM,
                "state": state_of(grown()[0], ADAM),
                **pair(),
                "transition_fn": prolongate,
                "second_moment_start": "fresh",
                "restart_schedules": False,
            },
        ),
        multilevel(
            "tune_learning_rate",
            model=network,
            loss_fn=value(squared),
            data=value((POINTS,)),
            rates=value((1e-3, 1e-2)),
            steps=value(2),
            batch_size=value(None),
        ),
        Entry(
            "verify_transfer",
            verify,
            levels.verify_transfer,
            lambda: {**pair_of_equals(), "inputs": POINTS},
        ),
    ]


def pair_of_equals() -> dict[str, Any]:
    coarse, fine = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=rngs())
    preserving = importlib.import_module("opifex.training.multilevel").prolongate_preserving
    return {"coarse_model": coarse, "fine_model": preserving(coarse, fine)}


ENTRIES = _entries()

BAD: dict[str, Callable[[], Any]] = {
    "None": value(None),
    "True": value(True),
    "minus one": value(-1),
    "zero": value(0),
    "one": value(1),
    "half": value(0.5),
    "minus half": value(-0.5),
    "three and a half": value(3.5),
    "nan": value(float("nan")),
    "inf": value(float("inf")),
    "minus inf": value(float("-inf")),
    "huge int": value(10**30),
    "huge float": value(1e300),
    "tiny": value(5e-324),
    "complex": value(1j),
    "empty text": value(""),
    "text": value("text"),
    "bytes": value(b"bytes"),
    "empty list": value([]),
    "empty tuple": value(()),
    "ragged": value([[1.0], [1.0, 2.0]]),
    "list of None": value([None]),
    "list of nan": value([float("nan")]),
    "list of text": value(["a", "b"]),
    "list of numbers": value([1, 2]),
    "many numbers": value([1, 2, 3, 4, 5]),
    "negative numbers": value([-1, -2]),
    "dict": value({"a": 1}),
    "set": value({1, 2}),
    "object": object,
    "class": value(int),
    "model class": value(MLP),
    "model": network,
    "module": value(jnp),
    "function": value(lambda: None),
    "function of anything": value(lambda *a, **k: None),
    "generator": lambda: (i for i in range(2)),
    "range": value(range(1, 3)),
    "empty array": lambda: np.zeros((0, 2)),
    "array of no axes": lambda: np.zeros(()),
    "array of nan": lambda: np.full((3, 1), np.nan),
    "array of inf": lambda: np.full((3, 8, 1), np.inf),
    "integer array": lambda: np.arange(6).reshape(3, 2),
    "bool array": lambda: np.ones((3, 1), bool),
    "complex array": lambda: np.ones((3, 1), complex),
    "text array": lambda: np.array([["a"], ["b"]]),
    "object array": lambda: np.array([[None], [object()]], dtype=object),
    "traced kind": lambda: jnp.ones((2, 2)),
    "key": lambda: jax.random.key(0),
    "numpy number": value(np.float32(2.0)),
    "numpy integer": value(np.int64(2)),
    "dtype": value(np.dtype("int32")),
    "optimizer": value(ADAM),
    "term": value(TERM),
}
"""Makers of bad values; of some arguments a few of them are good ones."""
