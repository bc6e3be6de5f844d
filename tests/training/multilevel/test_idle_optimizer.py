"""A learning rate that is zero for the rest of a level is not passed over in silence."""

import warnings

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from opifex.training.multilevel import CascadeTrainer, MultilevelAdam, create_network_hierarchy
from opifex.training.smoother import as_smoother, moves_nothing

X = jnp.linspace(-1, 1, 8)[:, None]


def loss(model):
    return jnp.mean((model(X) - X) ** 2)


def trainer(optimizer, levels=2):
    models = create_network_hierarchy(1, 1, [4], num_levels=levels, rngs=nnx.Rngs(0))
    return CascadeTrainer(models, optimizer)


def test_a_schedule_that_has_ended_is_told():
    subject = trainer(MultilevelAdam(optax.cosine_decay_schedule(1e-2, 10)))
    with pytest.warns(UserWarning, match=r"parameters of level 1 .* next 19 of the 19 steps"):
        subject.fit(loss, epochs=[10, 20])


@pytest.mark.parametrize(
    "transformation",
    [
        optax.adamw(optax.cosine_decay_schedule(1e-2, 20), weight_decay=1e-2),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 40)),
        optax.MultiSteps(optax.adam(1e-2), 4).gradient_transformation(),
        optax.lbfgs(),
        [optax.adam(optax.cosine_decay_schedule(1e-2, 10)) for _ in range(2)],
    ],
    ids=["decays", "warms up", "accumulates", "line search", "one per level"],
)
def test_an_optimizer_that_still_moves_is_not_accused(transformation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(transformation).fit(loss, epochs=[9, 9])


def test_a_gradient_of_zero_is_no_rate_of_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(optax.adam(1e-2)).fit(lambda model: 0.0 * loss(model), epochs=[3, 3])


def test_the_whole_rest_is_looked_at():
    params = {"w": jnp.ones(3)}
    late = as_smoother(optax.sgd(lambda count: jnp.where(count < 50, 0.0, 1.0)))
    state = late.init(params)
    assert moves_nothing(late, params, state, 50)
    assert not moves_nothing(late, params, state, 51)
