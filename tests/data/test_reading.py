"""Files are written here by the libraries whose formats they are, and read back."""

import sys

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

from opifex.core.optional import optional_module
from opifex.data import Fields, read_fields

CELLS = (np.arange(16) + 0.5) / 16


def noise(*shape, dtype=np.float32):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        path = tmp_path / "some.npz"
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture
def hdf5(tmp_path):
    def write(attributes=(), **arrays):
        path = tmp_path / "some.h5"
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file.create_dataset(
                    name.replace("__", "/").replace("_coord", "-coord"), data=values
                )
            file.attrs.update(attributes)
        return path

    return write


# -- NPZ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("inputs", "outputs"), ("train_x", "train_y"), ("a", "u")])
def test_usual_names_are_found(npz, names):
    a, u = noise(5, 8, 8, 1), noise(5, 8, 8, 2)
    fields = read_fields(npz(**{names[0]: a, names[1]: u, "something": noise(3)}))
    np.testing.assert_array_equal(fields.inputs, a)
    np.testing.assert_array_equal(fields.outputs, u)
    assert (len(fields), fields.grid, fields.coordinates, fields.grid_kind) == (5, (8, 8), (), None)
    assert (fields.input_names, fields.output_names) == ((names[0],), (names[1],))
    assert fields.data.inputs is fields.inputs


@pytest.mark.parametrize(
    ("a", "u", "grid"),
    [
        ((5, 16), (5, 16), (16,)),
        ((5, 16, 1), (5, 16), (16,)),
        ((5, 16, 3), (5, 16, 1), (16,)),
        ((5, 16, 3), (5, 16, 3), (16,)),
        ((5, 16, 16), (5, 16, 16), (16, 16)),
        ((5, 16, 16, 4), (5, 16, 16), (16, 16)),
        ((5, 9, 9, 9), (5, 9, 9, 9), (9, 9, 9)),
    ],
)
def test_a_missing_axis_of_channels_is_added(npz, a, u, grid):
    fields = read_fields(npz(inputs=noise(*a), outputs=noise(*u)))
    assert fields.grid == fields.outputs.shape[1:-1] == grid
    assert fields.inputs.ndim == fields.outputs.ndim == len(grid) + 2


@pytest.mark.parametrize(("channel_axis", "grid"), [(True, (8,)), (False, (8, 4))])
def test_the_axis_of_channels_can_be_told(npz, channel_axis, grid):
    path = npz(inputs=noise(5, 8, 4), outputs=noise(5, 8, 4))
    assert read_fields(path, channel_axis=channel_axis).grid == grid


def test_several_arrays_become_channels(npz):
    a, b, u = noise(5, 16), 2 * noise(5, 16), noise(5, 16)
    fields = read_fields(npz(a=a, b=b, u=u), inputs=["b", "a"], outputs="u")
    np.testing.assert_array_equal(fields.inputs, np.stack([b, a], axis=-1))


def test_precision_is_kept_and_whole_numbers_become_single(npz):
    path = npz(
        inputs=noise(5, 16).astype(">f8"), outputs=np.arange(80, dtype=np.uint8).reshape(5, 16)
    )
    fields = read_fields(path)
    assert (fields.inputs.dtype, fields.outputs.dtype) == (np.dtype("float64"), np.dtype("float32"))
    assert fields.inputs.dtype.isnative


def test_the_kind_of_grid_can_stand_in_the_file(npz):
    arrays = {"inputs": noise(5, 16), "outputs": noise(5, 16)}
    assert read_fields(npz(**arrays, grid_kind="periodic")).grid_kind == "periodic"
    with pytest.raises(ValueError, match=r"grid_kind of the file must be one of .*, got 'round'"):
        read_fields(npz(**arrays, grid_kind="round"))


# -- HDF5 ----------------------------------------------------------------------------------------


def test_hdf5_with_groups(hdf5):
    a, u = noise(5, 16), noise(5, 16)
    path = hdf5({"grid_kind": "vertex"}, train__force=a, train__height=u)
    fields = read_fields(path, inputs="train/force", outputs="train/height")
    np.testing.assert_array_equal(fields.inputs[..., 0], a)
    np.testing.assert_array_equal(fields.outputs[..., 0], u)
    assert fields.grid_kind == "vertex"


@pytest.mark.parametrize(
    ("points", "kind"),
    [
        (CELLS, "cell"),
        (2 * np.pi * CELLS, "cell"),
        (np.linspace(-1, 1, 16), "vertex"),
        (np.arange(16) / 16, "periodic"),
        (2 * np.pi * np.arange(16) / 16, "periodic"),
        (np.linspace(0, 0.3, 16), None),
        (CELLS**2, None),
        (CELLS[::-1].copy(), None),
    ],
)
def test_coordinates_show_the_kind_of_grid(hdf5, points, kind):
    path = hdf5(a=noise(5, 16), u=noise(5, 16), x_coordinate=points.astype(np.float32))
    fields = read_fields(path)
    assert fields.grid_kind == kind
    np.testing.assert_allclose(fields.coordinates[0], points, rtol=1e-6)


def test_an_array_called_x_is_a_coordinate_where_it_is_as_long_as_the_grid(hdf5):
    beside = read_fields(
        hdf5(before=noise(5, 16), after=noise(5, 16), x=CELLS), inputs="before", outputs="after"
    )
    assert beside.grid_kind == "cell"
    np.testing.assert_array_equal(beside.coordinates[0], CELLS)
    elsewhere = read_fields(hdf5(a=noise(5, 16), u=noise(5, 16), x=noise(5)))
    assert elsewhere.coordinates == ()


def test_fields_are_shown_by_their_sizes(npz):
    shown = repr(read_fields(npz(a=noise(5, 16), u=noise(5, 16))))
    assert shown == (
        "Fields(inputs=float32[5, 16, 1] of a, outputs=float32[5, 16, 1] of u, grid_kind=None)"
    )


def test_steady_problem_of_pdebench(hdf5):
    nu, tensor = noise(5, 16, 16), noise(5, 1, 16, 16)
    path = hdf5(nu=nu, tensor=tensor, x_coordinate=CELLS, y_coordinate=CELLS, t_coordinate=[0.0])
    fields = read_fields(path)
    np.testing.assert_array_equal(fields.inputs, nu[..., None])
    np.testing.assert_array_equal(fields.outputs, tensor[:, 0, :, :, None])
    assert (fields.grid_kind, len(fields.coordinates)) == ("cell", 2)


def test_evolution_equation_of_pdebench(hdf5):
    tensor = noise(5, 11, 16)
    path = hdf5(tensor=tensor, x_coordinate=CELLS, t_coordinate=np.linspace(0, 2, 12))
    fields = read_fields(path)
    np.testing.assert_array_equal(fields.inputs, tensor[:, 0, :, None])
    np.testing.assert_array_equal(fields.outputs, tensor[:, -1, :, None])
    later = read_fields(path, times=(2, 5))
    np.testing.assert_array_equal(later.inputs, tensor[:, 2, :, None])
    np.testing.assert_array_equal(later.outputs, tensor[:, 5, :, None])
    with pytest.raises(ValueError, match=r"times must lie within the 11 times of tensor, got 11"):
        read_fields(path, times=(0, 11))


def test_flow_of_pdebench(hdf5):
    names = ("density", "pressure", "Vx", "Vy")
    flow = {name: noise(3, 6, 16, 16) + i for i, name in enumerate(names)}
    fields = read_fields(hdf5(**flow, x_coordinate=CELLS, y_coordinate=CELLS))
    assert fields.input_names == fields.output_names == names
    for i, name in enumerate(names):
        np.testing.assert_array_equal(fields.inputs[..., i], flow[name][:, 0])
        np.testing.assert_array_equal(fields.outputs[..., i], flow[name][:, -1])


def test_one_group_per_sample_of_pdebench(hdf5):
    samples = {f"{i:04d}__data": noise(6, 16, 12, 2) + i for i in range(3)}
    grids = {f"{i:04d}__grid__x": CELLS for i in range(3)}
    grids |= {f"{i:04d}__grid__y": (np.arange(12) + 0.5) / 12 for i in range(3)}
    fields = read_fields(hdf5(**samples, **grids))
    assert fields.inputs.shape == (3, 16, 12, 2)
    np.testing.assert_array_equal(fields.outputs[1], samples["0001__data"][-1])
    assert (fields.grid_kind, len(fields.coordinates)) == ("cell", 2)


def test_a_trajectory_in_any_array(npz):
    tensor = noise(5, 4, 16)
    path = npz(history=tensor, other=noise(2))
    fields = read_fields(path, inputs="history", layout="trajectory", times=(1, 3))
    np.testing.assert_array_equal(fields.inputs[..., 0], tensor[:, 1])
    np.testing.assert_array_equal(fields.outputs[..., 0], tensor[:, 3])


# -- NetCDF and Zarr -----------------------------------------------------------------------------


def dataset():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "permeability": (("x", "y", "sample"), rng.standard_normal((16, 12, 5))),
            "state": (("sample", "channel", "x", "y"), rng.standard_normal((5, 2, 16, 12))),
        },
        coords={"x": CELLS, "y": np.linspace(0, 1, 12)},
    )


def write(data, path, how):
    if how == "zarr":
        data.to_zarr(path, consolidated=False)
    else:
        data.to_netcdf(path, engine=how)
    return path


WAYS = [("h5netcdf", "some.nc"), ("scipy", "classic.nc"), ("zarr", "some.zarr")]


@pytest.mark.parametrize(("how", "name"), WAYS)
def test_named_axes_are_put_in_order(tmp_path, how, name):
    data = dataset()
    path = write(data, tmp_path / name, how)
    fields = read_fields(path, inputs="permeability", outputs="state")
    expected = np.moveaxis(data["permeability"].values, -1, 0)[..., None]
    np.testing.assert_array_equal(fields.inputs, expected)
    np.testing.assert_array_equal(fields.outputs, np.moveaxis(data["state"].values, 1, -1))
    assert [len(axis) for axis in fields.coordinates] == [16, 12]
    assert fields.grid_kind is None  # cells along one axis, vertices along the other


@pytest.mark.parametrize(("how", "name"), WAYS)
def test_a_named_axis_of_time_is_a_trajectory(tmp_path, how, name):
    values = noise(7, 5, 16)
    data = xr.Dataset({"u": (("time", "sample", "x"), values)}, {"x": CELLS}, {"grid_kind": "cell"})
    fields = read_fields(write(data, tmp_path / name, how))
    np.testing.assert_array_equal(fields.inputs[..., 0], values[0])
    np.testing.assert_array_equal(fields.outputs[..., 0], values[-1])
    assert fields.grid_kind == "cell"


def test_a_zarr_group_without_names_of_axes_is_read_by_zarr_itself(tmp_path):
    group = zarr.open_group(tmp_path / "plain.zarr", mode="w")
    a, u = noise(5, 16), noise(5, 16)
    for name, values in (("a", a), ("u", u)):
        group.create_array(name, shape=values.shape, dtype=values.dtype)[...] = values
    fields = read_fields(tmp_path / "plain.zarr")
    np.testing.assert_array_equal(fields.inputs[..., 0], a)
    np.testing.assert_array_equal(fields.outputs[..., 0], u)


# -- errors --------------------------------------------------------------------------------------


def test_a_missing_array_names_those_that_are_there(npz):
    path = npz(permeability=noise(5, 16), pressure=noise(5, 16))
    message = (
        r"inputs must name an array of the file, got 'permeabilty' \(did you mean 'permeability'\?\); "
        r"there are permeability \(5, 16\), pressure \(5, 16\)"
    )
    with pytest.raises(ValueError, match=message):
        read_fields(path, inputs="permeabilty", outputs="pressure")
    with pytest.raises(
        ValueError, match=r"inputs and outputs must be given.* permeability \(5, 16\)"
    ):
        read_fields(path)
    with pytest.raises(ValueError, match=r"outputs must be given"):
        read_fields(path, inputs="permeability")


def test_values_that_are_not_finite_are_located(npz):
    u = noise(5, 16)
    u[3, 7], u[4, 0] = np.nan, np.inf
    message = (
        "u must be finite, got NaN or infinite values in 2 of 5 samples, the first in sample 3"
    )
    with pytest.raises(ValueError, match=message):
        read_fields(npz(a=noise(5, 16), u=u))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": noise(5, 16), "u": noise(4, 16)}, "equally many samples, got 5 of a, 4 of u"),
        (
            {"a": noise(5, 16, 1), "u": noise(5, 8, 1)},
            r"on one grid, got \(16,\) and \(8,\) points",
        ),
        ({"a": noise(5, 16), "u": noise(5, 16, 16, 1)}, r"on one grid, got a \(5, 16\), u"),
        ({"a": noise(5, 16), "u": np.array(["x"] * 5)}, "u must hold real numbers, got dtype <U1"),
        (
            {"a": noise(5, 16), "u": noise(5)},
            r"u must have axes \(samples, \*grid\), got shape \(5,\)",
        ),
        (
            {"a": noise(5, 16), "u": 1j * noise(5, 16)},
            "u must hold real numbers, got dtype complex",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(npz, arrays, message):
    with pytest.raises(ValueError, match=message):
        read_fields(npz(**arrays))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be an existing file, got .*none\.npz"):
        read_fields(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"path must end in one of .*'\.zarr'\], got 'some\.csv'"):
        read_fields(tmp_path / "some.csv")
    for name in ("broken.npz", "broken.h5", "broken.nc"):
        (tmp_path / name).write_bytes(b"PK" + bytes(range(200)))
        with pytest.raises(ValueError, match=rf"path must be a readable \w+ file, '{name}'"):
            read_fields(tmp_path / name)
    np.savez(tmp_path / "good.npz", a=noise(5, 16), u=noise(5, 16))
    with pytest.raises(ValueError, match="layout must be one of"):
        read_fields(tmp_path / "good.npz", layout="rows")
    with pytest.raises(TypeError, match="inputs must be a name or a sequence of names, got 3"):
        read_fields(tmp_path / "good.npz", inputs=3)


def test_arrays_of_python_objects_are_not_unpickled(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, a=np.array([{}] * 5, object), u=noise(5, 16))
    with pytest.raises(ValueError, match="a must hold real numbers, got dtype object"):
        read_fields(path)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "some.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    message = r"reading HDF5 needs the package h5py: pip install 'opifex-multilevel\[data\]'"
    with pytest.raises(ImportError, match=message):
        read_fields(tmp_path / "some.h5")


def test_errors_inside_an_optional_package_pass_through(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import surely_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_missing"):
        optional_module("half_installed", "data", "this test")


def test_fields_cannot_be_changed(npz):
    fields = read_fields(npz(a=noise(5, 16), u=noise(5, 16)))
    assert isinstance(fields, Fields)
    with pytest.raises(AttributeError):
        fields.inputs = None
