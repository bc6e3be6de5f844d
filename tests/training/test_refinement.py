"""Points that are added while a level trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.core import ResidualTerm
from opifex.models import MLP
from opifex.training.adaptive_sampling import RARDSampler, ResidualRefiner, repeats
from opifex.training.multilevel import CascadeTrainer, Resampled

STEEP = ResidualTerm("steep", lambda u, x: jnp.where(x > 0.8, 1.0, 0.0))


def candidates(points, key):
    return jax.random.uniform(key, (200, points.shape[1]))


def rows(points):
    return {tuple(row) for row in np.asarray(points).tolist()}


def test_rows_that_repeat_are_found():
    points = jnp.array([[2.0, 1.0], [0.0, 3.0], [2.0, 1.0], [2.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    assert repeats(points).tolist() == [False, False, True, True, False, True]


def test_points_are_added_where_the_residual_is_large_and_none_is_lost():
    start = jnp.linspace(0.0, 0.5, 6)[:, None]
    room = RARDSampler().start(start, capacity=16).points
    draw = jax.jit(
        lambda data, key: ResidualRefiner(STEEP, candidates, num_new=4)(lambda x: x, data, key)
    )
    data = (room, jnp.zeros(3))
    sizes = []
    for seed in range(4):
        data = draw(data, jax.random.key(seed))
        sizes.append(len(rows(data[0])))
    assert sizes == [10, 14, 16, 16]  # the third time there is room for two, then for none
    assert rows(start) <= rows(data[0])
    assert all(row[0] > 0.8 for row in rows(data[0]) - rows(start))
    assert data[1].tolist() == [0.0, 0.0, 0.0]


def test_a_level_trains_on_points_that_grow():
    start = jnp.linspace(0.0, 0.5, 5)[:, None]
    room = RARDSampler().start(start, capacity=11).points
    seen = []

    class Watched(ResidualRefiner):
        def __call__(self, model, data, key):
            new = super().__call__(model, data, key)
            jax.debug.callback(lambda points: seen.append(len(rows(points))), new[0])
            return new

    draw = Watched(ResidualTerm("zero", lambda u, x: u(x) - x), candidates, num_new=3)
    trainer = CascadeTrainer([MLP(1, 1, [4], rngs=nnx.Rngs(0))])
    trainer.fit([draw.term], Resampled((room,), draw, every=2), epochs=[8])
    jax.effects_barrier()
    assert seen[:2] == [8, 11]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"term": "equation"}, TypeError, "term must be a ResidualTerm"),
        ({"candidates": 3}, TypeError, "candidates must be callable"),
        ({"num_new": 0}, ValueError, "num_new must be"),
        ({"sampler": 1}, TypeError, "sampler must be a RARDSampler"),
        ({"index": -1}, ValueError, "index must be"),
    ],
)
def test_wrong_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ResidualRefiner(**{"term": STEEP, "candidates": candidates, **arguments})


def test_wrong_data_are_named():
    draw = ResidualRefiner(STEEP, candidates, num_new=201)
    with pytest.raises(ValueError, match="at least the 201 points to choose, got 200"):
        draw(lambda x: x, (jnp.zeros((4, 1)),), jax.random.key(0))
    with pytest.raises(ValueError, match="index must be below the 1 entries"):
        ResidualRefiner(STEEP, candidates, index=1)(
            lambda x: x, (jnp.zeros((4, 1)),), jax.random.key(0)
        )
