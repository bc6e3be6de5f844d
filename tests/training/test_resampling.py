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
from opifex.training.multilevel import CascadeTrainer, NonFiniteLossError, VCycle

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


def test_fit_trains_on_the_new_points_between_its_stretches():
    seen = []

    def resample(model, data, key):
        return (data[0] + 1.0,)

    def record(progress):
        seen.append(progress.losses[-1])

    # The loss is the mean of the points, so that it tells which points it saw.
    CascadeTrainer(models()[:1], optax.sgd(1e-3)).fit(
        lambda model, x: jnp.mean(x) + 0.0 * jnp.sum(model(x)),
        (jnp.zeros((5, 1)),),
        epochs=[6],
        report_every=2,
        resample=resample,
        callbacks=[record],
        compile_ahead=False,
    )
    np.testing.assert_allclose(seen, [0.0, 1.0, 2.0])


def test_every_level_starts_from_its_own_data():
    points = jnp.linspace(0.0, 1.0, 20)[:, None]
    trainer = CascadeTrainer(models(), optax.adam(1e-2))
    history = trainer.fit(
        terms=(TERM,),
        data=[(points[::2],), (points,)],
        epochs=[20, 20],
        report_every=5,
        resample=ResidualResampler(TERM, candidates),
        compile_ahead=False,
    )
    assert history.resample_seconds > 0
    assert np.all(np.isfinite(history.losses))
    assert trainer.is_at_finest


def test_the_last_good_state_is_found_with_the_points_of_its_time():
    def resample(model, data, key):
        return (data[0] + 1.0,)

    def loss(model, x):
        # Finite on the first two sets of points only.
        value = jnp.mean((model(x) - 1.0) ** 2)
        return jnp.where(jnp.mean(x) > 1.5, jnp.nan, value)

    def train(epochs, resampling):
        trainer = CascadeTrainer(models()[:1], optax.sgd(1e-2))
        try:
            trainer.fit(
                loss,
                (jnp.zeros((5, 1)),),
                epochs=[epochs],
                report_every=3,
                resample=resampling,
                compile_ahead=False,
            )
        except NonFiniteLossError as error:
            return trainer, error
        return trainer, None

    stopped, error = train(9, resample)
    assert error is not None
    assert error.step == 6
    wanted, none = train(5, resample)
    assert none is None
    for a, b in zip(
        jax.tree.leaves(nnx.state(stopped.model, nnx.Param)),
        jax.tree.leaves(nnx.state(wanted.model, nnx.Param)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_data_of_another_shape_are_named():
    with pytest.raises(ValueError, match="resample"):
        CascadeTrainer(models()[:1], optax.sgd(1e-3)).fit(
            terms=(TERM,),
            data=(jnp.zeros((5, 1)),),
            epochs=[2],
            report_every=1,
            resample=lambda model, data, key: (data[0][:2],),
            compile_ahead=False,
        )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"resample": 3}, TypeError),
        ({"resample": lambda m, d, k: d, "strategy": VCycle(cycles=1)}, ValueError),
    ],
)
def test_fit_names_resample(options, error):
    with pytest.raises(error, match="resample"):
        CascadeTrainer(models(), optax.sgd(1e-3)).fit(
            terms=(TERM,), data=(jnp.zeros((5, 1)),), epochs=[2, 2], **options
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
