"""MG/OPT: identities of the transfers, coherence, monotone corrections, levels that are visited."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core.residuals import ResidualTerm
from opifex.models import FNO, MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.loop import CompiledLoop
from opifex.training.multilevel import (
    CascadeTrainer,
    Correct,
    Enter,
    FullMultigrid,
    Interpolate,
    Monitor,
    NonFiniteLossError,
    Resampled,
    Restrict,
    Smooth,
    VCycle,
    WCycle,
    prolongate_correction,
    restrict,
    restrict_gradient,
)
from opifex.training.multilevel.transfer import plan_transfer
from opifex.training.objective import Objective, split_model
from tolerances import rounding

X = np.linspace(-1.0, 1.0, 24, dtype=np.float32)[:, None]
POINTS = jnp.asarray(X, jnp.float32)
TERM = ResidualTerm("fit", lambda u, x: u(x) - jnp.sin(3 * x))


def loss(model, x):
    return jnp.mean((model(x) - jnp.sin(3 * x)) ** 2)


def networks(widths=(3, 5, 8), dtype=jnp.float32):
    return [MLP(1, 1, [w], param_dtype=dtype, rngs=nnx.Rngs(w)) for w in widths]


def random_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    )


def assert_close(found, wanted, *, rtol, atol=0.0):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def params_of(model):
    return split_model(model)[1]


@jax.jit
def gradient(objective, params):
    return objective.value_and_gradient(params)[1]


# -- Transfers of gradients and corrections --------------------------------------------------

PAIRS = {
    "width": lambda: networks((3, 5)),
    "modes": lambda: [FNO(m, 2, num_layers=1, spatial_dims=2, rngs=nnx.Rngs(m)) for m in (2, 3)],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_truncation_is_the_transpose_and_left_inverse_of_padding(pair):
    coarse, fine = PAIRS[pair]()
    x, y = random_like(params_of(coarse), 0), random_like(params_of(fine), 1)
    padded, truncated = prolongate_correction(x, coarse, fine), restrict_gradient(y, coarse, fine)
    np.testing.assert_allclose(optax.tree.vdot(padded, y), optax.tree.vdot(x, truncated), rtol=1e-5)
    assert_close(restrict_gradient(padded, coarse, fine), x, rtol=0)
    assert float(optax.tree.norm(padded)) == pytest.approx(float(optax.tree.norm(x)), rel=1e-6)


def test_galerkin_identity_for_a_linear_model():
    """With a quadratic loss of one layer the coarse Hessian is the fine one between the transfers."""
    with jax.enable_x64(True):
        coarse = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        fine = nnx.Linear(5, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(1))
        data = jnp.asarray(np.random.default_rng(0).normal(size=(20, 5)))

        def hessian_product(model, inputs, direction):
            graph, params, rest = split_model(model)

            def value(p):
                return jnp.sum(nnx.merge(graph, p, rest)(inputs) ** 2)

            return jax.jvp(jax.grad(value), (params,), (direction,))[1]

        direction = random_like(params_of(coarse), 2)
        fine_product = hessian_product(fine, data, prolongate_correction(direction, coarse, fine))
        found = restrict_gradient(fine_product, coarse, fine)
        assert_close(found, hessian_product(coarse, data[:, :3], direction), rtol=1e-12)


def test_wrong_scale_of_a_gradient_is_named():
    coarse, fine = networks((3, 5))
    with pytest.raises(ValueError, match="scale must be positive"):
        restrict_gradient(params_of(fine), coarse, fine, scale=0.0)


# -- Coherence -------------------------------------------------------------------------------


def test_a_linear_term_turns_the_coarse_gradient_into_the_restricted_one():
    with jax.enable_x64(True):
        coarse, fine = networks((3, 5), jnp.float64)
        graph, params, rest = split_model(fine)
        fine_gradient = gradient(Objective(loss, graph, (jnp.asarray(X),), rest), params)
        wanted = restrict_gradient(fine_gradient, coarse, fine, scale=0.5)
        graph, start, rest = split_model(restrict(fine, coarse))
        objective = Objective(loss, graph, (jnp.asarray(X),), rest)
        shift = jax.tree.map(jnp.subtract, gradient(objective, start), wanted)
        found = gradient(objective.at(shift=shift), start)
        assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_gradient_over_a_block_is_the_restricted_gradient():
    with jax.enable_x64(True):
        coarse, fine = networks((3, 5), jnp.float64)
        graph, params, rest = split_model(fine)
        objective = Objective(loss, graph, (jnp.asarray(X),), rest)
        block = objective.at(frame=params, layout=plan_transfer(coarse, fine))
        found = gradient(block, params_of(restrict(fine, coarse)))
        wanted = restrict_gradient(gradient(objective, params), coarse, fine)
        assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"gradient_scale": 0.5}, 0.25),  # once per level
        ({"coarse": "galerkin"}, 1.0),
    ],
    ids=["rediscretised", "galerkin"],
)
def test_one_coarse_step_is_a_step_along_the_restricted_fine_gradient(options, factor):
    """Two levels down, one step, and back up, without any smoothing on the way."""
    rate = 1e-2
    with jax.enable_x64(True):
        models = networks(dtype=jnp.float64)
        coarsest, _, finest = models
        graph, params, rest = split_model(finest)
        slope = gradient(Objective(loss, graph, (jnp.asarray(X),), rest), params)
        seen = prolongate_correction(restrict_gradient(slope, coarsest, finest), coarsest, finest)
        wanted = jax.tree.map(lambda p, g: p - rate * factor * g, params, seen)
        trainer = CascadeTrainer(models, optax.sgd(rate))
        trainer.fit(loss, (X,), cycle=VCycle(cycles=1, pre=0, post=0, coarsest=1, **options))
        tolerance = rounding(np.float64, operations=100)
        assert_close(params_of(trainer.model), wanted, rtol=tolerance, atol=tolerance)


# -- Cycles ----------------------------------------------------------------------------------


def run(cycle, epochs=(12, 12, 12), optimizer=None, **options):
    trainer = CascadeTrainer(networks(), optimizer or optax.adam(1e-2))
    history = trainer.fit(loss, (X,), epochs=epochs, cycle=cycle, **options)
    return trainer, history


@pytest.mark.parametrize(
    ("cycle", "levels"),
    [
        (VCycle(cycles=2), [0, 2, 1, 0, 1, 2, 1, 0, 1, 2]),
        (WCycle(cycles=1), [0, 2, 1, 0, 1, 0, 1, 2]),
        (FullMultigrid(cycles=1), [0, 1, 0, 1, 2, 1, 0, 1, 2]),
    ],
    ids=["v", "w", "full"],
)
def test_order_of_levels_and_number_of_steps(cycle, levels):
    trainer, history = run(cycle)
    assert [t.from_level for t in history.transitions] == levels[:-1]
    assert [t.to_level for t in history.transitions] == levels[1:]
    assert trainer.is_at_finest
    table = history.table()
    np.testing.assert_array_equal(np.bincount(table["level"]), [12, 12, 12])
    cost = sum(12 * history.step_work[level] for level in range(3))
    assert history.work > cost  # gradients and line searches are charged too
    assert history.losses[-1] < history.losses[0]
    assert set(table["objective"][table["level"] == 2]) == {"own"}
    first_solve = {"own"} if isinstance(cycle, FullMultigrid) else set()
    assert set(table["objective"][table["level"] == 0]) == {"rediscretised"} | first_solve


@pytest.mark.parametrize("name", ["v-cycle", "w-cycle", "full-multigrid"])
def test_names_lower_the_loss(name):
    _, history = run(name, epochs=(40, 40, 40), evaluate=lambda model: loss(model, POINTS))
    finest = [e.metrics["metric"] for e in history.evaluations if e.level == 2]
    assert finest[-1] < 0.5 * history.losses[0]
    assert finest[-1] < finest[0]
    assert max(history.table()["cycle"]) >= 4


def corrections(history):
    """The finest loss before and after each correction, where it is smoothed before and after."""
    finest = max(e.level for e in history.evaluations)
    for transition in history.transitions:
        if transition.step and transition.to_level == finest:
            before = [
                e.metrics["metric"]
                for e in history.evaluations
                if e.level == finest and e.step <= transition.step
            ]
            yield before[-1], history.losses[transition.step]


def test_corrections_never_raise_the_fine_loss():
    """Even with coarse steps that overshoot by far."""
    _, history = run(
        VCycle(cycles=3),
        epochs=(30, 6, 6),
        optimizer=optax.sgd(0.5),
        evaluate=lambda model: loss(model, POINTS),
    )
    seen = list(corrections(history))
    assert len(seen) == 3
    tolerance = rounding(np.float32, operations=10)
    assert all(after <= before * (1 + tolerance) for before, after in seen)
    assert any(after < before * (1 - tolerance) for before, after in seen)


class Moves:
    """A cycle of one's own."""

    coarse = "galerkin"

    def __init__(self, *moves):
        self._moves = moves

    def moves(self, num_levels, start, epochs):
        yield from self._moves


def test_corrections_of_blocks_change_nothing_but_the_block():
    seen = {}
    down = Enter(2), Smooth(2, 10), Restrict(1), Smooth(1, 10), Restrict(0), Smooth(0, 10)
    trainer, history = run(
        Moves(*down, Correct(1), Correct(2)),
        monitor=Monitor(every=10, callbacks=[lambda p: seen.update({p.level: p.model})]),
        evaluate=lambda model: loss(model, POINTS),
    )
    kernels = [
        np.asarray(model.hidden[0].dense.kernel[...])
        for model in (seen[2], seen[1], seen[0], trainer.model)
    ]
    # Also on the coarser levels it is the finest network that is evaluated.
    assert {kernel.shape for kernel in kernels} == {(1, 8)}
    for (before, after), width in zip(pairwise(kernels), (5, 3, 5), strict=True):
        np.testing.assert_array_equal(after[:, width:], before[:, width:])
    assert np.all(kernels[1][:, :5] != kernels[0][:, :5])
    assert np.all(kernels[2][:, :3] != kernels[1][:, :3])
    # Every level minimises the finest loss: smoothing never jumps to another objective.
    evaluated = {e.step: e.metrics["metric"] for e in history.evaluations}
    for step in (10, 20):
        np.testing.assert_allclose(
            history.losses[step], evaluated[step], rtol=rounding(np.float32, operations=10)
        )
    assert list(np.unique(history.table()["objective"])) == ["galerkin", "own"]
    assert float(loss(trainer.model, X)) < history.losses[0]


def test_cycles_over_blocks_lower_the_loss_and_never_raise_it():
    _, history = run(
        VCycle(cycles=3, coarse="galerkin"),
        epochs=(30, 30, 30),
        evaluate=lambda model: loss(model, POINTS),
    )
    assert history.losses[-1] < 0.5 * history.losses[0]
    seen = list(corrections(history))
    assert len(seen) == 3
    tolerance = rounding(np.float32, operations=10)
    assert all(after <= before * (1 + tolerance) for before, after in seen)


def test_interpolation_in_full_multigrid_keeps_the_function():
    before = []
    trainer, _ = run(
        Moves(Smooth(0, 5), Interpolate(1)),
        monitor=Monitor(every=5, callbacks=[lambda progress: before.append(progress.model(X))]),
    )
    assert trainer.current_level == 1
    tolerance = rounding(np.float32, operations=10)
    np.testing.assert_allclose(trainer.model(X), before[-1], rtol=tolerance, atol=tolerance)


def test_smoother_states_are_kept_between_visits():
    trainer, _ = run(VCycle(cycles=3))
    assert int(trainer.optimizer.state[0].count) == 12


@pytest.mark.parametrize("coarse", ["rediscretised", "galerkin"])
def test_one_program_per_level(monkeypatch, coarse):
    built = []
    original = CompiledLoop.__init__

    def count(self, *arguments, **options):
        built.append(self)
        original(self, *arguments, **options)

    monkeypatch.setattr(CompiledLoop, "__init__", count)
    run(VCycle(cycles=3, coarse=coarse))
    assert len(built) == 3


def test_cycle_after_a_cascade_continues_from_the_finest_level():
    trainer, history = run("cascade")
    before = float(loss(trainer.model, X))
    trainer.fit(loss, (X,), epochs=(20, 20, 20), cycle=VCycle(cycles=2))
    assert float(loss(trainer.model, X)) < before
    np.testing.assert_allclose(history.losses[36], before, rtol=1e-5)
    # The first call's three levels, and then the finest once more.
    assert [t.to_level for t in history.transitions][:3] == [1, 2, 1]


def test_full_multigrid_after_a_cascade_cycles_on_the_finest_level():
    trainer, history = run("cascade")
    trainer.fit(loss, (X,), cycle=FullMultigrid(cycles=2, pre=2, post=1, coarsest=3))
    np.testing.assert_array_equal(history.table()["level"][36:], 2 * [2, 2, 1, 1, 0, 0, 0, 1, 2])
    assert trainer.is_at_finest


# -- What goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cycle": "x-cycle"}, ValueError, "cycle must be one of"),
        ({"cycle": 3}, TypeError, "cycle must be one of"),
        ({"cycle": "v-cycle", "batch_size": 4}, ValueError, "batch_size must be None"),
        (
            {"cycle": "v-cycle", "data": Resampled((X,), lambda model, data, key: data)},
            ValueError,
            "data must not be Resampled",
        ),
    ],
)
def test_wrong_arguments_of_fit_are_named(options, error, message):
    with pytest.raises(error, match=message):
        CascadeTrainer(networks()).fit(loss, **{"data": (X,), **options})


@pytest.mark.parametrize("cycle", [VCycle(cycles=2), FullMultigrid(cycles=1)], ids=["v", "full"])
def test_divergence_on_a_coarse_level_leaves_the_finer_model(cycle):
    wild = optax.chain(optax.sgd(1.0), optax.scale(1e30))
    if isinstance(cycle, FullMultigrid):  # its first solve must survive
        wild = optax.sgd(optax.piecewise_constant_schedule(1e-2, {6: 1e30}))
    trainer = CascadeTrainer(networks(), [wild, optax.sgd(1e-2), optax.sgd(1e-2)])
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(loss, (X,), epochs=(12, 12, 12), cycle=cycle)
    assert caught.value.level == 0
    assert trainer.current_level == (1 if isinstance(cycle, FullMultigrid) else 2)
    assert np.isfinite(float(loss(trainer.model, X)))


def test_least_squares_solvers_smooth_blocks():
    with jax.enable_x64(True):
        solvers = [LevenbergMarquardt(), LevenbergMarquardt(), optax.adam(1e-2)]
        trainer = CascadeTrainer(networks(dtype=jnp.float64), solvers)
        trainer.fit([TERM], (X,), cycle=VCycle(cycles=2, coarse="galerkin"), epochs=(10, 10, 10))
        assert float(loss(trainer.model, jnp.asarray(X))) < 1e-2


def test_least_squares_solvers_are_refused_where_an_objective_has_a_linear_term():
    trainer = CascadeTrainer(networks(), LevenbergMarquardt())
    with pytest.raises(ValueError, match=r"has a linear term: use Optax .* coarse=\"galerkin\""):
        trainer.fit([TERM], (X,), cycle="v-cycle")


@pytest.mark.slow
def test_least_squares_solvers_smooth_the_finest_level_above_coherent_coarse_ones():
    with jax.enable_x64(True):
        adam = optax.adam(1e-2)
        trainer = CascadeTrainer(networks(dtype=jnp.float64), [adam, adam, LevenbergMarquardt()])
        trainer.fit([TERM], (X,), cycle=VCycle(cycles=2), epochs=(10, 10, 10))
        assert float(loss(trainer.model, jnp.asarray(X))) < 1e-2
