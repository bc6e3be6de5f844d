"""MG/OPT: identities of the transfers, coherence, monotone corrections, order of levels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core.residuals import ResidualTerm
from opifex.models import FNO, MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.multilevel import (
    CascadeTrainer,
    FullMultigrid,
    NonFiniteLossError,
    PlateauAdvance,
    VCycle,
    WCycle,
    prolongate_correction,
    prolongate_preserving,
    restrict,
    restrict_gradient,
)
from opifex.training.multilevel.coherence import tilt_for_coherence
from opifex.training.multilevel.transfer import block_embedding
from opifex.training.objective import Objective, split_model

X = np.linspace(-1.0, 1.0, 24)[:, None]


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


PAIRS = {
    "width": lambda: networks((3, 5)),
    "modes": lambda: [FNO(m, 2, num_layers=1, spatial_dims=2, rngs=nnx.Rngs(m)) for m in (2, 3)],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_truncation_is_the_transpose_and_left_inverse_of_padding(pair):
    coarse, fine = PAIRS[pair]()
    x, y = random_like(split_model(coarse)[1], 0), random_like(split_model(fine)[1], 1)
    padded, truncated = prolongate_correction(x, coarse, fine), restrict_gradient(y, coarse, fine)
    np.testing.assert_allclose(optax.tree.vdot(padded, y), optax.tree.vdot(x, truncated), rtol=1e-5)
    back = restrict_gradient(padded, coarse, fine)
    for found, wanted in zip(jax.tree.leaves(back), jax.tree.leaves(x), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert float(optax.tree.norm(padded)) == pytest.approx(float(optax.tree.norm(x)), rel=1e-6)


@pytest.mark.parametrize("scale", [0.5])
def test_tilted_coarse_gradient_is_the_restricted_fine_gradient(scale):
    with jax.enable_x64(True):
        coarse, fine = networks((3, 5), jnp.float64)
        x = jnp.asarray(X)
        fine_objective = Objective(nnx.graphdef(fine), loss)
        coarse_objective = Objective(nnx.graphdef(coarse), loss, tilted=True)
        _, params, rest = split_model(fine)
        fine_gradient = jax.jit(jax.grad(fine_objective.value))(params, rest, (x,))
        wanted = restrict_gradient(fine_gradient, coarse, fine, scale=scale)
        _, start, coarse_rest = split_model(restrict(fine, coarse))
        gradient = jax.jit(jax.grad(coarse_objective.value))
        zero = jax.tree.map(jnp.zeros_like, start)
        tilt = tilt_for_coherence(gradient(start, coarse_rest, (zero, x)), wanted)
        found = gradient(start, coarse_rest, (tilt, x))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


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

        direction = random_like(split_model(coarse)[1], 2)
        fine_product = hessian_product(fine, data, prolongate_correction(direction, coarse, fine))
        found = restrict_gradient(fine_product, coarse, fine)
        wanted = hessian_product(coarse, data[:, :3], direction)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def run(strategy, epochs=(12, 12, 12), optimizer=None, **options):
    trainer = CascadeTrainer(networks(), optimizer or optax.adam(1e-2))
    history = trainer.fit(loss, (X,), epochs=epochs, strategy=strategy, **options)
    return trainer, history


def visited(history):
    return [history.transitions[0].from_level, *(t.to_level for t in history.transitions)]


@pytest.mark.parametrize(
    ("strategy", "levels"),
    [
        (VCycle(cycles=2), [0, 2, 1, 0, 1, 2, 1, 0, 1, 2]),
        (WCycle(cycles=1), [0, 2, 1, 0, 1, 0, 1, 2]),
        (FullMultigrid(cycles=1), [0, 1, 0, 1, 2, 1, 0, 1, 2]),
    ],
    ids=["v", "w", "full"],
)
def test_order_of_levels_and_number_of_steps(strategy, levels):
    trainer, history = run(strategy)
    if isinstance(strategy, WCycle):  # the second visit of level 1 starts where the first ended
        levels = [0, 2, 1, 0, 1, 1, 0, 1, 2]
        found = visited(history)
        assert found == [
            level for i, level in enumerate(levels) if i == 0 or level != levels[i - 1]
        ]
    else:
        assert visited(history) == levels
    assert trainer.is_at_finest
    counts = np.bincount(history.table()["level"].astype(int))
    np.testing.assert_array_equal(counts, [12, 12, 12])
    cost = sum(12 * history.step_work[level] for level in range(3))
    assert history.work > cost  # gradients and line searches are charged too
    assert history.losses[-1] < history.losses[0]


@pytest.mark.parametrize("name", ["v-cycle", "w-cycle", "full-multigrid"])
def test_names_lower_the_loss(name):
    _, history = run(name, epochs=(40, 40, 40), evaluate=lambda model: loss(model, jnp.asarray(X)))
    finest = [e.metrics["metric"] for e in history.evaluations if e.level == 2]
    assert finest[-1] < 0.5 * history.losses[0]
    assert finest[-1] < finest[0]
    assert max(history.table()["cycle"]) >= 4


def test_corrections_never_raise_the_fine_loss(monkeypatch):
    """Even with coarse steps that overshoot by far."""
    seen = []
    original = VCycle._ascend

    def spy(self, multilevel_run, evaluator, start):
        fine = multilevel_run.models[multilevel_run.level + 1]
        before = float(loss(fine, X)) if multilevel_run.level + 1 == 2 else None
        original(self, multilevel_run, evaluator, start)
        if before is not None:
            seen.append((before, float(loss(multilevel_run.model, X))))

    monkeypatch.setattr(VCycle, "_ascend", spy)
    run(VCycle(cycles=3), epochs=(30, 6, 6), optimizer=optax.sgd(0.5))
    assert len(seen) == 3
    assert all(after <= before * (1 + 1e-6) for before, after in seen)


def test_smoother_states_are_kept_between_visits():
    trainer, _ = run(VCycle(cycles=3))
    assert int(trainer.optimizer.state[0].count) == 12


def test_one_program_per_level(monkeypatch):
    from opifex.training.loop import CompiledLoop

    compiled = []
    original = CompiledLoop._compile

    def count(self, state):
        compiled.append(self)
        return original(self, state)

    monkeypatch.setattr(CompiledLoop, "_compile", count)
    run(VCycle(cycles=3))
    assert len(compiled) == 3


def test_cycle_after_a_cascade_continues_from_the_finest_level():
    trainer, history = run("cascade")
    before = float(loss(trainer.model, X))
    trainer.fit(loss, (X,), epochs=(20, 20, 20), strategy=VCycle(cycles=2))
    assert float(loss(trainer.model, X)) < before
    np.testing.assert_allclose(history.losses[36], before, rtol=1e-5)


def test_prolongation_in_full_multigrid_keeps_the_function():
    coarse, fine = networks((3, 5))
    same = prolongate_preserving(coarse, fine)
    np.testing.assert_allclose(same(X), coarse(X), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "x-cycle"}, ValueError, "strategy must be one of"),
        ({"strategy": 3}, TypeError, "strategy must be one of"),
        ({"strategy": "v-cycle", "batch_size": 4}, ValueError, "batch_size must be None"),
        ({"strategy": "v-cycle", "advance": PlateauAdvance()}, ValueError, "advance must be None"),
    ],
)
def test_wrong_arguments_of_fit_are_named(options, error, message):
    with pytest.raises(error, match=message):
        CascadeTrainer(networks()).fit(loss, (X,), **options)


def test_gradient_over_a_block_is_the_restricted_gradient():
    with jax.enable_x64(True):
        coarse, fine = networks((3, 5), jnp.float64)
        structure, params, rest = split_model(fine)
        block = split_model(restrict(fine, coarse))[1]
        objective = Objective(structure, loss, embed=block_embedding(coarse, fine))
        found = jax.jit(jax.grad(objective.value))(block, {}, ((params, rest), jnp.asarray(X)))
        whole = jax.jit(jax.grad(Objective(structure, loss).value))(params, rest, (X,))
        wanted = restrict_gradient(whole, coarse, fine)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_an_objective_has_a_tilt_or_a_block_but_not_both():
    with pytest.raises(ValueError, match="embed must be None"):
        Objective(
            nnx.graphdef(networks()[0]), loss, tilted=True, embed=lambda block, params: params
        )


def test_cycles_over_blocks_change_nothing_but_the_block(monkeypatch):
    seen = []
    original = VCycle._ascend

    def spy(self, multilevel_run, evaluator, start):
        level = multilevel_run.level
        fine = multilevel_run.models[level + 1]
        before = np.asarray(fine.hidden[0].dense.kernel[...])
        metric_model = multilevel_run.whole_model()
        original(self, multilevel_run, evaluator, start)
        width = multilevel_run.models[level].hidden_dims[0]
        seen.append(level)
        assert metric_model.hidden_dims == (8,)
        after = np.asarray(fine.hidden[0].dense.kernel[...])
        np.testing.assert_array_equal(after[:, width:], before[:, width:])
        assert np.any(after[:, :width] != before[:, :width])

    monkeypatch.setattr(VCycle, "_ascend", spy)
    _, history = run(
        VCycle(cycles=3, coarse="block"),
        epochs=(30, 30, 30),
        evaluate=lambda model: loss(model, jnp.asarray(X)),
    )
    assert seen == [0, 1] * 3
    # Every level minimises the finest loss: smoothing never jumps to another objective.
    table = history.table()
    assert table["loss"][-1] < 0.5 * table["loss"][0]
    last = {e.step: e.metrics["metric"] for e in history.evaluations}
    for transition in history.transitions:
        if transition.step > 0 and transition.to_level < transition.from_level:
            np.testing.assert_allclose(
                table["loss"][transition.step], last[transition.step], rtol=1e-5
            )


def test_least_squares_solvers_smooth_blocks():
    term = ResidualTerm("fit", lambda u, x: u(x) - jnp.sin(3 * x))
    with jax.enable_x64(True):
        trainer = CascadeTrainer(networks(dtype=jnp.float64))
        solvers = [LevenbergMarquardt(), LevenbergMarquardt(), optax.adam(1e-2)]
        strategy = VCycle(cycles=2, coarse="block")
        trainer.fit(
            terms=[term], data=(X,), strategy=strategy, smoothers=solvers, epochs=(10, 10, 10)
        )
        assert float(loss(trainer.model, jnp.asarray(X))) < 1e-2


@pytest.mark.parametrize("strategy", [VCycle(cycles=2), FullMultigrid(cycles=1)], ids=["v", "full"])
def test_divergence_on_a_coarse_level_leaves_the_finer_model(strategy):
    trainer = CascadeTrainer(networks())
    wild = optax.chain(optax.sgd(1.0), optax.scale(1e30))
    smoothers = [wild, optax.sgd(1e-2), optax.sgd(1e-2)]
    if isinstance(strategy, FullMultigrid):  # its first solve must survive
        smoothers[0] = optax.sgd(optax.piecewise_constant_schedule(1e-2, {6: 1e30}))
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(loss, (X,), epochs=(12, 12, 12), strategy=strategy, smoothers=smoothers)
    assert caught.value.level == 0
    assert trainer.current_level == (1 if isinstance(strategy, FullMultigrid) else 2)
    assert np.isfinite(float(loss(trainer.model, X)))


def test_least_squares_solvers_are_refused():
    term = ResidualTerm("fit", lambda u, x: u(x) - jnp.sin(x))
    with pytest.raises(ValueError, match="smoothers must be Optax transformations"):
        CascadeTrainer(networks()).fit(
            terms=[term], data=(X,), strategy="v-cycle", smoothers=[LevenbergMarquardt()] * 3
        )


@pytest.mark.parametrize("kind", [VCycle, WCycle, FullMultigrid])
@pytest.mark.parametrize("options", [{"cycles": 0}, {"gradient_scale": -1.0}, {"max_halvings": 0}])
def test_wrong_settings_are_named(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)


@pytest.mark.parametrize("kind", [VCycle, WCycle])
def test_wrong_kind_of_coarse_level_is_named(kind):
    with pytest.raises(ValueError, match="coarse must be one of"):
        kind(coarse="galerkin")


def test_wrong_scale_of_a_gradient_is_named():
    coarse, fine = networks((3, 5))
    with pytest.raises(ValueError, match="scale must be positive"):
        restrict_gradient(split_model(fine)[1], coarse, fine, scale=0.0)
