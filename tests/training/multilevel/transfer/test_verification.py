"""The check of a promised function: what it finds and names, and what it must let pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import FNO, MLP
from opifex.training.multilevel.transfer import (
    TransferError,
    accepted_inputs,
    function_difference,
    prolongate,
    prolongate_preserving,
    verify_transfer,
)
from random_models import random_model

X = np.random.default_rng(0).standard_normal((4, 2)).astype("float32")


def levels(make):
    models = [random_model(lambda rngs, w=w: make(w, rngs), w) for w in (4, 8)]
    for model in models:
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.BatchNorm):
                module.var[...] = jnp.abs(module.var[...])
    return models


def mlp(width, rngs, layers=2, **options):
    return MLP(2, 1, [width] * layers, rngs=rngs, **options)


def difference(coarse, fine, *inputs):
    return map(float, function_difference(*nnx.split(coarse), *nnx.split(fine), inputs))


# -- layers in which a wrong transfer shows first -------------------------------------------------


class Grouped(nnx.Module):
    """Channels of different groups are interleaved when the layer grows."""

    inputs = (np.random.default_rng(1).standard_normal((2, 9, 2)).astype("float32"),)
    named = r"b \(Conv\)"

    def __init__(self, width, rngs):
        self.a = nnx.Conv(2, width, (3,), rngs=rngs)
        self.b = nnx.Conv(width, width, (3,), feature_group_count=2, rngs=rngs)
        self.o = nnx.Conv(width, 1, (1,), rngs=rngs)

    def __call__(self, x):
        return self.o(jnp.tanh(self.b(jnp.tanh(self.a(x)))))


class Gated(nnx.Module):
    """The gates of a recurrent cell lie side by side in one array."""

    inputs = (X,)
    named = r"cell\.dense_h \(Linear\)"

    def __init__(self, width, rngs):
        self.cell = nnx.GRUCell(2, width, rngs=rngs)
        self.o = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        h = jnp.zeros((len(x), self.o.in_features))
        for _ in range(2):
            h, _ = self.cell(h, x)
        return self.o(h)


class LongShort(nnx.Module):
    """The same of another cell."""

    inputs = (X,)
    named = r"cell\.dense_h \(Linear\)"

    def __init__(self, width, rngs):
        self.cell = nnx.OptimizedLSTMCell(2, width, rngs=rngs)
        self.o = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        state, h = (jnp.zeros((len(x), self.o.in_features)),) * 2, None
        for _ in range(2):
            state, h = self.cell(state, x)
        return self.o(h)


class Tied(nnx.Module):
    """One array is read along both axes."""

    inputs = (np.arange(5),)
    named = r"l \(Linear\)"

    def __init__(self, width, rngs):
        self.e = nnx.Embed(5, width, rngs=rngs)
        self.l = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, tokens):
        return self.e.attend(jnp.tanh(self.l(self.e(tokens))))


class Flattened(nnx.Module):
    """Features of all points lie side by side."""

    inputs = (np.random.default_rng(2).standard_normal((2, 6, 1)).astype("float32"),)
    named = r"o \(Linear\)"

    def __init__(self, width, rngs):
        self.a = nnx.Conv(1, width, (3,), rngs=rngs)
        self.o = nnx.Linear(6 * width, 1, rngs=rngs)

    def __call__(self, x):
        return self.o(jnp.tanh(self.a(x)).reshape(len(x), -1))


class Concatenated(nnx.Module):
    """Old features stand behind features that grow."""

    inputs = (X,)
    named = r"o \(Linear\)"

    def __init__(self, width, rngs):
        self.a = nnx.Linear(2, width, rngs=rngs)
        self.o = nnx.Linear(width + 2, 1, rngs=rngs)

    def __call__(self, x):
        return self.o(jnp.concatenate([jnp.tanh(self.a(x)), x], -1))


@pytest.mark.parametrize("model", [Grouped, Gated, LongShort, Tied, Flattened, Concatenated])
def test_a_function_that_is_lost_is_an_error_that_names_the_layer(model):
    coarse, fine = levels(model)
    verify_transfer(coarse, prolongate_preserving(coarse, fine, *model.inputs), *model.inputs)
    result = prolongate(coarse, fine, *model.inputs)  # old features read new ones
    with pytest.raises(TransferError, match=f"first layer whose output differs is {model.named}"):
        verify_transfer(coarse, result, *model.inputs)
    assert type(result) is model  # the models themselves are not listened to
    verify_transfer(coarse, coarse, *model.inputs)


def test_the_message_says_how_large_the_difference_is():
    coarse, fine = levels(mlp)
    result = prolongate_preserving(coarse, fine)
    result.output.bias[...] = result.output.bias[...] + 0.125
    size = float(jnp.max(jnp.abs(coarse(X))))
    with pytest.raises(TransferError, match=rf"of size {size:.3g}, differ by 0\.125") as caught:
        verify_transfer(coarse, result, X)
    assert "output (Linear)" in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_where_all_layers_agree_the_model_itself_is_named():
    class Summed(nnx.Module):
        def __init__(self, width, rngs):
            self.a = nnx.Linear(2, width, rngs=rngs)

        def __call__(self, x):
            return jnp.sum(jnp.tanh(self.a(x)), axis=-1)

    coarse, fine = levels(Summed)
    with pytest.raises(TransferError, match=r"differs is the model itself \(Summed\)"):
        verify_transfer(coarse, prolongate(coarse, fine), X)


def test_a_model_that_cannot_be_listened_to_is_still_refused():
    class Final(nnx.Module):
        def __init__(self, width, rngs):
            self.a = nnx.Linear(2, 1, rngs=rngs)

        def __init_subclass__(cls, **kwargs):
            raise TypeError("this class is final")

        def __call__(self, x):
            return self.a(x)

    coarse, other = levels(Final)
    with pytest.raises(TransferError, match="layers that can be compared agree"):
        verify_transfer(coarse, other, X)


# -- rounding --------------------------------------------------------------------------------------


class Mixed(nnx.Module):
    """Computes in half precision inside."""

    def __init__(self, width, rngs):
        self.a = nnx.Linear(2, width, dtype=jnp.bfloat16, rngs=rngs)
        self.b = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)).astype(jnp.float32))


class Cancelling(nnx.Module):
    """Outputs that are small beside the numbers whose difference they are."""

    def __init__(self, width, rngs):
        self.net = mlp(width, rngs)

    def __call__(self, x):
        return self.net(x) - self.net(x + 1e-4)


class Vanishing(nnx.Module):
    """A trial function at the boundary."""

    def __init__(self, width, rngs):
        self.net = mlp(width, rngs)

    def __call__(self, x):
        return self.net(x) * (x[:, :1] - 1)


class Regularised(nnx.Module):
    """Dropout, and statistics of a batch."""

    def __init__(self, width, rngs):
        self.a = nnx.Linear(2, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.b = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(self.norm(self.a(x)) ** 2))


class Noisy(nnx.Module):
    """Random numbers at every call, whatever the mode."""

    def __init__(self, width, rngs):
        self.net, self.rngs = mlp(width, rngs), nnx.Rngs(0)

    def __call__(self, x):
        return self.net(x) + 0.1 * jax.random.normal(self.rngs.default(), (len(x), 1))


PRESERVED = {
    "deep": (lambda w, rngs: mlp(w, rngs, layers=12), X),
    "bfloat16": (
        lambda w, rngs: mlp(w, rngs, layers=4, param_dtype=jnp.bfloat16),
        X.astype(jnp.bfloat16),
    ),
    "parameters in bfloat16": (lambda w, rngs: mlp(w, rngs, param_dtype=jnp.bfloat16), X),
    "mixed precision": (Mixed, X),
    "Fourier layers": (
        lambda w, rngs: FNO(w // 2, w, num_layers=1, rngs=rngs),
        np.random.default_rng(3).standard_normal((2, 17, 1)).astype("float32"),
    ),
    "cancellation": (Cancelling, X),
    "zero": (Vanishing, np.ones((3, 2), "float32")),
    "not a number": (mlp, np.full((3, 2), np.nan, "float32")),
    "dropout, batch normalisation": (Regularised, X),
    "noise": (Noisy, X),
}


@pytest.mark.parametrize("case", PRESERVED)
def test_a_function_that_is_kept_is_not_an_error(case):
    make, x = PRESERVED[case]
    coarse, fine = levels(make)
    verify_transfer(coarse, prolongate_preserving(coarse, fine), x)


@pytest.mark.parametrize("case", ["deep", "bfloat16", "mixed precision", "Fourier layers"])
def test_what_is_allowed_is_far_below_the_output(case):
    make, x = PRESERVED[case]
    coarse, fine = levels(make)
    wrong = prolongate_preserving(coarse, fine)
    weights = next(leaf for leaf in jax.tree.leaves(nnx.state(wrong, nnx.Param)) if leaf.ndim > 1)
    flat = [
        (path, leaf.replace(-leaf[...] if leaf.shape == weights.shape else leaf[...]))
        for path, leaf in nnx.to_flat_state(nnx.state(wrong, nnx.Param))
    ]
    nnx.update(wrong, nnx.from_flat_state(flat))
    found, allowed = difference(coarse, wrong, x)
    assert found > 2 * allowed > 0


def test_products_are_not_taken_in_the_fast_precision_of_accelerators():
    seen = []

    class Watching(nnx.Module):
        def __init__(self, width, rngs):
            self.a = nnx.Linear(2, 1, rngs=rngs)

        def __call__(self, x):
            seen.append(jax.config.jax_default_matmul_precision)
            return self.a(x)

    coarse = levels(Watching)[0]
    verify_transfer(coarse, coarse, X)
    assert set(seen) == {"highest"}


@pytest.mark.parametrize("precision", [None, "highest", "default"])
def test_layers_that_ask_for_fast_products_are_allowed_their_errors(precision):
    def make(width, rngs):
        return nnx.Linear(2, width, precision=precision, rngs=rngs)

    coarse = levels(make)[0]
    _, allowed = difference(coarse, coarse, X)
    size = float(jnp.max(jnp.abs(coarse(X))))
    assert (allowed < 1e-3 * size) == (precision != "default")


# -- the measurement -------------------------------------------------------------------------------


def test_it_compiles_once_for_models_of_the_same_structure():
    traces = []

    class Counted(nnx.Module):
        def __init__(self, width, rngs):
            self.net = mlp(width, rngs)

        def __call__(self, x):
            traces.append(self.net.hidden_dims)
            return self.net(x)

    coarse, fine = levels(Counted)
    result = prolongate_preserving(coarse, fine)
    assert np.greater(*reversed(list(difference(coarse, result, X))))
    first = len(traces)
    assert first > 0
    other = nnx.clone(coarse)
    other.net.output.bias[...] = other.net.output.bias[...] + 1
    found, allowed = difference(other, result, X[::-1].copy())
    assert found == pytest.approx(1, rel=1e-5)
    assert found > allowed
    verify_transfer(coarse, result, X)
    assert len(traces) == first


def test_a_level_is_compiled_once_for_the_transition_to_it_and_the_one_from_it():
    traces = []

    class Counted(nnx.Module):
        def __init__(self, width, rngs):
            self.net = mlp(width, rngs)

        def __call__(self, x):
            traces.append(self.net.hidden_dims[0])
            return self.net(x)

    model, *others = (random_model(lambda rngs, w=w: Counted(w, rngs), w) for w in (4, 8, 16))
    for other, compiled in zip(others, ([4, 8], [16]), strict=True):
        new = prolongate_preserving(model, other)
        traces.clear()  # those that the transfer was inferred from
        assert accepted_inputs(model, new, (X,)) is not None
        verify_transfer(model, new, X)
        assert traces == compiled
        model = new


def test_structures_without_a_hash_are_compiled_each_time():
    class Listed(nnx.Module):
        def __init__(self, width, rngs):
            self.net = mlp(width, rngs)
            self.sizes = nnx.static([width])

        def __call__(self, x):
            return self.net(x)

    coarse, fine = levels(Listed)
    with pytest.raises(TypeError, match="unhashable"):
        hash(nnx.graphdef(coarse))
    verify_transfer(coarse, prolongate_preserving(coarse, fine), X)
    with pytest.raises(TransferError):
        verify_transfer(coarse, prolongate(coarse, fine), X)


def test_numbers_against_no_numbers_are_an_infinite_difference():
    coarse, fine = levels(mlp)
    broken = prolongate_preserving(coarse, fine)
    broken.output.bias[...] = jnp.full(1, jnp.nan)
    assert next(difference(coarse, broken, X)) == np.inf
    with pytest.raises(TransferError, match="differ by inf"):
        verify_transfer(coarse, broken, X)


class Several(nnx.Module):
    """Two outputs of very different size, and a label."""

    def __init__(self, width, rngs):
        self.a, self.b = mlp(width, rngs), mlp(width, rngs)

    def __call__(self, x):
        large = 1e6 * self.a(x)
        return {"large": large, "small": self.b(x), "sign": large > 0}


def test_of_several_outputs_each_is_judged_by_its_own_size():
    coarse, fine = levels(Several)
    result = prolongate_preserving(coarse, fine)
    verify_transfer(coarse, result, X)
    result.b.output.bias[...] = result.b.output.bias[...] + 0.25
    found, allowed = difference(coarse, result, X)
    assert found == pytest.approx(0.25, rel=1e-5)
    assert allowed < 0.25


def test_outputs_must_have_the_same_shapes():
    coarse, fine = levels(lambda width, rngs: nnx.Linear(2, width, rngs=rngs))
    with pytest.raises(TransferError, match=r"shapes.*\(4, 4\).*\(4, 8\)"):
        verify_transfer(coarse, prolongate_preserving(coarse, fine), X)


def test_models_are_left_as_they_are():
    coarse, fine = levels(Regularised)
    result = prolongate(coarse, fine)
    before = nnx.clone(coarse), nnx.clone(result)
    with pytest.raises(TransferError):
        verify_transfer(coarse, result, X)
    for model, kept in zip((coarse, result), before, strict=True):
        assert not model.drop.deterministic
        assert not model.norm.use_running_average
        assert type(model.a) is nnx.Linear
        for leaf, old in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, kept)), strict=True):
            assert jnp.array_equal(leaf, old)


def test_only_models_can_be_compared():
    model = levels(mlp)[0]
    with pytest.raises(TypeError, match="coarse_model must be an"):
        verify_transfer(3, model, X)
    with pytest.raises(TypeError, match="fine_model must be an"):
        verify_transfer(model, None, X)


def test_a_promise_is_an_attribute():
    assert prolongate_preserving.preserves_function
    assert not hasattr(prolongate, "preserves_function")


# -- arguments -------------------------------------------------------------------------------------


class Branched(nnx.Module):
    """Needs two arguments."""

    def __init__(self, width, rngs):
        self.a, self.b = (nnx.Linear(n, width, rngs=rngs) for n in (3, 2))
        self.calls = nnx.static([])

    def __call__(self, field, x):
        self.calls.append(field)
        return jnp.sum(self.a(field) * self.b(x), axis=-1)


def test_arguments_are_the_shortest_beginning_of_the_data_that_both_models_accept():
    target = X[:, :1]
    models = levels(mlp)
    assert accepted_inputs(*models, (X, target))[0] is X
    assert len(accepted_inputs(*models, (X, target))) == 1
    branched, field = levels(Branched), np.ones((4, 3), "float32")
    assert [a.shape for a in accepted_inputs(*branched, (field, X, target))] == [(4, 3), (4, 2)]
    # Nothing was computed: all that the model saw were placeholders.
    assert all(isinstance(seen, jax.core.Tracer) for model in branched for seen in model.calls)
    assert accepted_inputs(*branched, (X, X)) is None
    assert accepted_inputs(*models, ()) is None
    assert accepted_inputs(models[0], branched[1], (X,)) is None
    wide = levels(lambda width, rngs: nnx.Linear(2, width, rngs=rngs))
    assert accepted_inputs(*wide, (X,)) is None  # answers that cannot be compared
