"""What docs/saving.md says of ONNX; needs jax2onnx and onnxruntime, which no extra installs."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import FNO, MLP, MultiscaleMLP, RandomFeatures
from opifex.problems import Poisson
from tolerances import distance, rounding

jax2onnx = pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RNGS = nnx.Rngs(0)
MODELS = [
    (MLP(2, 1, [8, 8], rngs=RNGS), ("samples", 2)),
    (MLP(2, 1, [8], activation=nnx.gelu, rngs=RNGS), ("samples", 2)),
    (MultiscaleMLP(2, 1, [4], rngs=RNGS), ("samples", 2)),
    (RandomFeatures(2, 1, 8, patches=(2, 1), rngs=RNGS), ("samples", 2)),
    (Poisson().trial_function(MLP(2, 1, [8], rngs=RNGS)), ("samples", 2)),
    # Of Fourier neural operators the number of samples has to be fixed, and the transform a product.
    (FNO(3, 4, num_layers=1, transform="matmul", rngs=RNGS), (5, 16, 1)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model", "shape"), MODELS, ids=lambda v: type(v).__name__)
def test_onnx_runtime_computes_the_same(tmp_path, model, shape):
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):
            node[...] = node[...] + 0.1
    path = str(tmp_path / "model.onnx")
    jax2onnx.to_onnx(lambda x: model(x), [shape], return_mode="file", output_path=path)
    session = onnxruntime.InferenceSession(path)
    x = np.random.default_rng(0).random((5, *shape[1:])).astype(np.float32)
    (served,) = session.run(None, {session.get_inputs()[0].name: x})
    assert distance(served, model(jnp.asarray(x))) <= rounding(np.float32, operations=100)
