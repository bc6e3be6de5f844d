"""Which dtypes a run computes and keeps, at each precision, and what refuses low precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core.physics import laplacian
from opifex.core.residuals import ResidualTerm
from opifex.models import FNO, MLP
from opifex.models.fourier import inverse_truncated_transform, truncated_transform
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    GaussNewton,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
    RandomSubspace,
)
from opifex.training.multilevel import (
    Balanced,
    CascadeTrainer,
    Checkpoints,
    JacobianBalancing,
    MultilevelAdam,
    MultilevelConfig,
    VCycle,
    create_network_hierarchy,
)
from opifex.training.objective import Objective, split_model
from opifex.training.precision import evaluated_in, restored, rounded
from tolerances import distance, rounding

SOLVERS = (
    EnergyNaturalGradient(),
    GaussNewton(),
    LevenbergMarquardt(),
    MatrixFreeGaussNewton(rank=5),
    RandomSubspace(LevenbergMarquardt(), 4),
)
BFLOAT16 = float(jnp.finfo(jnp.bfloat16).eps)
INPUTS = np.random.default_rng(0).uniform(-1, 1, size=(64, 2))
TARGETS = np.sin(3 * INPUTS[:, :1]) * INPUTS[:, 1:]


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def data(dtype=np.float32):
    return jnp.asarray(INPUTS, dtype), jnp.asarray(TARGETS, dtype)


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)}


def network(param_dtype=jnp.float32, seed=0):
    return MLP(2, 1, [8, 8], param_dtype=param_dtype, rngs=nnx.Rngs(seed))


def objective_of(model, loss, arrays, precision):
    graphdef, params, rest = split_model(model)
    return Objective(loss, graphdef, arrays, rest, precision=precision), params


def test_bfloat16_trains_a_cascade_whose_numbers_stay_in_single_precision():
    models = create_network_hierarchy(2, 1, [16], num_levels=2, rngs=nnx.Rngs(0))
    config = MultilevelConfig(num_levels=2, level_epochs=[60, 60], precision="bfloat16")
    trainer = CascadeTrainer(models, MultilevelAdam(1e-2), config=config)
    seen = []

    def evaluate(model):
        seen.append(dtypes(nnx.state(model)) | {model(data()[0]).dtype})
        return loss_fn(model, *data())

    # The transfer is checked on the way, to the rounding of single precision.
    history = trainer.fit(loss_fn, data(), evaluate=evaluate)
    assert history.losses[-1] < 0.3 * history.losses[0]
    single = {jnp.dtype("float32")}
    assert dtypes(nnx.state(trainer.model)) == single
    assert dtypes(trainer.optimizer.state) == single
    assert set().union(*seen) == single
    # What was trained is what is measured, but for the rounding of the evaluation.
    assert history.evaluations[-1].metrics["evaluate"] < 0.3 * history.losses[0]


def test_a_run_is_not_taken_up_in_another_precision(tmp_path):
    def train(precision):
        config = MultilevelConfig(1, level_epochs=[3], precision=precision)
        return CascadeTrainer([network()], config=config).fit(
            loss_fn, data(), checkpoint=Checkpoints(tmp_path), resume="auto"
        )

    first = train("bfloat16")
    np.testing.assert_array_equal(train("bfloat16").losses, first.losses)
    with pytest.raises(ValueError, match="precision"):
        train(None)


def by_hand(params, graphdef, rest, x, y):
    """The loss with a model that is cast to bfloat16 in plain sight."""
    model = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), rest)
    return jnp.mean((model(x.astype(jnp.bfloat16)).astype(jnp.float32) - y) ** 2)


def test_the_gradient_is_that_of_a_loss_that_is_cast_by_hand():
    objective, params = objective_of(network(), loss_fn, data(), "bfloat16")
    value, gradient, _ = objective.value_and_gradient(params)
    expected = jax.value_and_grad(by_hand)(params, objective.graphdef, objective.rest, *data())
    assert value.dtype == jnp.float32
    assert value == expected[0]
    found = jax.tree.leaves(gradient)
    for leaf, wanted in zip(found, jax.tree.leaves(expected[1]), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, wanted)
    # It does compute in bfloat16: as far from the exact loss as that rounds, and not closer.
    exact = objective.at(precision=None).value(params)
    assert value != exact
    assert abs(value - exact) <= rounding(jnp.float32, operations=1) + 50 * BFLOAT16 * exact


@pytest.mark.parametrize(
    ("precision", "param_dtype"),
    [
        ("float32", "float32"),
        ("float32", "float64"),
        ("float64", "float32"),
        ("bfloat16", "float32"),
    ],
)
def test_values_and_gradients_have_the_dtypes_of_parameters_and_data(precision, param_dtype):
    with jax.enable_x64(True):
        model, arrays = network(jnp.dtype(param_dtype)), data(param_dtype)
        objective, params = objective_of(model, loss_fn, arrays, precision)
        value, gradient, _ = objective.value_and_gradient(params)
        assert value.dtype == param_dtype
        assert dtypes(gradient) == {jnp.dtype(param_dtype)}
        exact, _ = objective_of(network(jnp.float64), loss_fn, data(np.float64), None)
        reference = exact.value(jax.tree.map(lambda p: p.astype(jnp.float64), params))
        worst = max(jnp.finfo(d).eps for d in (precision, param_dtype))
        assert abs(value - reference) <= 50 * float(worst) * reference


def test_double_precision_is_used_inside_for_parameters_in_single():
    with jax.enable_x64(True):
        (x, _), model = data(np.float32), network()
        found = []

        def probe(inside):
            found.append(inside.dtype)
            return jnp.tanh(inside)

        model.hidden[0].activation = probe
        params = nnx.state(model, nnx.Param)
        graphdef, _, rest = split_model(model)
        inside = nnx.merge(graphdef, rounded(params, "float64"), rest, copy=True)
        assert evaluated_in(inside, "float64", params)(x).dtype == jnp.float32
        assert found == [jnp.dtype("float64")]


def test_without_a_precision_the_program_is_the_same_as_without_the_setting():
    objective, params = objective_of(network(), loss_fn, data(), None)

    def plainly(params):
        return loss_fn(nnx.merge(objective.graphdef, params, objective.rest, copy=True), *data())

    found, wanted = (str(jax.make_jaxpr(f)(params)) for f in (objective.value, plainly))
    assert found == wanted
    # Single precision of what has it already is no cast either.
    assert "convert" not in str(jax.make_jaxpr(objective.at(precision="float32").value)(params))


def test_double_precision_says_what_it_needs():
    trainer = CascadeTrainer([network()], config=MultilevelConfig(1, precision="float64"))
    assert not jax.config.jax_enable_x64
    with pytest.raises(ValueError, match=r"precision='float64' needs .*jax_enable_x64"):
        trainer.fit(loss_fn, data(), epochs=[2])
    assert trainer.history.num_steps == 0
    with jax.enable_x64(True):
        assert trainer.fit(loss_fn, data(), epochs=[2]).num_steps == 2


@pytest.mark.parametrize("given", ["float16", "half", "", "complex64"])
def test_other_precisions_are_errors_that_name_the_choices(given):
    with pytest.raises(ValueError, match=r"precision must be one of .*bfloat16"):
        MultilevelConfig(precision=given)


@pytest.mark.parametrize("given", [16, jnp.bfloat16, ["bfloat16"], True])
def test_a_precision_is_named(given):
    with pytest.raises(TypeError, match=r"precision must be one of .*bfloat16"):
        MultilevelConfig(precision=given)


class Parts(nnx.Module):
    """A model without a call: nobody knows where its inputs come in."""

    def __init__(self):
        self.part = network()


def test_a_model_without_a_call_is_refused():
    trainer = CascadeTrainer([Parts()], config=MultilevelConfig(1, precision="bfloat16"))
    with pytest.raises(ValueError, match=r"precision='bfloat16' needs .* Parts has no __call__"):
        trainer.fit(lambda model, x, y: loss_fn(model.part, x, y), data(), epochs=[1])


class Normed(nnx.Module):
    """With running statistics, dropout, and an integer input that chooses a row of a table."""

    def __init__(self, rngs):
        self.table = nnx.Embed(3, 2, rngs=rngs)
        self.first = nnx.Linear(2, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x, kind, *, offset):
        assert kind.dtype == jnp.int32
        features = self.first(x + self.table(kind)) + offset
        assert features.dtype in (jnp.bfloat16, jnp.float32)
        return self.last(self.dropout(jnp.tanh(self.norm(features))))


def test_integers_random_keys_and_running_statistics_survive():
    model = Normed(nnx.Rngs(0))
    x, y = data()
    kind = jnp.arange(len(x)) % 3

    def loss(model, x, y, kind, key):
        noise = 0.01 * jax.random.normal(key, x.shape)
        return jnp.mean((model(x + noise, kind, offset=jnp.float32(0.5)) - y) ** 2)

    before = nnx.state(model, nnx.Not(nnx.Param))
    trainer = CascadeTrainer(
        [model], optax.adam(1e-2), config=MultilevelConfig(1, precision="bfloat16")
    )
    history = trainer.fit(loss, (x, y, kind), epochs=[40], batch_size=16)
    after = nnx.state(trainer.model, nnx.Not(nnx.Param))
    assert history.losses[-10:].mean() < history.losses[:10].mean()
    kinds = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (before, after)]
    assert jax.tree.all(jax.tree.map(lambda old, new: old == new, *kinds))
    norm = trainer.model.norm
    assert norm.mean[...].dtype == jnp.float32
    # In bfloat16 the average of 0.99 and 0.01 parts would stand still; in single it has moved,
    # and holds digits that bfloat16 has not.
    assert not np.array_equal(norm.mean[...], norm.mean[...].astype(jnp.bfloat16))
    assert np.all(np.abs(norm.mean[...] - 0.5) < 0.5)


class Overwriting(nnx.Module):
    """Keeps its last output in a variable, in the dtype of the output."""

    def __init__(self):
        self.network = network()
        self.last = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        y = self.network(x)
        self.last[...] = jnp.max(y)
        return y


def test_what_a_model_overwrites_gets_its_dtype_back():
    trainer = CascadeTrainer([Overwriting()], config=MultilevelConfig(1, precision="bfloat16"))
    trainer.fit(loss_fn, data(), epochs=[3])
    assert trainer.model.last[...].dtype == jnp.float32
    assert trainer.model.last[...] != 0


def test_trees_of_other_structure_are_left_alone():
    new, old = {"a": jnp.ones(2, jnp.bfloat16)}, {"b": jnp.ones(2)}
    assert restored(new, old) is new
    assert restored(new, {"a": jnp.ones(2)})["a"].dtype == jnp.float32


def test_complex_numbers_stay_in_the_shortest_kind_there_is():
    tree = {"z": jnp.ones(2, jnp.complex64), "x": jnp.ones(2), "n": jnp.ones(2, jnp.int32)}
    found = jax.tree.map(lambda leaf: leaf.dtype.name, rounded(tree, "bfloat16"))
    assert found == {"z": "complex64", "x": "bfloat16", "n": "int32"}
    key = jax.random.key(0)
    assert rounded((key, 1.5), "bfloat16") == (key, 1.5)


@pytest.mark.parametrize("transform", ["fft", "matmul"])
@pytest.mark.parametrize("dims", [1, 2])
def test_transforms_of_bfloat16_are_those_of_single_precision_rounded_once(transform, dims):
    rng, modes = np.random.default_rng(1), (4,) * dims
    field = jnp.asarray(rng.normal(size=(16,) * dims + (3,)), jnp.bfloat16)
    found = truncated_transform(field, modes, transform=transform)
    assert found.dtype == jnp.bfloat16
    exact = truncated_transform(field.astype(jnp.float32), modes, transform=transform)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
    back = inverse_truncated_transform(found, modes, field.shape[:dims], transform=transform)
    assert back.dtype == jnp.bfloat16
    exact = inverse_truncated_transform(
        found.astype(jnp.float32), modes, field.shape[:dims], transform=transform
    )
    np.testing.assert_array_equal(back, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("transform", ["fft", "matmul"])
def test_a_neural_operator_trains_in_bfloat16(transform):
    fields = jnp.asarray(np.random.default_rng(2).normal(size=(8, 16, 1)), jnp.float32)
    smooth = inverse_truncated_transform(
        truncated_transform(jnp.moveaxis(fields, 0, 1), (3,)), (3,), (16,)
    )
    arrays = fields, jnp.moveaxis(smooth, 1, 0)
    operator = FNO(4, 8, num_layers=1, transform=transform, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer(
        [operator], optax.adam(1e-2), config=MultilevelConfig(1, precision="bfloat16")
    )
    history = trainer.fit(loss_fn, arrays, epochs=[60])
    assert history.losses[-1] < 0.3 * history.losses[0]
    assert dtypes(nnx.state(trainer.model)) == {jnp.dtype("float32")}


def test_derivatives_of_a_model_in_bfloat16_are_those_of_the_model_to_its_digits():
    term = ResidualTerm("laplace", lambda u, x: laplacian(u)(x) - 1.0)
    points = (data()[0],)
    objective, params = objective_of(network(), (term,), points, "bfloat16")
    value, gradient, _ = objective.value_and_gradient(params)
    exact = objective.at(precision=None).value(params)
    assert value.dtype == jnp.float32
    assert dtypes(gradient) == {jnp.dtype("float32")}
    assert value != exact
    assert abs(value - exact) <= 100 * BFLOAT16 * exact


@pytest.mark.parametrize("coarse", ["rediscretised", "galerkin"])
def test_cycles_correct_levels_that_are_evaluated_in_bfloat16(coarse):
    models = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
    config = MultilevelConfig(num_levels=2, level_epochs=[10, 10], precision="bfloat16")
    trainer = CascadeTrainer(models, MultilevelAdam(1e-2), config=config)
    history = trainer.fit(loss_fn, data(), cycle=VCycle(cycles=3, coarse=coarse))
    assert history.losses[-1] < history.losses[0]
    assert dtypes(nnx.state(trainer.model)) == {jnp.dtype("float32")}


FIT = ResidualTerm("fit", lambda u, x: u(x)[0] - jnp.sin(3.0 * x[0]) * x[1])


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_least_squares_solvers_refuse_bfloat16(solver):
    trainer = CascadeTrainer([network()], solver, config=MultilevelConfig(1, precision="bfloat16"))
    name = type(solver).__name__
    with pytest.raises(ValueError, match=f"{name} needs .*'bfloat16'.* 'float32' or 'float64'"):
        trainer.fit((FIT,), data()[:1], epochs=[2])
    assert trainer.history.num_steps == 0


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_steps_of_solvers_refuse_parameters_and_residuals_of_low_precision(solver, dtype):
    params, points = jnp.ones(2, dtype), (jnp.ones((4, 2), dtype),)
    term = ResidualTerm("fit", lambda u, x: u(x) - x[0])
    with pytest.raises(ValueError, match=f"{type(solver).__name__} needs .* float32 or float64"):
        solver.step((term,), lambda p: lambda x: p @ x, params, solver.init(params), points)


def test_solvers_take_double_precision_for_parameters_in_single():
    with jax.enable_x64(True):
        config = MultilevelConfig(1, precision="float64")
        trainer = CascadeTrainer([network()], LevenbergMarquardt(), config=config)
        history = trainer.fit((FIT,), (jnp.asarray(INPUTS),), epochs=[10])
        assert history.losses[-1] < 0.1 * history.losses[0]
        assert dtypes(nnx.state(trainer.model)) == {jnp.dtype("float32")}


def test_terms_are_balanced_by_the_model_that_is_trained():
    terms = (FIT, ResidualTerm("twice", lambda u, x: 2 * FIT.residual(u, x)))
    points = data()[0]
    objective, params = objective_of(network(), terms, (points, points), "bfloat16")
    method = JacobianBalancing()
    weights = method.update(objective, params, method.start(terms), jax.random.key(0)).weights
    assert weights.dtype == jnp.float32
    # The second term is twice the first, exactly, so that its weight is a fourth.
    assert distance(weights[0] / weights[1], 4.0) <= rounding(np.float32, operations=100)
    trainer = CascadeTrainer([network()], config=MultilevelConfig(1, precision="bfloat16"))
    history = trainer.fit(Balanced(terms, method), (points, points), epochs=[3])
    assert history.weights.shape == (3, 2)
