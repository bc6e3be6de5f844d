"""Optimizer states follow their parameters by structure, whatever the transformation."""

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
from opifex.optimization.second_order import EnergyNaturalGradient, LevenbergMarquardt
from opifex.training.multilevel.transfer import (
    NotAffineError,
    carried_fraction,
    plan_transfer,
    prolongate,
    prolongate_preserving,
    restrict_gradient,
    same_method,
    transfer_optimizer_state,
)
from random_models import random_like, random_model
from tolerances import rounding


def weights_only(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


TRANSFORMATIONS = {
    "adam": lambda: optax.adam(1e-2),
    "age-corrected adam": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        scale_by_age_corrected_adam(),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(1e-2, 100)),
    ),
    "rates by age": lambda: optax.chain(optax.sgd(1e-2), scale_by_parameter_age(jnp.ones_like)),
    "adamw with mask": lambda: optax.adamw(1e-2, mask=weights_only),
    "sgd with momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "lion": lambda: optax.lion(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-3, momentum=0.9),
    "amsgrad": lambda: optax.amsgrad(1e-3),
    "adagrad": lambda: optax.adagrad(1e-2),
    "adadelta": lambda: optax.adadelta(1e-2),
    "adan": lambda: optax.adan(1e-2),
    "novograd": lambda: optax.novograd(1e-2),
    "masked": lambda: optax.masked(optax.adam(1e-2), weights_only),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "partition": lambda: optax.partition(
        {"weights": optax.adam(1e-2), "rest": optax.sgd(1e-2, momentum=0.9)},
        lambda params: jax.tree.map(lambda a: "weights" if a.ndim > 1 else "rest", params),
    ),
    "multi-steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "l-bfgs": lambda: optax.lbfgs(memory_size=3, linesearch=None),
    "levenberg-marquardt": LevenbergMarquardt,
    "natural gradient": EnergyNaturalGradient,
}
SECOND_MOMENTS = {
    "adam": ["nu"],
    "rmsprop": ["nu"],
    "amsgrad": ["nu", "nu_max"],
    "adagrad": ["sum_of_squares"],
    "adadelta": ["e_g", "e_x"],
    "adan": ["n"],
    "adafactor": ["v"],
}
WITHOUT_TREES = ["levenberg-marquardt"]


def params_of(model):
    return nnx.state(model, nnx.Param)


def pair(*widths, **options):
    return [
        random_model(lambda rngs, w=w: MLP(2, 1, [w, w], rngs=rngs, **options), w)
        for w in widths or (4, 7)
    ]


def leaves(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def a_state(transformation, model, seed=1):
    """A state in which every number is another one; what must be positive is."""
    state = transformation.init(params_of(model))
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(leaf), leaf.dtype), random_like(state, seed, scale=1.0)
    )


def block_of(shape):
    return tuple(slice(0, n) for n in shape)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_states_move_like_their_parameters(name):
    """Each mirrored leaf holds the old block unchanged; everything else is carried on."""
    transformation = TRANSFORMATIONS[name]()
    coarse, fine = pair()
    state = a_state(transformation, coarse)
    model = prolongate_preserving(coarse, fine)
    moved = transfer_optimizer_state(transformation, state, coarse, model, prolongate_preserving)
    fresh = transformation.init(params_of(model))
    assert jax.tree.structure(moved) == jax.tree.structure(fresh)
    before, after, start = leaves(state), leaves(moved), leaves(fresh)
    parameters, fine_parameters = leaves(params_of(coarse)), leaves(params_of(fine))
    mirrored = 0
    for path, old in before.items():
        assert after[path].dtype == start[path].dtype
        assert after[path].shape == start[path].shape
        owner = next((p for p in parameters if path.endswith(p)), None)
        if owner is None or old.shape == ():  # counts, hyperparameters, one number per parameter
            assert np.array_equal(after[path], old), path
            continue
        if ".v_" in path and old.shape == (1,):  # in place of averages that Adafactor does not need
            continue
        if old.shape == parameters[owner].shape:
            block, new = block_of(old.shape), fine_parameters[owner].shape
        elif old.shape[1:] == parameters[owner].shape:
            block = (slice(None), *block_of(old.shape[1:]))
            new = (old.shape[0], *fine_parameters[owner].shape)
        else:  # row and column averages
            block, new = block_of(old.shape), start[path].shape
        assert after[path].shape == new
        assert np.array_equal(after[path][block], old), path
        others = np.ones(new, bool)
        others[block] = False
        assert np.array_equal(after[path][others], start[path][others]), path
        mirrored += 1
    assert (mirrored > 0) == (name not in WITHOUT_TREES)


def test_a_path_that_ends_another_is_not_taken_for_it():
    class Named(nnx.Module):
        def __init__(self, width, rngs):
            self.bias = nnx.Param(jnp.zeros(3))
            self.dense = nnx.Linear(2, width, rngs=rngs)

    coarse, fine = (random_model(lambda rngs, w=w: Named(w, rngs), w) for w in (3, 5))
    state = a_state(optax.adam(1e-2), coarse)
    moved = transfer_optimizer_state(optax.adam(1e-2), state, coarse, fine, prolongate)
    for old, new in ((state[0].mu, moved[0].mu), (state[0].nu, moved[0].nu)):
        assert np.array_equal(new.bias[...], old.bias[...])
        assert np.array_equal(new.dense.bias[...], [*old.dense.bias[...], 0, 0])


@pytest.mark.parametrize("name", ["adam", "age-corrected adam"])
def test_fine_training_with_frozen_new_entries_repeats_coarse_training(name):
    """If only carried entries get gradient, the fine step is the coarse step."""
    transformation = TRANSFORMATIONS[name]()
    coarse, fine = pair()
    state = a_state(transformation, coarse)
    state = jax.tree.map(lambda a: a + 1 if jnp.issubdtype(a.dtype, jnp.integer) else a, state)
    model = prolongate_preserving(coarse, fine)
    moved = transfer_optimizer_state(transformation, state, coarse, model, prolongate_preserving)
    grads = random_like(params_of(coarse), 5)
    padded = jax.tree.map(jnp.zeros_like, params_of(model))
    padded = prolongated(grads, padded, coarse, fine)
    update = jax.jit(transformation.update)
    fine_updates, _ = update(padded, moved, params_of(model))
    updates, _ = update(grads, state, params_of(coarse))
    back = leaves(restrict_gradient(fine_updates, coarse, fine))
    for path, update in leaves(updates).items():
        # The global norm is summed up in another order.
        np.testing.assert_allclose(
            back[path], update, rtol=rounding("float32", operations=100), err_msg=path
        )


def prolongated(coarse_tree, fine_tree, coarse, fine):
    return plan_transfer(coarse, fine).prolong(coarse_tree, fine_tree)


# -- new entries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["mean", "max", "fresh"])
@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_second_moments_of_new_entries(name, start):
    transformation = TRANSFORMATIONS[name]()
    if name == "adafactor":
        transformation = optax.adafactor(1e-2)  # larger matrices only are factored
    coarse, fine = pair()
    state = a_state(transformation, coarse)
    moved = transfer_optimizer_state(
        transformation, state, coarse, fine, prolongate, second_moment_start=start
    )
    fresh = leaves(transformation.init(params_of(fine)))
    old, new = leaves(state), leaves(moved)
    kernel = next(path for path, leaf in leaves(params_of(fine)).items() if leaf.shape == (7, 7))
    added = np.ones((7, 7), bool)
    added[:4, :4] = False
    averages = 0
    for path in (p for p, leaf in new.items() if p.endswith(kernel) and leaf.shape == (7, 7)):
        expected = fresh[path][added]
        if path.removesuffix(kernel).split(".")[-1] in SECOND_MOMENTS[name]:
            averages += 1
            if start != "fresh":
                expected = {"mean": np.mean, "max": np.max}[start](old[path])
        np.testing.assert_allclose(
            new[path][added], expected, rtol=rounding("float32", operations=16), err_msg=path
        )
    assert averages == len(SECOND_MOMENTS[name])


def test_second_moments_with_ages_of_their_own_start_from_zero_whatever_is_chosen():
    coarse, fine = pair()
    transformation = scale_by_age_corrected_adam()
    moved = transfer_optimizer_state(
        transformation,
        a_state(transformation, coarse),
        coarse,
        fine,
        prolongate,
        second_moment_start="max",
    )
    for tree in (moved.age, moved.mu, moved.nu):
        kernel = np.asarray(tree.hidden[1].dense.kernel[...])
        assert np.all(kernel[:4, :4] >= 0)
        assert not np.any(kernel[4:])
        assert not np.any(kernel[:, 4:])


def test_states_of_added_layers_start_fresh():
    """Depth changes what mirrors the parameters, not the method."""
    coarse, fine = (
        random_model(lambda rngs, n=n: MLP(2, 1, [4] * n, depth_gates=True, rngs=rngs), n)
        for n in (2, 3)
    )
    state = a_state(optax.adam(1e-2), coarse)
    assert same_method(state, optax.adam(1e-2).init(params_of(fine)))
    moved = transfer_optimizer_state(
        optax.adam(1e-2),
        state,
        coarse,
        prolongate_preserving(coarse, fine),
        prolongate_preserving,
        second_moment_start="mean",
    )
    carried = leaves(state[0].nu).values()
    mean = sum(a.sum(dtype=np.float64) for a in carried) / sum(a.size for a in carried)
    assert np.all(np.asarray(moved[0].mu.hidden[2].dense.kernel[...]) == 0)
    np.testing.assert_allclose(
        moved[0].nu.hidden[2].dense.kernel[...], mean, rtol=rounding("float32", operations=50)
    )
    assert np.array_equal(moved[0].nu.hidden[1].gate[...], state[0].nu.hidden[1].gate[...])


def test_moments_keep_their_frequency():
    coarse, fine = (
        random_model(lambda rngs, m=m: FNO(m, 2, num_layers=1, spatial_dims=2, rngs=rngs), m)
        for m in (2, 4)
    )
    state = a_state(optax.adam(1e-2), coarse)
    moved = transfer_optimizer_state(optax.adam(1e-2), state, coarse, fine, prolongate)
    old, new = (np.asarray(s[0].mu.blocks[0].spectral.weight_real[...]) for s in (state, moved))
    assert np.array_equal(new[2:5, :2], old)
    assert np.count_nonzero(new) == old.size


@pytest.mark.parametrize("transfer", [prolongate, prolongate_preserving])
def test_entries_without_a_coarse_counterpart_are_marked_by_zeros(transfer):
    coarse, fine = pair()
    marks = leaves(carried_fraction(coarse, fine, transfer))
    for path, old in leaves(params_of(coarse)).items():
        expected = np.zeros(marks[path].shape)
        expected[block_of(old.shape)] = 1
        assert np.array_equal(marks[path], expected)


# -- types -----------------------------------------------------------------------------------------


def test_moments_keep_their_precision_beside_parameters_of_less():
    coarse, fine = pair(param_dtype=jnp.bfloat16)
    transformation = optax.adam(1e-2, mu_dtype=jnp.float32)
    state = transformation.init(params_of(coarse))
    mu = jax.tree.map(lambda leaf: leaf + jnp.float32(1.001), state[0].mu)
    moved = transfer_optimizer_state(
        transformation, (state[0]._replace(mu=mu), *state[1:]), coarse, fine, prolongate
    )
    kernel = moved[0].mu.output.kernel[...]
    assert kernel.dtype == jnp.float32
    assert np.all(np.asarray(kernel[:4]) == np.float32(1.001))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["adam", "age-corrected adam"])
def test_complex_parameters_beside_real_ones(name):
    class Mixed(nnx.Module):
        def __init__(self, width, rngs):
            self.a = nnx.Linear(2, width, param_dtype=jnp.complex64, rngs=rngs)
            self.b = nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, x):
            return self.b(jnp.real(self.a(x)))

    coarse, fine = (random_model(lambda rngs, w=w: Mixed(w, rngs), w) for w in (2, 3))
    transformation = TRANSFORMATIONS[name]()
    state = a_state(transformation, coarse)
    assert jax.tree.reduce(lambda found, a: found or jnp.iscomplexobj(a), state, False)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate_preserving)
    before, after = leaves(state), leaves(moved)
    for path, old in before.items():
        assert after[path].dtype == old.dtype
        assert np.array_equal(after[path][block_of(old.shape)], old)


# -- transfers that are not copies -----------------------------------------------------------------


def spread_out(coarse, fine):
    """Halves of a weight in two places, and a bias of opposite sign."""
    new = nnx.clone(fine)
    new.kernel[...] = jnp.concatenate([coarse.kernel[...] / 2] * 2)
    new.bias[...] = -coarse.bias[...]
    return new


def linears():
    return [random_model(lambda rngs, n=n: nnx.Linear(n, 1, rngs=rngs), n) for n in (2, 4)]


def test_a_transfer_that_takes_means_leaves_ages_whole_and_second_moments_positive():
    """What values are made of is as old as before, and the square of a sign is one."""
    coarse, fine = linears()
    transformation = scale_by_age_corrected_adam()
    state = a_state(transformation, coarse)._replace(
        age=jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3), params_of(coarse))
    )
    moved = transfer_optimizer_state(transformation, state, coarse, fine, spread_out)
    assert np.asarray(moved.age.kernel[...]).tolist() == [[3]] * 4
    assert np.asarray(moved.age.bias[...]).tolist() == [3]
    assert np.array_equal(moved.mu.bias[...], -state.mu.bias[...])
    assert np.array_equal(moved.nu.bias[...], state.nu.bias[...])
    plain = transfer_optimizer_state(
        optax.adam(1.0), a_state(optax.adam(1.0), coarse), coarse, fine, spread_out
    )
    assert np.all(np.asarray(plain[0].nu.bias[...]) > 0)


def unit_of(dtype) -> float:
    ratio = float(jnp.finfo(dtype).eps) / float(jnp.finfo(jnp.float32).eps)
    return ratio * rounding("float32")


def with_noise(transfer, size=1e-2):
    """A transfer that breaks symmetries, in the usual way."""

    def noisy(coarse, fine):
        new = transfer(coarse, fine)
        flat = nnx.to_flat_state(params_of(new))
        keys = jax.random.split(jax.random.key(1), len(flat))
        nnx.update(
            new,
            nnx.from_flat_state(
                [
                    (
                        path,
                        leaf.replace(
                            leaf[...] + size * jax.random.normal(k, leaf.shape, leaf.dtype)
                        ),
                    )
                    for (path, leaf), k in zip(flat, keys, strict=True)
                ]
            ),
        )
        return new

    return noisy


@pytest.mark.parametrize(
    ("name", "scale", "dtype"),
    [
        ("adam", 1e-14, "float32"),
        ("adam", 1e-14, "bfloat16"),
        ("adam", 0.0, "float32"),
        ("age-corrected adam", 1.0, "float32"),
        ("l-bfgs", 1e-14, "float32"),
    ],
)
def test_noise_of_a_transfer_does_not_enter_the_state(name, scale, dtype):
    """Moments move by the linear part alone, however small they are beside the noise."""
    transformation = TRANSFORMATIONS[name]()
    coarse, fine = pair(param_dtype=jnp.dtype(dtype))
    state = jax.tree.map(
        lambda a: a if jnp.issubdtype(a.dtype, jnp.integer) else a * scale,
        a_state(transformation, coarse),
    )
    arguments = (transformation, state, coarse, fine)
    moved = leaves(transfer_optimizer_state(*arguments, with_noise(prolongate)))
    for path, wanted in leaves(transfer_optimizer_state(*arguments, prolongate)).items():
        np.testing.assert_allclose(
            moved[path].astype(float), wanted.astype(float), rtol=unit_of(dtype), err_msg=path
        )
        if ".nu" in path:
            assert np.all(moved[path] >= 0)


def squared(coarse, fine):
    new = prolongate(coarse, fine)
    new.output.kernel[...] = new.output.kernel[...] ** 2
    return new


def irreproducible():
    random = np.random.default_rng(0)

    def transfer(coarse, fine):
        new = prolongate(coarse, fine)
        new.output.bias[...] = new.output.bias[...] + random.standard_normal(1).astype("float32")
        return new

    return transfer


def dividing(coarse, fine):
    new = prolongate(coarse, fine)
    new.output.bias[...] = new.output.bias[...] / jnp.linalg.norm(fine.output.bias[...])
    return new


@pytest.mark.parametrize("transfer", [squared, irreproducible(), dividing])
def test_a_transfer_without_a_linear_part_is_an_error_where_there_is_a_state_to_move(transfer):
    coarse, fine = pair()
    for transformation in (optax.adam(1e-3), scale_by_age_corrected_adam()):
        state = transformation.init(params_of(coarse))
        with pytest.raises(NotAffineError, match=r"transition_fn must be affine.*output"):
            transfer_optimizer_state(transformation, state, coarse, fine, transfer)
    with pytest.raises(ValueError, match="affine"):
        carried_fraction(coarse, fine, transfer)
    solver = LevenbergMarquardt()
    state = solver.init(params_of(coarse))
    moved = transfer_optimizer_state(solver, state, coarse, fine, transfer)
    assert moved.damping == state.damping


@settings(max_examples=12, deadline=None)
@given(
    factor=st.floats(-3, 3).filter(lambda f: abs(f) > 1e-3),
    offset=st.floats(-1e3, 1e3),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_affine_transfers_are_recognised_in_any_precision(factor, offset, dtype):
    def affine(coarse, fine):
        new = nnx.clone(fine)
        new.bias[...] = coarse.bias[...] * factor + offset
        return new

    coarse, fine = (
        random_model(lambda rngs: nnx.Linear(1, 3, param_dtype=dtype, rngs=rngs), i) for i in (0, 1)
    )
    marks = np.asarray(carried_fraction(coarse, fine, affine).bias[...], np.float64)
    # What is left of the factor beside the offset.
    size = abs(factor) + abs(offset)
    assert np.all(np.abs(marks - factor) <= unit_of(dtype) * size)


# -- two methods, schedules ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coarse_method", "fine_method", "named"),
    [
        (optax.adam(1e-3), optax.rmsprop(1e-3), "ScaleByAdamState.*ScaleByRmsState"),
        (optax.amsgrad(1e-3), optax.adam(1e-3), "ScaleByAmsgradState.*ScaleByAdamState"),
        (optax.adam(1e-3), LevenbergMarquardt(), "ScaleByAdamState.*LevenbergMarquardtState"),
        (
            optax.adam(1e-3),
            optax.adam(optax.constant_schedule(1e-3)),
            "EmptyState.*ScaleByScheduleState",
        ),
        (
            optax.masked(optax.adam(1e-3), weights_only),
            optax.masked(optax.rmsprop(1e-3), weights_only),
            "ScaleByAdamState.*ScaleByRmsState",
        ),
    ],
)
def test_states_of_other_methods_are_refused(coarse_method, fine_method, named):
    coarse, fine = pair()
    state = coarse_method.init(params_of(coarse))
    assert not same_method(state, fine_method.init(params_of(fine)))
    with pytest.raises(ValueError, match=f"same method.*{named}"):
        transfer_optimizer_state(fine_method, state, coarse, fine, prolongate)


@pytest.mark.parametrize("injected", [False, True])
def test_schedules_restart_on_request_but_not_moments(injected):
    coarse, fine = pair()
    adams = [
        optax.inject_hyperparams(optax.adam)(optax.linear_schedule(rate, 0.0, 10))
        if injected
        else optax.adam(optax.linear_schedule(rate, 0.0, 10))
        for rate in (1e-1, 1e-3)
    ]
    state = jax.tree.map(lambda a: a + 3 if jnp.ndim(a) == 0 else a, a_state(adams[0], coarse))
    for restart in (False, True):
        moved = transfer_optimizer_state(
            adams[1], state, coarse, fine, prolongate, restart_schedules=restart
        )
        (adam, schedule), old = (
            ((moved.inner_state[0], moved), state.inner_state[0]) if injected else (moved, state[0])
        )
        assert int(adam.count) == int(old.count) > 0
        assert (int(schedule.count) == 0) == restart
        assert np.any(np.asarray(adam.mu.hidden[1].dense.kernel[...]) != 0)
        if injected:
            rate, before = (float(s.hyperparams["learning_rate"]) for s in (moved, state))
            assert rate == (np.float32(1e-3) if restart else before)


def test_a_state_that_is_masked_mirrors_what_is_not_masked():
    coarse, fine = pair()
    transformation = optax.masked(scale_by_age_corrected_adam(), weights_only)
    state = a_state(transformation, coarse)
    state = jax.tree.map(lambda a: a + 2 if jnp.issubdtype(a.dtype, jnp.integer) else a, state)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate).inner_state
    age = np.asarray(moved.age.output.kernel[...])
    assert np.array_equal(age[:4], state.inner_state.age.output.kernel[...])
    assert not np.any(age[4:])
    assert len(jax.tree.leaves(moved.age)) == 3


def in_a_new_state(init):
    """A transformation whose state, wherever it is not carried, shows what ``init`` returned."""
    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


@pytest.mark.parametrize(
    "init",
    [
        lambda params: jax.tree.map(lambda leaf: jnp.full(5, 0.1, leaf.dtype), params),
        lambda params: (jnp.zeros((), jnp.int32), jnp.asarray(2.5), jnp.ones(3) * 2.0),
        lambda params: [leaf.reshape(-1) + 1 for leaf in jax.tree.leaves(params) if leaf.ndim > 1],
        lambda params: {"keys": jax.random.key(3), "rows": jnp.arange(4)},
    ],
    ids=["constants", "computed constants", "from the parameters", "keys"],
)
def test_what_is_new_is_what_init_returns(init):
    coarse, fine = pair(4, 8)
    moved = transfer_optimizer_state(
        in_a_new_state(init), init(params_of(coarse)), coarse, fine, prolongate_preserving
    )
    wanted = init(params_of(fine))
    assert jax.tree.structure(moved) == jax.tree.structure(wanted)
    for new, expected in zip(*map(jax.tree.leaves, (moved, wanted)), strict=True):
        assert jnp.array_equal(new, expected)
        assert new.aval == expected.aval  # weak types too decide which program runs


def test_constants_of_a_state_are_filled_in_and_not_compiled():
    programs = []

    def count(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(details)

    widths = (11, 13)  # shapes that no other test has compiled
    coarse, fine = pair(*widths)
    transformation = optax.chain(scale_by_age_corrected_adam(), optax.adagrad(0.1))
    state = jax.jit(transformation.init)(params_of(coarse))
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        transfer_optimizer_state(transformation, state, coarse, fine, prolongate_preserving)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not programs
