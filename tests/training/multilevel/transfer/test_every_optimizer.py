"""What each optimizer of Optax keeps at a transition: a table, checked by what happens."""

import inspect
import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.training.multilevel.transfer import (
    prolongate_preserving,
    restrict,
    transfer_optimizer_state,
)
from random_models import random_like, random_model

PAGE = Path(__file__).parents[4] / "docs" / "optimizers.md"


class Kept(NamedTuple):
    """Fields of a state by what becomes of them.

    Attributes:
        moments: shaped like the parameters; old entries stay, new ones start as ``init`` gives them.
        slices: along axes of the parameters; likewise.
        numbers: carried on as they are.
        afresh: as ``init`` gives them.
    """

    moments: str = ""
    slices: str = ""
    numbers: str = ""
    afresh: str = ""


TABLE = {
    "adabelief": Kept(moments="mu, nu", numbers="count"),
    "adadelta": Kept(moments="e_g, e_x"),
    "adafactor": Kept(moments="v", numbers="count, v_col, v_row"),
    "adafactor, factored": Kept(moments="v", slices="v_col, v_row", numbers="count"),
    "adagrad": Kept(moments="sum_of_squares"),
    "adam": Kept(moments="mu, nu", numbers="count"),
    "adamax": Kept(moments="mu, nu", numbers="count"),
    "adamaxw": Kept(moments="mu, nu", numbers="count"),
    "adamw": Kept(moments="mu, nu", numbers="count"),
    "adan": Kept(moments="g, m, n, v", numbers="t"),
    "amsgrad": Kept(moments="mu, nu, nu_max", numbers="count"),
    "apply_every": Kept(moments="grad_acc", numbers="count"),
    "fromage": Kept(),
    "lamb": Kept(moments="mu, nu", numbers="count"),
    "lars": Kept(moments="trace"),
    "lbfgs": Kept(
        moments="diff_params_memory, diff_updates_memory, grad, params, updates",
        numbers="count, curvature_error, decrease_error, learning_rate, num_linesearch_steps, value, "
        "weights_memory",
    ),
    "lion": Kept(moments="mu", numbers="count"),
    "noisy_sgd": Kept(numbers="count, rng_key"),
    "novograd": Kept(moments="mu", numbers="count, nu"),
    "optimistic_adam": Kept(moments="mu, nu, previous_gradient", numbers="count, is_initial_step"),
    "optimistic_adam_v2": Kept(
        moments="mu, nu, previous_gradient", numbers="count, is_initial_step"
    ),
    "optimistic_gradient_descent": Kept(moments="previous_gradient", numbers="is_initial_step"),
    "polyak_sgd": Kept(),
    "radam": Kept(moments="mu, nu", numbers="count"),
    "rmsprop": Kept(moments="nu"),
    "rprop": Kept(moments="prev_updates, step_sizes"),
    "scale_by_distance_over_gradients": Kept(
        moments="init_params", numbers="grad_sum_of_squares, max_dist"
    ),
    "sgd": Kept(),
    "sgd, momentum": Kept(moments="trace"),
    "sign_sgd": Kept(),
    "signum": Kept(moments="ema", numbers="count"),
    "sm3": Kept(moments="nu", slices="mu"),
    "yogi": Kept(moments="mu, nu", numbers="count"),
    "contrib.acprop": Kept(moments="mu, nu", numbers="count"),
    "contrib.ademamix": Kept(moments="m1, m2, nu", numbers="count, count_m2"),
    "contrib.adopt": Kept(moments="mu, nu", numbers="count"),
    "contrib.cocob": Kept(
        moments="cumulative_gradients, init_particles, reward, scale, subgradients"
    ),
    "contrib.dadapt_adamw": Kept(
        moments="exp_avg, exp_avg_sq, grad_sum", numbers="count, estim_lr, numerator_weighted"
    ),
    "contrib.dog": Kept(moments="init_params", numbers="is_init_step, max_dist, sum_sq_norm_grads"),
    "contrib.dowg": Kept(moments="init_params", numbers="estim_sq_dist, weighted_sq_norm_grads"),
    "contrib.galore": Kept(slices="mu, nu, projector", afresh="count"),
    "contrib.madgrad": Kept(moments="grad_sum_sq, s, x0", numbers="count"),
    "contrib.mechanize, sgd": Kept(moments="x0", numbers="count, m, r, s, v"),
    "contrib.momo": Kept(moments="exp_avg", numbers="barf, count, gamma, lb"),
    "contrib.momo_adam": Kept(moments="exp_avg, exp_avg_sq", numbers="barf, count, gamma, lb"),
    "contrib.muon": Kept(moments="mu, nu", numbers="count, ns_coeffs"),
    "contrib.prodigy": Kept(
        moments="exp_avg, exp_avg_sq, grad_sum, params0",
        numbers="count, estim_lr, numerator_weighted",
    ),
    "contrib.reduce_on_plateau": Kept(
        numbers="avg_value, best_value, cooldown_count, count, plateau_count, scale"
    ),
    "contrib.sam, sgd": Kept(moments="cache", numbers="steps_since_sync"),
    "contrib.schedule_free, sgd": Kept(moments="z", numbers="b1, max_lr, step_count, weight_sum"),
    "contrib.schedule_free_adamw": Kept(
        moments="nu, z", numbers="b1, count, max_lr, step_count, weight_sum"
    ),
    "contrib.schedule_free_sgd": Kept(moments="z", numbers="b1, max_lr, step_count, weight_sum"),
    "contrib.simplified_ademamix": Kept(moments="m, n", numbers="t"),
    "contrib.sophia": Kept(moments="mu, nu", numbers="count, key"),
}

SPECIAL = {
    "adafactor, factored": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "sgd, momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "contrib.mechanize, sgd": lambda: optax.contrib.mechanize(optax.sgd(1e-2)),
    "contrib.sam, sgd": lambda: optax.contrib.sam(optax.sgd(1e-2), optax.sgd(1e-2)),
    "contrib.schedule_free, sgd": lambda: optax.contrib.schedule_free(optax.sgd(1e-2), 1e-2),
}
"""Those that need another optimizer, and variants that keep something else."""


def value_fn(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


ARGUMENTS = {
    "lbfgs": lambda grads: {"value": jnp.float32(1), "grad": grads, "value_fn": value_fn},
    "contrib.momo": lambda grads: {"value": jnp.float32(1)},
    "contrib.momo_adam": lambda grads: {"value": jnp.float32(1)},
    "contrib.reduce_on_plateau": lambda grads: {"value": jnp.float32(1)},
    "contrib.sophia": lambda grads: {"obj_fn": value_fn},
    "polyak_sgd": lambda grads: {"value": jnp.float32(1)},
}
"""What an update asks for beside gradients and parameters, by the gradients."""


def buildable():
    """All functions of Optax that make a transformation of nothing, or of a learning rate."""
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and not name.startswith("_"):
                for arguments in ({}, {"learning_rate": 1e-2}):
                    try:
                        with warnings.catch_warnings(action="ignore"):
                            made = function(**arguments)
                    except (TypeError, ValueError):
                        continue
                    if isinstance(made, optax.GradientTransformation):
                        yield prefix + name, function, made
                        break


@cache
def transformations():
    made = {name: transformation for name, _, transformation in buildable()}
    return made | {name: make() for name, make in SPECIAL.items()}


def params_of(model):
    return nnx.state(model, nnx.Param)


def update_all(states, params, seed):
    """One update of every optimizer, in one program: to compile one for each takes far longer."""

    def updated(name, grads, state, params):
        transformation = optax.with_extra_args_support(transformations()[name])
        return transformation.update(
            grads, state, params, **ARGUMENTS.get(name, lambda _: {})(grads)
        )

    def step(grads, states, params):
        return {name: updated(name, grads, state, params[name]) for name, state in states.items()}

    compiled = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    return compiled(random_like(next(iter(params.values())), seed), states, params)


class Transition(NamedTuple):
    """A coarse model and its state after a step, the next level, and the next updates there."""

    coarse: nnx.Module
    fine: nnx.Module
    state: optax.OptState
    moved: optax.OptState
    updates: optax.Updates


@pytest.fixture(scope="module")
def transitions():
    coarse, fine = (
        random_model(lambda rngs, n=n: nnx.Linear(n, n + 2, rngs=rngs), n) for n in (4, 7)
    )
    start = params_of(coarse)
    states = {name: transformations()[name].init(start) for name in TABLE}
    updated = update_all(states, dict.fromkeys(TABLE, start), 1)
    states = {name: state for name, (_, state) in updated.items()}
    coarse_models = {
        name: nnx.merge(nnx.graphdef(coarse), optax.apply_updates(start, updates))
        for name, (updates, _) in updated.items()
    }
    fine_models = {name: prolongate_preserving(m, fine) for name, m in coarse_models.items()}
    moved = {
        name: transfer_optimizer_state(
            transformations()[name],
            states[name],
            coarse_models[name],
            fine_models[name],
            prolongate_preserving,
        )
        for name in TABLE
    }
    updated = update_all(moved, {name: params_of(model) for name, model in fine_models.items()}, 2)
    return {
        name: Transition(
            coarse_models[name], fine_models[name], states[name], moved[name], updated[name][0]
        )
        for name in TABLE
    }


def numbers(tree):
    """The leaves of a state by their paths, random keys as numbers."""
    return {
        path: np.asarray(
            jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        )
        for path, a in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def field_and_shape(path, parameters):
    """The field that a leaf of a state lies in, and the shape of its parameter, if it has one."""
    places = [(i, j) for j in range(len(path), 0, -1) for i in range(j)]
    start, shape = next(
        ((i, parameters[path[i:j]].shape) for i, j in places if path[i:j] in parameters),
        (len(path), None),
    )
    field = next((key.name for key in reversed(path[:start]) if hasattr(key, "name")), "state")
    return field, shape


def equal(one, other):
    return np.array_equal(one, other, equal_nan=np.issubdtype(one.dtype, np.inexact))


def is_grown(old, new, fresh):
    """Whether old entries are the leading block of new ones, which are fresh elsewhere."""
    expected = np.array(fresh)
    expected[tuple(slice(0, n) for n in old.shape)] = old
    return equal(expected, new)


def kind_of(old, new, fresh, shape):
    assert new.dtype == fresh.dtype == old.dtype
    assert new.shape == fresh.shape
    if not is_grown(old, new, fresh):
        assert equal(new, fresh)
        return "afresh"
    if shape is None or (old.shape == new.shape and old.shape != shape):
        return "numbers"
    return "moments" if old.shape == shape or old.shape[1:] == shape else "slices"


def what_is_kept(state, moved, fresh, coarse):
    """Each field in one column: the most that becomes of any of its leaves, from right to left."""
    parameters = numbers(params_of(coarse))
    found = defaultdict(set)
    before, after, start = numbers(state), numbers(moved), numbers(fresh)
    assert before.keys() == after.keys() == start.keys()
    for path, old in before.items():
        field, shape = field_and_shape(path, parameters)
        found[field].add(kind_of(old, after[path], start[path], shape))
    kinds = ("afresh", "slices", "moments", "numbers")
    chosen = {field: next(k for k in kinds if k in of_field) for field, of_field in found.items()}
    return Kept(
        *(", ".join(sorted(f for f, k in chosen.items() if k == kind)) for kind in Kept._fields)
    )


@pytest.mark.parametrize("name", TABLE)
def test_what_is_kept(name, transitions):
    """Old entries bit for bit, new ones as a fresh state has them; and back again."""
    transformation, (coarse, fine, state, moved, updates) = (
        transformations()[name],
        transitions[name],
    )
    fresh = transformation.init(params_of(fine))
    assert what_is_kept(state, moved, fresh, coarse) == TABLE[name]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))
    back = transfer_optimizer_state(transformation, moved, fine, coarse, restrict)
    parameters = numbers(params_of(coarse))
    for (path, old), again in zip(numbers(state).items(), numbers(back).values(), strict=True):
        field, _ = field_and_shape(path, parameters)
        assert equal(old, again) or field in TABLE[name].afresh.split(", "), path


def test_the_table_is_complete():
    """Every optimizer that Optax makes of a learning rate, and every one that carries a state."""
    rates = {"learning_rate", "max_learning_rate"}
    optimizers = {
        name
        for name, function, _ in buildable()
        if rates & set(inspect.signature(function).parameters)
        and not name.removeprefix("contrib.").startswith("scale_by")
    }
    assert optimizers <= TABLE.keys()
    assert TABLE.keys() <= transformations().keys()


def table():
    """The table as the page shows it."""
    rows = [
        [f"`{name}`", *(", ".join(f"`{f}`" for f in k.split(", ")) if k else "-" for k in kept)]
        for name, kept in TABLE.items()
    ]
    titles = ["optimizer", "like the parameters", "along their axes", "as they are", "afresh"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [titles, ["---"] * 5, *rows])


def test_the_page_shows_the_table():
    assert table() in PAGE.read_text(encoding="utf-8"), f"{PAGE.name} should say\n{table()}"
