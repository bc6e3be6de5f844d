"""Collocation points that move to where the residual is large, alone and inside `fit`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core.residuals import ResidualTerm
from opifex.models import MLP
from opifex.training.adaptive_sampling import RADSampler, ResidualResampler
from opifex.training.multilevel import (
    CascadeTrainer,
    Monitor,
    NonFiniteLossError,
    Resampled,
    VCycle,
)

TERM = ResidualTerm("fit", lambda u, x: u(x)[0] - jnp.where(x[0] > 0.5, 1.0, 0.0))


def candidates(points, key):
    return jax.random.uniform(key, (50 * points.shape[0], points.shape[1]))


def models():
    return [MLP(1, 1, (n,), rngs=nnx.Rngs(n)) for n in (4, 8)]


def test_points_move_to_where_the_residual_is():
    points = jnp.linspace(0.0, 1.0, 20)[:, None]
    labels = jnp.arange(3.0)
    resample = ResidualResampler(TERM, candidates, RADSampler(c=0.0))
    new, kept = resample(lambda x: jnp.zeros(1), (points, labels), jax.random.key(0))
    assert new.shape == points.shape
    assert jnp.all(new > 0.5)
    assert kept is labels


@pytest.mark.parametrize(
    ("every", "expected"),
    [(None, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]), (3, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])],
    ids=["at every look", "at an interval of its own"],
)
def test_fit_trains_on_the_new_points_from_the_draw_on(every, expected):
    # The loss is the mean of the points, so that it tells which points it saw.
    history = CascadeTrainer(models()[:1], optax.sgd(1e-3)).fit(
        lambda model, x: jnp.mean(x) + 0.0 * jnp.sum(model(x)),
        Resampled((jnp.zeros((5, 1)),), lambda model, data, key: (data[0] + 1.0,), every=every),
        epochs=[6],
        monitor=Monitor(every=2),
    )
    np.testing.assert_array_equal(history.losses, expected)


def test_every_level_starts_from_its_own_data():
    def widest(model, x):
        return jnp.max(x) + 0.0 * jnp.sum(model(x))

    trainer = CascadeTrainer(models(), optax.sgd(1e-3))
    history = trainer.fit(
        widest,
        Resampled(
            [(jnp.zeros((3, 1)),), (jnp.full((4, 1), 10.0),)],
            lambda model, data, key: (data[0] + 1.0,),
        ),
        epochs=[4, 4],
        monitor=Monitor(every=2),
    )
    np.testing.assert_array_equal(history.losses, [0, 0, 1, 1, 10, 10, 11, 11])
    assert trainer.is_at_finest


def test_a_residual_resampler_serves_fit():
    points = jnp.linspace(0.0, 1.0, 20)[:, None]
    seen = []

    def draw(model, data, key):
        new = ResidualResampler(TERM, candidates, RADSampler(c=0.0))(model, data, key)
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), new[0])
        return new

    history = CascadeTrainer(models()[:1], optax.adam(1e-2)).fit(
        (TERM,), Resampled((points,), draw), epochs=[10], monitor=Monitor(every=5)
    )
    jax.effects_barrier()
    (new,) = seen
    assert new.shape == points.shape
    assert not np.array_equal(new, points)
    assert history.resample_seconds > 0
    assert np.all(np.isfinite(history.losses))


def test_the_last_good_state_is_found_with_the_points_of_its_time():
    def loss(model, x):
        # Finite on the first two sets of points only.
        value = jnp.mean((model(x) - 1.0) ** 2)
        return jnp.where(jnp.mean(x) > 1.5, jnp.nan, value)

    def train(epochs, trainer):
        trainer.fit(
            loss,
            Resampled((jnp.zeros((5, 1)),), lambda model, data, key: (data[0] + 1.0,)),
            epochs=[epochs],
            monitor=Monitor(every=3),
        )

    stopped, wanted = (CascadeTrainer(models()[:1], optax.sgd(1e-2)) for _ in range(2))
    with pytest.raises(NonFiniteLossError) as caught:
        train(9, stopped)
    assert caught.value.step == 6
    train(5, wanted)
    for a, b in zip(
        jax.tree.leaves(nnx.state(stopped.model, nnx.Param)),
        jax.tree.leaves(nnx.state(wanted.model, nnx.Param)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)  # the same program on the same numbers


def test_data_of_another_shape_are_named():
    with pytest.raises(ValueError, match="draw must return data like that of the level"):
        CascadeTrainer(models()[:1], optax.sgd(1e-3)).fit(
            (TERM,),
            Resampled((jnp.zeros((5, 1)),), lambda model, data, key: (data[0][:2],)),
            epochs=[2],
            monitor=Monitor(every=1),
        )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"draw": 3}, TypeError, "draw must be callable, got 3"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 2.0}, TypeError, "every must be an integer, got 2.0"),
    ],
)
def test_bad_settings_of_resampled_data_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        Resampled(**{"data": (), "draw": lambda model, data, key: data, **settings})


def test_resampled_data_are_refused_where_levels_must_agree_on_the_same_data():
    with pytest.raises(ValueError, match="data must not be Resampled with this cycle"):
        CascadeTrainer(models(), optax.sgd(1e-3)).fit(
            (TERM,),
            Resampled((jnp.zeros((5, 1)),), lambda model, data, key: data),
            epochs=[2, 2],
            cycle=VCycle(cycles=1),
        )


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("term", None, TypeError),
        ("candidates", 3, TypeError),
        ("sampler", 3, TypeError),
        ("index", -1, ValueError),
    ],
)
def test_bad_settings_are_named(name, value, error):
    arguments = {"term": TERM, "candidates": candidates}
    with pytest.raises(error, match=name):
        ResidualResampler(**{**arguments, name: value})


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"index": 2}, "index"), ({"candidates": lambda p, k: p[:2]}, "candidates")],
)
def test_bad_data_are_named(settings, name):
    resample = ResidualResampler(**{"term": TERM, "candidates": candidates, **settings})
    with pytest.raises(ValueError, match=name):
        resample(lambda x: jnp.zeros(1), (jnp.zeros((5, 1)),), jax.random.key(0))
