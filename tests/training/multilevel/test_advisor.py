"""The advisor: its measurements, its arithmetic, and that its proposal trains."""

import re
from unittest import mock

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core.metrics import relative_l2
from opifex.models import FNO, MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import Helmholtz, Poisson
from opifex.training.multilevel import CascadeTrainer, advisor, recommend_schedule
from opifex.training.multilevel.advisor import spectral_tail


def steps_take(seconds):
    """Times of a step by the first size of a model, whatever this machine would measure."""

    def given(model, *_):
        return seconds((model.modes if isinstance(model, FNO) else model.hidden_dims)[0])

    return mock.patch.object(advisor, "_time_step", given)


in_proportion = steps_take(lambda size: size / 1000)


def waves(frequency, n=64, samples=3):
    """Even about both ends of the grid of cells, so that their continuation has one frequency."""
    x = (np.arange(n) + 0.5) / n
    return np.cos(2 * np.pi * frequency * x)[None, :, None].repeat(samples, 0).astype(np.float32)


def operator_advice(frequency=1, budget=40, **options):
    finest = FNO(16, 2, num_layers=1, rngs=nnx.Rngs(0))
    return recommend_schedule(
        (waves(1), waves(frequency)), finest, budget, verbose=False, **options
    )


def test_tail_of_a_sine_and_of_a_sum():
    x = (np.arange(64) + 0.5) / 64
    fields = (3 * np.cos(2 * np.pi * 2 * x) + 4 * np.cos(2 * np.pi * 9 * x))[None, :, None]
    tail = spectral_tail(fields, 1)
    np.testing.assert_allclose(tail[[0, 2, 3, 9]], [1, 1, 0.8, 0.8], atol=1e-12)
    np.testing.assert_allclose(tail[10:], 0, atol=1e-12)
    assert not np.any(spectral_tail(np.zeros((1, 8, 1)), 1))


@in_proportion
def test_operator_advice_keeps_the_modes_the_data_need_and_trains():
    finest = FNO(16, 4, num_layers=1, rngs=nnx.Rngs(0))
    advice = recommend_schedule((waves(1), waves(3)), finest, budget=40, verbose=False)
    assert advice.sizes == ((4,), (8,), (16,))
    assert advice.step_seconds == (0.004, 0.008, 0.016)
    models = advice.build(nnx.Rngs(1))
    assert models[-1] is finest
    assert [model.modes for model in models] == list(advice.sizes)
    assert [y.shape[1:-1] for _, y in advice.data] == list(advice.shapes)
    history = CascadeTrainer(models, config=advice.config).fit(
        lambda model, x, y: relative_l2(model(x), y), advice.data
    )
    assert np.all(np.isfinite(history.losses))


@in_proportion
def test_finer_data_ask_for_a_finer_coarsest_level():
    coarsest = [operator_advice(frequency).sizes[0][0] for frequency in (1, 3, 4, 8, 10)]
    # A level with m modes holds the frequencies below m.
    assert coarsest == [2, 4, 8, 16, 16]


@in_proportion
def test_sizes_shrink_by_the_factor():
    advice = operator_advice(frequency=3, factor=4.0)
    assert advice.sizes == ((4,), (16,))
    assert advice.config.coarsening_factor == 0.25


@in_proportion
def test_coarsest_level_may_leave_the_given_error():
    outputs = waves(1) + 0.2 * waves(10)
    finest = FNO(16, 2, num_layers=1, rngs=nnx.Rngs(0))

    def coarsest(error):
        data = (waves(1), outputs)
        return recommend_schedule(
            finest_model=finest, source=data, budget=10, verbose=False, coarsest_error=error
        ).sizes[0]

    assert coarsest(0.3) == (2,)
    assert coarsest(0.1) == (16,)


# The third level is compared with the finest one, not with the second, which is left out.
@steps_take({16: 1.0, 8: 0.9, 4: 0.65, 2: 0.5}.get)
def test_levels_that_save_too_little_are_left_out():
    advice = operator_advice(max_cost_ratio=0.7)
    assert advice.sizes == ((4,), (16,))
    assert advice.step_seconds == (0.65, 1.0)
    assert advice.config.num_levels == 2
    assert [model.modes for model in advice.build(nnx.Rngs(0))] == [(4,), (16,)]
    everything = operator_advice(max_cost_ratio=0.95)
    assert everything.sizes == ((2,), (4,), (8,), (16,))
    kept = [everything.shapes[1], everything.shapes[3]]
    assert list(advice.shapes) == [y.shape[1:-1] for _, y in advice.data] == kept
    (reason,) = [reason for reason in advice.reasons if "left out" in reason]
    assert "[[2], [8]]" in reason
    assert not any("left out" in reason for reason in everything.reasons)


@steps_take({16: 1.0, 8: 0.5, 4: 0.1}.get)
@pytest.mark.parametrize(
    ("budget", "batch_size", "epochs"),
    # A quarter, a quarter and half of the budget, over the cost of a step and the steps of an epoch.
    [(200, None, [500, 100, 100]), (200, 1, [166, 33, 33]), (1, None, [2, 1, 1])],
)
def test_cheap_levels_get_epochs_in_proportion_to_what_they_save(budget, batch_size, epochs):
    advice = operator_advice(frequency=3, budget=budget, batch_size=batch_size)
    assert [advice.config.epochs(level) for level in range(3)] == epochs


@steps_take(lambda size: 1.0)
def test_one_level_gets_all():
    advice = operator_advice(budget=70)
    assert advice.sizes == ((16,),)
    assert advice.config.epochs(0) == 70


def test_timing_leaves_the_finest_model_as_it_is():
    finest = MLP(2, 1, [16, 16], rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(finest))
    advice = recommend_schedule(Poisson(), finest, 10, num_points=32, verbose=False)
    assert all(seconds > 0 for seconds in advice.step_seconds)
    assert advice.build(nnx.Rngs(1))[-1] is finest
    jax.tree.map(np.testing.assert_array_equal, nnx.state(finest), before)


@in_proportion
def test_network_advice_spends_the_budget_mostly_below(capsys):
    finest = MLP(2, 1, [32, 32], rngs=nnx.Rngs(0))
    advice = recommend_schedule(Poisson(), finest, budget=200, num_points=200)
    printed = capsys.readouterr().out
    assert "frequencies per axis" in printed
    assert "32.00 ms per step" in printed
    assert advice.sizes == ((8, 8), (16, 16), (32, 32))
    assert advice.shapes == ((50,), (100,), (200,))
    assert [advice.config.epochs(level) for level in range(3)] == [200, 100, 100]
    models = advice.build(nnx.Rngs(0))
    assert [model.hidden_dims for model in models] == list(advice.sizes)
    assert models[-1] is finest
    for coarse, fine in zip(advice.data, advice.data[1:], strict=False):
        np.testing.assert_array_equal(coarse[0], fine[0][: len(coarse[0])])


@in_proportion
def test_a_least_squares_solver_gets_the_finest_network_alone():
    finest = MLP(2, 1, [32, 32], rngs=nnx.Rngs(0))
    options = {"budget": 12, "num_points": 64, "verbose": False}
    many = recommend_schedule(Poisson(), finest, **options, optimizer=optax.adam(1e-3))
    one = recommend_schedule(Poisson(), finest, **options, optimizer=LevenbergMarquardt())
    assert len(many.sizes) > 1
    assert one.sizes == ((32, 32),)
    assert one.config.epochs(0) == 12
    assert any("LevenbergMarquardt" in reason for reason in one.reasons)
    trainer = CascadeTrainer(one.build(nnx.Rngs(1)), LevenbergMarquardt(), config=one.config)
    history = trainer.fit(Poisson().terms, one.data)
    assert history.losses[-1] < history.losses[0]


@in_proportion
def test_helmholtz_needs_more_width_than_poisson():
    def least(problem):
        finest = MLP(2, 1, [64, 64], rngs=nnx.Rngs(0))
        advice = recommend_schedule(problem, finest, 10, num_points=64, verbose=False)
        (found,) = [m for r in advice.reasons if (m := re.search(r"at least (\d+) units", r))]
        width = int(found[1])
        # As coarse as that width allows, and no coarser.
        assert min(width, 64) <= min(advice.sizes[0]) < 2 * width
        return width

    assert least(Helmholtz(half_waves=16)) > least(Poisson())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 0}, ValueError, "budget"),
        ({"factor": 1.0}, ValueError, "factor"),
        ({"coarsest_error": 2.0}, ValueError, "coarsest_error"),
        ({"max_cost_ratio": 0.0}, ValueError, "max_cost_ratio"),
        ({"num_points": -1}, ValueError, "num_points"),
        ({"grid_kind": "round"}, ValueError, "grid_kind"),
        ({"source": (np.zeros((1, 8, 1)), np.zeros((1, 8, 1)))}, TypeError, "source"),
        ({"finest_model": nnx.Linear(1, 1, rngs=nnx.Rngs(0))}, TypeError, "finest_model"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    given = {
        "source": Poisson(),
        "finest_model": MLP(2, 1, [8], rngs=nnx.Rngs(0)),
        "budget": 10,
        **options,
    }
    with pytest.raises(error, match=message):
        recommend_schedule(**given)


def test_other_modes_same_settings():
    model = FNO(4, 6, input_dim=2, append_coordinates=True, grid_kind="cell", rngs=nnx.Rngs(0))
    other = model.with_modes(2, rngs=nnx.Rngs(1))
    assert (other.modes, other.width, other.input_dim) == ((2,), 6, 2)
    assert (other.append_coordinates, other.grid_kind) == (True, "cell")
    x = jax.numpy.ones((1, 12, 2))
    assert other(x).shape == model(x).shape
