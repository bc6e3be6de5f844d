"""One learning rate for all levels: rates fall with the width, and new entries warm up."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import FNO, MLP
from opifex.optimization import width_factors
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    MultilevelOptimizer,
    create_depth_hierarchy,
    create_multiscale_hierarchy,
    prolongate_preserving,
    scale_by_age_corrected_adam,
    scale_by_width,
)
from opifex.training.multilevel.transfer import parameter_path, rate_ratios
from random_models import random_like, random_model


def params_of(model):
    return nnx.state(model, nnx.Param)


def perceptron(widths):
    return random_model(lambda rngs: MLP(2, 1, widths, rngs=rngs), 0)


def factors(state):
    return {parameter_path(path): float(x) for path, x in width_factors(state).items()}


def through(models, optimizer):
    """The factors on every level of a walk through a hierarchy."""
    optimizer.init(models[0])
    found, model = [factors(optimizer.state)], models[0]
    for fine in models[1:]:
        model = prolongate_preserving(model, fine)
        optimizer.resize_state(model, prolongate_preserving)
        found.append(factors(optimizer.state))
    return found


def wanted(coarse, wide):
    """Factors of a perceptron with two hidden layers."""
    return {
        ("hidden", 0, "dense", "kernel"): 1.0,
        ("hidden", 0, "dense", "bias"): 1.0,
        ("hidden", 1, "dense", "kernel"): coarse[0] / wide[0],
        ("hidden", 1, "dense", "bias"): 1.0,
        ("output", "kernel"): coarse[1] / wide[1],
        ("output", "bias"): 1.0,
    }


WIDTHS = st.lists(st.integers(1, 6), min_size=2, max_size=2)


@settings(deadline=None, max_examples=8)
@given(coarse=WIDTHS, more=WIDTHS)
def test_rates_of_a_perceptron_fall_as_one_over_fan_in(coarse, more):
    wide = [w + m for w, m in zip(coarse, more, strict=True)]
    models = [perceptron(w) for w in (coarse, wide)]
    assert rate_ratios(*models) == pytest.approx(wanted(coarse, wide))
    assert set(rate_ratios(models[0], models[0]).values()) == {1.0}


def test_factors_are_one_on_the_coarsest_level_and_fall_on_all_others():
    widths = [(2, 3), (4, 4), (5, 9)]
    models = [perceptron(w) for w in widths]
    for found, wide in zip(
        through(models, MultilevelAdam(1e-3, width_scaling=True)), widths, strict=True
    ):
        assert found == pytest.approx(wanted(widths[0], wide), rel=1e-6)


@settings(deadline=None, max_examples=8)
@given(
    dims=st.integers(1, 3),
    modes=st.tuples(st.integers(1, 4), st.integers(0, 3)),
    widths=st.tuples(st.integers(1, 4), st.integers(0, 3)),
)
def test_rates_of_a_fourier_operator_fall_with_channels_and_the_root_of_the_log_of_modes(
    dims, modes, widths
):
    coarse, fine = (
        random_model(
            lambda rngs, m=m, w=w: FNO(m, w, num_layers=1, spatial_dims=dims, rngs=rngs), 0
        )
        for m, w in ((modes[0], widths[0]), (sum(modes), sum(widths)))
    )
    ratios = rate_ratios(coarse, fine)
    channels = widths[0] / sum(widths)
    logs = [max(dims * math.log(m), math.log(2)) for m in (modes[0], sum(modes))]
    wanted = channels * math.sqrt(logs[0] / logs[1])
    for part in ("weight_real", "weight_imag"):
        assert ratios["blocks", 0, "spectral", part] == pytest.approx(wanted)
    assert ratios["blocks", 0, "skip", "kernel"] == pytest.approx(channels)
    assert ratios["projection_hidden", "kernel"] == pytest.approx(channels)
    assert ratios["projection_output", "kernel"] == pytest.approx(channels)
    assert {ratios["lifting", "kernel"], ratios["blocks", 0, "skip", "bias"]} == {1.0}


def test_depth_and_bands_keep_their_rates():
    deeper = create_depth_hierarchy(1, 1, 4, [1, 2], rngs=nnx.Rngs(0))
    bands = create_multiscale_hierarchy(1, 1, [4], (1.0, 2.0), rngs=nnx.Rngs(0))
    for models in (deeper, bands):
        assert set(through(models, MultilevelAdam(width_scaling=True))[-1].values()) == {1.0}


def test_models_that_no_plan_relates_keep_their_rates():
    operator = FNO(2, 2, num_layers=1, rngs=nnx.Rngs(0))
    assert rate_ratios(MLP(1, 1, [3], rngs=nnx.Rngs(0)), operator) == {}
    assert rate_ratios(MLP(1, 1, [3], rngs=nnx.Rngs(0)), MLP(1, 1, [2], rngs=nnx.Rngs(0))) == {}


@pytest.mark.parametrize("on_transition", ["carry", "restart"])
def test_factors_of_the_width_survive_masks_and_restarts(on_transition):
    models = [perceptron((w, w)) for w in (2, 4, 8)]

    def kernels(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    tx = optax.chain(
        optax.masked(scale_by_width(), kernels), scale_by_age_corrected_adam(), optax.scale(-1e-3)
    )
    found = through(models, MultilevelOptimizer(tx, on_transition=on_transition))
    assert [f["hidden", 1, "dense", "kernel"] for f in found] == [1.0, 0.5, 0.25]
    assert ("output", "bias") not in found[-1]


def steps_after_growth(warm_up_steps):
    """Updates of the first steps on the second level, and which entries are new."""
    coarse, fine = (MLP(1, 1, [w, w], rngs=nnx.Rngs(w)) for w in (3, 5))
    optimizer = MultilevelAdam(1e-2, width_scaling=True, warm_up_steps=warm_up_steps)
    optimizer.init(coarse)
    for step in range(6):
        optimizer.update(coarse, random_like(params_of(coarse), step))
    model = prolongate_preserving(coarse, fine)
    optimizer.resize_state(model, prolongate_preserving)
    found = []
    for step in range(5):
        before = model.hidden[1].dense.kernel[...]
        optimizer.update(model, random_like(params_of(model), 10 + step))
        found.append(np.asarray(model.hidden[1].dense.kernel[...] - before))
    new = np.ones((5, 5), bool)
    new[:3, :3] = False
    return np.asarray(found), new


def test_new_entries_warm_up_and_carried_ones_do_not_notice():
    plain, new = steps_after_growth(0)
    warm, _ = steps_after_growth(4)
    # What is left of a difference of weights around one is exact to their rounding.
    np.testing.assert_allclose(warm[:, ~new], plain[:, ~new], atol=2e-7)
    share = np.minimum(1, np.arange(1, 6) / 4)[:, None]
    np.testing.assert_allclose(warm[:, new], share * plain[:, new], atol=2e-7)


def test_a_transition_no_longer_undoes_what_was_learned():
    x = jnp.linspace(-1, 1, 32)[:, None]

    def loss(model):
        return jnp.mean((model(x) - jnp.sin(3 * x)) ** 2)

    def peak(**options):
        models = [MLP(1, 1, [w, w], rngs=nnx.Rngs(w)) for w in (8, 32)]
        history = CascadeTrainer(models, MultilevelAdam(1e-2, **options)).fit(
            loss, epochs=[300, 100]
        )
        return float(np.max(history.losses[300:]) / history.losses[299])

    assert peak(width_scaling=True, warm_up_steps=200) < 2
    assert peak() > 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width_scaling": 1}, TypeError, "width_scaling must be a bool, got 1"),
        ({"warm_up_steps": -2}, ValueError, "warm_up_steps must be"),
        ({"warm_up_steps": 1.5}, TypeError, "warm_up_steps must be an int"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        MultilevelAdam(1e-3, **options)
