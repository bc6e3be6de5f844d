"""The advisor: its measurements, its arithmetic, and that its proposal trains."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from opifex.core.metrics import relative_l2
from opifex.models import FNO, MLP
from opifex.problems import Helmholtz, Poisson
from opifex.training.multilevel import CascadeTrainer, recommend_schedule
from opifex.training.multilevel.advisor import spectral_tail


def waves(frequency, n=64, samples=3):
    x = np.arange(n) / n
    phases = np.arange(samples)[:, None]
    return np.cos(2 * np.pi * (frequency * x + phases))[..., None].astype(np.float32)


def test_tail_of_a_sine_and_of_a_sum():
    x = (np.arange(64) + 0.5) / 64
    fields = (3 * np.cos(2 * np.pi * 2 * x) + 4 * np.cos(2 * np.pi * 9 * x))[None, :, None]
    tail = spectral_tail(fields, 1)
    np.testing.assert_allclose(tail[[0, 2, 3, 9]], [1, 1, 0.8, 0.8], atol=1e-12)
    np.testing.assert_allclose(tail[10:], 0, atol=1e-12)
    assert not np.any(spectral_tail(np.zeros((1, 8, 1)), 1))


def test_operator_advice_keeps_the_modes_the_data_need_and_trains():
    outputs = waves(3)
    finest = FNO(16, 4, num_layers=1, rngs=nnx.Rngs(0))
    advice = recommend_schedule(
        (waves(1), outputs), finest, budget=40, max_cost_ratio=0.999, verbose=False
    )
    assert advice.sizes[-1] == (16,)
    assert all(max(size) > 3 for size in advice.sizes)
    assert list(advice.step_seconds) == sorted(advice.step_seconds)
    models = advice.build(nnx.Rngs(1))
    assert models[-1] is finest
    assert [model.modes for model in models] == list(advice.sizes)
    history = CascadeTrainer(models, config=advice.config).fit(
        lambda model, x, y: relative_l2(model(x), y), advice.data
    )
    assert np.all(np.isfinite(history.losses))


def test_finer_data_ask_for_a_finer_coarsest_level():
    def coarsest(frequency):
        finest = FNO(16, 2, num_layers=1, rngs=nnx.Rngs(0))
        advice = recommend_schedule(
            (waves(1), waves(frequency)), finest, 10, max_cost_ratio=0.9999, verbose=False
        )
        return max(advice.sizes[0])

    assert coarsest(10) == 16


def test_network_advice_spends_the_budget_mostly_below(capsys):
    finest = MLP(2, 1, [32, 32], rngs=nnx.Rngs(0))
    advice = recommend_schedule(Poisson(), finest, budget=200, num_points=200)
    printed = capsys.readouterr().out
    assert "frequencies per axis" in printed
    assert "ms per step" in printed
    spent = sum(
        advice.config.epochs(level) * seconds / advice.step_seconds[-1]
        for level, seconds in enumerate(advice.step_seconds)
    )
    assert 0.8 * 200 <= spent <= 200
    assert all(min(size) >= 8 for size in advice.sizes)
    assert len(advice.data) == advice.config.num_levels == len(advice.build(nnx.Rngs(0)))
    for coarse, fine in zip(advice.data, advice.data[1:], strict=False):
        np.testing.assert_array_equal(coarse[0], fine[0][: len(coarse[0])])


def test_helmholtz_needs_more_width_than_poisson():
    def least(problem):
        finest = MLP(2, 1, [64, 64], rngs=nnx.Rngs(0))
        advice = recommend_schedule(
            problem, finest, 10, num_points=64, max_cost_ratio=0.999, verbose=False
        )
        # What the levels are in the end also depends on the measured times; the least width does not.
        (found,) = [m for r in advice.reasons if (m := re.search(r"at least (\d+) units", r))]
        assert min(advice.sizes[0]) >= min(64, int(found[1]))
        return int(found[1])

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
