"""Checks of trainings that eight devices share, in a process of its own.

The number of devices is decided when JAX starts: `ENVIRONMENT` is what the process needs.
``python eight_devices.py NAME...`` carries out the checks of these names and writes what went wrong
with each, or ``null``, as one JSON object.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import ClassVar

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from opifex.core import ResidualTerm
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.problems import Poisson
from opifex.training.loop import CompiledLoop, LoopState, owned
from opifex.training.multilevel import (
    Balanced,
    CascadeTrainer,
    Checkpoints,
    FaultPolicy,
    JacobianBalancing,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    Resampled,
    Streamed,
    VCycle,
    create_network_hierarchy,
)
from opifex.training.objective import Objective, split_model
from opifex.training.placement import Placement, shape_on
from opifex.training.smoother import LeastSquaresSmoother, as_smoother
from tolerances import distance, rounding

NUMBER = 8
ENVIRONMENT = {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={NUMBER}",
    "JAX_ENABLE_X64": "1",
    "OPIFEX_PROGRAM_CACHE": "off",
}
SAMPLES, BATCH, STEPS = 64, 16, 8
INPUTS = np.random.default_rng(0).normal(size=(SAMPLES, 2))
TARGETS = np.sin(INPUTS).sum(axis=1, keepdims=True)
PROBLEM = Poisson()
POINTS = tuple(np.random.default_rng(0).uniform(size=(count, 2)) for count in (64, 32))
COMMUNICATION = (
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def flat_mesh(number=NUMBER):
    return Mesh(np.array(jax.devices()[:number]), ("data",))


def loss(model, inputs, targets):
    return jnp.mean((model(inputs) - targets) ** 2)


def metric(model):
    return loss(model, INPUTS, TARGETS)


def communication(text: str) -> Counter:
    """How often a compiled program calls each kind of communication."""
    return Counter(re.findall(COMMUNICATION, text))


def bound(steps=STEPS) -> float:
    """How far a training may differ after some steps, by the order of the sums alone.

    An entry of the gradient is a sum over samples; its relative error is their number times the unit
    roundoff times the sum of the absolute terms over that of the terms. Adam divides every entry by
    its own size, so that this error is one of the step; each step adds one, and passes those before
    on with a factor near one (the rate is small).
    """
    graphdef, params, rest = split_model(network())

    def slope(x, y):
        return jax.grad(lambda p: loss(nnx.merge(graphdef, p, rest), x[None], y[None]))(params)

    each = jax.tree.leaves(jax.vmap(slope)(jnp.asarray(INPUTS), jnp.asarray(TARGETS)))
    cancelled = [jnp.abs(leaf).sum(0) / jnp.abs(leaf.sum(0)) for leaf in each]
    condition = max(float(leaf.max()) for leaf in cancelled)
    return rounding(np.float64, operations=SAMPLES, condition=steps * condition)


def precise(model):
    """A model with parameters in double precision."""
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), nnx.state(model)))
    return model


def network():
    return precise(MLP(2, 1, [8], rngs=nnx.Rngs(0)))


def trained(placement, loss_fn=loss, data=(INPUTS, TARGETS), optimizer=None, **settings):
    """A trainer after a few steps on two levels, or on those of ``models``."""
    models = settings.pop("models", None)
    if models is None:
        hierarchy = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        models = [precise(model) for model in hierarchy]
    trainer = CascadeTrainer(
        models,
        optimizer or MultilevelAdam(1e-2),
        config=MultilevelConfig(num_levels=len(models), placement=placement),
    )
    settings.setdefault("epochs", [STEPS // 2] * len(models))
    trainer.fit(loss_fn, data, **settings)
    return trainer


def assert_equal(shared, alone, most) -> None:
    """Losses, metrics and parameters of two trainings agree."""
    assert distance(shared.history.losses, alone.history.losses) <= most
    values = [
        [value for one in trainer.history.evaluations for value in one.metrics.values()]
        for trainer in (shared, alone)
    ]
    assert distance(*values, scale=np.linalg.norm(values[1]) or 1.0) <= most
    for pair in zip(variables(shared), variables(alone), strict=True):
        assert distance(*pair) <= most


def variables(trainer) -> list:
    return jax.tree.leaves(nnx.state(trainer.model, nnx.Param))


def specs(tree) -> set:
    return {leaf.sharding.spec for leaf in jax.tree.leaves(tree)}


def program(placement, smoother, loss_fn, data, model, batch_size=None):
    """The compiled training program of one level."""
    graphdef, params, rest = split_model(model)
    place = placement.at(0, len(data[0]), 1)
    objective = Objective(loss_fn, graphdef, tuple(map(jnp.asarray, data)), placement=place)
    state = LoopState.start(
        params,
        rest,
        smoother.init(params),
        jax.random.key(0),
        objective.data,
        batch_size,
        parts=place.parts,
    )
    with placement.active():
        loop = CompiledLoop(objective, smoother, state, batch_size=batch_size)
        loop.compile()
    return loop._compiled.result()


def check_mini_batches(**settings):
    settings = {"models": [network()], "batch_size": BATCH, "epochs": [2], **settings}
    shared = trained(Placement(flat_mesh()), **settings)
    alone = trained(Placement(flat_mesh(1), parts=NUMBER), **settings)
    assert_equal(shared, alone, bound())
    assert specs(variables(shared)) | specs(shared.optimizer.state) == {PartitionSpec()}
    devices = {leaf.sharding.num_devices for leaf in variables(shared)}
    assert devices == {NUMBER}


def check_mini_batches_of_a_cascade():
    check_mini_batches(models=None, epochs=[1, 1], evaluate=metric)


ADAM = as_smoother(optax.adam(1e-2))


def sent(text: str, kind: str) -> list[int]:
    """How many numbers each result of a kind of communication has."""
    lines = [line for line in text.splitlines() if f" {kind}(" in line]
    shapes = [
        s for line in lines for s in re.findall(r"f64\[([\d,]*)\]", line.split(kind + "(")[0])
    ]
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]


def check_communication_and_memory_of_a_step():
    """The formulas of docs/scaling.md: one sum over the devices; neither parameters nor samples move."""
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network(), nnx.Param)))
    columns = INPUTS.shape[1] + TARGETS.shape[1]
    for batch_size in (None, BATCH):
        compiled = program(
            Placement(flat_mesh()), ADAM, loss, (INPUTS, TARGETS), network(), batch_size
        )
        text = compiled.as_text()
        assert communication(text) == {"all-reduce": 1}, communication(text)
        assert sum(sent(text, "all-reduce")) == size + 1  # gradient and loss
        # Parameters and two moments; own rows; key, three counters; the order of the own samples.
        order = 0 if batch_size is None else SAMPLES // NUMBER * 4
        wanted = 8 * (3 * size + SAMPLES // NUMBER * columns) + 8 + 3 * 4 + order
        assert compiled.memory_analysis().argument_size_in_bytes == wanted


def check_parameters_in_pieces():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    placement = Placement(mesh, model_axis="model")
    compiled = program(placement, ADAM, loss, (INPUTS, TARGETS), network())
    text = compiled.as_text()
    params = placement.at(0, SAMPLES, 1).parameters(nnx.state(network(), nnx.Param))
    leaves = jax.tree.leaves(params)
    pieces = [leaf for leaf in leaves if leaf.sharding.spec != PartitionSpec()]
    assert {leaf.sharding.spec for leaf in pieces} == {
        PartitionSpec(None, "model"),  # the kernel (2, 8), along its longer axis
        PartitionSpec("model"),
    }
    # Each of them is put together once in a step, and no sample moves.
    assert sorted(sent(text, "all-gather")) == sorted(leaf.size for leaf in pieces)
    assert set(communication(text)) == {"all-reduce", "all-gather"}
    kept = sum(leaf.addressable_data(0).size for leaf in leaves)
    columns = INPUTS.shape[1] + TARGETS.shape[1]
    wanted = 8 * (3 * kept + SAMPLES // NUMBER * columns) + 8 + 3 * 4
    assert compiled.memory_analysis().argument_size_in_bytes == wanted


# Cheap to compile, of one and of two components.
TERMS = (
    ResidualTerm("values", lambda u, x: u(x) - jnp.sin(x[0])),
    ResidualTerm("slopes", lambda u, x: jax.jacfwd(u)(x)[0] - x, weight=3.0),
)


def residuals(points, axes=(), **settings):
    graphdef, params, rest = split_model(network())

    def bind(params):
        return nnx.merge(graphdef, params, rest)

    return FlatResiduals(TERMS, bind, params, points, axes=axes, **settings)


def check_rows_of_a_jacobian(block_bytes=2.0**13):
    """All that solvers ask of residuals, in several blocks of points."""
    mesh, whole = flat_mesh(), PartitionSpec()
    vector = jnp.asarray(np.random.default_rng(1).normal(size=residuals(POINTS).start.size))

    def asked(points, axes):
        problem = residuals(points, axes, block_bytes=block_bytes)
        linear = problem.linearize(problem.start)
        free = problem.linearize_matrix_free(problem.start, 1)
        residual, rows = problem.jacobian(problem.start)
        return {
            "losses": problem.losses(jnp.stack([problem.start, problem.start + 0.1 * vector])),
            "loss": linear.loss,
            "gradient": linear.right_hand_side,
            "gram": linear.gram,
            "norms": problem.squared_norms(problem.start),
            "matrix-free": jnp.concatenate([free.gradient, free.product(vector)]),
            "curvature": problem.second_derivatives(problem.start, vector[None], linear),
            # The order of the rows is not the same.
            "jacobian": jnp.concatenate([rows.T @ rows, (rows.T @ residual)[None]]),
        }

    shared = jax.shard_map(
        lambda points: asked(points, ("data",)),
        mesh=mesh,
        in_specs=(PartitionSpec("data"),),
        out_specs=whole,
        check_vma=False,
    )
    found, wanted = jax.jit(shared)(POINTS), jax.jit(lambda points: asked(points, ()))(POINTS)
    for name, value in wanted.items():
        # Sums over the points of terms of one size; a residual itself is some hundred operations.
        most = rounding(np.float64, operations=100 + sum(map(len, POINTS)))
        assert distance(found[name], value) <= most, name


def check_rows_of_a_jacobian_that_is_kept():
    check_rows_of_a_jacobian(block_bytes=2.0**24)


def check_levenberg_marquardt():
    """The Gram matrix is a sum over devices; no row of the Jacobian moves."""
    solver = LevenbergMarquardt(geodesic_acceleration=False)
    smoother = as_smoother(solver)
    graphdef, params, rest = split_model(network())
    placement = Placement(flat_mesh())
    place = placement.at(0, 64, 1)
    alone = Objective(TERMS, graphdef, tuple(map(jnp.asarray, POINTS)), rest)
    shared = alone.at(placement=place).placed()
    step = jax.jit(lambda objective, state: smoother.step(objective, params, state)[:3])
    state = smoother.init(params)
    compiled = step.lower(shared, place.whole(state, shape_on)).compile()
    text = compiled.as_text()
    assert set(communication(text)) == {"all-reduce"}, communication(text)
    size = residuals(POINTS).start.size
    trials = len(solver.damping_factors) * len(solver.step_lengths)
    assert sum(sent(text, "all-reduce")) == size**2 + size + 1 + trials  # see docs/scaling.md
    new, _, value = compiled(shared, place.whole(state))
    expected, _, expected_value = step(alone, state)
    start = residuals(POINTS)
    most = rounding(np.float64, operations=100 + sum(map(len, POINTS)))
    assert distance(value, expected_value) <= most
    # The damped Gram matrix is as well conditioned as its damping says.
    smallest = min(solver.damping_factors) * solver.initial_damping
    for pair in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.linalg.norm(start.start))
        assert distance(*pair, scale=scale) <= most / smallest


class Watched(LevenbergMarquardt):
    """Remembers the sizes for which it was asked."""

    sizes: ClassVar[list] = []

    def step_memory(self, size):
        self.sizes.append(size)
        return super().step_memory(size)


def check_memory_of_shared_rows():
    """What each device holds is judged, and is what the compiler says within a factor of two."""
    graphdef, params, rest = split_model(precise(MLP(2, 1, [16, 16], rngs=nnx.Rngs(0))))
    solver = Watched(geodesic_acceleration=False)
    totals = {}
    for devices in (1, NUMBER):
        for counts in ((4096, 2048), (64, 64)):  # more residuals than parameters, and fewer
            points = tuple(
                jnp.asarray(np.random.default_rng(0).uniform(size=(n, 2))) for n in counts
            )
            place = Placement(flat_mesh(devices)).at(0, max(counts), 1)
            objective = Objective(TERMS, graphdef, points, rest, placement=place).placed()
            smoother = LeastSquaresSmoother(solver, memory_limit=1)
            with pytest.raises(MemoryError) as error:
                smoother.check(objective, params)
            assert (f"on each of {devices} devices" in str(error.value)) == (devices > 1)
            estimate = solver.step_memory(solver.sizes[-1])
            totals[devices, counts] = estimate.total
            # What is enough for the share of a device is enough.
            LeastSquaresSmoother(solver, estimate.total).check(objective, params)
            step = jax.jit(
                lambda objective, state, s=smoother: s.step(objective, params, state)[:3]
            )
            state = place.whole(smoother.init(params))
            found = step.lower(objective, state).compile().memory_analysis()
            assert 0.5 <= estimate.arrays / found.temp_size_in_bytes <= 2, (devices, counts)
    assert totals[NUMBER, (4096, 2048)] < 0.5 * totals[1, (4096, 2048)]


def check_bad_sizes():
    placement = Placement(flat_mesh())
    for change, message in (
        ({"data": (INPUTS[:60], TARGETS[:60])}, r"data\[0\] must have a multiple of the 8 parts"),
        ({"batch_size": 20}, "batch_size must be a multiple of the 8 parts"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(placement, **change)
    with pytest.raises(ValueError, match="multiple of the 8 devices of level 0, got 12"):
        Placement(flat_mesh(), parts=12).at(0, 64, 1)


def check_copies_may_be_donated():
    place = Placement(flat_mesh()).at(0, SAMPLES, 1)
    tree = {"key": place.whole(jax.random.key(0)), "rows": place.rows(jnp.arange(8.0))}
    shifted = jax.jit(lambda tree: {**tree, "rows": tree["rows"] + 1}, donate_argnums=0)
    shifted(owned(tree))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(tree))


def check_arrays_closed_over():
    """Those on explicit axes do not go with automatic ones; the error says what to do."""
    rows = jax.sharding.NamedSharding(jax.make_mesh((NUMBER,), ("data",)), PartitionSpec("data"))
    inputs = jax.device_put(INPUTS, rows)
    with pytest.raises(ValueError, match="should match the aval mesh") as error:
        trained(
            Placement(flat_mesh()),
            loss_fn=lambda model, targets: loss(model, inputs, targets),
            data=(TARGETS,),
            models=[network()],
        )
    assert "closed over an array" in "".join(error.value.__notes__)


def check_devices_of_a_level():
    """Coarse levels on few neighbouring devices; by hand and by the rule."""
    chosen = Placement(flat_mesh(), devices=[2, 8])
    coarse, fine = chosen.at(0, 64, 33), chosen.at(1, 64, 33)
    assert (coarse.devices, fine.devices) == (2, 8)
    where = coarse.rows(jnp.arange(64.0)).sharding.devices_indices_map((64,))
    halves = [where[device][0].start or 0 for device in jax.devices()]
    assert halves == [0, 32] * 4  # each group of two has all samples
    rule = Placement(flat_mesh(), least_work=1000)
    assert [rule.at(0, 64, size).devices for size in (1, 33, 70, 1000)] == [1, 2, 4, 8]


def check_v_cycle():
    settings = {"cycle": "v-cycle", "evaluate": metric}
    alone, shared = (trained(p, **settings) for p in (None, Placement(flat_mesh())))
    assert_equal(shared, alone, bound())


def check_galerkin_cycle_on_fewer_devices():
    cycle = VCycle(coarse="galerkin")
    placement = Placement(flat_mesh(), devices=[2, 8])
    alone, shared = (trained(p, cycle=cycle) for p in (None, placement))
    assert_equal(shared, alone, bound())


def check_resampled_data():
    def draw(model, data, key):
        inputs = jax.random.normal(key, data[0].shape, data[0].dtype)
        return inputs, jnp.sin(inputs).sum(axis=1, keepdims=True)

    data = Resampled((INPUTS, TARGETS), draw, every=2)
    alone, shared = (trained(p, data=data) for p in (None, Placement(flat_mesh())))
    assert_equal(shared, alone, bound())


def check_least_squares_cascade():
    settings = {"loss_fn": PROBLEM.terms[:2], "data": POINTS, "epochs": [1, 1]}
    runs = [
        trained(p, optimizer=LevenbergMarquardt(), **settings)
        for p in (None, Placement(flat_mesh()))
    ]
    most = rounding(np.float64, operations=100 + sum(map(len, POINTS)))
    smallest = 0.01 * LevenbergMarquardt().initial_damping
    assert_equal(runs[1], runs[0], most / smallest)


def check_balanced_terms():
    def run(placement):
        terms = Balanced(PROBLEM.terms[:2], JacobianBalancing(max_points=None), every=2)
        return trained(placement, loss_fn=terms, data=POINTS)

    alone, shared = run(None), run(Placement(flat_mesh()))
    most = rounding(np.float64, operations=100 + sum(map(len, POINTS)), condition=100)
    assert distance(shared.history.weights, alone.history.weights) <= most


def check_pieces_after_a_transition():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    placement = Placement(mesh, model_axis="model")
    alone, shared = (trained(p) for p in (None, placement))
    assert_equal(shared, alone, bound())
    assert PartitionSpec(None, "model") in specs(variables(shared))
    assert PartitionSpec(None, "model") in specs(shared.optimizer.state)
    # A second call goes on from there.
    for trainer in (alone, shared):
        trainer.fit(loss, (INPUTS, TARGETS), epochs=[0, STEPS])
    assert_equal(shared, alone, bound(steps=2 * STEPS))


def check_faults():
    """A batch without a finite loss is skipped as on one device with as many parts."""
    inputs = INPUTS.copy()
    inputs[3] = 1e200  # its square is infinite

    def run(placement):
        config = MultilevelConfig(
            num_levels=1, placement=placement, faults=FaultPolicy(action="skip", tries=100)
        )
        trainer = CascadeTrainer([network()], MultilevelAdam(1e-2), config=config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(
                lambda model, x, y: loss(model, x, y) + jnp.mean(x**2),
                (inputs, TARGETS),
                epochs=[3],
                batch_size=BATCH,
            )
        return trainer

    shared, alone = run(Placement(flat_mesh())), run(Placement(flat_mesh(1), parts=NUMBER))
    assert 0 < len(shared.history.losses) < 3 * SAMPLES // BATCH
    assert_equal(shared, alone, bound())


def check_checkpoints():
    """A run that is broken off and taken up again has the same steps, and lies where it lay."""
    placement = Placement(flat_mesh())
    whole = trained(placement, models=[network()], batch_size=BATCH, epochs=[4])

    def stop(progress):
        if progress.epoch == 2:
            raise ConnectionError

    settings = {"models": [network()], "batch_size": BATCH, "epochs": [4]}
    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor(every=1, callbacks=[stop])
        with pytest.raises(ConnectionError):
            trained(placement, checkpoint=Checkpoints(folder), monitor=monitor, **settings)
        resumed = trained(placement, checkpoint=Checkpoints(folder), resume="auto", **settings)
    assert_equal(resumed, whole, 0.0)
    assert {leaf.sharding for leaf in variables(resumed)} == {
        leaf.sharding for leaf in variables(whole)
    }


def check_streamed_batches():
    """Each device takes its part of every batch, whatever comes in one window."""
    batches = [(INPUTS[i : i + BATCH], TARGETS[i : i + BATCH]) for i in range(0, SAMPLES, BATCH)]
    settings = {"models": [network()], "epochs": [3]}

    def data():
        return Streamed(grain.MapDataset.source(batches), batches_at_once=3)

    alone = trained(None, data=data(), **settings)
    for mesh, options in ((flat_mesh(), {}), (flat_mesh(2), {"parts": 4})):
        shared = trained(Placement(mesh, **options), data=data(), **settings)
        assert_equal(shared, alone, bound())


def check_another_number_of_devices():
    """A run on four devices goes on on any number of them, with the same steps."""

    def stop(progress):
        if progress.epoch == 2:
            raise ConnectionError

    def run(devices, **settings):
        placement = devices and Placement(flat_mesh(devices), parts=NUMBER)
        settings = {"models": [network()], "epochs": [4], **settings}
        return trained(placement, **settings)

    steps = 4 * SAMPLES // BATCH
    with tempfile.TemporaryDirectory() as folder:
        # Full batches know no parts, so that a run may also go on without a placement.
        for batch_size, others in ((BATCH, (8, 4, 2, 1)), (None, (1, None))):
            kept, copy = Path(folder) / str(batch_size), Path(folder) / "copy"
            whole = run(4, batch_size=batch_size)
            monitor = Monitor(every=1, callbacks=[stop])
            with pytest.raises(ConnectionError):
                run(4, batch_size=batch_size, checkpoint=Checkpoints(kept), monitor=monitor)
            for devices in others:
                shutil.copytree(kept, copy)
                resumed = run(
                    devices, batch_size=batch_size, checkpoint=Checkpoints(copy), resume="auto"
                )
                shutil.rmtree(copy)
                assert_equal(resumed, whole, 0.0 if devices == 4 else bound(steps))
                assert {leaf.sharding.num_devices for leaf in variables(resumed)} == {devices or 1}
        with pytest.raises(
            ValueError, match=r"parts of the samples: \(entry 0\) 8 there and 1 here"
        ):
            run(
                None,
                batch_size=BATCH,
                checkpoint=Checkpoints(Path(folder) / str(BATCH)),
                resume="auto",
            )


def check_surrounding_mesh():
    """What is asked for by ``jax.set_mesh``, or by data on a mesh, both with explicit axes."""
    alone = trained(None, models=[network()])
    mesh = jax.make_mesh((NUMBER,), ("data",))
    with jax.set_mesh(mesh):
        shared = trained(None, models=[network()])
        # Usable where they are.
        assert np.isfinite(float(loss(shared.model, jnp.asarray(INPUTS), jnp.asarray(TARGETS))))
    assert_equal(shared, alone, bound())
    rows = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    spread = tuple(jax.device_put(array, rows) for array in (INPUTS, TARGETS))
    shared = trained(None, models=[network()], data=spread)
    assert_equal(shared, alone, bound())
    assert {leaf.sharding.num_devices for leaf in variables(shared)} == {NUMBER}


if __name__ == "__main__":
    found = {}
    for name in sys.argv[1:]:
        try:
            globals()[f"check_{name}"]()
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
    json.dump(found, sys.stdout)
