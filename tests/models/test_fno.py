"""Fourier neural operator: the layer's definition, resolution, symmetry, and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from opifex.models import FNO, SpectralConv
from opifex.models.fno import grid_coordinates
from tolerances import distance, rounding

LAYERS = [((3,), (9,)), ((4,), (7,)), ((2, 3), (5, 8)), ((3, 2), (7, 6)), ((2, 2, 3), (4, 3, 7))]


@nnx.jit
def apply(model, x):
    return model(x)


def make_layer(modes, **options):
    return SpectralConv(
        2, 3, modes, spatial_dims=len(modes), param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options
    )


def multiply_spectrum(x, weight, modes):
    """The layer by complete complex transforms and a loop over the kept frequencies."""
    axes = tuple(range(1, x.ndim - 1))
    spectrum = np.fft.fftn(x, axes=axes)
    out = np.zeros((*x.shape[:-1], weight.shape[-1]), complex)
    for index in np.ndindex(*weight.shape[: len(modes)]):
        k = tuple(i - (m - 1) for i, m in zip(index[:-1], modes[:-1], strict=True))
        k = (*k, index[-1])
        out[:, *k] += spectrum[:, *k] @ weight[index]
        if k[-1] > 0:
            minus = tuple(-ki for ki in k)
            out[:, *minus] += spectrum[:, *minus] @ weight[index].conj()
    return np.fft.ifftn(out, axes=axes).real


@pytest.mark.parametrize("transform", ["fft", "matmul"])
@pytest.mark.parametrize(("modes", "shape"), LAYERS)
def test_layer_multiplies_the_spectrum(modes, shape, transform):
    x = np.random.default_rng(0).normal(size=(2, *shape, 2))
    with jax.enable_x64(True):
        layer = make_layer(modes, transform=transform)
        y = apply(layer, jnp.asarray(x))
        weight = np.asarray(layer.weight_real[...]) + 1j * np.asarray(layer.weight_imag[...])
    allowed = rounding(np.float64, operations=max(shape))
    assert distance(y, multiply_spectrum(x, weight, modes)) <= allowed


@pytest.mark.parametrize("transform", ["fft", "matmul"])
@pytest.mark.parametrize(("modes", "shape"), LAYERS)
def test_layer_does_not_depend_on_the_grid(modes, shape, transform):
    """On a band-limited field, the output on a doubled grid takes the same values."""
    rng = np.random.default_rng(1)
    band = [(n - 1) // 2 for n in shape]
    waves = [(rng.normal(size=2), [int(rng.integers(-b, b + 1)) for b in band]) for _ in range(4)]

    def sample(grid):
        points = np.stack(np.meshgrid(*[np.arange(n) / n for n in grid], indexing="ij"), -1)
        return sum(a * np.cos(2 * np.pi * points @ k + 0.3)[..., None] for a, k in waves)[None]

    with jax.enable_x64(True):
        layer = make_layer(modes, transform=transform)
        field = sample(shape)
        coarse = apply(layer, jnp.asarray(field))
        fine = apply(layer, jnp.asarray(sample([2 * n for n in shape])))
    subsampled = fine[(slice(None), *(slice(None, None, 2),) * len(shape))]
    # The layer may remove the whole field, so that rounding is measured by the field.
    allowed = rounding(np.float64, operations=2 * max(shape))
    assert distance(subsampled, coarse, scale=np.linalg.norm(field)) <= allowed


@functools.cache
def two_layers(transform):
    options = {"spatial_dims": 2, "num_layers": 2, "param_dtype": jnp.float64}
    return FNO((3, 2), 4, grid_kind="periodic", transform=transform, rngs=nnx.Rngs(0), **options)


@settings(max_examples=8, deadline=None)
@given(st.tuples(st.integers(0, 8), st.integers(0, 7)), st.sampled_from(["fft", "matmul"]))
def test_operator_commutes_with_translations(shift, transform):
    with jax.enable_x64(True):
        model = two_layers(transform)
        x = np.random.default_rng(0).normal(size=(2, 9, 8, 1))
        shifted = apply(model, jnp.asarray(np.roll(x, shift, (1, 2))))
        expected = np.roll(apply(model, jnp.asarray(x)), shift, (1, 2))
    # Two layers, two transforms each, and matrices of up to eight columns.
    assert distance(shifted, expected) <= rounding(np.float64, operations=2 * 2 * 9)


def test_coordinates_break_the_translation_symmetry_and_follow_the_grid_kind():
    x = jnp.ones((1, 4, 1))
    outputs = {}
    for kind, options in (
        ("cell", {}),
        ("vertex", {}),
        ("periodic", {"append_coordinates": True}),
        ("periodic", {}),
        ("vertex", {"append_coordinates": False}),
    ):
        model = FNO(2, 8, num_layers=1, grid_kind=kind, rngs=nnx.Rngs(0), **options)
        coordinates = options.get("append_coordinates", kind != "periodic")
        assert model.append_coordinates is coordinates
        assert model.lifting.kernel.shape == (1 + coordinates, 8)
        output = np.asarray(apply(model, x))
        if coordinates:
            assert np.ptp(output) > 1e-3
            outputs[kind] = output
        else:
            assert np.ptp(output) <= rounding(np.float32, operations=20) * np.abs(output).max()
    assert not np.allclose(outputs["periodic"], outputs["vertex"])
    assert not np.allclose(outputs["periodic"], outputs["cell"])
    assert FNO(2, 8, num_layers=1, rngs=nnx.Rngs(0)).grid_kind == "cell"


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", ["cell", "vertex", "periodic"])
def test_half_precision_does_not_merge_points(kind, dtype):
    coordinates = grid_coordinates((4096,), kind, dtype)
    assert len(np.unique(np.asarray(coordinates))) == 4096
    model = FNO(2, 4, num_layers=1, grid_kind=kind, param_dtype=dtype, rngs=nnx.Rngs(0))
    assert jax.eval_shape(model, jnp.ones((1, 8, 1), dtype)).dtype == dtype


@pytest.mark.parametrize("transform", ["fft", "matmul"])
def test_half_precision_in_both_transforms(transform):
    layer = SpectralConv(1, 2, 3, transform=transform, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 8, 1))
    # Sums of eight and five terms.
    allowed = rounding(np.float16, operations=13)
    assert distance(layer(x.astype(jnp.float16)), layer(x)) <= allowed


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_shapes_gradients_and_dtype(dims):
    model = FNO(
        tuple(range(2, 2 + dims)),
        4,
        input_dim=2,
        output_dim=3,
        num_layers=2,
        spatial_dims=dims,
        rngs=nnx.Rngs(0),
    )
    x = jax.random.normal(jax.random.key(1), (2, *range(9, 9 - dims, -1), 2))
    output = jax.eval_shape(model, x)
    assert output.shape == (*x.shape[:-1], 3)
    assert output.dtype == jnp.float32
    gradients = nnx.jit(nnx.grad(lambda model: jnp.mean(model(x) ** 2)))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)
        assert jnp.issubdtype(leaf.dtype, jnp.floating)


def test_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        graph, state = nnx.split(two_layers("auto"))
        x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, 4, 1)))

        @jax.jit
        def loss(state):
            return jnp.mean(nnx.merge(graph, state)(x) ** 2)

        # A central difference with a step of 1e-4 truncates about 1e-8.
        check_grads(loss, (state,), order=1, modes=("fwd", "rev"), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"modes": 0}, ValueError, "modes must be at least 1"),
        ({"modes": 2.0}, TypeError, "modes must be an integer"),
        ({"modes": (2, 3)}, ValueError, r"modes must have one entry per axis.*\(2, 3\)"),
        ({"modes": (-2,)}, ValueError, r"modes\[0\] must be at least 1"),
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"input_dim": 0}, ValueError, "input_dim must be at least 1"),
        ({"output_dim": 0}, ValueError, "output_dim must be at least 1"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims must be 1, 2 or 3, got 4"),
        ({"activation": "gelu"}, TypeError, "activation must be callable"),
        ({"projection_dim": 0}, ValueError, "projection_dim must be at least 1"),
        ({"grid_kind": "polar"}, ValueError, "grid_kind must be one of"),
        ({"append_coordinates": "cell"}, TypeError, "append_coordinates must be a bool"),
        ({"transform": "wavelet"}, ValueError, "transform must be one of"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        FNO(**({"modes": 2, "width": 3} | arguments), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["input_size", "output_size"])
def test_bad_layer_sizes(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        SpectralConv(**({"input_size": 1, "output_size": 1} | {name: 0}), modes=2, rngs=nnx.Rngs(0))


def test_bad_fields():
    model = FNO((3, 2), 4, num_layers=1, spatial_dims=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x must have shape.*got \(2, 8, 1\); add the axis of ch"):
        model(jnp.ones((2, 8, 1)))
    with pytest.raises(ValueError, match=r"x must have shape.*got \(8, 1\)$"):
        model(jnp.ones((8, 1)))
    with pytest.raises(ValueError, match=r"1 channels\), got \(2, 8, 8, 3\)"):
        model(jnp.ones((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="spatial axis 0 has 4 points, too coarse for modes=3"):
        model(jnp.ones((2, 4, 8, 1)))
