"""Hierarchies of models that this library does not know: of Equinox, and convolutions on grids."""

from dataclasses import dataclass
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import EquinoxModel, FunctionalModel
from opifex.training.multilevel import (
    CascadeTrainer,
    Checkpoints,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    create_hierarchy,
    prolongate_preserving,
    resolution_hierarchy,
    restrict_field,
)
from random_models import random_model
from reliability.strategies import differences, record
from tolerances import distance, rounding

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.uniform(-1.0, 1.0, (32, 2)), jnp.float32)
Y = jnp.sin(3 * X).sum(axis=1, keepdims=True)


def loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def trainer(models, optimizer=None, **options):
    config = MultilevelConfig(num_levels=len(models), compile_ahead=False)
    return CascadeTrainer(models, optimizer or MultilevelAdam(1e-2), config=config, **options)


# -- Equinox ------------------------------------------------------------------------------------


def perceptron(width, rngs):
    return EquinoxModel(eqx.nn.MLP(2, 1, width, 1, key=rngs.params()), batched=True)


def perceptrons(*widths, seed=0):
    return create_hierarchy(perceptron, widths, nnx.Rngs(seed))


def zero_padded(coarse, fine):
    """Rows of a weight make outputs here: old ones read nothing new."""

    def grown(old, new):
        value = new[...].at[: old.shape[0]].set(0.0)
        return new.replace(value.at[tuple(map(slice, old.shape))].set(old[...]))

    states = nnx.state(coarse), nnx.state(fine)
    return nnx.merge(
        nnx.graphdef(fine),
        jax.tree.map(grown, *states, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)),
        copy=True,
    )


zero_padded.preserves_function = True


def test_widths_of_equinox_grow_with_a_transfer_of_ones_own():
    models = perceptrons(8, 16)
    run = trainer(models, prolongate_fn=zero_padded)
    history = run.fit(loss, (X, Y), epochs=[30, 30])
    coarse, fine = run.hierarchy
    assert (coarse.module.layers[0].weight.shape, fine.module.layers[0].weight.shape) == (
        (8, 2),
        (16, 2),
    )
    assert history.losses[-1] < history.losses[30] < history.losses[0]
    trained = fine.module
    np.testing.assert_array_equal(jax.vmap(trained)(X), fine(X))
    np.testing.assert_array_equal(  # what was handed in is as it was
        models[0].module.layers[0].weight, perceptrons(8)[0].module.layers[0].weight
    )


def test_widths_of_equinox_grow():
    run = trainer(perceptrons(8, 16))
    history = run.fit(loss, (X, Y), epochs=[20, 20])
    assert history.losses[-1] < history.losses[20] < history.losses[0]


def test_steps_are_those_of_a_loop_in_equinox():
    (model,) = perceptrons(8)
    module, tx, steps = model.module, optax.adam(1e-2), 20
    state = tx.init(eqx.filter(module, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(module, state):
        value, grads = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(X) - Y) ** 2))(
            module
        )
        updates, state = tx.update(grads, state)
        return eqx.apply_updates(module, updates), state, value

    losses = []
    for _ in range(steps):
        module, state, value = step(module, state)
        losses.append(float(value))
    run = trainer([model], tx)
    history = run.fit(loss, (X, Y), epochs=[steps])
    # The same steps in another program: Adam divides rounding by rounding where a gradient is small.
    np.testing.assert_allclose(history.losses, losses, rtol=1e-4)
    np.testing.assert_allclose(run.model(X), jax.vmap(module)(X), atol=1e-3)


class Filter(eqx.Module):
    """Convolutions with a normalisation over their channels, on a grid of any size."""

    first: eqx.nn.Conv1d
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Conv1d
    stages: int = eqx.field(static=True)

    def __init__(self, channels, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Conv1d(1, channels, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.LayerNorm(channels)
        self.last = eqx.nn.Conv1d(channels, 1, 3, padding=1, key=keys[1])
        self.stages = 2

    def __call__(self, x):
        hidden = jnp.tanh(self.first(x.T))
        return self.last(jax.vmap(self.norm, 1, 1)(hidden)).T


def filters(batched=True):
    def build(channels, rngs):
        return EquinoxModel(Filter(channels, rngs.params()), batched=batched)

    return create_hierarchy(build, [4, 4], nnx.Rngs(0))


def fields(points):
    x = np.linspace(0, 1, points, endpoint=False)
    inputs = np.sin(2 * np.pi * (x + np.linspace(0, 1, 12)[:, None]))[..., None]
    return inputs.astype("float32"), (inputs**2).astype("float32")


def on_grids(models, points=32):
    shapes = [(points // 2,)] * (len(models) - 1) + [(points,)]
    levels = resolution_hierarchy(*fields(points), models, shapes=shapes, grid_kind="periodic")
    return [(level.inputs, level.outputs) for level in levels]


def test_the_default_transfer_moves_what_does_not_grow():
    def square(model, x, y):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    run = trainer(filters(batched=False))
    history = run.fit(square, fields(16), epochs=[10, 10])
    # The loss before the first step on the fine level is that of the model after the last coarse one.
    coarse = run.hierarchy[0].module
    kept = jax.jit(lambda: square(coarse, *fields(16)))()
    assert distance(history.losses[10], kept) <= rounding(jnp.float32, operations=12 * 16 * 20)
    assert history.losses[19] < history.losses[10] < history.losses[0]


def test_levels_of_one_structure_share_a_program():
    counts = []

    def counted(model, x, y):
        counts.append(1)
        return loss(model, x, y)

    def fitted(models, data):
        before = len(counts)
        trainer(models).fit(counted, data, epochs=[3] * len(models))
        return len(counts) - before

    one_level = fitted(filters()[:1], fields(32))
    assert one_level > 0
    assert fitted(filters(), fields(32)) == 0


@pytest.mark.parametrize("make", [filters, lambda: perceptrons(4, 4)])
def test_a_run_is_taken_up_from_its_checkpoint(make, tmp_path):
    data = on_grids(make()) if make is filters else (X, Y)

    class BrokenOffError(Exception):
        pass

    def break_off(progress):
        if progress.level == 1 and progress.epoch >= 4:
            raise BrokenOffError

    def fitted(folder, **options):
        run = trainer(make())
        checkpoint = Checkpoints(folder, every=0.0)
        monitor = Monitor(every=2, callbacks=options.pop("callbacks", []))
        run.fit(loss, data, epochs=[8, 8], checkpoint=checkpoint, monitor=monitor, **options)
        return run

    with pytest.raises(BrokenOffError):
        fitted(tmp_path / "broken", callbacks=[break_off])
    taken_up = fitted(tmp_path / "broken", resume="auto")
    whole = fitted(tmp_path / "whole")
    assert not differences(record(taken_up), record(whole))
    for one, other in zip(
        jax.tree.leaves(taken_up.model.module), jax.tree.leaves(whole.model.module), strict=True
    ):
        np.testing.assert_array_equal(one, other)


# -- parameters and a function --------------------------------------------------------------------


def tanh_network(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def test_parameters_with_a_function_train():
    def build(sizes, rngs):
        params = [{"w": rngs.params.normal((m, n)), "b": jnp.zeros(n)} for m, n in pairwise(sizes)]
        return FunctionalModel(params, tanh_network)

    models = create_hierarchy(build, [(2, 8, 1), (2, 8, 1)], nnx.Rngs(0))
    run = trainer(models)
    history = run.fit(loss, (X, Y), epochs=[20, 20])
    assert history.losses[-1] < history.losses[20] < history.losses[0]
    np.testing.assert_array_equal(run.model(X), tanh_network(run.model.params, X))


# -- convolutions on a grid for each level ---------------------------------------------------------


@dataclass(frozen=True)
class Size:
    channels: int
    hidden: int


class Convolutions(nnx.Module):
    """Down by a stride and a pooling, and up again, with a short cut; any grid of 4 n points."""

    def __init__(self, size, rngs):
        near, far = size.channels, size.hidden
        self.enter = nnx.Conv(1, near, (3,), padding="CIRCULAR", rngs=rngs)
        self.down = nnx.Conv(near, far, (3,), strides=2, padding="CIRCULAR", rngs=rngs)
        self.deep = nnx.Conv(far, near, (3,), padding="CIRCULAR", rngs=rngs)
        self.leave = nnx.Conv(near, 1, (1,), rngs=rngs)

    def __call__(self, x):
        near = jnp.tanh(self.enter(x))
        far = nnx.avg_pool(jnp.tanh(self.down(near)), (2,), strides=(2,))
        return self.leave(near + jax.image.resize(self.deep(far), near.shape, "linear"))


def convolutions(*sizes):
    """Models of several sizes, without the compilation that an initialisation costs."""

    def build(size, rngs):
        return random_model(lambda rngs: Convolutions(size, rngs), seed=size.channels, scale=0.2)

    return create_hierarchy(build, sizes, nnx.Rngs(0))


def test_convolutions_grow_on_a_grid_for_each_level():
    models = convolutions(Size(2, 4), Size(4, 8))
    shapes = [(16,), (32,)]
    levels = resolution_hierarchy(*fields(32), models, shapes=shapes, grid_kind="periodic")
    assert [level.inputs.shape[1:-1] for level in levels] == shapes
    assert [level.modes for level in levels] == [None, None]
    assert distance(levels[0].inputs, fields(16)[0]) <= rounding(jnp.float32, operations=32)
    run, seen = trainer(models), set()

    def square(model, inputs, outputs):
        seen.add((model.enter.kernel.shape[-1], inputs.shape[1]))
        return loss(model, inputs, outputs)

    # The transition is checked on the way: the fine level begins with the function of the coarse one.
    history = run.fit(
        square, [(level.inputs, level.outputs) for level in levels], epochs=[30, 15], batch_size=3
    )
    assert seen == {(2, 16), (4, 32)}
    rows = history.table()
    coarse, fine = (rows["loss"][rows["level"] == level] for level in range(2))
    assert fine[-1] < fine[0] < coarse[0]
    work = [np.diff(rows["work"][rows["level"] == level]).max() for level in range(2)]
    # Half of the points, and half of the channels that most layers read and make.
    assert work[0] < work[1] / 4


class Reaching(nnx.Module):
    """Dilation grows with the grid, so that kernels reach as far on all levels."""

    def __init__(self, size, rngs):
        channels, spacing = size
        reach = {"kernel_dilation": spacing, "padding": spacing, "rngs": rngs}
        self.near = nnx.Conv(1, channels, (3,), **reach)
        self.down = nnx.Conv(channels, channels, (3,), strides=2, **reach)
        self.leave = nnx.Conv(channels, 1, (1,), rngs=rngs)

    def __call__(self, x):
        return self.leave(jnp.tanh(self.down(jnp.tanh(self.near(x)))))


@pytest.mark.parametrize(("spacing", "same"), [(2, True), (1, False)])
def test_a_kernel_that_reaches_as_far_takes_its_operator_to_the_finer_grid(spacing, same):
    def build(size, rngs):
        return random_model(lambda rngs: Reaching(size, rngs), seed=size[0])

    models = create_hierarchy(build, [(2, 1), (4, spacing)], nnx.Rngs(0))
    inputs, _ = fields(32)
    levels = resolution_hierarchy(
        inputs, inputs, models, shapes=[(16,), (32,)], grid_kind="periodic"
    )
    fine = prolongate_preserving(*models)
    before, after = models[0](levels[0].inputs), fine(levels[1].inputs)
    # Sums over 32 points (the restriction), over 3, over 3 of 4 channels each, and over 4 channels.
    allowed = rounding(jnp.float32, operations=32 + 3 + 12 + 4)
    assert (distance(after[:, ::2], before) <= allowed) == same


def test_grids_of_models_and_of_modes_may_be_named_together():
    (model,) = convolutions(Size(2, 4))
    inputs, outputs = fields(32)
    levels = resolution_hierarchy(inputs, outputs, [model, 2], shapes=[(16,), (32,)])
    assert [level.modes for level in levels] == [None, 2]
    for whole, restricted in ((inputs, levels[0].inputs), (outputs, levels[0].outputs)):
        np.testing.assert_array_equal(restricted, restrict_field(whole, (16,), grid_kind="cell"))
