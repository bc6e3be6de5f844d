"""Restriction to coarser grids: what is kept exactly, adjointness, order, levels, bad input."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import FNO
from opifex.training.multilevel import create_fno_hierarchy
from opifex.training.multilevel.transfer.grids import (
    coarsest_grid,
    grids_nest,
    interpolate_field,
    interpolation_matrix,
    resolution_hierarchy,
    restrict_field,
    restriction_matrix,
)

METHODS = [
    ("periodic", "spectral"),
    ("cell", "average"),
    ("cell", "cosine"),
    ("vertex", "full-weighting"),
    ("vertex", "cosine"),
]


def points(n, grid_kind):
    j = np.arange(n)
    return {"periodic": j / n, "cell": (j + 0.5) / n, "vertex": j / (n - 1)}[grid_kind]


@st.composite
def two_sizes(draw):
    fine = draw(st.integers(2, 40))
    return fine, draw(st.integers(2, fine))


@pytest.mark.parametrize(("grid_kind", "method"), METHODS)
@settings(max_examples=40, deadline=None)
@given(sizes=two_sizes())
def test_constants_are_kept(grid_kind, method, sizes):
    for make in (restriction_matrix, interpolation_matrix):
        matrix = make(*sizes, grid_kind, method)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(two_sizes())
def test_low_frequencies_are_kept_and_high_ones_dropped(sizes):
    fine, coarse = sizes
    matrix = restriction_matrix(fine, coarse, "periodic")
    if fine == coarse:
        assert np.array_equal(matrix, np.eye(fine))
        return
    kept = (coarse + 1) // 2
    for k in range((fine + 1) // 2):
        wave = np.exp(2j * np.pi * k * points(fine, "periodic"))
        expected = np.exp(2j * np.pi * k * points(coarse, "periodic")) if k < kept else 0.0
        np.testing.assert_allclose(matrix @ wave, expected * np.ones(coarse), atol=1e-11)


@pytest.mark.parametrize("grid_kind", ["cell", "vertex"])
@settings(max_examples=40, deadline=None)
@given(sizes=two_sizes())
def test_low_cosines_are_kept_and_high_ones_dropped(grid_kind, sizes):
    fine, coarse = sizes
    if fine == coarse:
        return
    matrix = restriction_matrix(fine, coarse, grid_kind, "cosine")
    for k in range(fine):
        wave = np.cos(np.pi * k * points(fine, grid_kind))
        expected = np.cos(np.pi * k * points(coarse, grid_kind)) if k < coarse else np.zeros(coarse)
        np.testing.assert_allclose(matrix @ wave, expected, atol=1e-11)


@pytest.mark.parametrize(
    ("grid_kind", "method"), [("periodic", "spectral"), ("cell", "average"), ("cell", "cosine")]
)
@settings(max_examples=40, deadline=None)
@given(sizes=two_sizes())
def test_restriction_is_the_scaled_adjoint_of_interpolation(grid_kind, method, sizes):
    fine, coarse = sizes
    restriction = restriction_matrix(fine, coarse, grid_kind, method)
    interpolation = interpolation_matrix(fine, coarse, grid_kind, method)
    np.testing.assert_allclose(restriction, coarse / fine * interpolation.T, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10), st.integers(2, 5))
def test_full_weighting_is_the_scaled_adjoint_inside(cells, factor):
    fine, coarse = cells * factor + 1, cells + 1
    restriction = restriction_matrix(fine, coarse, "vertex")
    interpolation = interpolation_matrix(fine, coarse, "vertex")
    inside = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(restriction[inside], interpolation.T[inside] / factor, atol=1e-13)


def test_full_weighting_is_the_stencil_of_the_textbook():
    expected = np.zeros((4, 7))
    expected[0, 0] = expected[3, 6] = 1
    expected[1, 1:4] = expected[2, 3:6] = [0.25, 0.5, 0.25]
    np.testing.assert_allclose(restriction_matrix(7, 4, "vertex"), expected, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(two_sizes())
def test_full_weighting_keeps_linear_fields_and_boundary_values(sizes):
    fine, coarse = sizes
    matrix = restriction_matrix(fine, coarse, "vertex")
    np.testing.assert_allclose(
        matrix @ points(fine, "vertex"), points(coarse, "vertex"), atol=1e-12
    )
    rough = np.random.default_rng(fine).normal(size=fine)
    np.testing.assert_array_equal((matrix @ rough)[[0, -1]], rough[[0, -1]])


@settings(max_examples=40, deadline=None)
@given(two_sizes(), st.integers(0, 1000))
def test_averages_conserve_the_integral_and_keep_bounds(sizes, seed):
    fine, coarse = sizes
    field = np.random.default_rng(seed).choice([3.0, 12.0], size=fine)
    restricted = restriction_matrix(fine, coarse, "cell", "average") @ field
    assert restricted.mean() == pytest.approx(field.mean(), rel=1e-12)
    assert restricted.min() >= 3.0 - 1e-12
    assert restricted.max() <= 12.0 + 1e-12


@pytest.mark.parametrize(
    ("grid_kind", "method", "ratio"),
    [("cell", "average", 2), ("vertex", "full-weighting", 2), ("vertex", "full-weighting", 1.6)],
)
def test_second_order_up_to_the_boundary(grid_kind, method, ratio):
    """On exp(x), which has no zero value or slope at the ends."""
    errors = []
    for coarse in (20, 40, 80):
        fine = round(ratio * coarse) if grid_kind == "cell" else round(ratio * (coarse - 1)) + 1
        restricted = restriction_matrix(fine, coarse, grid_kind, method) @ np.exp(
            points(fine, grid_kind)
        )
        errors.append(np.abs(restricted - np.exp(points(coarse, grid_kind))).max())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > 1.8), orders


@pytest.mark.parametrize(("grid_kind", "method"), [("periodic", "spectral"), ("cell", "cosine")])
def test_spectral_convergence_on_smooth_fields(grid_kind, method):
    """On a smooth periodic field that is even, so that its slope vanishes at the ends."""

    def smooth(n):
        return np.exp(np.cos(2 * np.pi * points(n, grid_kind)))

    errors = [
        np.abs(restriction_matrix(64, n, grid_kind, method) @ smooth(64) - smooth(n)).max()
        for n in (8, 16, 32)
    ]
    assert errors[1] < 1e-2 * errors[0]
    assert errors[2] < 1e-12


@pytest.mark.parametrize(("grid_kind", "method"), METHODS)
@pytest.mark.parametrize("shape", [(9,), (9, 7), (5, 9, 7)])
def test_fields_of_all_dimensions_by_one_matrix_per_axis(grid_kind, method, shape):
    target = (5, 4, 3)[-len(shape) :] if len(shape) > 1 else (5,)
    field = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    options = {"grid_kind": grid_kind, "method": method}
    restricted = restrict_field(field, target, **options)
    assert isinstance(restricted, np.ndarray)
    assert restricted.dtype == np.float32
    matrices = [restriction_matrix(*s, **options) for s in zip(shape, target, strict=True)]
    letters = "xyz"[: len(shape)]
    expected = np.einsum(
        f"b{letters}c,{','.join(f'{x.upper()}{x}' for x in letters)}->b{letters.upper()}c",
        field,
        *matrices,
    )
    np.testing.assert_allclose(restricted, expected, atol=1e-5)
    on_device = restrict_field(jnp.asarray(field), target, **options)
    np.testing.assert_allclose(on_device, expected, atol=1e-5)
    back = interpolate_field(restricted, shape, **options)
    assert back.shape == field.shape
    np.testing.assert_allclose(
        interpolate_field(jnp.asarray(restricted), shape, **options), back, atol=1e-5
    )


def test_axes_may_differ_in_kind_and_an_unchanged_axis_is_left_alone():
    field = np.random.default_rng(1).integers(0, 2, size=(1, 8, 9, 1))
    mixed = restrict_field(field, (8, 5), grid_kind=("periodic", "vertex"))
    expected = field[0, ..., 0] @ restriction_matrix(9, 5, "vertex").T
    np.testing.assert_allclose(mixed[0, ..., 0], expected, atol=1e-6)
    assert restrict_field(field, (8, 9)) is field


def test_interpolation_then_restriction_keeps_band_limited_fields():
    field = np.random.default_rng(2).normal(size=(1, 7, 9, 1))
    there = interpolate_field(field, (12, 20))
    np.testing.assert_allclose(restrict_field(there, (7, 9)), field, atol=1e-12)


@pytest.mark.parametrize(
    ("modes", "finest", "options", "expected"),
    [
        (16, (512,), {}, (64,)),
        (16, (512,), {"oversampling": 4.0}, (128,)),
        (16, (512,), {"nested": False}, (62,)),
        (4, (16,), {}, (16,)),
        (8, (15,), {"oversampling": 3.0}, (15,)),
        (3, (65,), {"grid_kind": "vertex"}, (17,)),
        (2, (16, 64), {"grid_kind": ("vertex", "cell")}, (6, 8)),
        ((2, 4), (16, 64), {}, (8, 16)),
        (1, (9,), {"grid_kind": "vertex", "oversampling": 1.0}, (2,)),
    ],
)
def test_coarsest_grids(modes, finest, options, expected):
    assert coarsest_grid(modes, finest, **options) == expected


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 20), st.integers(0, 200), st.floats(1, 5), st.sampled_from(["cell", "vertex"])
)
def test_coarsest_grid_nests_and_carries_the_modes(modes, extra, oversampling, grid_kind):
    finest = max(2, 2 * modes - 1 + extra)
    (n,) = coarsest_grid(modes, (finest,), oversampling=oversampling, grid_kind=grid_kind)
    assert 2 * modes - 1 <= n <= finest
    assert grids_nest(finest, n, grid_kind)
    assert n == finest or n >= oversampling * (2 * modes - 1)


def test_levels_share_the_finest_data_and_restrict_the_rest():
    inputs = np.random.default_rng(3).normal(size=(4, 64, 1)).astype(np.float32)
    outputs = np.random.default_rng(4).normal(size=(4, 64, 2)).astype(np.float32)
    levels = resolution_hierarchy(inputs, outputs, [4, 8, 16])
    assert [level.shape for level in levels] == [(16,), (32,), (64,)]
    assert [level.modes for level in levels] == [4, 8, 16]
    assert levels[-1].inputs is inputs
    assert levels[-1].outputs is outputs
    restricted = restrict_field(outputs, (16,), grid_kind="cell")
    np.testing.assert_allclose(levels[0].outputs, restricted)
    given = resolution_hierarchy(inputs, outputs, [2, 2], shapes=[(8,), (32,)])
    assert given[1].inputs.shape == (4, 32, 1)


@pytest.mark.parametrize("kind", ["cell", "vertex", "periodic"])
def test_models_say_where_the_points_lie(kind):
    inputs = np.random.default_rng(3).normal(size=(2, 17, 1))
    models = create_fno_hierarchy(
        4, 2, 2, num_layers=1, output_dim=2, grid_kind=kind, rngs=nnx.Rngs(0)
    )
    outputs = np.repeat(inputs, 2, axis=-1)
    levels = resolution_hierarchy(inputs, outputs, models, shapes=[(9,), (17,)])
    assert [level.modes for level in levels] == [(2,), (4,)]
    expected = restrict_field(inputs, (9,), grid_kind=kind)
    np.testing.assert_array_equal(levels[0].inputs, expected)
    with pytest.raises(ValueError, match=r"inputs must have shape.*add the axis of channels"):
        resolution_hierarchy(inputs[..., 0], outputs, models)
    with pytest.raises(ValueError, match=r"outputs must have shape.*2 channels.*got \(2, 17, 1\)"):
        resolution_hierarchy(inputs, inputs, models)
    other = FNO(4, 2, num_layers=1, output_dim=2, grid_kind="cell", rngs=nnx.Rngs(0))
    if kind != "cell":
        with pytest.raises(ValueError, match="models must have the same grid_kind"):
            resolution_hierarchy(inputs, outputs, [models[0], other])


def test_a_forgotten_axis_of_channels_is_noticed():
    field = np.ones((3, 16, 16))
    with pytest.raises(ValueError, match=r"inputs must have shape .*add the axis of channels"):
        resolution_hierarchy(field, field, [(2, 2), (4, 4)])
    with pytest.raises(ValueError, match="2 spatial axes"):
        resolution_hierarchy(field, field, [2, 4], shapes=[(8, 8), (16, 16)])
    # One number per level does not tell how many axes there are.
    with pytest.warns(UserWarning, match="are read as 16 channels on a grid"):
        resolution_hierarchy(field, field, [2, 4])
    levels = resolution_hierarchy(field[..., None], field[..., None], [2, 4])
    assert levels[0].inputs.shape[1] < 16
    assert levels[1].inputs.shape == (3, 16, 16, 1)


FIELD = np.ones((1, 8, 6, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: restrict_field(FIELD, (4,)), ValueError, r"field must have shape.*\(1, 8, 6, 1\)"),
        (lambda: restrict_field(FIELD, ()), ValueError, "field must have shape"),
        (lambda: restrict_field(FIELD, (4, 0)), ValueError, r"shape\[1\] must be at least 1"),
        (lambda: restrict_field(FIELD, (4, 2.0)), TypeError, r"shape\[1\] must be an integer"),
        (
            lambda: restrict_field(FIELD, (9, 6)),
            ValueError,
            "axis of 8 points restricts to 1 up to",
        ),
        (lambda: interpolate_field(FIELD, (7, 6)), ValueError, "axis of 7 points restricts to"),
        (
            lambda: restrict_field(FIELD, (1, 6), grid_kind="vertex"),
            ValueError,
            "restricts to 2 up to 8 points, got 1",
        ),
        (
            lambda: restrict_field(FIELD, (4, 3), grid_kind="polar"),
            ValueError,
            "grid_kind must be one of",
        ),
        (
            lambda: restrict_field(FIELD, (4, 3), grid_kind=("cell",)),
            ValueError,
            r"grid_kind must be one string or one per axis \(2\)",
        ),
        (
            lambda: restrict_field(FIELD, (4, 3), method="average"),
            ValueError,
            r"method must be one of \['auto', 'spectral'\] on a periodic grid",
        ),
        (
            lambda: restrict_field(FIELD, (4, 3), method=["auto"] * 3),
            ValueError,
            "method must be one string or one per axis",
        ),
        (lambda: restriction_matrix(4.0, 2), TypeError, "fine must be an integer"),
        (lambda: coarsest_grid(5, (8,)), ValueError, "finest_shape has 8 points on axis 0"),
        (lambda: coarsest_grid((2,), (8, 8)), ValueError, "modes must have 2 entries"),
        (lambda: coarsest_grid(0, (8,)), ValueError, "modes must be at least 1"),
        (lambda: coarsest_grid(2, (8.5,)), TypeError, r"finest_shape\[0\] must be an integer"),
        (
            lambda: coarsest_grid(2, (8,), oversampling=0.5),
            ValueError,
            "oversampling must be at least 1",
        ),
        (lambda: resolution_hierarchy(FIELD, FIELD, []), ValueError, "modes must name at least"),
        (
            lambda: resolution_hierarchy(FIELD, FIELD[:, :4], [1]),
            ValueError,
            "inputs and outputs must have the same shape",
        ),
        (
            lambda: resolution_hierarchy(FIELD, FIELD, [1, 2], shapes=[(8, 6)]),
            ValueError,
            r"shapes must have one entry per level \(2\), got 1",
        ),
        (
            lambda: resolution_hierarchy(FIELD, FIELD, [nnx.Linear(1, 1, rngs=nnx.Rngs(0)), 2]),
            ValueError,
            "shapes must name the grid of every level, since Linear has no modes",
        ),
        (
            lambda: resolution_hierarchy(FIELD, FIELD, [3], shapes=[(4, 6)]),
            ValueError,
            "too coarse for modes=3",
        ),
        (
            lambda: resolution_hierarchy(FIELD, FIELD, [1, 4]),
            ValueError,
            "finest_shape has 6 points on axis 1, too coarse for modes=4",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
