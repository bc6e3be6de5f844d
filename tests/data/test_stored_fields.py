"""Samples read one at a time are those that are read all at once, in every format."""

import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from opifex.data import OperatorData, open_fields, read_fields

SAMPLES = 11


def noise(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


INPUTS, OUTPUTS = noise(SAMPLES, 8, 6, 2), noise(SAMPLES, 8, 6)


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["inputs"], file["outputs"] = INPUTS, OUTPUTS


def zarr_group(path, version=3):
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name, values in (("inputs", INPUTS), ("outputs", OUTPUTS)):
        group.create_array(name, data=values, chunks=(4, *values.shape[1:]))


def netcdf(path):
    dimensions = {"inputs": ("sample", "x", "y", "channel"), "outputs": ("sample", "x", "y")}
    arrays = {"inputs": INPUTS, "outputs": OUTPUTS}
    xr.Dataset({name: (dimensions[name], arrays[name]) for name in arrays}).to_netcdf(path)


WRITERS = {
    "plain.npz": lambda path: np.savez(path, inputs=INPUTS, outputs=OUTPUTS),
    "columns.npz": lambda path: np.savez(
        path, inputs=np.asfortranarray(INPUTS), outputs=np.asfortranarray(OUTPUTS)
    ),
    "compressed.npz": lambda path: np.savez_compressed(path, inputs=INPUTS, outputs=OUTPUTS),
    "compressed_columns.npz": lambda path: np.savez_compressed(
        path, inputs=np.asfortranarray(INPUTS), outputs=OUTPUTS
    ),
    "some.h5": hdf5,
    "some.zarr": zarr_group,
    "older.zarr": partial(zarr_group, version=2),
    "some.nc": netcdf,
}


@pytest.fixture(scope="module", params=WRITERS)
def path(request, tmp_path_factory):
    where = tmp_path_factory.mktemp("fields") / request.param
    WRITERS[request.param](where)
    return where


def same(found, index):
    np.testing.assert_array_equal(found.inputs, INPUTS[index])
    np.testing.assert_array_equal(found.outputs, OUTPUTS[index][..., None])


def test_any_samples_are_those_of_the_file(path):
    with open_fields(path) as fields:
        assert len(fields) == SAMPLES
        assert fields.grid == (8, 6)

        @given(st.lists(st.integers(-SAMPLES, SAMPLES - 1), max_size=8), st.slices(SAMPLES))
        @settings(deadline=None, max_examples=25)
        def check(numbers, part):
            same(fields[np.array(numbers, int)], np.array(numbers, int))
            same(fields[part], part)

        check()
        same(fields[-3], -3)
        with pytest.raises(IndexError):
            fields[SAMPLES]


def test_what_is_read_at_once_is_the_same(path):
    whole = read_fields(path)
    with open_fields(path) as fields:
        same(whole.data, slice(None))
        assert (fields.grid_kind, fields.input_names) == (whole.grid_kind, whole.input_names)


def test_a_copy_holds_what_a_transform_makes(path, tmp_path):
    def halved(data):
        return OperatorData(data.inputs[:, ::2], 3 * data.outputs[:, ::2])

    with open_fields(path) as fields, fields.cached(tmp_path / "a.npz", halved) as copy:
        assert copy.grid == (4, 6)
        np.testing.assert_array_equal(copy[:].inputs, INPUTS[:, ::2])
        np.testing.assert_array_equal(copy[[5, 2]].outputs[..., 0], 3 * OUTPUTS[[5, 2], ::2])
        calls = []
        fields.cached(tmp_path / "a.npz", lambda data: calls.append(data) or data).close()
        assert calls == []


def test_a_copy_that_cannot_be_completed_is_not_there(tmp_path):
    np.savez(tmp_path / "plain.npz", inputs=INPUTS, outputs=OUTPUTS)

    def failing(data):
        if len(data.inputs) > 1:
            raise OSError("no space left")
        return data

    with open_fields(tmp_path / "plain.npz") as fields:
        with pytest.raises(OSError, match="no space"):
            fields.cached(tmp_path / "copy.npz", failing)
        assert [p.name for p in tmp_path.iterdir()] == ["plain.npz"]


def test_batches_are_a_grain_dataset(path):
    with open_fields(path) as fields:
        dataset = fields.batches(4, seed=1)
        assert len(dataset) == 2
        assert [batch.outputs.shape for batch in dataset] == [(4, 8, 6, 1)] * 2
        in_order = fields.batches(4, shuffle=False, transform=lambda data: data.inputs)
        np.testing.assert_array_equal(in_order[1], INPUTS[4:8])


def test_several_threads_read_the_right_samples(path):
    order = np.random.default_rng(0).integers(SAMPLES, size=(200, 3))
    with open_fields(path) as fields, ThreadPoolExecutor(4) as threads:
        for numbers, found in zip(order, threads.map(fields.__getitem__, order), strict=True):
            same(found, numbers)


def test_another_process_can_open_them(path):
    with open_fields(path) as fields, pickle.loads(pickle.dumps(fields)) as again:
        same(again[[1, 7]], [1, 7])


def test_values_that_are_not_finite_are_found_when_they_are_read():
    outputs = OUTPUTS.copy()
    outputs[6, 2, 2] = np.nan
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "bad.npz"
        np.savez(where, inputs=INPUTS, outputs=outputs)
        with open_fields(where) as fields:
            same(fields[:6], slice(6))
            with pytest.raises(ValueError, match=r"outputs must be finite.*the first in sample 6"):
                fields[[8, 6]]


def test_what_does_not_fit_is_refused(tmp_path):
    np.savez(tmp_path / "plain.npz", inputs=INPUTS, outputs=OUTPUTS)
    with open_fields(tmp_path / "plain.npz") as fields:
        with pytest.raises(ValueError, match="batch_size must be at most the 11 samples, got 12"):
            fields.batches(12)
        with pytest.raises(TypeError, match="transform"):
            fields.batches(2, transform=3)
        with pytest.raises(ValueError, match=r"path must end in \.npz"):
            fields.cached(tmp_path / "copy.h5")
        with pytest.raises(IndexError, match="a row of them"):
            fields[[[1, 2], [3, 4]]]
