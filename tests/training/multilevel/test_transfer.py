"""Transfer operators: round trip, function preservation, gradients of new units, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from opifex.models import FNO, MLP
from opifex.training.multilevel import (
    READS,
    WRITES,
    LayerAxes,
    create_depth_hierarchy,
    create_fno_hierarchy,
    create_network_hierarchy,
    prolongate,
    prolongate_fno_modes,
    prolongate_preserving,
    register_axes,
    restrict,
    restrict_fno_modes,
)


def parameters_equal(a: nnx.Module, b: nnx.Module) -> bool:
    first, second = nnx.to_flat_state(nnx.state(a)), nnx.to_flat_state(nnx.state(b))
    return [p for p, _ in first] == [p for p, _ in second] and all(
        np.array_equal(v[...], w[...]) for (_, v), (_, w) in zip(first, second, strict=True)
    )


def randomised(model: nnx.Module, seed: int) -> nnx.Module:
    """A copy with every parameter random, so that zero biases hide nothing."""
    graph, state = nnx.split(model)
    random = np.random.default_rng(seed)
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda leaf: jnp.asarray(
                np.asarray(leaf) + 0.3 * random.standard_normal(leaf.shape), leaf.dtype
            ),
            state,
        ),
    )


def evaluate(model, x):
    """The model at x, compiled as a whole: much faster to test than operation by operation."""
    return np.asarray(nnx.jit(lambda m, y: m(y))(model, x))


def relative_difference(a, b) -> float:
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


widths = st.lists(
    st.tuples(st.sampled_from([1, 3]), st.sampled_from([0, 2])), min_size=1, max_size=2
)


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(sizes=widths, seed=st.integers(0, 2**16), activation=st.sampled_from([jnp.tanh, nnx.gelu]))
def test_mlp_width_round_trip_and_function(sizes, seed, activation):
    rngs = nnx.Rngs(seed)
    coarse = randomised(MLP(2, 3, [c for c, _ in sizes], activation=activation, rngs=rngs), seed)
    fine = randomised(
        MLP(2, 3, [c + extra for c, extra in sizes], activation=activation, rngs=rngs), seed + 1
    )
    x = np.random.default_rng(seed).standard_normal((7, 2)).astype("float32")
    for transfer in (prolongate, prolongate_preserving):
        assert parameters_equal(restrict(transfer(coarse, fine), coarse), coarse)
    preserved = prolongate_preserving(coarse, fine)
    assert relative_difference(evaluate(preserved, x), evaluate(coarse, x)) < 1e-5


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 2e-6), (True, 4e-15)])
def test_preservation_reaches_the_rounding_of_the_dtype(x64, tolerance):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        coarse, fine = (
            randomised(MLP(2, 1, [w, w], param_dtype=dtype, rngs=nnx.Rngs(w)), w) for w in (16, 64)
        )
        x = jax.random.normal(jax.random.key(0), (100, 2), dtype)
        assert coarse(x).dtype == dtype
        assert (
            relative_difference(
                evaluate(prolongate_preserving(coarse, fine), x), evaluate(coarse, x)
            )
            < tolerance
        )


def test_copy_and_pad_keeps_the_fine_values_elsewhere():
    coarse, fine = (randomised(MLP(2, 1, [w, w], rngs=nnx.Rngs(0)), w) for w in (3, 5))
    result = prolongate(coarse, fine)
    kernel = np.asarray(result.hidden[1].dense.kernel[...])
    expected = np.asarray(fine.hidden[1].dense.kernel[...]).copy()
    expected[:3, :3] = coarse.hidden[1].dense.kernel[...]
    assert np.array_equal(kernel, expected)


@pytest.mark.parametrize("transfer", [prolongate, prolongate_preserving])
def test_arguments_are_not_changed(transfer):
    coarse, fine = (MLP(2, 1, [w, w], rngs=nnx.Rngs(w)) for w in (3, 5))
    before = nnx.clone(coarse), nnx.clone(fine)
    result = transfer(coarse, fine)
    assert parameters_equal(coarse, before[0])
    assert parameters_equal(fine, before[1])
    assert result is not fine
    result.output.bias[...] = jnp.full(1, 7.0)
    assert parameters_equal(fine, before[1])


def new_entries_with_gradient(transfer, coarse, fine, x) -> float:
    """Share of the new entries' parameters that move within two gradient steps."""
    model = transfer(coarse, fine)
    start = nnx.clone(model)

    def loss(m):
        return jnp.mean((m(x) - jnp.sin(3 * x[..., :1])) ** 2)

    for _ in range(2):
        grads = nnx.jit(nnx.grad(loss))(model)
        params = nnx.state(model, nnx.Param)
        stepped = jax.tree.map(
            lambda p, g: jnp.asarray(np.asarray(p) - 0.1 * np.asarray(g)), params, grads
        )
        nnx.update(model, stepped)
    moved, total = 0, 0
    marks = nnx.to_flat_state(nnx.state(transfer(_filled(coarse, 1.0), _filled(fine, 0.0))))
    for (_, mark), (_, old), (_, new) in zip(
        marks,
        nnx.to_flat_state(nnx.state(start)),
        nnx.to_flat_state(nnx.state(model)),
        strict=True,
    ):
        fresh = np.asarray(mark[...]) == 0
        moved += int(np.sum((np.asarray(old[...]) != np.asarray(new[...])) & fresh))
        total += int(np.sum(fresh))
    return moved / total


def _filled(model, value):
    graph, state = nnx.split(model)
    return nnx.merge(
        graph, jax.tree.map(lambda leaf: jnp.asarray(np.full_like(leaf, value)), state)
    )


def test_new_units_learn_and_are_not_copies():
    coarse, fine = (MLP(1, 1, [w, w], rngs=nnx.Rngs(w)) for w in (4, 8))
    x = jnp.linspace(-1, 1, 32)[:, None]
    assert new_entries_with_gradient(prolongate_preserving, coarse, fine, x) > 0.95
    kernel = np.asarray(prolongate_preserving(coarse, fine).hidden[0].dense.kernel[...])
    assert len(np.unique(kernel)) == kernel.size


def test_depth_is_added_without_changing_the_function():
    coarse, fine = create_depth_hierarchy(2, 1, 8, [2, 4], rngs=nnx.Rngs(0))
    coarse, fine = randomised(coarse, 1), randomised(fine, 2)
    x = jax.random.normal(jax.random.key(0), (50, 2))
    result = prolongate_preserving(coarse, fine)
    assert relative_difference(evaluate(result, x), evaluate(coarse, x)) < 2e-6
    assert parameters_equal(restrict(result, coarse), coarse)
    assert relative_difference(evaluate(prolongate(coarse, fine), x), evaluate(coarse, x)) > 1e-2
    assert new_entries_with_gradient(prolongate_preserving, coarse, fine, x) > 0.95


def test_depth_without_gates_cannot_be_preserved():
    coarse, fine = (MLP(2, 1, [8] * n, rngs=nnx.Rngs(0)) for n in (1, 2))
    with pytest.raises(ValueError, match=r"hidden\.1.*depth_gates"):
        prolongate_preserving(coarse, fine)


def fno_pair(dims, coarse_modes, fine_modes, coarse_width=3, fine_width=3):
    return tuple(
        randomised(
            FNO(m, w, num_layers=2, spatial_dims=dims, rngs=nnx.Rngs(w)), w + sum(np.atleast_1d(m))
        )
        for m, w in ((coarse_modes, coarse_width), (fine_modes, fine_width))
    )


@pytest.mark.parametrize(
    ("dims", "coarse_modes", "fine_modes", "coarse_width", "fine_width", "grid"),
    [
        (1, (3,), (5,), 3, 3, (16,)),
        (1, (3,), (5,), 3, 6, (17,)),
        (2, (2, 3), (4, 3), 3, 3, (9, 12)),
        (2, (2, 2), (3, 4), 2, 5, (8, 9)),
        (3, (2, 1, 2), (2, 2, 3), 2, 3, (5, 6, 7)),
    ],
)
def test_fno_growth_preserves_the_function(
    dims, coarse_modes, fine_modes, coarse_width, fine_width, grid
):
    coarse, fine = fno_pair(dims, coarse_modes, fine_modes, coarse_width, fine_width)
    x = jax.random.normal(jax.random.key(0), (2, *grid, 1))
    result = prolongate_preserving(coarse, fine)
    assert relative_difference(evaluate(result, x), evaluate(coarse, x)) < 1e-5
    for transfer in (prolongate_fno_modes, prolongate_preserving):
        assert parameters_equal(restrict_fno_modes(transfer(coarse, fine), coarse), coarse)


def test_fno_modes_keep_their_frequency():
    """A coarse mode acts on the same wave before and after the transfer, of either sign."""
    coarse, fine = fno_pair(2, (3, 3), (5, 4))
    fine = _filled(fine, 0.0)
    result = prolongate_fno_modes(coarse, fine)
    layer, before = result.blocks[0].spectral, coarse.blocks[0].spectral
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(11) / 11] * 2, indexing="ij"))
    for k in ((2, 1), (-2, 1), (-1, 2), (0, 0)):
        wave = jnp.cos(2 * jnp.pi * (k[0] * grid[0] + k[1] * grid[1]) + 0.3)
        x = jnp.broadcast_to(wave[None, ..., None], (1, 11, 11, 3))
        assert relative_difference(evaluate(layer, x), evaluate(before, x)) < 1e-5


def test_new_fno_modes_learn():
    coarse, fine = create_fno_hierarchy(8, 4, 2, num_layers=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 32, 1))
    assert new_entries_with_gradient(prolongate_preserving, coarse, fine, x) > 0.9


def test_batch_norm_statistics_travel_and_layer_norm_is_refused():
    class Normalised(nnx.Module):
        def __init__(self, width, norm, rngs):
            self.dense = nnx.Linear(2, width, rngs=rngs)
            self.norm = norm(width, rngs=rngs)
            self.out = nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.norm(self.dense(x)))

    coarse, fine = (Normalised(w, nnx.BatchNorm, nnx.Rngs(w)) for w in (3, 6))
    coarse.norm.mean[...] = jnp.array([1.0, 2.0, 3.0])
    result = prolongate_preserving(coarse, fine)
    assert np.array_equal(result.norm.mean[...][:3], [1, 2, 3])
    coarse, fine = (Normalised(w, nnx.LayerNorm, nnx.Rngs(w)) for w in (3, 6))
    with pytest.raises(ValueError, match=r"norm\.(scale|bias)"):
        prolongate_preserving(coarse, fine)


def test_unknown_layers_need_a_description():
    class Scale(nnx.Module):
        def __init__(self, n):
            self.factor = nnx.Param(jnp.ones((n, n)))

        def __call__(self, x):
            return x @ self.factor[...]

    with pytest.raises(ValueError, match=r"factor.*register_axes"):
        prolongate(Scale(2), Scale(3))
    register_axes(Scale, LayerAxes({"factor": (READS, WRITES)}))
    assert prolongate(Scale(2), Scale(3)).factor[...].shape == (3, 3)


@pytest.mark.parametrize("transfer", [prolongate, prolongate_preserving])
def test_mismatches_name_the_layer(transfer):
    def mlp(dims, inputs=2):
        return MLP(inputs, 1, dims, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match=r"hidden\.0\.dense\.(kernel|bias)"):
        transfer(mlp([8]), mlp([4]))
    with pytest.raises(ValueError, match=r"hidden\.1"):
        transfer(mlp([4, 4]), mlp([8]))
    with pytest.raises(TypeError, match="fine_model"):
        transfer(mlp([4]), "a model")
    with pytest.raises(TypeError, match="coarse_model"):
        transfer(None, mlp([4]))
    with pytest.raises(TypeError, match="same class"):
        transfer(mlp([4]), nnx.Linear(2, 1, rngs=nnx.Rngs(0)))


def test_restrict_checks_its_arguments():
    coarse, fine = (MLP(2, 1, [w], rngs=nnx.Rngs(0)) for w in (2, 4))
    with pytest.raises(ValueError, match=r"hidden\.0"):
        restrict(coarse, fine)
    with pytest.raises(TypeError, match="fine_model"):
        restrict(3, coarse)


@pytest.mark.parametrize("transfer", [prolongate_fno_modes, restrict_fno_modes])
def test_fno_transfers_refuse_other_models(transfer):
    model = MLP(2, 1, [4], rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="SpectralConv"):
        transfer(model, model)
    with pytest.raises(TypeError, match="must be an nnx"):
        transfer("no model", model)


def test_hierarchies_are_coarsest_first():
    models = create_network_hierarchy(2, 1, [12, 20], 3, 0.5, rngs=nnx.Rngs(0))
    assert [m.hidden_dims for m in models] == [(3, 5), (6, 10), (12, 20)]
    x = jnp.ones((4, 2))
    assert [m(x).shape for m in models] == [(4, 1)] * 3
    tiny = create_network_hierarchy(1, 1, [2], 4, 0.5, rngs=nnx.Rngs(0))
    assert [m.hidden_dims for m in tiny] == [(1,), (1,), (1,), (2,)]


@settings(max_examples=8, deadline=None)
@given(base=st.integers(1, 40), levels=st.integers(1, 4), factor=st.sampled_from([1.5, 2, 3]))
def test_fno_hierarchy_modes(base, levels, factor):
    models = create_fno_hierarchy(base, 1, levels, factor, num_layers=1, rngs=nnx.Rngs(0))
    modes = [m.modes[0] for m in models]
    assert modes[-1] == base
    assert modes == sorted(modes)
    assert all(m >= 1 for m in modes)
