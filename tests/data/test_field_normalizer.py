"""Normalisation of fields: statistics per channel, inverse, pytree, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.data import FieldNormalizer
from tolerances import distance, rounding


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-2, 1e3), st.floats(-10, 10))
def test_normalized_fields_have_mean_zero_and_deviation_one(seed, scale, shift):
    fields = np.random.default_rng(seed).normal(shift, scale, size=(5, 6, 4, 2))
    fields = fields.astype(np.float32)
    normalizer = FieldNormalizer.fit(fields)
    normal = normalizer.normalize(fields)
    assert isinstance(normal, np.ndarray)
    # The mean is subtracted from fields that may be much larger than their deviation.
    allowed = rounding(np.float32, condition=1 + abs(shift) / scale)
    exact = normal.astype(float)
    assert np.max(np.abs(exact.mean(axis=(0, 1, 2)))) <= allowed
    assert distance(exact.std(axis=(0, 1, 2)), 1.0) <= allowed
    assert distance(normalizer.denormalize(normal), fields) <= rounding(np.float32)


def test_passes_through_compiled_functions_and_serves_every_grid():
    normalizer = FieldNormalizer.fit(np.array([[[1.0], [3.0]]], np.float32))
    run = jax.jit(lambda normalizer, u: normalizer.denormalize(normalizer.normalize(u) * 2))
    assert np.array_equal(run(normalizer, jnp.full((1, 5, 1), 3.0)), np.full((1, 5, 1), 4.0))
    assert len(jax.tree.leaves(normalizer)) == 2


def test_constant_channels_are_only_shifted():
    normalizer = FieldNormalizer.fit(np.full((2, 3, 1), 7.0))
    np.testing.assert_array_equal(normalizer.normalize(np.full((2, 3, 1), 8.0)), 1.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-7, 1.0, 1e30])
def test_the_scale_of_a_field_does_not_matter(scale):
    fields = np.random.default_rng(0).normal(3.0, 1.0, size=(8, 9, 1)).astype(np.float32)
    one, other = (FieldNormalizer.fit(f).normalize(f) for f in (fields, fields * np.float32(scale)))
    assert distance(other, one) <= rounding(np.float32, condition=4, operations=2)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8, 1e-40])
def test_what_is_constant_up_to_rounding_is_only_shifted(value):
    """Also with deviations that are nothing but the rounding of the fields, or below the normal."""
    fields = np.full((4, 5, 1), value, np.float32)
    fields[0, 0] = np.nextafter(fields[0, 0], np.float32(np.inf))
    assert FieldNormalizer.fit(fields).deviation[0] == 1.0


def test_channels_that_are_declared_constant():
    fields = np.array([[[99.0, 5.0], [101.0, -5.0]]])
    normalizer = FieldNormalizer.fit(fields, smallest_deviation=0.02)
    np.testing.assert_array_equal(normalizer.deviation, [1.0, 5.0])


def test_integers_and_half_precision():
    fields = np.array([[[0], [4]]])
    np.testing.assert_array_equal(FieldNormalizer.fit(fields).normalize(fields), [[[-1], [1]]])
    # The rounding of bfloat16 is 2^-8 of the magnitude.
    for high, deviation in ((100.5, 1.0), (104.0, 2.0)):
        half = jnp.asarray([[[100.0], [high]]], jnp.bfloat16)
        normalizer = FieldNormalizer.fit(half)
        assert (float(normalizer.deviation[0]), normalizer.mean.dtype) == (deviation, jnp.float32)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"fields must have shape.*got \(3,\)"):
        FieldNormalizer.fit(np.ones(3))
    with pytest.raises(ValueError, match="fields must have shape"):
        FieldNormalizer.fit(np.ones((0, 3)))
    with pytest.raises(ValueError, match="fields must be finite"):
        FieldNormalizer.fit(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="smallest_deviation must be positive"):
        FieldNormalizer.fit(np.ones((2, 3)), smallest_deviation=0.0)
