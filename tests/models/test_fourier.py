"""Truncated transforms: against a direct evaluation of the definition, and each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.models import fourier
from opifex.models.fourier import choose_transform, mode_axes
from tolerances import distance, rounding

truncated_transform = jax.jit(
    fourier.truncated_transform, static_argnums=1, static_argnames="transform"
)
inverse_truncated_transform = jax.jit(
    fourier.inverse_truncated_transform, static_argnums=(1, 2), static_argnames="transform"
)

CASES = [
    ((4,), (7,)),
    ((4,), (8,)),
    ((1,), (1,)),
    ((5,), (16,)),
    ((3, 2), (5, 3)),
    ((2, 4), (6, 9)),
    ((1, 3), (4, 8)),
    ((2, 3, 2), (3, 5, 4)),
    ((2, 1, 3), (7, 2, 6)),
]


def frequencies(modes):
    leading = [range(-(m - 1), m) for m in modes[:-1]]
    return list(itertools.product(*leading, range(modes[-1])))


def definition(x, modes):
    """Coefficients from the sum that defines them, one frequency at a time."""
    shape = x.shape[: len(modes)]
    grid = np.indices(shape)
    out = []
    for k in frequencies(modes):
        phase = sum(2 * np.pi * ki * g / n for ki, g, n in zip(k, grid, shape, strict=True))
        wave = np.exp(-1j * phase).reshape(*shape, *(1,) * (x.ndim - len(shape)))
        out.append((x * wave).mean(axis=tuple(range(len(shape)))))
    z = np.stack(out).reshape(*mode_axes(modes), *x.shape[len(shape) :])
    return np.stack([z.real, z.imag], axis=len(shape))


@pytest.mark.parametrize("transform", ["fft", "matmul"])
@pytest.mark.parametrize(("modes", "shape"), CASES)
def test_agrees_with_the_definition(modes, shape, transform):
    # With many columns the products are batched, with few (the next test) their data are moved.
    x = np.random.default_rng(0).normal(size=(*shape, 4, 8))
    with jax.enable_x64(True):
        h = truncated_transform(jnp.asarray(x), modes, transform=transform)
    assert distance(h, definition(x, modes)) <= rounding(np.float64, operations=sum(shape))


@pytest.mark.parametrize("transform", ["fft", "matmul"])
@pytest.mark.parametrize(("modes", "shape"), CASES)
def test_inverse_is_the_transform_on_band_limited_fields(modes, shape, transform):
    """Truncation is a projection: the second pass changes nothing, and real fields come back."""
    x = np.random.default_rng(1).normal(size=(*shape, 2))
    with jax.enable_x64(True):
        h = truncated_transform(jnp.asarray(x), modes, transform=transform)
        once = inverse_truncated_transform(h, modes, shape, transform=transform)
        again = truncated_transform(once, modes, transform=transform)
    assert distance(again, h) <= rounding(np.float64, operations=3 * sum(shape))


@pytest.mark.parametrize(("modes", "shape"), CASES)
def test_inverses_agree_on_any_coefficients(modes, shape):
    """Also on coefficients that no real field has, and with the same gradients."""
    h = np.random.default_rng(2).normal(size=(*mode_axes(modes), 2, 3))

    def value_and_gradient(transform):
        def inverse(h):
            return fourier.inverse_truncated_transform(h, modes, shape, transform=transform)

        value, pullback = jax.vjp(inverse, jnp.asarray(h))
        return value, pullback(value**2)[0]

    with jax.enable_x64(True):
        values, gradients = zip(
            *(jax.jit(value_and_gradient, static_argnums=0)(t) for t in ("fft", "matmul")),
            strict=True,
        )
    for pair in (values, gradients):
        assert distance(*pair) <= rounding(np.float64, operations=2 * sum(shape))


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=3),
    st.integers(0, 2**31),
)
def test_smallest_grids_lose_nothing(axes, seed):
    """With 2 m - 1 points per axis every field is band-limited and comes back exactly."""
    modes = tuple(m for m, _ in axes)
    shape = tuple(2 * m - 1 for m in modes)
    x = np.random.default_rng(seed).normal(size=(*shape, 2))
    with jax.enable_x64(True):
        back = inverse_truncated_transform(truncated_transform(jnp.asarray(x), modes), modes, shape)
    assert distance(back, x) <= rounding(np.float64, operations=2 * sum(shape))


def test_coarse_modes_are_a_centred_slice_of_fine_modes():
    x = np.random.default_rng(3).normal(size=(9, 10, 2))
    with jax.enable_x64(True):
        fine = truncated_transform(jnp.asarray(x), (4, 5))
        coarse = truncated_transform(jnp.asarray(x), (2, 3))
    assert distance(coarse, fine[2:-2, :3]) <= rounding(np.float64, operations=19)


@pytest.mark.parametrize(
    ("modes", "shape", "expected"),
    [
        # Measured: at least twice as fast as the other way, most of them far more.
        ((16,), (64,), "matmul"),
        ((64,), (512,), "matmul"),
        ((12, 12), (64, 64), "matmul"),
        ((12, 12), (128, 128), "matmul"),
        ((32, 32), (256, 256), "matmul"),
        ((8, 8, 8), (32, 32, 32), "matmul"),
        ((256,), (1024,), "fft"),
        ((512,), (4096,), "fft"),
        ((1024,), (8192,), "fft"),
        ((4, 512), (16, 4096), "fft"),
        ((512, 4), (4096, 16), "fft"),
    ],
)
def test_the_faster_transform_is_chosen(modes, shape, expected):
    assert choose_transform(modes, shape) == expected


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3))
def test_more_modes_speak_for_the_fast_transform(low, high, dims):
    low, high = sorted((2**low, 2**high))
    shape = (2 * high,) * dims
    if choose_transform((low,) * dims, shape) == "fft":
        assert choose_transform((high,) * dims, shape) == "fft"


def test_a_choice_changes_no_number():
    """Also where both ways are taken: 128 modes of 300 points by one, 4 of 8 points by the other."""
    x = np.random.default_rng(4).normal(size=(300, 2))
    with jax.enable_x64(True):
        for m, n in ((128, 300), (4, 8)):
            field = jnp.asarray(x[:n])
            chosen = choose_transform((m,), (n,))
            found = truncated_transform(field, (m,))
            for transform in ("fft", "matmul"):
                other = truncated_transform(field, (m,), transform=transform)
                if transform == chosen:
                    np.testing.assert_array_equal(found, other)
                assert distance(found, other) <= rounding(np.float64, operations=n)


def test_float32_keeps_float32_accuracy():
    # Fields that are one at a single point give the waves themselves, without the error of a sum.
    x = np.eye(1024)[:, 1000:]
    h = truncated_transform(jnp.asarray(x, jnp.float32), (64,), transform="matmul")
    assert h.dtype == jnp.float32
    assert distance(h, definition(x, (64,))) <= rounding(np.float32)


def test_bad_arguments():
    x = jnp.ones((8, 6, 2))
    with pytest.raises(ValueError, match=r"spatial axis 1 has 6 points.*modes=4.*at least 7"):
        truncated_transform(x, (3, 4))
    with pytest.raises(ValueError, match="transform must be one of"):
        truncated_transform(x, (3, 3), transform="dct")
    with pytest.raises(ValueError, match="modes must name at least one axis"):
        mode_axes(())
    with pytest.raises(TypeError, match=r"modes\[1\] must be an integer"):
        mode_axes((2, 2.5))
    with pytest.raises(ValueError, match="has 1 axes"):
        truncated_transform(jnp.ones(4), (2, 2))
    with pytest.raises(ValueError, match="coefficients must have leading axes"):
        inverse_truncated_transform(jnp.ones((4, 3, 2)), (2, 3), (8, 8))
