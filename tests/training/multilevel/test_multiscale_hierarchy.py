"""Hierarchies whose levels are sets of frequency bands: transfers, optimizer states, cycles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from opifex.core import ResidualTerm
from opifex.models import MultiscaleMLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    VCycle,
    create_multiscale_hierarchy,
    prolongate,
    prolongate_correction,
    prolongate_preserving,
    restrict,
    restrict_gradient,
)
from opifex.training.multilevel.transfer import plan_transfer
from opifex.training.objective import split_model
from tolerances import rounding

X = np.linspace(0.0, 1.0, 40)[:, None]


def wave(x):
    return jnp.sin(2 * x) + 0.5 * jnp.sin(12 * x)


def loss(model, x):
    return jnp.mean((model(x) - wave(x)) ** 2)


TERM = ResidualTerm("fit", lambda u, x: u(x) - wave(x))


def networks(dtype=jnp.float32, seed=0, **options):
    return create_multiscale_hierarchy(
        1, 1, [5, 4], (1.0, 3.0, 9.0), param_dtype=dtype, rngs=nnx.Rngs(seed), **options
    )


def randomised(model, seed):
    """A copy with every parameter random, so that zero biases hide nothing."""
    random = np.random.default_rng(seed)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    moved = jax.tree.map(
        lambda leaf: jnp.asarray(
            np.asarray(leaf) + 0.3 * random.standard_normal(leaf.shape), leaf.dtype
        ),
        params,
    )
    return nnx.merge(graph, moved, rest)


def random_like(tree, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), tree)


def equal(a, b):
    first, second = nnx.to_flat_state(nnx.state(a)), nnx.to_flat_state(nnx.state(b))
    return [p for p, _ in first] == [p for p, _ in second] and all(
        np.array_equal(v[...], w[...]) for (_, v), (_, w) in zip(first, second, strict=True)
    )


def evaluate(model, x):
    return np.asarray(nnx.jit(lambda m, y: m(y))(model, x))


# -- The hierarchy ---------------------------------------------------------------------------


def test_levels_add_the_next_higher_band():
    models = networks()
    assert [m.frequencies for m in models] == [(1.0,), (1.0, 3.0), (1.0, 3.0, 9.0)]
    assert {m.hidden_dims for m in models} == {(5, 4)}


def test_levels_grow_in_bands_and_width():
    models = create_multiscale_hierarchy(
        2, 1, [8], (1.0, 2.0), bands=[1, 2, 2], coarsening_factor=0.5, rngs=nnx.Rngs(0)
    )
    assert [len(m.frequencies) for m in models] == [1, 2, 2]
    assert [m.hidden_dims for m in models] == [(2,), (4,), (8,)]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"input_dim": 0}, ValueError),
        ({"output_dim": "1"}, TypeError),
        ({"hidden_dims": 8}, TypeError),
        ({"frequencies": [2.0, 2.0]}, ValueError),
        ({"bands": [1, 1]}, ValueError),
        ({"bands": [2, 1, 2]}, ValueError),
        ({"coarsening_factor": 1.5}, ValueError),
        ({"activation": 3}, TypeError),
        ({"fourier_features": -1}, ValueError),
        ({"rngs": 0}, TypeError),
    ],
)
def test_bad_arguments_are_named(change, error):
    good = {"input_dim": 2, "output_dim": 1, "hidden_dims": [4], "frequencies": [1.0, 2.0]}
    with pytest.raises(error, match=next(iter(change))):
        create_multiscale_hierarchy(**({**good, "rngs": nnx.Rngs(0)} | change))


# -- Transfers -------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    bands=st.tuples(st.integers(1, 2), st.integers(0, 2)),
    extra_width=st.sampled_from([0, 3]),
    fourier_features=st.sampled_from([None, 3]),
    seed=st.integers(0, 2**16),
)
def test_round_trip_and_function_in_single_precision(bands, extra_width, fourier_features, seed):
    frequencies = (1.0, 2.5, 4.0, 8.0)
    coarse, fine = (
        randomised(
            MultiscaleMLP(
                2,
                2,
                [width],
                frequencies=frequencies[:count],
                fourier_features=fourier_features,
                rngs=nnx.Rngs(seed + count),
            ),
            seed + count,
        )
        for count, width in ((bands[0], 3), (sum(bands), 3 + extra_width))
    )
    for transfer in (prolongate, prolongate_preserving):
        assert equal(restrict(transfer(coarse, fine), coarse), coarse)
    x = np.random.default_rng(seed).uniform(size=(7, 2)).astype("float32")
    wanted = evaluate(coarse, x)
    found = evaluate(prolongate_preserving(coarse, fine), x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.max(np.abs(wanted)))


def test_the_function_is_kept_to_rounding_in_double_precision():
    with jax.enable_x64(True):
        coarse, _, fine = (randomised(m, i) for i, m in enumerate(networks(jnp.float64)))
        preserved = prolongate_preserving(coarse, fine)
        np.testing.assert_allclose(evaluate(preserved, X), evaluate(coarse, X), rtol=1e-14)
        changed = evaluate(prolongate(coarse, fine), X) - evaluate(coarse, X)
        assert np.max(np.abs(changed)) > 1e-2


def test_a_new_band_sees_a_gradient_and_moves():
    coarse, fine, _ = networks()
    model = prolongate_preserving(coarse, fine)
    grads = nnx.grad(loss)(model, jnp.asarray(X, jnp.float32))
    new = grads["bands"][1]
    assert not np.any(model.bands[1].amplitudes[...])
    assert np.all(np.abs(np.asarray(new["amplitudes"][...])) > 1e-4)
    # The hidden layers follow as soon as the amplitudes have moved.
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    second = nnx.grad(loss)(model, jnp.asarray(X, jnp.float32))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(second["bands"][1]))


def test_frequencies_and_waves_travel_with_their_band():
    coarse = networks(fourier_features=3)[0]
    fine = create_multiscale_hierarchy(
        1, 1, [5, 4], (2.0, 3.0), fourier_features=3, rngs=nnx.Rngs(7)
    )[1]
    moved = prolongate_preserving(coarse, fine)
    assert moved.frequencies == (1.0, 3.0)
    np.testing.assert_allclose(
        evaluate(moved, X.astype("float32")), evaluate(coarse, X.astype("float32")), rtol=1e-6
    )


def test_truncation_is_the_transpose_of_padding():
    coarse, _, fine = networks()
    x, y = random_like(split_model(coarse)[1], 0), random_like(split_model(fine)[1], 1)
    padded, truncated = prolongate_correction(x, coarse, fine), restrict_gradient(y, coarse, fine)
    np.testing.assert_allclose(optax.tree.vdot(padded, y), optax.tree.vdot(x, truncated), rtol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, restrict_gradient(padded, coarse, fine), x))


def test_gradient_over_the_low_bands_is_the_restricted_gradient():
    with jax.enable_x64(True):
        coarse, _, fine = networks(jnp.float64)
        structure, params, rest = split_model(fine)
        block = split_model(restrict(fine, coarse))[1]
        plan = plan_transfer(coarse, fine)

        def value(params):
            return loss(nnx.merge(structure, params, rest), jnp.asarray(X))

        found = jax.jit(jax.grad(lambda block: value(plan.prolong(block, params))))(block)
        whole = jax.jit(jax.grad(value))(params)
        wanted = restrict_gradient(whole, coarse, fine)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_adam_follows_the_bands():
    coarse, fine, _ = networks()
    optimizer = MultilevelAdam(1e-3)
    optimizer.init(coarse)
    grads = nnx.state(nnx.grad(loss)(coarse, jnp.asarray(X, jnp.float32)), nnx.Param)
    optimizer.update(coarse, grads)
    old = jax.tree.map(np.asarray, optimizer.state)[0]
    new = optimizer.resize_state(prolongate_preserving(coarse, fine), prolongate_preserving)[0]
    for name in ("age", "mu", "nu"):
        before, after = getattr(old, name), getattr(new, name)
        assert jax.tree.all(jax.tree.map(np.array_equal, before["bands"][0], after["bands"][0]))
        assert np.array_equal(before["bias"][...], after["bias"][...])
        # A new band is new to Adam: no moments, and no steps to correct them for.
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(after["bands"][1]))
    assert all(np.all(np.asarray(leaf) == 1) for leaf in jax.tree.leaves(new.age["bands"][0]))


# -- Cycles ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cascade_over_bands_does_not_jump():
    trainer = CascadeTrainer(networks(), optax.adam(1e-2))
    history = trainer.fit(loss, (X.astype("float32"),), epochs=[80, 80, 80])
    losses = history.table()["loss"]
    for transition in history.transitions:
        if transition.step:
            # The first loss of a level is that of the model it has taken over.
            assert losses[transition.step] < 1.1 * losses[transition.step - 1]
    assert losses[-1] < 0.5 * losses[79]


def corrections(history):
    """The finest loss before and after every correction of the finest level."""
    finest = max(e.level for e in history.evaluations)
    for transition in history.transitions:
        if transition.step and transition.to_level == finest:
            before = [
                e.metrics["metric"]
                for e in history.evaluations
                if e.level == finest and e.step <= transition.step
            ]
            yield before[-1], history.losses[transition.step]


@pytest.mark.slow
def test_cycles_over_bands_never_raise_the_loss_at_a_correction():
    trainer = CascadeTrainer(networks(), optax.adam(3e-3))
    points = jnp.asarray(X, jnp.float32)
    history = trainer.fit(
        loss,
        (points,),
        epochs=[40, 40, 40],
        cycle=VCycle(cycles=4, coarse="galerkin"),
        evaluate=lambda model: loss(model, points),
    )
    seen = list(corrections(history))
    assert len(seen) == 4
    tolerance = rounding(np.float32, operations=10)
    assert all(after <= before * (1 + tolerance) for before, after in seen)
    assert any(after < 0.99 * before for before, after in seen)


@pytest.mark.slow
def test_levenberg_marquardt_smooths_bands():
    with jax.enable_x64(True):
        trainer = CascadeTrainer(networks(jnp.float64)[1:], LevenbergMarquardt())
        points = jnp.asarray(X)
        history = trainer.fit(
            [TERM],
            (points,),
            epochs=(24, 24),
            cycle=VCycle(cycles=3, coarse="galerkin"),
            evaluate=lambda model: loss(model, points),
        )
        seen = list(corrections(history))
        assert len(seen) == 3
        tolerance = rounding(np.float64, operations=10)
        assert all(after <= before * (1 + tolerance) for before, after in seen)
        assert loss(trainer.model, points) < 1e-6
