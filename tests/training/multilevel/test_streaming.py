"""Batches that are read while a level trains: the right ones, in order, ahead, and again."""

import threading
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.data import open_fields
from opifex.models import FNO, MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import Poisson
from opifex.training.multilevel import (
    CascadeTrainer,
    Checkpoints,
    FaultPolicy,
    FullMultigrid,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    Resampled,
    Streamed,
    VCycle,
    create_network_hierarchy,
    resolution_batches,
    resolution_hierarchy,
)
from opifex.training.multilevel.streaming import Stream

X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
Y = np.sin(X).sum(axis=1, keepdims=True)


def loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def numbered(count=8, rows=4):
    """Batches that say which they are."""
    return [(np.full((rows, 1), number, np.float32),) for number in range(count)]


def shuffled(batch_size=8):
    samples = grain.MapDataset.source(list(zip(X, Y, strict=True))).seed(3)
    return samples.shuffle().batch(batch_size, drop_remainder=True)


class Again:
    """An iterable that is no collection: it begins anew each time."""

    def __init__(self, batches):
        self.batches, self.begun = batches, 0

    def __iter__(self):
        self.begun += 1
        return iter(self.batches)


def trainer(levels=2, **config):
    models = create_network_hierarchy(2, 1, [16], num_levels=levels, rngs=nnx.Rngs(0))
    settings = MultilevelConfig(num_levels=levels, **config)
    return CascadeTrainer(models, MultilevelAdam(1e-2), config=settings)


@nnx.jit
def value_and_gradient(model, x, y):
    return nnx.value_and_grad(loss)(model, x, y)


@pytest.fixture(scope="module")
def expected():
    """Losses of a loop that a user would write: 24 steps, and 16 on the finer level."""
    own, losses, batches = trainer(), [], iter(shuffled().repeat().to_iter_dataset())
    for steps in (24, 16):
        for _ in range(steps):
            value, grads = value_and_gradient(own.model, *next(batches))
            losses.append(float(value))
            own.step(grads)
        own.advance_level()
    return losses


# -- the right batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [None, 1, 3, 100])
def test_steps_are_those_of_a_loop_by_hand(at_once, expected):
    history = trainer().fit(loss, Streamed(shuffled(), batches_at_once=at_once), epochs=[3, 2])
    np.testing.assert_allclose(history.losses, expected, rtol=1e-4)
    assert [stretch.steps_per_epoch for stretch in history.stretches] == [8] * len(
        history.stretches
    )


def test_grain_shuffles_every_epoch_anew():
    stream = Stream(Streamed(shuffled(), batches_at_once=8))
    epochs = [np.asarray(stream.at(first)[0][0]) for first in (0, 8)]
    stream.close()
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(*(np.sort(epoch, axis=0) for epoch in epochs))


@given(st.integers(1, 9), st.integers(1, 12), st.lists(st.integers(0, 60), max_size=8))
@settings(deadline=None, max_examples=30)
def test_any_batch_is_found_again(at_once, count, wanted):
    stream = Stream(Streamed(Again(numbered(count)), count, at_once))
    try:
        for number in wanted:
            (rows,), there = stream.at(number)
            offset = number % stream.size
            np.testing.assert_array_equal(
                rows[4 * offset : 4 * offset + 4], np.full((4, 1), number % count)
            )
            assert there == stream.size - offset
    finally:
        stream.close()


class InTuple(grain.transforms.Map):
    """Makes a batch of one array the arguments of a loss."""

    def map(self, element):
        return (element,)


@pytest.mark.parametrize(
    "source",
    [
        lambda: shuffled(),
        lambda: shuffled().to_iter_dataset(),
        lambda: grain.DataLoader(
            data_source=np.arange(64),
            sampler=grain.samplers.IndexSampler(64, shuffle=True, seed=0, num_epochs=1),
            operations=[grain.transforms.Batch(8, drop_remainder=True), InTuple()],
        ),
    ],
    ids=["MapDataset", "IterDataset", "DataLoader"],
)
def test_sources_of_grain_can_be_read_again(source):
    def read(stream, numbers):
        return [np.asarray(stream.at(number)[0][0]) for number in numbers]

    first, second = (Stream(Streamed(source(), 8, batches_at_once=2)) for _ in range(2))
    there = read(first, range(0, 20, 2))
    second.restore(first.position(18))
    assert second.position(18) == first.position(18)
    np.testing.assert_array_equal(read(second, [18])[0], there[9])
    np.testing.assert_array_equal(read(first, [4])[0], there[2])
    first.close()
    second.close()


def test_a_collection_of_batches_is_read_again_from_its_start():
    source = Again(list(zip(X.reshape(8, 8, 2), Y.reshape(8, 8, 1), strict=True)))
    history = trainer().fit(loss, Streamed(source, steps_per_epoch=8), epochs=[2, 3])
    assert history.num_steps == 40
    assert source.begun >= 5


def test_an_iterator_is_left_at_the_first_batch_that_was_not_used():
    iterator = iter(shuffled().repeat().to_iter_dataset())
    trainer().fit(loss, Streamed(iterator, 8, batches_at_once=5), epochs=[1, 2])
    following = iter(shuffled().repeat().to_iter_dataset())
    for _ in range(24):
        next(following)
    for mine, theirs in zip(next(iterator), next(following), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_levels_may_have_arrays_or_batches_of_their_own_size():
    history = trainer(3).fit(
        loss, [(X[:32], Y[:32]), shuffled(16), shuffled(8)], epochs=[4, 2, 1], batch_size=4
    )
    levels = history.table()["level"]
    assert np.bincount(levels).tolist() == [4 * 8, 2 * 4, 8]


def test_a_cycle_reads_on_from_visit_to_visit():
    seen = []
    count = 40

    class Watched(Again):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                seen.append(number)
                yield batch

    source = Watched([(X[:8] + n, Y[:8]) for n in range(count)])
    cycle = FullMultigrid(cycles=1, pre=1, post=1, coarsest=1, coarse="galerkin")
    history = trainer().fit(
        loss, Streamed(source, steps_per_epoch=2, batches_at_once=4), cycle=cycle
    )
    assert seen[: history.num_steps] == list(range(history.num_steps))


def test_double_precision_is_kept_where_it_is_on_and_rounded_where_not():
    with jax.enable_x64(True):
        stream = Stream(Streamed([(np.ones((2, 1)),), (np.ones((2, 1)),)].__iter__(), 1, 1))
        assert stream.at(0)[0][0].dtype == np.float64
        assert stream.at(1)[0][0].dtype == np.float64  # read by the thread
        stream.close()
    stream = Stream(Streamed(Again([(np.ones((2, 1)),)]), 1))
    assert stream.at(0)[0][0].dtype == np.float32
    stream.close()


def test_no_thread_is_left_behind():
    trainer().fit(loss, shuffled(), epochs=[1, 1])
    with pytest.raises(ValueError, match="batch_size"):
        trainer().fit(loss, shuffled(), epochs=[1, 1], batch_size=4)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("reading")]


def test_waiting_for_batches_is_an_account_and_overlaps_with_the_steps():
    class Slow(Again):
        def __iter__(self):
            for batch in super().__iter__():
                time.sleep(0.02)
                yield batch

    batches = [(X, Y)] * 4
    history = trainer().fit(loss, Streamed(Slow(batches), 4, 2), epochs=[2, 2])
    assert history.read_seconds > 0.02
    assert history.read_seconds < history.wall_seconds


def test_residual_terms_may_have_points_of_their_own_number():
    problem = Poisson()
    points = [problem.sample_points(jax.random.key(n), 24, 12) for n in range(3)]
    model = MLP(2, 1, [4], rngs=nnx.Rngs(0))
    source = Again([tuple(map(np.asarray, some)) for some in points])
    history = CascadeTrainer([model], LevenbergMarquardt()).fit(
        problem.terms, Streamed(source, 3, batches_at_once=2), epochs=[1]
    )
    by_hand = CascadeTrainer([model], LevenbergMarquardt())
    for some in points:
        by_hand.fit(problem.terms, some, epochs=[1])
    # Steps of second order amplify the rounding of sums in another order.
    np.testing.assert_allclose(history.losses, by_hand.history.losses, rtol=1e-3)


# -- faults ----------------------------------------------------------------------------------------


def test_a_rollback_returns_to_the_batches_of_that_place():
    source = Again([(X[:8] * (1 + n), Y[:8]) for n in range(6)])

    def fitted(at_once):
        models = create_network_hierarchy(2, 1, [16], num_levels=1, rngs=nnx.Rngs(0))
        policy = FaultPolicy("rollback", explosion=3.0, tries=12, step_factor=0.1)
        config = MultilevelConfig(num_levels=1, faults=policy)
        with pytest.warns(UserWarning, match="back to step"):
            return (
                CascadeTrainer(models, optax.sgd(5.0), config=config)
                .fit(loss, Streamed(source, 6, at_once), epochs=[4], monitor=Monitor(every=1))
                .losses
            )

    # In one window nothing has to be read again.
    np.testing.assert_array_equal(fitted(2), fitted(24))


def test_a_batch_that_is_bad_ends_the_run_and_keeps_what_was_reached():
    batches = [(X[:8], Y[:8]) for _ in range(6)]
    batches[4] = (np.full((8, 2), np.nan, np.float32), Y[:8])
    own = trainer(1)
    with pytest.raises(ValueError, match=r"batch 4 of data must hold finite numbers"):
        own.fit(loss, Streamed(Again(batches), 6, batches_at_once=2), epochs=[2])
    assert own.history.num_steps == 4
    again = trainer(1)
    again.fit(loss, Streamed(Again(batches[:4]), 4), epochs=[1])
    for mine, theirs in zip(
        jax.tree.leaves(nnx.state(own.model)), jax.tree.leaves(nnx.state(again.model)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_an_error_of_the_source_passes_through():
    def failing():
        yield from [(X[:8], Y[:8])] * 3
        raise OSError("the disk is gone")

    own = trainer(1)
    with pytest.raises(OSError, match="the disk is gone"):
        own.fit(loss, Streamed(failing(), 6, batches_at_once=1), epochs=[1])
    assert own.history.num_steps == 3


def test_a_source_that_ends_says_so_after_its_last_batch():
    own = trainer(1)
    with pytest.raises(ValueError, match="data ended after 5 batches"):
        own.fit(loss, Streamed(iter([(X[:8], Y[:8])] * 5), 6, batches_at_once=2), epochs=[1])
    assert own.history.num_steps == 5


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], ValueError, "data must yield at least one batch"),
        ([X], TypeError, r"batch 0 of data must be a tuple of arrays.*\(x,\)"),
        ([{"x": X}], TypeError, "batch 0 of data must be a tuple of arrays"),
        ([(X, np.float32(1))], ValueError, "samples along their first axis"),
        ([(X[:0], Y[:0])], ValueError, "samples along their first axis"),
        ([()], ValueError, "samples along their first axis"),
        ([(X.astype(str), Y)], TypeError, "arrays of numbers"),
        ([(X, Y), (X[:5], Y[:5])], ValueError, "batch 1 of data must be like the first.*drop_rem"),
        ([(X, Y), (X.astype(np.float64), Y)], ValueError, "batch 1 of data must be like the first"),
        ([(X, Y), (X,)], ValueError, "batch 1 of data must be like the first"),
        ([(np.full_like(X, np.inf), Y)], ValueError, "batch 0 of data must hold finite numbers"),
        ([(X, Y.astype(np.float64) * 1e300)], ValueError, "finite"),
        ([(np.full((4, 2), 2**40), Y[:4])], ValueError, "must fit into int32"),
    ],
)
def test_batches_that_do_not_fit_are_refused_before_any_work(batches, error, words):
    own = trainer(1)
    with pytest.raises(error, match=words):
        own.fit(loss, Streamed(Again(batches), 2), epochs=[1])
    assert own.history.num_steps == 0


def test_what_does_not_go_with_batches_is_refused():
    with pytest.raises(ValueError, match="batch_size must be None where data yield batches"):
        trainer().fit(loss, shuffled(), epochs=[1, 1], batch_size=8)
    with pytest.raises(ValueError, match="data of a Resampled must be arrays"):
        trainer().fit(loss, Resampled(shuffled(), lambda m, d, k: d), epochs=[1, 1])
    with pytest.raises(ValueError, match="data must be arrays with this cycle"):
        trainer().fit(loss, shuffled(), epochs=[2, 2], cycle=VCycle(1))
    with pytest.raises(ValueError, match="steps_per_epoch must be given"):
        trainer().fit(loss, iter(numbered()), epochs=[1, 1])
    with pytest.raises(ValueError, match="steps_per_epoch must be given"):
        Streamed(shuffled().repeat())
    with pytest.raises(TypeError, match="source must yield batches"):
        Streamed((X, Y))
    with pytest.raises(ValueError, match="loss_fn must take the model and the 1 array"):
        trainer().fit(loss, Streamed(Again(numbered()), 8), epochs=[1, 1])


def test_what_must_be_read_again_cannot_be_an_iterator(tmp_path):
    def batches():
        yield from [(X[:8], Y[:8])] * 20

    with pytest.raises(ValueError, match="can be read again for a checkpoint"):
        trainer().fit(loss, Streamed(batches(), 4), epochs=[1, 1], checkpoint=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match="can be read again for rollback"):
        trainer(faults=FaultPolicy("rollback")).fit(loss, Streamed(batches(), 4), epochs=[1, 1])


# -- fields on the grids of the levels -----------------------------------------------------------------


def test_stored_fields_train_as_fields_in_memory_do(tmp_path):
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(12, 32, 1)).astype(np.float32)
    outputs = np.cumsum(inputs, axis=1) / 32
    np.savez(tmp_path / "fields.npz", inputs=inputs, outputs=outputs)
    models = [
        FNO((modes,), 4, num_layers=1, spatial_dims=1, rngs=nnx.Rngs(modes)) for modes in (4, 8)
    ]

    def fitted(data):
        return CascadeTrainer(models).fit(loss, data, epochs=[2, 2]).losses

    levels = resolution_hierarchy(inputs, outputs, models)
    expected = fitted([(level.inputs, level.outputs) for level in levels])
    with open_fields(tmp_path / "fields.npz") as fields:
        for cache in (None, tmp_path, tmp_path):  # the third time the copy is there
            batches = resolution_batches(fields, models, 12, shuffle=False, cache=cache)
            # Sums over points in another order.
            np.testing.assert_allclose(fitted(batches), expected, rtol=1e-4)


def test_a_cache_of_other_fields_is_refused(tmp_path):
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", inputs=np.ones((4, 8, 1)), outputs=np.ones((4, 8, 1)))
    with open_fields(tmp_path / "0.npz") as one, open_fields(tmp_path / "1.npz") as other:
        one.cached(tmp_path / "copy.npz").close()
        with pytest.raises(ValueError, match="holds another one"):
            other.cached(tmp_path / "copy.npz")
