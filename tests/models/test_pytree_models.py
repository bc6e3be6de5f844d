"""Models of other libraries are themselves: their own outputs, parameters and names."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import EquinoxModel, FunctionalModel, TrialFunction
from opifex.problems import Poisson
from opifex.storage import load_model, save_model
from opifex.storage.trees import on_host


class Convolutions(eqx.Module):
    """Leaves of all kinds: arrays, numbers, functions, integers, a random key, ``None``."""

    layers: list
    scale: dict
    norm: eqx.nn.LayerNorm
    activation: object
    order: jax.Array
    seed: jax.Array
    rate: float
    bias: None
    name: str = eqx.field(static=True)

    def __init__(self, channels, key, activation=jnp.tanh):
        first, second = jax.random.split(key)
        self.layers = [
            eqx.nn.Conv1d(1, channels, 3, padding=1, key=first),
            eqx.nn.Lambda(activation),
            eqx.nn.Conv1d(channels, 1, 3, padding=1, key=second),
        ]
        self.scale = {"values": jnp.ones(1), "keys": np.float32(0.5) * np.ones(8, np.float32)}
        self.norm = eqx.nn.LayerNorm((channels, 8))
        self.activation = activation
        self.order = jnp.arange(8)[::-1]
        self.seed = jax.random.key(3)
        self.rate = 0.5
        self.bias = None
        self.name = "convolutions"

    def __call__(self, x, shift=0.0):
        hidden = self.norm(self.layers[1](self.layers[0](x[None])))
        out = self.layers[2](hidden)[0][self.order] * self.scale["keys"]
        noise = jax.random.normal(self.seed, (8,))
        return self.rate * self.activation(out) + self.scale["values"] * noise + shift


def convolutions(seed=0, channels=3, **options):
    return Convolutions(channels, jax.random.key(seed), **options)


def perceptron(seed=0, width=8):
    return eqx.nn.MLP(2, 1, width, 2, key=jax.random.key(seed))


ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)


def equal(one, other):
    """Whether two pytrees are the same, bit for bit."""
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(on_host(a), on_host(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_outputs_are_those_of_the_module():
    module, shifts = convolutions(), jnp.arange(5.0)
    model, batched = EquinoxModel(module), EquinoxModel(module, batched=True)
    np.testing.assert_array_equal(model(ROWS[0], shift=2.0), module(ROWS[0], shift=2.0))
    np.testing.assert_array_equal(jax.vmap(model)(ROWS, shifts), jax.vmap(module)(ROWS, shifts))
    np.testing.assert_array_equal(batched(ROWS, shift=shifts), jax.vmap(module)(ROWS, shifts))


def test_floating_point_arrays_are_parameters_under_their_own_names():
    model = EquinoxModel(convolutions())
    state = dict(nnx.to_flat_state(nnx.state(model)))
    assert {type(leaf) for leaf in state.values()} == {nnx.Param}
    assert set(state) == {
        *(("parameters", "layers", i, name) for i in (0, 2) for name in ("weight", "bias")),
        *(("parameters", "norm", name) for name in ("weight", "bias")),
        *(("parameters", "scale", name) for name in ("values", "keys")),
    }
    weight = model.parameters.layers[0].weight
    np.testing.assert_array_equal(weight[...], convolutions().layers[0].weight)


def test_the_module_comes_back_with_the_values_that_the_parameters_have():
    module = convolutions()
    model = EquinoxModel(module)
    assert equal(model.module, module)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 1, nnx.state(model)))
    np.testing.assert_array_equal(
        model.module.layers[2].weight, convolutions().layers[2].weight + 1
    )
    np.testing.assert_array_equal(model(ROWS[0]), model.module(ROWS[0]))
    np.testing.assert_array_equal(module(ROWS[0]), convolutions()(ROWS[0]))  # as it was


def test_gradients_are_those_of_equinox():
    module = convolutions()

    def loss(model):
        return jnp.mean(jax.vmap(model)(ROWS) ** 2)

    ours = nnx.jit(nnx.grad(loss))(EquinoxModel(module))
    theirs = eqx.filter_jit(eqx.filter_grad(loss))(module)
    found = jax.tree.leaves(nnx.to_pure_dict(ours))
    assert len(found) == 8
    by_name = {jax.tree_util.keystr(p): g for p, g in jax.tree_util.tree_leaves_with_path(theirs)}
    for path, gradient in nnx.to_flat_state(ours):
        name = "".join(
            f"[{p!r}]" if isinstance(p, int) or p in ("keys", "values") else f".{p}"
            for p in path[1:]
        )
        np.testing.assert_array_equal(gradient[...], by_name[name])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (convolutions(0), convolutions(1), True),
        (convolutions(0), convolutions(0, activation=jnp.sin), False),
        (convolutions(0), eqx.tree_at(lambda m: m.order, convolutions(0), jnp.arange(8)), False),
        (convolutions(0), eqx.tree_at(lambda m: m.seed, convolutions(0), jax.random.key(4)), False),
        (convolutions(0), eqx.tree_at(lambda m: m.rate, convolutions(0), 1), False),
    ],
)
def test_programs_are_kept_by_all_that_is_no_parameter(one, other, same):
    first, second = (nnx.graphdef(EquinoxModel(module)) for module in (one, other))
    assert hash(first) == hash(nnx.graphdef(EquinoxModel(one)))
    assert (first == second) == same


def test_a_number_is_not_the_truth_value_that_equals_it():
    def model(constant):
        return FunctionalModel([jnp.ones(1), constant], lambda p, x: p[0] * p[1] * x)

    apply = model(1).apply
    kinds = [FunctionalModel([jnp.ones(1), c], apply) for c in (1, 1.0, True, np.array(1), "1")]
    assert len({nnx.graphdef(kind) for kind in kinds}) == len(kinds)
    again = [FunctionalModel([jnp.ones(1), c], apply) for c in (1, 1.0, True, np.array(1), "1")]
    assert [nnx.graphdef(kind) for kind in kinds] == [nnx.graphdef(kind) for kind in again]


def test_a_point_of_a_problem_is_a_sample():
    problem = Poisson()
    points = problem.sample_points(jax.random.key(0), 10, 4)
    module = perceptron()
    ours, theirs = (
        jax.jit(lambda u=u: problem.loss(u, *points))() for u in (EquinoxModel(module), module)
    )
    assert ours == theirs
    hard = problem.trial_function(EquinoxModel(module))
    assert isinstance(hard, TrialFunction)
    np.testing.assert_array_equal(jax.vmap(hard)(jnp.eye(2)), jnp.zeros((2, 1)))


def test_saved_and_loaded_with_what_builds_it(tmp_path):
    save_model(EquinoxModel(perceptron(1)), tmp_path)
    loaded = load_model(tmp_path, build=lambda: EquinoxModel(perceptron(2)))
    assert equal(eqx.filter(loaded.module, eqx.is_array), eqx.filter(perceptron(1), eqx.is_array))


def wave(params, x, factor=1.0):
    frequencies, count = params["waves"]["frequencies"], params["waves"]["count"]
    return factor * jnp.sin(x[:, None] * frequencies) @ params["amplitudes"] / count


def waves(seed=0, count=4):
    amplitudes, frequencies = np.random.default_rng(seed).normal(size=(2, count))
    return {
        "waves": {"frequencies": jnp.asarray(frequencies), "count": count},
        "amplitudes": jnp.asarray(amplitudes),
    }


def test_a_function_of_parameters_is_called_as_it_is():
    params, x = waves(), jnp.linspace(0.0, 1.0, 7)
    model = FunctionalModel(params, wave)
    np.testing.assert_array_equal(model(x, factor=2.0), wave(params, x, factor=2.0))
    assert equal(model.params, params)
    assert set(dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))) == {
        ("parameters", "amplitudes"),
        ("parameters", "waves", "frequencies"),
    }
    assert nnx.graphdef(model) == nnx.graphdef(FunctionalModel(waves(1), wave))
    assert nnx.graphdef(model) != nnx.graphdef(FunctionalModel(waves(0, count=5), wave))


def test_linen_and_single_arrays_are_pytrees_too():
    linen = pytest.importorskip("flax.linen")
    dense = linen.Dense(3)
    x = jnp.ones((2, 4))
    variables = dense.init(jax.random.key(0), x)
    model = FunctionalModel(variables, dense.apply)
    np.testing.assert_array_equal(model(x), dense.apply(variables, x))
    assert ("parameters", "params", "kernel") in dict(nnx.to_flat_state(nnx.state(model)))
    single = FunctionalModel(jnp.ones(2), jnp.add)
    np.testing.assert_array_equal(single(1.0), [2.0, 2.0])


class Unhashable:
    """A function without a hash."""

    __hash__ = None

    def __call__(self, params, x):
        return x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EquinoxModel(jnp.tanh), TypeError, "module must be an equinox.Module, got"),
        (lambda: EquinoxModel(perceptron(), batched=1), TypeError, "batched must be a bool, got 1"),
        (lambda: EquinoxModel(eqx.nn.State(perceptron())), TypeError, "module must be"),
        (
            lambda: EquinoxModel(eqx.nn.Lambda(jnp.tanh)),
            ValueError,
            "module must hold at least one floating-point array",
        ),
        (
            lambda: FunctionalModel({"a": jnp.ones(1), "b": {1}}, wave),
            TypeError,
            r"params\['b'\] is no floating-point array.*got set",
        ),
        (
            lambda: nnx.eval_shape(lambda: FunctionalModel([jnp.ones(1), jnp.arange(2)], wave)),
            TypeError,
            r"params\[1\] is no floating-point array.*array of known values",
        ),
        (lambda: FunctionalModel(waves(), 3), TypeError, "apply must be callable"),
        (lambda: FunctionalModel(waves(), Unhashable()), TypeError, "apply must be"),
        (
            lambda: FunctionalModel(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), wave),
            TypeError,
            "params must hold arrays, got variables of Flax",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_without_equinox_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "equinox", None)
    with pytest.raises(ImportError, match=r"opifex-multilevel\[equinox\]"):
        EquinoxModel(perceptron)
