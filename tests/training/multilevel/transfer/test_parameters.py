"""Transfer of parameters: where entries go, what is kept, what learns, and which models fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import FNO, MLP
from opifex.training.multilevel.transfer import (
    function_difference,
    plan_transfer,
    prolongate,
    prolongate_correction,
    prolongate_fno_modes,
    prolongate_preserving,
    restrict,
    restrict_fno_modes,
    restrict_gradient,
)
from random_models import random_like, random_model


def params_of(model):
    return nnx.state(model, nnx.Param)


def arrays(tree):
    """The arrays of a tree by path."""
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(tree)}


def same(a, b) -> bool:
    """Whether two models or trees have the same variables, bit for bit."""
    first, second = (arrays(x if isinstance(x, nnx.State) else nnx.state(x)) for x in (a, b))
    return first.keys() == second.keys() and all(np.array_equal(first[p], second[p]) for p in first)


def filled(model, value):
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.full_like(leaf, value), state))


def keeps_the_function(coarse, fine, *inputs) -> bool:
    """Whether the preserving prolongation does, by a bound that copy-and-pad does not meet."""
    result, other = prolongate_preserving(coarse, fine), prolongate(coarse, fine)
    (good, allowed), (bad, most) = (
        map(float, function_difference(*nnx.split(coarse), *nnx.split(model), inputs))
        for model in (result, other)
    )
    return good <= allowed and bad > most


def mlps(*sizes, inputs=2, outputs=1, seed=0, **options):
    return [
        random_model(lambda rngs, d=d: MLP(inputs, outputs, d, rngs=rngs, **options), seed + i)
        for i, d in enumerate(sizes)
    ]


def fnos(dims, *sizes):
    return [
        random_model(
            lambda rngs, m=m, w=w: FNO(m, w, num_layers=1, spatial_dims=dims, rngs=rngs),
            i,
            0.3,
        )
        for i, (m, w) in enumerate(sizes)
    ]


X = np.random.default_rng(0).standard_normal((5, 2)).astype("float32")
widths = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([0, 1, 3])), min_size=1, max_size=3
).map(lambda pairs: ([n for n, _ in pairs], [n + extra for n, extra in pairs]))


# -- the linear maps -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(sizes=widths, seed=st.integers(0, 2**16), transfer=st.sampled_from([0, 1]))
def test_restriction_undoes_prolongation(sizes, seed, transfer):
    coarse, fine = mlps(*sizes, seed=seed)
    moved = (prolongate, prolongate_preserving)[transfer](coarse, fine)
    assert same(restrict(moved, coarse), coarse)
    plan = plan_transfer(coarse, fine)
    tree = plan.prolong(params_of(coarse), params_of(fine))
    assert same(tree, params_of(prolongate(coarse, fine)))
    assert same(plan.restrict(tree, params_of(other_values(coarse))), params_of(coarse))


def other_values(model):
    """The same structure with other values."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, random_like(state, 99))


@settings(max_examples=20, deadline=None)
@given(
    sizes=widths,
    modes=st.none() | st.tuples(st.integers(1, 3), st.integers(0, 2)),
    seed=st.integers(0, 2**16),
)
def test_restriction_of_gradients_is_the_adjoint_of_prolongation(sizes, modes, seed):
    """<P x, y> = <x, P* y>, exactly, since the numbers are small integers."""
    coarse, fine = mlps(*sizes) if modes is None else fnos(2, (modes[0], 2), (sum(modes), 3))
    x, y = (
        jax.tree.map(
            lambda leaf: np.round(9 * np.asarray(leaf)), random_like(params_of(m), seed + i)
        )
        for i, m in enumerate((coarse, fine))
    )
    up, down = prolongate_correction(x, coarse, fine), restrict_gradient(y, coarse, fine)
    inner = [
        sum(np.vdot(a[p], b[p]) for p in b)
        for a, b in ((arrays(up), arrays(y)), (arrays(x), arrays(down)))
    ]
    assert inner[0] == inner[1]
    # P x has the entries of x, and zeros.
    assert same(restrict_gradient(up, coarse, fine), x)
    for path, leaf in arrays(up).items():
        assert np.count_nonzero(leaf) == np.count_nonzero(arrays(x)[path])


def test_gradients_are_scaled_and_keep_their_type():
    coarse, fine = mlps([2], [4])
    halved = arrays(restrict_gradient(params_of(fine), coarse, fine, scale=0.5))
    kernel = halved["output", "kernel"]
    assert np.array_equal(kernel, 0.5 * np.asarray(fine.output.kernel[...])[:2])
    assert kernel.dtype == np.float32
    for scale in (0.0, -1.0):
        with pytest.raises(ValueError, match="scale must be positive"):
            restrict_gradient(params_of(fine), coarse, fine, scale=scale)


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.bfloat16])
def test_types_of_parameters_are_kept(dtype):
    coarse, fine = (
        random_model(lambda rngs, n=n: nnx.Linear(2, n, param_dtype=dtype, rngs=rngs), n)
        for n in (2, 3)
    )
    for tree in (
        prolongate_correction(params_of(coarse), coarse, fine),
        restrict_gradient(params_of(fine), coarse, fine, scale=2.0),
        params_of(prolongate_preserving(coarse, fine)),
    ):
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(tree))
    moved = prolongate(coarse, fine).kernel[...]
    assert np.array_equal(moved[:, :2], coarse.kernel[...])
    assert np.array_equal(moved[:, 2:], fine.kernel[...][:, 2:])


def test_a_plan_is_a_static_argument_and_compiles_once():
    traces = []

    def moved(plan, coarse, fine):
        traces.append(plan)
        return plan.prolong(coarse, fine), plan.restrict(fine, coarse)

    compiled = jax.jit(moved, static_argnums=0)
    for seed in (0, 10):  # other models of the same sizes: an equal plan
        coarse, fine = fnos(1, (2, 2), (3, 4))
        coarse, fine = other_values(coarse), filled(fine, seed)
        plan = plan_transfer(coarse, fine)
        found = compiled(plan, params_of(coarse), params_of(fine))
        assert same(found[0], plan.prolong(params_of(coarse), params_of(fine)))
        assert same(found[1], plan.restrict(params_of(fine), params_of(coarse)))
    assert len(traces) == 1
    assert plan == traces[0]
    assert hash(plan) == hash(traces[0])
    assert plan != plan_transfer(*fnos(1, (2, 2), (3, 5)))
    assert set(plan) == set(arrays(params_of(coarse)))
    assert len(plan) == len(arrays(params_of(coarse)))


def test_what_a_plan_does_not_know_stays():
    """States of random number generators are not transferred, and added layers have no source."""

    class Noisy(nnx.Module):
        def __init__(self, width, rngs):
            self.dense = nnx.Linear(2, width, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return jnp.sum(self.drop(self.dense(x)), -1)

    coarse, fine = (random_model(lambda rngs, w=w: Noisy(w, rngs), w) for w in (2, 3))
    plan = plan_transfer(coarse, fine)
    up = plan.prolong(nnx.state(coarse), nnx.state(fine))
    down = plan.restrict(nnx.state(fine), nnx.state(coarse))
    for tree, model in ((up, fine), (down, coarse)):
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.RngState)):
            assert jnp.array_equal(dict(nnx.to_flat_state(tree))[path][...], leaf[...])
    assert np.array_equal(down["dense"]["kernel"][...], fine.dense.kernel[...][:, :2])


# -- prolongation of models ------------------------------------------------------------------------


def test_copy_and_pad_keeps_the_fine_values_elsewhere():
    coarse, fine = mlps([3, 3], [5, 5])
    expected = np.asarray(fine.hidden[1].dense.kernel[...]).copy()
    expected[:3, :3] = coarse.hidden[1].dense.kernel[...]
    assert np.array_equal(prolongate(coarse, fine).hidden[1].dense.kernel[...], expected)
    expected[3:, :3] = 0  # old features must not read new ones
    assert np.array_equal(prolongate_preserving(coarse, fine).hidden[1].dense.kernel[...], expected)


@pytest.mark.parametrize("transfer", [prolongate, prolongate_preserving])
def test_arguments_are_not_changed(transfer):
    coarse, fine = mlps([3, 3], [5, 5])
    before = nnx.clone(coarse), nnx.clone(fine)
    result = transfer(coarse, fine)
    assert same(coarse, before[0])
    assert same(fine, before[1])
    assert result is not fine
    result.output.bias[...] = jnp.full(1, 7.0)
    assert same(coarse, before[0])
    assert same(fine, before[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("sizes", "activation"), [(([3], [8]), jnp.sin), (([4, 2], [4, 5]), nnx.gelu)]
)
def test_width_is_added_without_changing_the_function(dtype, sizes, activation):
    with jax.enable_x64(dtype == "float64"):
        coarse, fine = mlps(*sizes, outputs=3, activation=activation, param_dtype=jnp.dtype(dtype))
        assert keeps_the_function(coarse, fine, jnp.asarray(X, dtype))


def test_depth_is_added_without_changing_the_function():
    coarse, fine = mlps([4, 4], [6] * 4, depth_gates=True)
    result = prolongate_preserving(coarse, fine)
    assert keeps_the_function(coarse, fine, X)
    assert same(restrict(result, coarse), coarse)
    assert float(result.hidden[3].gate[...]) == 0
    assert float(prolongate(coarse, fine).hidden[3].gate[...]) != 0
    with pytest.raises(ValueError, match=r"hidden\.1.*depth_gates"):
        prolongate_preserving(*mlps([8], [8, 8]))


@pytest.mark.parametrize(
    ("dims", "sizes", "grid"),
    [
        (1, ((3, 3), (5, 6)), (17,)),
        (2, (((2, 3), 3), ((4, 3), 3)), (9, 12)),
        (3, (((2, 1, 2), 2), ((2, 2, 3), 3)), (5, 6, 7)),
    ],
)
def test_modes_are_added_without_changing_the_function(dims, sizes, grid):
    coarse, fine = fnos(dims, *sizes)
    x = jax.random.normal(jax.random.key(0), (2, *grid, 1))
    assert keeps_the_function(coarse, fine, x)
    for transfer in (prolongate_fno_modes, prolongate_preserving):
        assert same(restrict_fno_modes(transfer(coarse, fine), coarse), coarse)


def test_modes_keep_their_frequency():
    """A coarse mode acts on the same wave before and after the transfer, of either sign."""
    coarse, fine = fnos(2, ((3, 3), 2), ((5, 4), 2))
    result = prolongate_fno_modes(coarse, filled(fine, 0.0))
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(11) / 11] * 2, indexing="ij"))
    waves = [
        jnp.cos(2 * jnp.pi * (k * grid[0] + m * grid[1]) + 0.3)
        for k, m in ((2, 1), (-2, 1), (-1, 2), (0, 0))
    ]
    x = jnp.stack(waves)[..., None] * jnp.ones(2)
    before, after = (nnx.split(model.blocks[0].spectral) for model in (coarse, result))
    difference, allowed = function_difference(*before, *after, (x,))
    assert float(difference) <= float(allowed) < 1e-3


def gradient_steps(model, x, steps=2):
    """A copy after some steps of gradient descent."""
    model = nnx.clone(model)

    def loss(m):
        return jnp.mean((m(x) - jnp.sin(3 * x[..., :1])) ** 2)

    gradient = nnx.jit(nnx.grad(loss))
    for _ in range(steps):
        grads = arrays(gradient(model))
        flat = nnx.to_flat_state(params_of(model))
        stepped = [(p, v.replace(v[...] - 0.1 * jnp.asarray(grads[p]))) for p, v in flat]
        nnx.update(model, nnx.from_flat_state(stepped))
    return model


@pytest.mark.parametrize("growth", ["width", "depth", "modes"])
def test_new_entries_learn(growth):
    """All of them within two steps: nothing is dead, though the function has not changed."""
    x = jnp.linspace(-1, 1, 32)[:, None]
    if growth == "width":
        coarse, fine = mlps([4, 4], [8, 8], inputs=1)
    elif growth == "depth":
        coarse, fine = mlps([4, 4], [4, 4, 4], inputs=1, depth_gates=True)
    else:
        coarse, fine = fnos(1, (2, 2), (4, 2))
        x = jax.random.normal(jax.random.key(0), (4, 32, 1))
    start = prolongate_preserving(coarse, fine)
    trained = gradient_steps(start, x)
    old, new = arrays(params_of(start)), arrays(params_of(trained))
    is_new = arrays(params_of(prolongate(filled(coarse, 1.0), filled(fine, 0.0))))
    moved = np.concatenate([(old[p] != new[p])[is_new[p] == 0].ravel() for p in old])
    assert moved.size > 0
    # The imaginary part of the weights of frequency zero acts on nothing.
    assert np.mean(moved) > (0.9 if growth == "modes" else 0.99)


def test_new_units_are_not_copies():
    coarse, fine = mlps([4, 4], [8, 8])
    kernel = np.asarray(prolongate_preserving(coarse, fine).hidden[0].dense.kernel[...])
    assert len(np.unique(kernel)) == kernel.size


def test_running_statistics_travel():
    class Normalised(nnx.Module):
        def __init__(self, width, rngs):
            self.dense = nnx.Linear(2, width, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.output = nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, x):
            return self.output(self.norm(self.dense(x)))

    coarse, fine = (random_model(lambda rngs, w=w: Normalised(w, rngs), w) for w in (3, 6))
    mean = prolongate_preserving(coarse, fine).norm.mean[...]
    assert np.array_equal(mean, [*coarse.norm.mean[...], *fine.norm.mean[...][3:]])


# -- layers, and where their parameters lie --------------------------------------------------------


CONTAINERS = {
    "nnx.List": lambda p: nnx.List([p]),
    "list": lambda p: nnx.data([p]),
    "dictionary": lambda p: nnx.data({"a": [p]}),
    "nnx.Dict": lambda p: nnx.Dict(a=p),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_parameters_may_lie_in_lists_and_dictionaries(container):
    class Kept(nnx.Module):
        def __init__(self, width):
            self.scales = CONTAINERS[container](nnx.Param(jnp.full(width, float(width))))
            self.dense = nnx.data([nnx.Linear(2, width, rngs=nnx.Rngs(0))])

        def __call__(self, x):
            return jnp.sum(self.dense[0](x) * jax.tree.leaves(nnx.state(self.scales))[0], -1)

    for transfer, new in ((prolongate, 4), (prolongate_preserving, 0)):
        scales = jax.tree.leaves(nnx.state(transfer(Kept(2), Kept(4)))["scales"])
        assert np.array_equal(scales[0], [2, 2, new, new])


def test_vectorised_layers_grow_like_single_ones():
    class Ensemble(nnx.Module):
        def __init__(self, members, width, rngs):
            make = nnx.vmap(lambda keys: nnx.Linear(2, width, rngs=nnx.Rngs(keys)))
            self.dense = make(jax.random.split(rngs.params(), members))

        def __call__(self, x):
            each = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
            return jnp.max(each(self.dense, x)[..., :2], axis=0)

    coarse, fine, larger = (
        random_model(lambda rngs, n=n, w=w: Ensemble(n, w, rngs), w)
        for n, w in ((3, 4), (3, 8), (2, 8))
    )
    result = prolongate_preserving(coarse, fine)
    kernel = result.dense.kernel[...]
    assert np.array_equal(kernel[..., :4], coarse.dense.kernel[...])
    assert np.array_equal(kernel[..., 4:], fine.dense.kernel[...][..., 4:])
    assert same(restrict(result, coarse), coarse)
    # The largest of three members is that of two only if the third one repeats them.
    with pytest.raises(ValueError, match=r"reduce_max at test_parameters\.py"):
        prolongate_preserving(larger, fine)
    assert same(restrict(prolongate(larger, fine), larger), larger)


def test_layers_may_be_tied_but_in_the_same_way_on_both_levels():
    class Shared(nnx.Module):
        def __init__(self, width, tied, rngs):
            self.a = nnx.Linear(width, width, rngs=rngs)
            self.b = self.a if tied else nnx.Linear(width, width, rngs=rngs)

        def __call__(self, x):
            return self.b(jnp.tanh(self.a(x)))[..., :1]

    coarse, fine, untied = (
        random_model(lambda rngs, w=w, t=t: Shared(w, t, rngs), w)
        for w, t in ((2, True), (5, True), (5, False))
    )
    result = prolongate_preserving(coarse, fine)
    assert result.a is result.b
    back = restrict(result, coarse)
    assert back.a is back.b
    assert same(back, coarse)
    for transfer in (prolongate, prolongate_preserving):
        with pytest.raises(ValueError, match=r"b\.(kernel|bias) is tied.*coarse"):
            transfer(coarse, untied)
    small = random_model(lambda rngs: Shared(2, False, rngs), 0)
    with pytest.raises(ValueError, match=r"b\.(kernel|bias).*not on the fine"):
        prolongate(small, fine)


def placed(model, axis):
    """A copy on a mesh with one axis of this name."""
    mesh = jax.make_mesh((1,), (axis,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.device_put(state, sharding)), sharding


def test_types_and_sharding_are_those_of_the_target():
    coarse, sharding = placed(mlps([2])[0], "x")
    fine = random_model(lambda rngs: MLP(2, 1, [4], param_dtype=jnp.bfloat16, rngs=rngs), 1)
    fine, fine_sharding = placed(fine, "y")
    assert sharding != fine_sharding
    for transfer in (prolongate, prolongate_preserving):
        result = transfer(coarse, fine)
        for leaf in jax.tree.leaves(nnx.state(result)):
            assert leaf.dtype == jnp.bfloat16
            assert leaf.sharding == fine_sharding
        back = restrict(result, coarse)
        for leaf, like in zip(
            *(jax.tree.leaves(nnx.state(m)) for m in (back, coarse)), strict=True
        ):
            assert leaf.dtype == like.dtype
            assert leaf.sharding == sharding
            # The values are those that bfloat16 holds.
            assert np.array_equal(leaf, like.astype(jnp.bfloat16).astype(jnp.float32))


def test_random_keys_among_the_variables_stay():
    class Keyed(nnx.Module):
        def __init__(self, width, seed):
            self.dense = nnx.Linear(2, width, rngs=nnx.Rngs(0))
            self.key = nnx.Variable(jax.random.key(seed))

        def __call__(self, x):
            return self.dense(x)[..., :2]

    result = prolongate_preserving(Keyed(2, 0), Keyed(3, 1))
    assert jnp.array_equal(result.key[...], jax.random.key(1))


# -- models that do not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", [prolongate, prolongate_preserving])
def test_mismatches_name_the_layer(transfer):
    def mlp(dims, inputs=2):
        return mlps(dims, inputs=inputs)[0]

    with pytest.raises(ValueError, match=r"hidden\.0\.dense\.(kernel|bias) is larger"):
        transfer(mlp([8]), mlp([4]))
    with pytest.raises(ValueError, match=r"hidden\.1"):
        transfer(mlp([4, 4]), mlp([8]))
    with pytest.raises(TypeError, match="fine_model"):
        transfer(mlp([4]), "a model")
    with pytest.raises(TypeError, match="coarse_model"):
        transfer(None, mlp([4]))
    with pytest.raises(TypeError, match="same class"):
        transfer(mlp([4]), nnx.Linear(2, 1, rngs=nnx.Rngs(0)))


def test_parameters_must_have_as_many_axes_on_both_levels():
    class Shaped(nnx.Module):
        def __init__(self, shape):
            self.weights = nnx.Param(jnp.ones(shape))

    with pytest.raises(ValueError, match=r"weights has 1 axes on the coarse level"):
        prolongate(Shaped((2,)), Shaped((2, 2)))


def test_restrict_checks_its_arguments():
    coarse, fine = mlps([2], [4])
    with pytest.raises(ValueError, match=r"hidden\.0"):
        restrict(coarse, fine)
    with pytest.raises(TypeError, match="fine_model"):
        restrict(3, coarse)


@pytest.mark.parametrize("transfer", [prolongate_fno_modes, restrict_fno_modes])
def test_fno_transfers_refuse_other_models(transfer):
    model = mlps([4])[0]
    with pytest.raises(TypeError, match="SpectralConv"):
        transfer(model, model)
    with pytest.raises(TypeError, match="must be an nnx"):
        transfer("no model", model)
