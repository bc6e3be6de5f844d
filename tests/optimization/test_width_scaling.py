"""Factors of the learning rate, one for each parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.optimization import (
    scale_by_age_corrected_adam,
    scale_by_width,
    set_width_factors,
    width_factors,
)
from random_models import random_like

PARAMS = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2, jnp.bfloat16)}


def values(state):
    return {path[-1].key: float(factor) for path, factor in width_factors(state).items()}


def doubled(path):
    return 2.0 if path[-1].key == "a" else 1.0


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 4))
def test_nothing_changes_before_the_network_grows(seed, steps):
    plain = optax.adam(1e-2)
    scaled = optax.chain(optax.adam(1e-2), scale_by_width())
    states = [plain.init(PARAMS), scaled.init(PARAMS)]
    for step in range(steps):
        grads = random_like(PARAMS, seed + step)
        wanted, states[0] = plain.update(grads, states[0])
        found, states[1] = scaled.update(grads, states[1])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.float32(a), np.float32(b))


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.scale(1.0), optax.chain(tx)),
        lambda tx: optax.masked(tx, {"a": True, "b": True}),
        lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(optax.scale(rate), tx))(1.0),
    ],
    ids=["alone", "in chains", "masked", "injected"],
)
def test_factors_are_found_and_set_wherever_they_are(around):
    transformation = around(scale_by_width())
    state = transformation.init(PARAMS)
    assert values(state) == {"a": 1.0, "b": 1.0}
    state = set_width_factors(state, doubled)
    assert values(state) == {"a": 2.0, "b": 1.0}
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, after = jax.jit(transformation.update)(ones, state)
    assert np.all(np.asarray(updates["a"]) == 2.0)
    assert np.all(np.float32(updates["b"]) == 1.0)
    assert values(after) == {"a": 2.0, "b": 1.0}


def test_a_masked_parameter_has_no_factor():
    transformation = optax.masked(scale_by_width(), {"a": True, "b": False})
    state = set_width_factors(transformation.init(PARAMS), doubled)
    assert values(state) == {"a": 2.0}
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = transformation.update(ones, state)
    assert np.all(np.float32(updates["b"]) == 1.0)


def test_other_states_have_no_factors():
    state = optax.adam(1e-3).init(PARAMS)
    assert width_factors(state) == {}
    new = set_width_factors(state, doubled)
    assert jax.tree.structure(new) == jax.tree.structure(state)


# -- warm-up ---------------------------------------------------------------------------------------


def aged(params, ages, count, warm_up_steps):
    """A state in which entries are as old as given."""
    adam = scale_by_age_corrected_adam(warm_up_steps=warm_up_steps)
    return adam, adam.init(params)._replace(
        count=jnp.int32(count), age=jnp.asarray(ages, jnp.int32)
    )


@settings(deadline=None, max_examples=20)
@given(
    ages=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    warm_up_steps=st.integers(0, 10),
    seed=st.integers(0, 1000),
)
def test_young_entries_take_their_share_of_a_step(ages, warm_up_steps, seed):
    params = jnp.zeros(len(ages))
    grads = random_like(params, seed)
    (warm, state), (plain, plain_state) = (
        aged(params, ages, 12, steps) for steps in (warm_up_steps, 0)
    )
    found, after = warm.update(grads, state)
    wanted, plain_after = plain.update(grads, plain_state)
    own = np.asarray(ages) + 1  # with this step
    young = own < 13
    share = np.where(young, np.minimum(1.0, own / max(warm_up_steps, 1)), 1.0)
    np.testing.assert_allclose(found, share * np.asarray(wanted), rtol=1e-6)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(plain_after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_warms_up_on_the_first_level():
    params = jnp.zeros(3)
    warm, plain = scale_by_age_corrected_adam(warm_up_steps=50), scale_by_age_corrected_adam()
    states = [warm.init(params), plain.init(params)]
    for step in range(4):
        grads = random_like(params, step)
        found, states[0] = warm.update(grads, states[0])
        wanted, states[1] = plain.update(grads, states[1])
        np.testing.assert_array_equal(found, wanted)


def test_the_length_can_be_injected():
    params = jnp.zeros(2)
    injected = optax.inject_hyperparams(scale_by_age_corrected_adam)(warm_up_steps=4)
    state = injected.init(params)
    inner = state.inner_state._replace(count=jnp.int32(9), age=jnp.asarray([9, 0]))
    updates, _ = jax.jit(injected.update)(jnp.ones(2), state._replace(inner_state=inner))
    _, fresh = aged(params, [9, 0], 9, 0)
    wanted, _ = scale_by_age_corrected_adam().update(jnp.ones(2), fresh)
    np.testing.assert_allclose(updates, np.asarray([1.0, 0.25]) * np.asarray(wanted), rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [(-1, ValueError, "warm_up_steps must be"), (0.5, TypeError, "warm_up_steps must be an int")],
)
def test_wrong_lengths_are_named(value, error, message):
    with pytest.raises(error, match=message):
        scale_by_age_corrected_adam(warm_up_steps=value)
