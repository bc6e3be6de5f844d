"""Exported functions run where this library is not."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.data import FieldNormalizer
from opifex.models import FNO, MLP, MultiscaleMLP, NormalizedModel, RandomFeatures
from opifex.problems import Poisson
from opifex.storage import export_function, load_function
from tolerances import distance, rounding

RNGS = nnx.Rngs(0)
MODELS = [
    (MLP(2, 1, [8, 8], rngs=RNGS), (2,)),
    (MultiscaleMLP(2, 1, [4], rngs=RNGS), (2,)),
    (RandomFeatures(2, 1, 8, patches=(2, 1), rngs=RNGS), (2,)),
    (Poisson().trial_function(MLP(2, 1, [8], rngs=RNGS)), (2,)),
    (FNO(3, 4, num_layers=1, rngs=RNGS), (16, 1)),
    pytest.param(
        FNO(2, 4, spatial_dims=2, num_layers=1, transform="fft", rngs=RNGS),
        (8, 8, 1),
        marks=pytest.mark.slow,
    ),
    (FNO(2, 4, spatial_dims=2, num_layers=1, transform="matmul", rngs=RNGS), (8, 8, 1)),
]


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(("model", "shape"), MODELS, ids=lambda v: type(v).__name__)
def test_an_exported_model_takes_any_number_of_samples(tmp_path, model, shape):
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):  # random features begin with zeros
            node[...] = node[...] + 0.25
    path = export_function(model, jnp.zeros((1, *shape)), tmp_path / "deep" / "model.bin")
    serve = load_function(path)
    for samples in (1, 7):
        x = jax.random.uniform(jax.random.key(samples), (samples, *shape))
        error = distance(serve(x), model(x))
        assert error <= rounding(np.float32, operations=100)
    with pytest.raises(ValueError, match="mismatch"):
        serve(jnp.ones((3, *shape[:-1], 5)))


def test_it_runs_without_this_library(tmp_path):
    network = MLP(2, 1, [8], rngs=nnx.Rngs(0))
    into, out = (FieldNormalizer(jnp.full(n, 3.0), jnp.full(n, 50.0)) for n in (2, 1))
    model = NormalizedModel(network, into, out)  # in physical units
    path = export_function(model, jnp.zeros((1, 2)), tmp_path / "model.bin")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()  # another user may serve it
    program = """
import sys
class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("opifex", "flax", "optax"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NotHere())
try:
    import opifex
except ModuleNotFoundError:
    pass
else:
    sys.exit("opifex can be imported")
from pathlib import Path
import jax.export
model = jax.export.deserialize(bytearray(Path(sys.argv[1]).read_bytes())).call
print(*model(jax.numpy.ones((3, 2)))[:, 0])
"""
    command = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    served = np.array(result.stdout.split(), np.float32)
    expected = model(jnp.ones((3, 2)))[:, 0]
    assert distance(served, expected) <= rounding(np.float32, operations=20)


def test_normalisation_can_go_into_the_function(tmp_path):
    fields = np.random.default_rng(0).normal(3.0, 2.0, (5, 16, 1)).astype(np.float32)
    normalizer, model = FieldNormalizer.fit(fields), FNO(3, 4, num_layers=1, rngs=nnx.Rngs(0))

    def whole(x):
        return normalizer.denormalize(model(normalizer.normalize(x)))

    serve = load_function(export_function(whole, fields, tmp_path / "whole"))
    assert distance(serve(fields), whole(jnp.asarray(fields))) <= rounding(
        np.float32, operations=100
    )


def test_what_is_read_can_be_differentiated_as_often_as_asked(tmp_path):
    model = MLP(2, 1, [8], rngs=nnx.Rngs(0))
    path = export_function(model, jnp.zeros((1, 2)), tmp_path / "model", derivatives=1)
    serve, x = load_function(path), jnp.ones((3, 2))
    there, here = (jax.grad(lambda x, f=f: f(x).sum())(x) for f in (serve, model))
    assert distance(there, here) <= rounding(np.float32, operations=50)
    with pytest.raises(ValueError, match="No VJP"):
        jax.grad(lambda x: load_function(export_function(model, x, tmp_path / "bare"))(x).sum())(x)


@pytest.mark.parametrize("cut", [0, 1, 100, -20])
def test_a_file_that_is_not_whole_is_refused(tmp_path, cut):
    path = export_function(MLP(2, 1, [8], rngs=nnx.Rngs(0)), jnp.zeros((1, 2)), tmp_path / "model")
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content[:cut] if cut else content)
    with pytest.raises(ValueError, match="path must be a whole file of export_function"):
        load_function(path)


def test_arguments_are_checked(tmp_path):
    model = MLP(2, 1, [8], rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="model must be callable"):
        export_function(3, jnp.zeros((1, 2)), tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"example must have an axis of samples .* got shape \(2,\)"
    ):
        export_function(model, jnp.zeros(2), tmp_path / "model")
    with pytest.raises(TypeError, match="platforms must be a sequence of names, got 'cpu'"):
        export_function(model, jnp.zeros((1, 2)), tmp_path / "model", platforms="cpu")
    with pytest.raises(ValueError, match=r"platforms must be one of .* got 'abacus'"):
        export_function(model, jnp.zeros((1, 2)), tmp_path / "model", platforms=["abacus"])
    with pytest.raises(ValueError, match="model must return one result per sample"):
        export_function(lambda x: model(x).sum(), jnp.zeros((1, 2)), tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="path must be an existing file"):
        load_function(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"flatbuffers: pip install 'opifex-multilevel\[data\]'"):
        export_function(MLP(2, 1, [8], rngs=nnx.Rngs(0)), jnp.zeros((1, 2)), tmp_path / "model")
