"""Adam with a bias correction by the age of every entry."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import FNO, MLP
from opifex.optimization import scale_by_age_corrected_adam, scale_by_parameter_age
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    MultilevelOptimizer,
    prolongate,
    prolongate_preserving,
    restrict,
    transfer_optimizer_state,
)
from opifex.training.multilevel.transfer import carried_fraction
from random_models import random_like, random_model
from tolerances import rounding


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def params_of(model):
    return nnx.state(model, nnx.Param)


def optax_rounding(dtype, decay=0.999):
    """Optax's ``1 - decay**t`` carries the rounding error of ``decay**t``."""
    return rounding(dtype, condition=1 / (1 - decay))


def with_params(model, params):
    changed = nnx.clone(model)
    nnx.update(changed, params)
    return changed


# -- all entries equally old: Optax's Adam ---------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(
    # Few shapes, so that one example uses the programs of another.
    shapes=st.sampled_from([[()], [(3,), (1, 4)], [(2, 1, 3), (), (3,)]]),
    seed=st.integers(0, 10_000),
    b1=st.floats(0, 0.99),
    b2=st.floats(0, 0.9999),
    eps=st.floats(1e-10, 1e-2),
    eps_root=st.floats(0, 1e-3),
    dtype=st.sampled_from(["float32", "float64"]),
    compiled=st.booleans(),
)
def test_it_is_adam_while_all_entries_are_equally_old(
    shapes: Sequence[tuple[int, ...]], seed, b1, b2, eps, eps_root, dtype, compiled
):
    with jax.enable_x64(dtype == "float64"):
        params = [jnp.zeros(shape, dtype) for shape in shapes]
        options = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
        ours, optaxs = scale_by_age_corrected_adam(**options), optax.scale_by_adam(**options)
        rtol = optax_rounding(dtype, max(b1, b2))
        states = [ours.init(params), optaxs.init(params)]
        updates = [jax.jit(tx.update) if compiled else tx.update for tx in (ours, optaxs)]
        for step in range(5):
            grads = random_like(params, seed + step)
            (found, states[0]), (wanted, states[1]) = (
                update(grads, state) for update, state in zip(updates, states, strict=True)
            )
            for a, b in zip(leaves(found), leaves(wanted), strict=True):
                assert a.dtype == b.dtype
                # A mean of gradients that cancel is as wrong as its largest summand.
                np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 1e-2)
        for name in ("mu", "nu"):
            for a, b in zip(
                leaves(getattr(states[0], name)), leaves(getattr(states[1], name)), strict=True
            ):
                np.testing.assert_array_equal(a, b)
        assert all(np.all(age == 5) for age in leaves(states[0].age))


@pytest.mark.parametrize("mu_dtype", [None, jnp.float32])
def test_half_precision_as_in_optax(mu_dtype):
    params = {"a": jnp.zeros((3, 2), jnp.bfloat16), "b": jnp.zeros((), jnp.bfloat16)}
    ours = scale_by_age_corrected_adam(mu_dtype=mu_dtype)
    optaxs = optax.scale_by_adam(mu_dtype=mu_dtype)
    states = [ours.init(params), optaxs.init(params)]
    for step in range(4):
        grads = random_like(params, step)
        found, states[0] = ours.update(grads, states[0])
        wanted, states[1] = optaxs.update(grads, states[1])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=2**-7)
    for name in ("mu", "nu"):
        for a, b in zip(
            jax.tree.leaves(getattr(states[0], name)),
            jax.tree.leaves(getattr(states[1], name)),
            strict=True,
        ):
            assert a.dtype == b.dtype


def test_complex_parameters_as_in_optax():
    params = jnp.zeros(4, jnp.complex64)
    ours, optaxs = scale_by_age_corrected_adam(), optax.scale_by_adam()
    grads = jnp.asarray([1 + 2j, -3j, 0.5, 1e-3 + 0j], jnp.complex64)
    found, _ = ours.update(grads, ours.init(params))
    wanted, _ = optaxs.update(grads, optaxs.init(params))
    np.testing.assert_allclose(found, wanted, rtol=optax_rounding(np.float32))


def test_ages_are_counted_in_half_precision_too():
    """bfloat16 itself ends at 256."""
    params = jnp.zeros(2, jnp.bfloat16)
    for transformation in (scale_by_age_corrected_adam(), scale_by_parameter_age(jnp.ones_like)):

        def body(_, state, transformation=transformation):
            return transformation.update(jnp.ones(2, jnp.bfloat16), state)[1]

        state = jax.lax.fori_loop(0, 300, body, transformation.init(params))
        assert leaves(state.age)[0].tolist() == [300, 300]


def test_adamw_is_a_chain():
    params = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(3.0)}
    ours = optax.chain(
        scale_by_age_corrected_adam(),
        optax.add_decayed_weights(1e-2),
        optax.scale_by_learning_rate(1e-3),
    )
    adamw = optax.adamw(1e-3, weight_decay=1e-2)
    states = [ours.init(params), adamw.init(params)]
    for step in range(3):
        grads = random_like(params, step)
        found, states[0] = ours.update(grads, states[0], params)
        wanted, states[1] = adamw.update(grads, states[1], params)
        for a, b in zip(leaves(found), leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=optax_rounding(np.float32))


def test_hyperparameters_can_be_injected():
    params = jnp.zeros(3)
    injected = optax.inject_hyperparams(scale_by_age_corrected_adam)(b1=0.8, b2=0.9)
    plain = optax.scale_by_adam(b1=0.8, b2=0.9)
    states = [injected.init(params), plain.init(params)]
    for step in range(3):
        grads = random_like(params, step)
        found, states[0] = jax.jit(injected.update)(grads, states[0])
        wanted, states[1] = plain.update(grads, states[1])
        np.testing.assert_allclose(found, wanted, rtol=optax_rounding(np.float32, 0.9))


# -- entries of different ages ---------------------------------------------------------------------

PAIRS = {
    "width": [lambda rngs, w=w: MLP(2, 1, [w, w], rngs=rngs) for w in (4, 7)],
    "depth": [lambda rngs, n=n: MLP(2, 1, [4] * n, depth_gates=True, rngs=rngs) for n in (2, 3)],
    "modes": [lambda rngs, m=m: FNO(m, 2, num_layers=1, spatial_dims=2, rngs=rngs) for m in (2, 4)],
}


def models(pair):
    return [random_model(make, seed) for seed, make in enumerate(PAIRS[pair])]


AROUND = {
    "alone": lambda tx: tx,
    "in a chain": lambda tx: optax.chain(
        optax.clip_by_global_norm(1e6),
        tx,
        optax.scale_by_schedule(optax.constant_schedule(1.0)),
    ),
    "masked": lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda _: True, params)),
    "injected": lambda tx: optax.inject_hyperparams(
        lambda rate: optax.chain(tx, optax.scale(rate))
    )(1.0),
}


ADAM = optax.scale_by_adam()
update_adam = jax.jit(ADAM.update)


@pytest.mark.parametrize(
    ("pair", "around", "transfer"),
    [
        *((pair, "alone", prolongate_preserving) for pair in PAIRS),
        *(("width", around, prolongate) for around in AROUND),
    ],
)
def test_old_entries_go_on_and_new_ones_begin_like_a_fresh_adam(pair, around, transfer):
    coarse, fine = models(pair)
    transformation = AROUND[around](scale_by_age_corrected_adam())
    update = jax.jit(transformation.update)
    state, old_state = transformation.init(params_of(coarse)), ADAM.init(params_of(coarse))
    for step in range(4):
        grads = random_like(params_of(coarse), step)
        _, state = update(grads, state, params_of(coarse))
        _, old_state = update_adam(grads, old_state)
    model = transfer(coarse, fine)
    state = transfer_optimizer_state(transformation, state, coarse, model, transfer)
    new_state = ADAM.init(params_of(model))
    new = [fraction == 0 for fraction in leaves(carried_fraction(coarse, model, transfer))]
    count = sum(leaf.size for leaf in leaves(params_of(coarse)))
    assert sum(np.sum(~mask) for mask in new) == count
    assert any(np.any(mask) for mask in new)
    rtol = optax_rounding(np.float32)
    for step in range(3):
        grads = random_like(params_of(model), 10 + step)
        updates, state = update(grads, state, params_of(model))
        coarse_grads = params_of(restrict(with_params(model, grads), coarse))
        old_updates, old_state = update_adam(coarse_grads, old_state)
        new_updates, new_state = update_adam(grads, new_state)
        found_old = params_of(restrict(with_params(model, updates), coarse))
        for a, b in zip(leaves(found_old), leaves(old_updates), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 1e-2)
        for a, b, mask in zip(leaves(updates), leaves(new_updates), new, strict=True):
            np.testing.assert_allclose(a[mask], b[mask], rtol=rtol, atol=rtol * 1e-2)


def test_optimizers_per_level_carry_ages_and_restart_schedules():
    coarse, fine = models("width")
    optimizer = MultilevelOptimizer(
        [
            optax.chain(
                scale_by_age_corrected_adam(),
                optax.scale_by_learning_rate(optax.linear_schedule(rate, 0.0, 10)),
            )
            for rate in (1e-2, 1e-3)
        ]
    )
    optimizer.init(coarse)
    for _ in range(3):
        optimizer.update(coarse, random_like(params_of(coarse), 0))
    state = optimizer.resize_state(prolongate(coarse, fine), prolongate)
    assert np.asarray(state[0].age.output.bias[...]).tolist() == [3]
    assert int(state[1].count) == 0


def test_a_cascade_trained_by_adam_counts_every_entry():
    x = jnp.linspace(0, 1, 12)[:, None]
    trainer = CascadeTrainer([MLP(1, 1, [w], rngs=nnx.Rngs(w)) for w in (3, 5)], MultilevelAdam())
    trainer.fit(lambda model, x: jnp.mean((model(x) - x) ** 2), (x,), epochs=[6, 4])
    age = np.asarray(trainer.optimizer.state[0].age.output.kernel[...])
    assert age[:, 0].tolist() == [10, 10, 10, 4, 4]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"b1": 1.0}, ValueError, r"b1 must lie in \[0, 1\), got 1.0"),
        ({"b1": "much"}, TypeError, "b1 must be a real number"),
        ({"b2": -0.5}, ValueError, "b2 must be at least 0"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
        ({"eps_root": -1.0}, ValueError, "eps_root must be at least 0"),
        ({"mu_dtype": "float33"}, TypeError, "mu_dtype must be a floating-point type.*float33"),
        ({"mu_dtype": "int32"}, TypeError, "mu_dtype must be a floating-point type.*int32"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        scale_by_age_corrected_adam(**options)
