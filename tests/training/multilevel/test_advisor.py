"""The advisor: its measurements, its rule, and that its proposal trains."""

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
from opifex.training.multilevel import CascadeTrainer, recommend_schedule
from opifex.training.multilevel.advisor import costs, probes
from opifex.training.multilevel.advisor.schedule import choose_levels
from opifex.training.multilevel.advisor.spectrum import grid_error, spectral_tail

LONG = 1e4  # seconds of a training that leaves time to measure whatever is to be measured


@pytest.fixture
def steps_take(monkeypatch):
    """Times of a step by the first size of a model, whatever this machine would measure."""

    def patch(seconds):
        def given(probe):
            size = probe.candidate.size[0]
            return seconds(size)

        class Fixed(probes.Probe):
            def __init__(self, candidate, loss, smoother, batch_size, allowance):
                self.candidate = candidate
                allowance.compile_seconds = 1.0

            step_seconds = given

            def train(self, *_):
                return 1.0

        monkeypatch.setattr(costs, "Probe", Fixed)

    return patch


@pytest.fixture
def in_proportion(steps_take):
    steps_take(lambda size: size / 1000)


def waves(frequency, n=64, samples=3):
    """Even about both ends of the grid of cells, so that their continuation has one frequency."""
    x = (np.arange(n) + 0.5) / n
    return np.cos(2 * np.pi * frequency * x)[None, :, None].repeat(samples, 0).astype(np.float32)


def operator_advice(outputs=None, budget=40, **options):
    finest = FNO(16, 2, num_layers=1, rngs=nnx.Rngs(0))
    outputs = waves(1) if outputs is None else outputs
    return recommend_schedule((waves(1), outputs), finest, budget, verbose=False, **options)


def test_tail_of_a_sine_and_of_a_sum():
    x = (np.arange(64) + 0.5) / 64
    fields = (3 * np.cos(2 * np.pi * 2 * x) + 4 * np.cos(2 * np.pi * 9 * x))[None, :, None]
    tail = spectral_tail(fields, 1)
    np.testing.assert_allclose(tail[[0, 2, 3, 9]], [1, 1, 0.8, 0.8], atol=1e-12)
    np.testing.assert_allclose(tail[10:], 0, atol=1e-12)
    assert not np.any(spectral_tail(np.zeros((1, 8, 1)), 1))


def test_tail_of_half_waves_in_two_dimensions():
    x = (np.arange(16) + 0.5) / 16
    # Two and a half waves on one axis: they count for the frequencies below two and a half.
    field = (np.cos(np.pi * 5 * x)[:, None] * np.ones(16))[None, ..., None]
    tail = spectral_tail(field, 2)
    np.testing.assert_allclose(tail, [1, 1, 1, *[0] * (len(tail) - 3)], atol=1e-12)


@pytest.mark.parametrize("kind", ["periodic", "cell", "vertex"])
def test_a_grid_loses_what_it_cannot_hold(kind):
    n = 65 if kind == "vertex" else 64
    x = {"periodic": np.arange(n) / n, "cell": (np.arange(n) + 0.5) / n}.get(
        kind, np.arange(n) / (n - 1)
    )
    coarse = (17,) if kind == "vertex" else (16,)
    smooth, rough = (np.cos(2 * np.pi * k * x)[None, :, None] for k in (1, 12))
    assert grid_error(rough, coarse, kind) > 0.5
    # Means over cells and weighted means damp the wave a little; a spectral restriction does not.
    assert grid_error(smooth, coarse, kind) < (1e-5 if kind == "periodic" else 0.05)
    assert grid_error(rough, (n,), kind) == 0
    # Half of the energy: a mean of 3/5 and 4/5 has a norm of one.
    both = grid_error(0.6 * smooth + 0.8 * rough, coarse, kind)
    assert both == pytest.approx(0.8, abs=0.4)


def test_fields_of_four_modes_get_the_coarse_grid_alone():
    outputs = waves(1) + waves(2) + waves(3)
    advice = operator_advice(outputs, target_error=0.2)
    assert advice.alone
    assert advice.sizes == ((4,),)
    assert advice.shapes == ((16,),)
    assert [y.shape[1:-1] for _, y in advice.data] == [(16,)]
    assert advice.cost_seconds > 0
    assert any("coarsest that is good enough" in reason for reason in advice.reasons)


def test_finer_fields_or_a_smaller_error_ask_for_a_finer_level():
    sizes = [operator_advice(waves(f), target_error=0.3).sizes[-1] for f in (1, 3, 10)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == (16,)
    fine = waves(1) + 0.05 * waves(10)
    assert operator_advice(fine, target_error=0.3).sizes < operator_advice(fine).sizes
    assert operator_advice(fine, target_error=1e-3).sizes == ((16,),)


def test_given_models_and_grids_are_chosen_from():
    models = [FNO(m, 2, num_layers=1, rngs=nnx.Rngs(m)) for m in (3, 6, 12)]
    data = (waves(1), waves(1) + waves(5))
    options = {"shapes": [(8,), (32,), (64,)], "target_error": 0.3, "verbose": False}
    advice = recommend_schedule(data, models, 10, **options)
    assert advice.build(nnx.Rngs(0)) == [models[1]]
    assert advice.shapes == ((32,),)


def test_short_trainings_are_not_measured_long(steps_take):
    steps_take(lambda size: pytest.fail("a step was timed"))
    advice = operator_advice(seconds=1.0)
    assert advice.step_seconds == ()
    assert any("estimated" in reason for reason in advice.reasons)


def test_counted_operations_where_a_trace_fits():
    # Compiling is expected to take longer than the allowance, tracing is not.
    with mock.patch.object(probes, "COMPILATION", 1e9):
        advice = operator_advice(waves(1), seconds=LONG)
    assert advice.step_seconds == ()
    assert any("counted in operations" in reason for reason in advice.reasons)
    assert 0 < advice.relative_cost[0] < 1


def test_a_real_race_ends_within_the_allowance():
    finest = MLP(2, 1, [16, 16], rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(finest))
    advice = recommend_schedule(
        Poisson(), finest, 1000, num_points=32, seconds=60.0, max_share=0.2, verbose=False
    )
    assert all(seconds > 0 for seconds in advice.step_seconds)
    assert any("short race" in reason for reason in advice.reasons)
    assert advice.cost_seconds < 1.3 * 0.2 * 60.0
    jax.tree.map(np.testing.assert_array_equal, nnx.state(finest), before)


class Trained:
    """A level whose loss is known."""

    def __init__(self, loss):
        self.loss = loss

    def train(self, *_):
        return self.loss


@pytest.mark.parametrize(
    ("losses", "winner"),
    [
        ([1.0, 1.0, 1.0], 0),  # the coarsest, where nothing tells them apart
        ([1.0, 0.9, 0.5], 2),
        ([1.0, 0.9, 0.95], 0),  # clearly lower is lower by a fifth
        ([1.0, 0.1, 0.5], 1),
        ([float("inf"), 0.5, 0.6], 1),
    ],
)
def test_a_race_is_won_by_a_clearly_lower_loss(losses, winner):
    allowance = probes.Allowance(100.0)
    times = {i: 1e-3 * 2**i for i in range(3)}
    found = probes.race("abc", times, lambda i: Trained(losses[i]), allowance)
    assert found is not None
    assert found[0] == winner


def test_no_race_without_time():
    nothing_left = probes.Allowance(0.0)
    assert probes.race("ab", {0: 1.0, 1: 2.0}, Trained, nothing_left) is None
    assert probes.race("a", {0: 1e-3}, Trained, probes.Allowance(100.0)) is None


@pytest.mark.parametrize(
    ("seconds", "compilation", "levels"),
    # A level before it saves 0.45 of the seconds; it must save four times a compilation.
    [(600.0, 3.0, [0, 1]), (20.0, 3.0, [1]), (600.0, None, [1]), (20.0, 0.1, [0, 1])],
)
def test_a_transition_has_to_pay(seconds, compilation, levels):
    found, reasons = choose_levels(
        1,
        [True, True],
        [0.1, 1.0],
        seconds=seconds,
        compile_seconds=compilation,
        max_cost_ratio=0.7,
    )
    assert found == levels
    assert len(reasons) == 1


def test_levels_that_save_too_little_or_hold_too_little_are_left_out():
    options = {"seconds": LONG, "compile_seconds": 1.0, "max_cost_ratio": 0.7}
    costs = [0.5, 0.65, 0.9, 1.0]
    # The second level is compared with the finest one, not with the third, which is left out.
    assert choose_levels(3, [True] * 4, costs, **options)[0] == [1, 3]
    assert choose_levels(3, [True, False, True, True], costs, **options)[0] == [0, 3]
    assert choose_levels(2, [True] * 4, costs, **options | {"max_cost_ratio": 1.0})[0] == [0, 1, 2]


@pytest.mark.parametrize(
    ("budget", "batch_size", "epochs"),
    # A quarter, a quarter and half of the budget, over the cost of a step and the steps of an epoch.
    [(200, None, [500, 100, 100]), (200, 1, [166, 33, 33]), (1, None, [2, 1, 1])],
)
def test_long_trainings_get_levels_and_epochs_by_what_they_cost(
    steps_take, budget, batch_size, epochs
):
    steps_take({16: 1.0, 8: 0.5, 4: 0.1}.get)
    # One wave in twenty is too fine for all grids but the finest; coarser ones may begin.
    outputs = waves(3) + 0.01 * waves(20)
    advice = operator_advice(outputs, budget, batch_size=batch_size, seconds=LONG)
    assert advice.sizes == ((4,), (8,), (16,))
    assert advice.step_seconds == (0.1, 0.5, 1.0)
    assert advice.relative_cost == (0.1, 0.5, 1.0)
    assert [advice.config.epochs(level) for level in range(3)] == epochs
    models = advice.build(nnx.Rngs(1))
    assert [model.modes for model in models] == list(advice.sizes)


@pytest.mark.slow
def test_proposed_levels_of_operators_train(steps_take):
    steps_take({16: 1.0, 8: 0.5, 4: 0.1}.get)
    advice = operator_advice(waves(3) + 0.01 * waves(20), budget=1, seconds=LONG)
    assert len(advice.sizes) == 3
    history = CascadeTrainer(advice.build(nnx.Rngs(1)), config=advice.config).fit(
        lambda model, x, y: relative_l2(model(x), y), advice.data
    )
    assert np.all(np.isfinite(history.losses))


def test_one_network_gets_all(capsys):
    finest = MLP(2, 1, [32, 32], rngs=nnx.Rngs(0))
    advice = recommend_schedule(Poisson(), finest, budget=200, num_points=200)
    printed = capsys.readouterr().out
    assert "frequencies per axis" in printed
    assert "levels: none, one network alone" in printed
    assert advice.sizes == ((8, 8),)
    assert advice.shapes == ((50,),)
    assert advice.config.epochs(0) >= 200
    (model,) = advice.build(nnx.Rngs(0))
    assert model.hidden_dims == (8, 8)
    history = CascadeTrainer([model], config=advice.config).fit(
        Poisson().loss, advice.data, epochs=[2]
    )
    assert np.all(np.isfinite(history.losses))


@pytest.mark.usefixtures("in_proportion")
def test_a_least_squares_solver_gets_the_finest_network_alone():
    finest = MLP(2, 1, [32, 32], rngs=nnx.Rngs(0))
    options = {"budget": 12, "num_points": 64, "verbose": False}
    adam = recommend_schedule(Poisson(), finest, **options, optimizer=optax.adam(1e-3))
    one = recommend_schedule(Poisson(), finest, **options, optimizer=LevenbergMarquardt())
    assert adam.sizes[0] < (32, 32)
    assert one.sizes == ((32, 32),)
    assert one.build(nnx.Rngs(1)) == [finest]
    assert one.config.epochs(0) == 12
    assert any("LevenbergMarquardt" in reason for reason in one.reasons)
    trainer = CascadeTrainer(one.build(nnx.Rngs(1)), LevenbergMarquardt(), config=one.config)
    history = trainer.fit(Poisson().terms, one.data)
    assert history.losses[-1] < history.losses[0]


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
        ({"target_error": 0.0}, ValueError, "target_error"),
        ({"max_share": 1.5}, ValueError, "max_share"),
        ({"seconds": -1.0}, ValueError, "seconds"),
        ({"max_cost_ratio": 0.0}, ValueError, "max_cost_ratio"),
        ({"num_points": -1}, ValueError, "num_points"),
        ({"num_points": [10, 20]}, ValueError, "one entry per model"),
        ({"grid_kind": "round"}, ValueError, "grid_kind"),
        ({"source": (np.zeros((1, 8, 1)), np.zeros((1, 8, 1)))}, TypeError, "source"),
        ({"finest_model": nnx.Linear(1, 1, rngs=nnx.Rngs(0))}, TypeError, "finest_model"),
        ({"finest_model": []}, TypeError, "finest_model"),
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
