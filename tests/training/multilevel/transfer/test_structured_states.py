"""States along the axes of parameters grow with them: squares, bases, averages, projections."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import FNO, MLP
from opifex.training.multilevel.transfer import (
    plan_transfer,
    prolongate,
    prolongate_preserving,
    restrict,
    restrict_gradient,
    states,
    transfer_optimizer_state,
)
from opifex.training.multilevel.transfer.axis_maps import axis_maps
from opifex.training.multilevel.transfer.layouts import fitting_layouts
from opifex.training.multilevel.transfer.linear_part import LinearPart, leaves_by_path
from random_models import random_like, random_model
from tolerances import rounding

ROUNDING = rounding("float32", operations=100)


# -- Shampoo and SOAP, as small as they can be -----------------------------------------------------


def along(matrix, array, axis):
    """A matrix times an array along one of its axes."""
    return jnp.moveaxis(jnp.tensordot(matrix, array, axes=(1, axis)), 0, axis)


def gram(array, axis):
    """The products of the slices along an axis."""
    slices = jnp.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return slices @ slices.T


def per_axis(function, params):
    return jax.tree.map(lambda p: [function(p, axis) for axis in range(p.ndim)], params)


class ShampooState(NamedTuple):
    factors: optax.Updates


def shampoo(epsilon=1e-2):
    """arXiv:1802.09568, algorithm 2: roots of the sums of the products of slices."""

    def init(params):
        return ShampooState(per_axis(lambda p, axis: epsilon * jnp.eye(p.shape[axis]), params))

    def update(updates, state, params=None):
        def direction(gradient, factors):
            for axis, factor in enumerate(factors):
                values, vectors = jnp.linalg.eigh(factor)
                root = (vectors * values ** (-0.5 / gradient.ndim)) @ vectors.T
                gradient = along(root, gradient, axis)
            return -0.1 * gradient

        factors = jax.tree.map(
            lambda g, old: [f + gram(g, axis) for axis, f in enumerate(old)], updates, state.factors
        )
        return jax.tree.map(direction, updates, factors), ShampooState(factors)

    return optax.GradientTransformation(init, update)


class SOAPState(NamedTuple):
    mu: optax.Updates
    nu: optax.Updates
    factors: optax.Updates
    bases: optax.Updates


def soap(decay=0.9):
    """arXiv:2409.11321, algorithm 3: Adam in the eigenbasis of Shampoo, by one power iteration."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        squares = per_axis(lambda p, axis: jnp.zeros((p.shape[axis],) * 2), params)
        return SOAPState(
            zeros, zeros, squares, per_axis(lambda p, axis: jnp.eye(p.shape[axis]), params)
        )

    def rotated(array, bases, *, back=False):
        for axis, basis in enumerate(bases):
            array = along(basis if back else basis.T, array, axis)
        return array

    def update(updates, state, params=None):
        mu = optax.tree.update_moment(updates, state.mu, decay, 1)
        inside = jax.tree.map(rotated, updates, state.bases)
        nu = optax.tree.update_moment(inside, state.nu, decay, 2)
        directions = jax.tree.map(
            lambda m, v, bases: rotated(
                -0.1 * rotated(m, bases) / (jnp.sqrt(v) + 1e-3), bases, back=True
            ),
            mu,
            nu,
            state.bases,
        )
        factors = jax.tree.map(
            lambda g, old: [decay * f + gram(g, axis) for axis, f in enumerate(old)],
            updates,
            state.factors,
        )
        # A shift keeps what has seen no gradient in its place.
        bases = jax.tree.map(lambda f, q: jnp.linalg.qr(f @ q + 1e-3 * q)[0], factors, state.bases)
        return directions, SOAPState(mu, nu, factors, bases)

    return optax.GradientTransformation(init, update)


def params_of(model):
    return nnx.state(model, nnx.Param)


def mlps(*widths):
    return [
        random_model(lambda rngs, w=w: MLP(2, 3, [w, w], rngs=rngs), w) for w in widths or (4, 7)
    ]


def linears(coarse, fine):
    return [
        random_model(lambda rngs, shape=shape: nnx.Linear(*shape, rngs=rngs), seed)
        for seed, shape in enumerate((coarse, fine))
    ]


def a_state(transformation, model, seed=1):
    """A state of other numbers everywhere, positive where it must be; its bases are bases."""
    state = transformation.init(params_of(model))
    state = jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(leaf), leaf.dtype), random_like(state, seed, scale=1.0)
    )
    if isinstance(state, SOAPState):
        bases = jax.tree.map(lambda q: jnp.asarray(np.linalg.qr(np.asarray(q))[0]), state.bases)
        state = state._replace(bases=bases)
    return state


def trained(transformation, model, steps=3):
    params, update = params_of(model), jax.jit(transformation.update)
    state = transformation.init(params)
    for seed in range(steps):
        _, state = update(random_like(params, seed), state, params)
    return state


def arrays(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def leading(shape):
    return tuple(slice(0, n) for n in shape)


def assert_grown(old, new, start):
    expected = np.array(start)
    expected[leading(old.shape)] = old
    assert np.array_equal(new, expected)


def distance_from_orthogonal(basis):
    basis = np.asarray(basis, np.float64)
    return float(np.max(np.abs(basis.T @ basis - np.eye(len(basis)))))


@pytest.mark.parametrize("make", [shampoo, soap])
def test_squares_keep_their_block(make):
    """Old products stay, new ones are those of a fresh state; and back again."""
    transformation = make()
    coarse, fine = mlps()
    state, fine = trained(transformation, coarse), prolongate_preserving(coarse, fine)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate_preserving)
    before, after, start = (arrays(s) for s in (state, moved, transformation.init(params_of(fine))))
    for path, old in before.items():
        assert_grown(old, after[path], start[path])
    back = transfer_optimizer_state(transformation, moved, fine, coarse, restrict)
    assert all(map(np.array_equal, arrays(back).values(), before.values()))


@pytest.mark.parametrize("make", [shampoo, soap])
def test_the_next_step_of_old_entries_is_the_coarse_one(make):
    """Old and new do not mix where only old entries have a gradient."""
    transformation = make()
    coarse, fine = mlps()
    state, fine = trained(transformation, coarse), prolongate_preserving(coarse, fine)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate_preserving)
    gradient = random_like(params_of(coarse), 5)
    padded = plan_transfer(coarse, fine).prolong(
        gradient, jax.tree.map(jnp.zeros_like, params_of(fine))
    )
    for _ in range(2):
        updates, state = jax.jit(transformation.update)(gradient, state)
        fine_updates, moved = jax.jit(transformation.update)(padded, moved)
        back = arrays(restrict_gradient(fine_updates, coarse, fine))
        for path, update in arrays(updates).items():
            size = np.max(np.abs(update))
            # Roots of a factor amplify rounding by at most its condition number.
            np.testing.assert_allclose(back[path], update, atol=1e3 * ROUNDING * size, err_msg=path)


def test_an_eigenbasis_stays_orthogonal_whatever_a_fresh_one_is():
    """Also where a fresh state holds zeros until the first basis is computed."""
    transformation = soap()
    zeros = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, transformation.init(params)),
        transformation.update,
    )
    coarse, fine = mlps()
    state = trained(transformation, coarse)
    moved = transfer_optimizer_state(zeros, state, coarse, fine, prolongate)
    old_and_new = list(zip(*(arrays(s.bases).values() for s in (state, moved)), strict=True))
    for old, new in old_and_new:
        n = len(old)
        assert np.array_equal(new[:n, :n], old)
        assert np.array_equal(new[n:, n:], np.eye(len(new) - n))
        assert not np.any(new[n:, :n])
        assert not np.any(new[:n, n:])
        assert distance_from_orthogonal(new) <= ROUNDING
    assert any(old.shape != new.shape for old, new in old_and_new)


def test_a_basis_that_mixes_old_and_new_is_not_cut():
    """Its block is no basis: it starts afresh, and products of slices stay."""
    transformation = soap()
    coarse, fine = mlps()
    state = trained(transformation, fine)
    moved = transfer_optimizer_state(transformation, state, fine, coarse, restrict)
    start = transformation.init(params_of(coarse))
    for path, basis in arrays(moved.bases).items():
        assert distance_from_orthogonal(basis) <= ROUNDING
        old = arrays(state.bases)[path]
        assert np.array_equal(basis, old if old.shape == basis.shape else arrays(start.bases)[path])
    for path, factor in arrays(moved.factors).items():
        assert np.array_equal(factor, arrays(state.factors)[path][leading(factor.shape)])


class Sides(NamedTuple):
    left: optax.Updates
    right: optax.Updates


def by_sides(value=0.0):
    """A state with one tree for each side of a matrix, whose places name no axis."""

    def square(n):
        return jnp.full((n, n), value)

    def init(params):
        sides = [
            jax.tree.map(lambda p, side=side: square(p.shape[side]), params) for side in (0, -1)
        ]
        return Sides(*sides)

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


@pytest.mark.parametrize("widths", [(4, 7), (2, 5), (3, 4)])
def test_an_axis_without_a_name_is_found_by_the_sizes_of_all_parameters(widths):
    coarse, fine = mlps(*widths)
    transformation = by_sides(2.0)
    state = a_state(transformation, coarse)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate)
    start = arrays(transformation.init(params_of(fine)))
    for path, old in arrays(state).items():
        assert_grown(old, arrays(moved)[path], start[path])


def test_other_parameters_tell_the_axis_of_a_square_kernel():
    """Left squares of a square kernel follow its rows, though their sizes fit both axes."""

    class Two(nnx.Module):
        def __init__(self, n, rngs):
            self.first = nnx.Linear(2, n, rngs=rngs)
            self.second = nnx.Linear(n, n, rngs=rngs)

    def reordered(coarse, fine):
        new = prolongate(coarse, fine)
        new.second.kernel[...] = new.second.kernel[...][::-1]
        return new

    coarse, fine = (random_model(lambda rngs, n=n: Two(n, rngs), n) for n in (3, 5))
    state = a_state(by_sides(), coarse)
    moved = transfer_optimizer_state(by_sides(), state, coarse, fine, reordered)
    old, new = (s.left.second.kernel[...] for s in (state, moved))
    assert np.array_equal(new[2:, 2:], old[::-1, ::-1])
    assert np.array_equal(moved.right.second.kernel[:3, :3], state.right.second.kernel[...])


def test_an_axis_that_may_be_either_starts_afresh_where_that_matters():
    """A square array beside one square kernel whose inputs are taken in another order."""

    def reordered(coarse, fine):
        new = prolongate(coarse, fine)
        new.kernel[...] = new.kernel[...][::-1]
        return new

    transformation = optax.GradientTransformation(
        lambda params: {"all": jax.tree.map(lambda p: [jnp.ones((p.shape[0],) * 2)] * 2, params)},
        lambda updates, state, params=None: (updates, state),
    )
    without_place = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: {"square": jnp.ones((p.shape[0],) * 2)}, params),
        lambda updates, state, params=None: (updates, state),
    )
    coarse, fine = linears((3, 3), (5, 5))
    for named, method in ((True, transformation), (False, without_place)):
        state = a_state(method, coarse)
        moved = transfer_optimizer_state(method, state, coarse, fine, reordered)
        kernels = {
            path: (old, new)
            for (path, old), new in zip(arrays(state).items(), arrays(moved).values(), strict=True)
            if "kernel" in path
        }
        for path, (old, new) in kernels.items():
            if named and path.endswith("[0]"):
                assert np.array_equal(new[2:, 2:], old[::-1, ::-1])
            elif named:
                assert np.array_equal(new[:3, :3], old)
            else:
                assert np.all(new == 1)


# -- averages over axes ----------------------------------------------------------------------------


def adafactor(min_size=2):
    return optax.scale_by_factored_rms(min_dim_size_to_factor=min_size)


@settings(max_examples=20, deadline=None)
@given(
    coarse_shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    method=st.sampled_from(["sm3", "shampoo", "soap", "adafactor"]),
)
def test_old_slices_stay_with_their_rows_for_all_shapes(coarse_shape, extra, method):
    fine_shape = tuple(n + m for n, m in zip(coarse_shape, extra, strict=True))
    coarse, fine = linears(coarse_shape, fine_shape)
    make = {"sm3": optax.scale_by_sm3, "shampoo": shampoo, "soap": soap, "adafactor": adafactor}
    transformation = make[method]()
    state = a_state(transformation, coarse)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate)
    start = transformation.init(params_of(fine))
    if method != "adafactor":
        for path, old in arrays(state).items():
            assert_grown(old, arrays(moved)[path], arrays(start)[path])
        back = transfer_optimizer_state(transformation, moved, fine, coarse, restrict)
        assert all(map(np.array_equal, arrays(back).values(), arrays(state).values()))
        return
    if min(fine_shape) < 2:
        old, new = (np.asarray(s.v.kernel[...]) for s in (state, moved))
        assert_grown(old, new, np.zeros(fine_shape))
        return
    for axis in (0, 1):
        old, new = (
            along_axis(s, shape, axis) for s, shape in ((state, coarse_shape), (moved, fine_shape))
        )
        assert_grown(old, new, np.zeros(fine_shape[axis]))


def along_axis(state, shape, axis):
    """Adafactor's averages along one axis, those of rows along the shorter one; or their means."""
    if min(shape) < 2:
        return np.mean(np.asarray(state.v.kernel[...]), axis=1 - axis)
    shorter = 0 if shape[0] <= shape[1] else 1
    field = state.v_row if axis == shorter else state.v_col
    return np.asarray(field.kernel[...])


@pytest.mark.parametrize(
    ("coarse_shape", "fine_shape", "min_size"),
    [((4, 6), (9, 6), 4), ((3, 5), (6, 5), 4), ((3, 3), (8, 8), 8), ((4, 4), (6, 8), 4)],
    ids=["the longer axis changes", "factoring begins", "of a square", "factored all along"],
)
def test_adafactor_has_its_rows_and_columns(coarse_shape, fine_shape, min_size):
    """Also where its two averages change places, or begin as means of the unfactored ones."""
    coarse, fine = linears(coarse_shape, fine_shape)
    transformation = adafactor(min_size)
    update = jax.jit(transformation.update)
    state, params = transformation.init(params_of(coarse)), params_of(coarse)
    total = np.zeros(coarse_shape)
    for seed in range(2):
        gradient = random_like(params, seed)
        _, state = update(gradient, state, params)
        decay = 1 - (seed + 1) ** -0.8
        total = decay * total + (1 - decay) * np.square(gradient.kernel[...], dtype=np.float64)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate)
    for axis in (0, 1):
        shorter = 0 if fine_shape[0] <= fine_shape[1] else 1
        new = (moved.v_row if axis == shorter else moved.v_col).kernel[...]
        wanted = np.zeros(fine_shape[axis])
        wanted[: coarse_shape[axis]] = np.mean(total, axis=1 - axis)
        np.testing.assert_allclose(new, wanted, rtol=ROUNDING)


@pytest.mark.parametrize("start", ["fresh", "mean"])
def test_the_next_step_of_adafactor(start):
    """By its formula: rows over their mean, which new rows lower unless they start from the mean."""
    coarse, fine = linears((4, 6), (7, 9))
    transformation = adafactor(4)
    state = a_state(transformation, coarse)._replace(count=jnp.asarray(10**6, jnp.int32))
    moved = transfer_optimizer_state(
        transformation, state, coarse, fine, prolongate, second_moment_start=start
    )
    gradient = random_like(params_of(coarse), 5)
    padded = plan_transfer(coarse, fine).prolong(
        gradient, jax.tree.map(jnp.zeros_like, params_of(fine))
    )
    (updates, _), (fine_updates, after) = (
        transformation.update(g, s, params_of(m))
        for g, s, m in ((gradient, state, coarse), (padded, moved, fine))
    )
    rows, columns = (np.asarray(a.kernel[...], float) for a in (after.v_row, after.v_col))
    old = np.asarray(gradient.kernel[...], float)
    wanted = old / np.sqrt(rows[:4, None] / np.mean(rows) * columns[None, :6])
    result = np.asarray(fine_updates.kernel[...])
    np.testing.assert_allclose(result[:4, :6], wanted, rtol=ROUNDING)
    assert np.all(np.isfinite(result))
    # After so many steps one more changes averages by less than a thousandth.
    ratio = 1 if start == "mean" else np.sqrt(4 / 7)
    np.testing.assert_allclose(result[:4, :6] / updates.kernel[...], ratio, rtol=1e-3)


@pytest.mark.parametrize("start", ["fresh", "mean", "max"])
def test_averages_of_new_rows_start_as_chosen(start):
    coarse, fine = linears((4, 6), (7, 9))
    for transformation, names in (
        (adafactor(4), ("v_row", "v_col")),
        (optax.scale_by_sm3(), ("mu",)),
    ):
        state = a_state(transformation, coarse)
        moved = transfer_optimizer_state(
            transformation, state, coarse, fine, prolongate, second_moment_start=start
        )
        for name in names:
            before, after = (arrays(getattr(s, name).kernel) for s in (state, moved))
            assert before
            for path, old in before.items():
                wanted = {"fresh": 0.0, "mean": np.mean(old), "max": np.max(old)}[start]
                np.testing.assert_allclose(after[path][len(old) :], wanted, rtol=ROUNDING)


# -- projections -----------------------------------------------------------------------------------


def test_a_projection_is_computed_anew_with_the_next_gradient():
    """Otherwise new rows had no update until its turn."""
    coarse, fine = linears((6, 4), (9, 5))
    transformation = optax.contrib.galore(1e-2, rank=2)
    state = trained(transformation, coarse)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate)
    gradient = random_like(params_of(fine), 5)
    updates, after = transformation.update(gradient, moved, params_of(fine))
    assert np.all(np.any(np.asarray(updates.kernel[...]) != 0, axis=1))
    assert int(after[0].count) == 1
    assert int(after[0].base_optimizer_state.count) == 4
    same = transfer_optimizer_state(transformation, state, coarse, coarse, prolongate)
    assert int(same[0].count) == 3  # nothing has grown


def test_a_projection_of_the_other_side_starts_afresh():
    coarse, fine = linears((4, 4), (4, 8))
    transformation = optax.contrib.galore(1e-2)
    state = a_state(transformation, coarse)
    moved = transfer_optimizer_state(transformation, state, coarse, fine, prolongate)
    for tree in (moved[0].projector, *moved[0].base_optimizer_state[1:]):
        assert not np.any(tree.kernel[...])
    assert np.any(moved[0].base_optimizer_state.mu.bias[...])


# -- which row is which ----------------------------------------------------------------------------


def maps_of(coarse, fine, transfer):
    shapes = {path: a.shape for path, a in leaves_by_path(params_of(coarse)).items()}
    found = axis_maps(LinearPart(coarse, fine, transfer), shapes)
    return {jax.tree_util.keystr(path): maps for path, maps in found.items()}


def test_rows_are_where_the_transfer_puts_them():
    """Frequencies grow on both sides."""
    coarse, fine = (
        random_model(lambda rngs, m=m: FNO(m, 2, num_layers=1, spatial_dims=2, rngs=rngs), m)
        for m in (2, 4)
    )
    found = maps_of(coarse, fine, prolongate_preserving)
    plan = plan_transfer(coarse, fine)
    paths = [path for path, _ in nnx.to_flat_state(params_of(coarse))]
    assert len(found) == len(paths)
    for path, maps in zip(paths, found.values(), strict=True):
        for place, of_axis, n in zip(plan[path].block, maps, plan[path].fine_shape, strict=True):
            wanted = np.full(n, -1)
            wanted[place] = np.arange(place.stop - place.start)
            assert np.array_equal(of_axis, wanted)


def in_reverse(coarse, fine):
    new = prolongate(coarse, fine)
    new.kernel[...] = new.kernel[...][:, ::-1]
    new.bias[...] = new.bias[...][::-1] + 0.125
    return new


def test_slices_may_change_places():
    coarse, fine = linears((2, 3), (2, 5))
    state = a_state(optax.scale_by_sm3(), coarse)
    moved = transfer_optimizer_state(optax.scale_by_sm3(), state, coarse, fine, in_reverse)
    old, new = (arrays(s.mu) for s in (state, moved))
    for path in ("['bias'].value[0]", "['kernel'].value[1]"):
        assert np.array_equal(new[path], [0, 0, *old[path][::-1]])
    assert np.array_equal(new["['kernel'].value[0]"], old["['kernel'].value[0]"])


def halved(coarse, fine):
    new = prolongate(coarse, fine)
    new.kernel[...] = new.kernel[...] / 2
    return new


def sheared(coarse, fine):
    """Each row is moved by another distance."""
    new = nnx.clone(fine)
    for row in range(coarse.kernel.shape[0]):
        values = jnp.roll(jnp.pad(coarse.kernel[...][row], (0, 2)), row)
        new.kernel[...] = new.kernel[...].at[row].set(values)
    new.bias[...] = jnp.pad(coarse.bias[...], (0, 2))
    return new


def doubled(coarse, fine):
    """Each unit becomes two."""
    new = nnx.clone(fine)
    new.kernel[...] = jnp.repeat(coarse.kernel[...], 2, axis=1)[:, :5]
    new.bias[...] = jnp.repeat(coarse.bias[...], 2)[:5]
    return new


def ragged(coarse, fine):
    """One row loses an entry."""
    new = prolongate(coarse, fine)
    new.kernel[...] = new.kernel[...].at[1, 2].set(fine.kernel[...][1, 2])
    return new


@pytest.mark.parametrize("transfer", [halved, sheared, doubled, ragged])
def test_slices_that_do_not_stay_together_start_afresh(transfer):
    coarse, fine = linears((2, 3), (2, 5))
    state = a_state(optax.scale_by_sm3(), coarse)
    moved = transfer_optimizer_state(optax.scale_by_sm3(), state, coarse, fine, transfer)
    assert not np.any(arrays(moved.mu)["['kernel'].value[1]"])
    assert np.any(moved.nu.kernel[...])


def test_each_row_may_not_have_columns_of_its_own():
    def chosen(source, target):
        new = nnx.clone(target)
        kernel = source.kernel[...]
        new.kernel[...] = jnp.stack([kernel[0, :2], kernel[1, 2:]])
        new.bias[...] = source.bias[:2]
        return new

    coarse, fine = linears((2, 4), (2, 2))
    found = maps_of(coarse, fine, chosen)["['kernel'].value"]
    assert np.array_equal(found[0], [0, 1])
    assert found[1] is None


def test_rows_are_looked_for_where_a_state_has_some(monkeypatch):
    coarse, fine = mlps()

    def refused(*arguments):
        raise AssertionError

    monkeypatch.setattr(states, "axis_maps", refused)
    for transformation in (optax.adam(1e-2), optax.adafactor(1e-2), optax.lbfgs(linesearch=None)):
        state = transformation.init(params_of(coarse))
        transfer_optimizer_state(transformation, state, coarse, fine, prolongate)
    transformation = optax.sm3(1e-2)
    state = transformation.init(params_of(coarse))
    with pytest.raises(AssertionError):
        transfer_optimizer_state(transformation, state, coarse, fine, prolongate)


@pytest.mark.parametrize(
    ("parameter", "leaf", "wanted"),
    [
        ((2, 3), (2, 3), {(0, 1)}),
        ((2, 3), (3, 3), {(1, 1)}),
        ((2, 3), (2,), {(0,)}),
        ((2, 3), (2, 1), {(0, None)}),
        ((2, 3, 4), (2, 4), {(0, 2)}),
        ((2, 3, 4), (1, 3, 1), {(None, 1, None)}),
        ((3, 3), (3,), {(0,), (1,)}),
        ((3, 3), (3, 3), {(0, 1), (0, 0), (1, 1)}),
        ((2, 3), (5,), set()),
        ((2, 3), (1,), set()),
        ((), (), set()),
    ],
)
def test_layouts_that_fit(parameter, leaf, wanted):
    assert fitting_layouts(parameter, leaf) == wanted


# -- signs -----------------------------------------------------------------------------------------


def negated(coarse, fine):
    new = prolongate(coarse, fine)
    new.kernel[...] = -new.kernel[...]
    return new


def test_signs_of_what_is_called_like_a_second_moment():
    """SM3 calls its momentum nu; curvature, as Sophia estimates it, is the same for both signs."""
    coarse, fine = linears((2, 3), (2, 3))
    for transformation, sign in ((optax.sm3(1e-2), -1), (optax.contrib.sophia(1e-2), 1)):
        first, *rest = a_state(transformation, coarse)
        signed = random_like(params_of(coarse), 3)
        state = (first._replace(nu=signed), *rest)
        moved = transfer_optimizer_state(transformation, state, coarse, fine, negated)
        assert np.array_equal(moved[0].nu.kernel[...], sign * signed.kernel[...])
        assert np.array_equal(moved[0].nu.bias[...], signed.bias[...])


def test_rows_are_exact_in_low_precision():
    """Coordinates above 256 have no bfloat16, and those beside an offset fewer digits."""

    def shifted(coarse, fine):
        new = prolongate(coarse, fine)
        new.kernel[...] = new.kernel[...] + 0.3
        return new

    coarse, fine = (
        random_model(lambda rngs, n=n: nnx.Linear(2, n, param_dtype=jnp.bfloat16, rngs=rngs), n)
        for n in (600, 700)
    )
    for found in maps_of(coarse, fine, shifted).values():
        assert np.array_equal(found[-1], [*range(600), *[-1] * 100])
