"""The search for a learning rate on the coarsest level."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import MLP
from opifex.training.multilevel import RateSearch, RateTrial, tune_learning_rate

X = jnp.linspace(-1, 1, 16)[:, None]


class Scalar(nnx.Module):
    """One parameter, five from the minimum of its loss."""

    def __init__(self):
        self.value = nnx.Param(jnp.asarray(5.0))


def square(model):
    return model.value[...] ** 2


def cliff(model):
    """Not a number beyond a step of one."""
    value = model.value[...]
    return jnp.where(jnp.abs(value - 5.0) > 1.0, jnp.nan, jnp.abs(value - 4.5) + 1.0)


def fit(model, x):
    return jnp.mean((model(x) - x**2) ** 2)


def test_the_rate_that_comes_nearest_is_chosen_and_the_model_stays():
    model = Scalar()
    # Twenty steps of about one rate each: the first falls short, the last leaps over.
    found = tune_learning_rate(model, square, rates=[0.01, 300.0, 0.3], steps=20)
    assert found.rate == 0.3
    assert [trial.rate for trial in found.trials] == [0.01, 0.3, 300.0]
    assert [trial.diverged for trial in found.trials] == [False, False, True]
    assert not found.at_border
    assert float(model.value[...]) == 5.0


def test_where_all_are_too_slow_larger_ones_are_tried():
    found = tune_learning_rate(Scalar(), square, rates=[1e-3, 1e-2], steps=20)
    tried = [trial.rate for trial in found.trials]
    assert tried == pytest.approx([1e-3 * 10**i for i in range(len(tried))])
    assert found.rate > 0.05
    assert found.rate == tried[int(np.argmin([trial.loss for trial in found.trials]))]


def test_divergence_is_seen_and_smaller_rates_are_tried():
    found = tune_learning_rate(Scalar(), cliff, rates=[2.0, 20.0], steps=10)
    assert [trial.diverged for trial in found.trials[-2:]] == [True, True]
    assert found.rate < 2.0
    assert math.isfinite(min(trial.loss for trial in found.trials))
    assert "diverged" in repr(found)
    assert "<- best" in repr(found)


def test_without_any_good_rate_it_says_so():
    def uphill(model):
        return model.value[...] + jnp.where(model.value[...] == 5.0, 1.0, jnp.nan)

    with pytest.raises(ValueError, match="rates must include one that lowers the loss"):
        tune_learning_rate(Scalar(), uphill, rates=[1.0], steps=3)


def test_a_hierarchy_is_searched_on_its_coarsest_model():
    models = [MLP(1, 1, [w], rngs=nnx.Rngs(w)) for w in (3, 6)]
    alone, hierarchy = (
        tune_learning_rate(m, fit, (X,), rates=[1e-3, 1e-2, 1e-1], steps=40, batch_size=8)
        for m in (models[0], models)
    )
    assert [t.loss for t in alone.trials] == [t.loss for t in hierarchy.trials]
    assert alone.trials[0].loss > min(t.loss for t in alone.trials)


def test_the_border_is_told():
    search = RateSearch(0.1, (RateTrial(0.01, 2.0), RateTrial(0.1, 1.0)), 5)
    assert search.at_border
    assert "at the border" in repr(search)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rates": [0.0]}, "rates"), ({"rates": []}, "rates"), ({"steps": 0}, "steps")],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tune_learning_rate(Scalar(), square, **options)


def test_runs_are_reproducible():
    first, second = (tune_learning_rate(Scalar(), square, rates=[0.1, 1.0], steps=5) for _ in "ab")
    assert first == second
    assert jax.tree.leaves(first) == [first]
