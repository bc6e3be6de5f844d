"""What is saved comes back, and what cannot come back says why."""

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import opifex.storage.saved_model as saved_model
from opifex.models import (
    FNO,
    MLP,
    CorrectedModel,
    FrozenVariable,
    MultiscaleMLP,
    NormalizedModel,
    RandomFeatures,
    SpaceTimeFeatures,
    SymmetricModel,
    TrialFunction,
    freeze,
)
from opifex.problems import Helmholtz, Poisson
from opifex.storage import load_model, save_model
from opifex.training.multilevel import CascadeTrainer, create_network_hierarchy


def rngs(seed=0):
    return nnx.Rngs(seed)


def mirror(x):
    return -x


def ramp(x):
    return x[..., :1]


def cubic(x):
    return x**3


def space_time():
    times, nodes = jnp.array([0.0, 1.0, 2.0]), jnp.array([[0.0, 0.4, 1.0], [0.0, 0.5, 1.0]])
    features = RandomFeatures(2, 1, 6, rngs=rngs())
    return SpaceTimeFeatures(features, times, nodes, jnp.ones((2, 2, 6, 3)))


def scale(channels):
    return SimpleNamespace(mean=jnp.arange(3.0, 3.0 + channels), deviation=jnp.full(channels, 2.0))


def perceptron(**options):
    return MLP(2, 1, [5, 5], rngs=rngs(), **options)


MODELS = {
    "MLP": perceptron,
    "MLP, gelu": partial(perceptron, activation=nnx.gelu),
    "MLP, own activation": partial(perceptron, activation=cubic),
    "MLP, gates": partial(perceptron, depth_gates=True),
    "MLP, spread": partial(perceptron, input_scale=2.0, bias_scale=1.0),
    "MLP, bfloat16": partial(perceptron, param_dtype=jnp.bfloat16),
    "MLP, frozen": lambda: freeze(perceptron()),
    "multiscale": lambda: MultiscaleMLP(2, 1, [4], frequencies=(1.0, 2.7), rngs=rngs()),
    "multiscale, waves": lambda: MultiscaleMLP(2, 1, [4], fourier_features=3, rngs=rngs()),
    "features": lambda: RandomFeatures(
        2, 1, 8, domain=[(0, 1), (-2, 0.3)], slope=(1.0, 3.0), patches=(2, 2), rngs=rngs()
    ),
    "space and time": space_time,
    "corrected": lambda: CorrectedModel(
        perceptron(), perceptron(activation=jnp.sin), 0.1, input_scale=3
    ),
    "trial, named functions": lambda: TrialFunction(perceptron(), offset=ramp, factor=ramp),
    "normalized": lambda: NormalizedModel(perceptron(), scale(2), scale(1)),
    "symmetric": lambda: SymmetricModel(perceptron(), mirror, odd=True),
}


def shift(model):
    """Move every number of a model, so that it differs from a new one."""
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):
            node[...] = node[...] + jnp.asarray(0.25, node[...].dtype)
    return model


def assert_same(one, other):
    a, b = nnx.to_flat_state(nnx.state(one)), nnx.to_flat_state(nnx.state(other))
    assert [path for path, _ in a] == [path for path, _ in b]
    for (_, here), (_, there) in zip(a, b, strict=True):
        assert (type(here), here[...].dtype) == (type(there), there[...].dtype)
        np.testing.assert_array_equal(np.asarray(here[...]), np.asarray(there[...]))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        *((name, "safetensors") for name in MODELS),
        ("MLP, bfloat16", "orbax"),
        ("corrected", "orbax"),
    ],
)
def test_built_in_models_come_back_without_help(tmp_path, name, weights):
    model = shift(MODELS[name]())
    assert (
        save_model(model, tmp_path / "some" / "model", weights=weights) == tmp_path / "some/model"
    )
    again = load_model(tmp_path / "some" / "model")
    assert type(again) is type(model)
    assert nnx.graphdef(again) == nnx.graphdef(model)
    assert_same(again, model)
    x = jnp.linspace(0.0, 1.0, 6).reshape(3, 2)
    np.testing.assert_array_equal(again(x), model(x))


def test_an_operator_comes_back(tmp_path):
    model = FNO(
        (3, 2),
        4,
        spatial_dims=2,
        input_dim=2,
        num_layers=2,
        grid_kind="vertex",
        projection_dim=5,
        rngs=rngs(),
    )
    again = load_model(save_model(model, tmp_path))
    assert nnx.graphdef(again) == nnx.graphdef(model)
    x = jnp.ones((1, 8, 8, 2))
    np.testing.assert_array_equal(again(x), model(x))


@pytest.mark.parametrize("problem", [Poisson(), Helmholtz(wave_number=5.0)])
def test_a_trial_function_comes_back_with_its_problem(tmp_path, problem):
    network = shift(SymmetricModel(perceptron(), mirror))
    model = problem.trial_function(network)
    again = load_model(save_model(model, tmp_path, problem=problem))
    points = problem.evaluation_points(5)
    np.testing.assert_array_equal(again(points), model(points))


def test_the_trial_function_of_another_problem_is_refused(tmp_path):
    model = Poisson().trial_function(perceptron())
    other = TrialFunction(perceptron(), offset=ramp, factor=ramp)
    with pytest.raises(ValueError, match="model must be the trial function of problem"):
        save_model(other, tmp_path, problem=Poisson())
    with pytest.raises(
        ValueError, match="problem belongs to a TrialFunction, got a model of type MLP"
    ):
        save_model(model.network, tmp_path, problem=Poisson())


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_model_of_a_trainer_is_saved_at_any_level(tmp_path, level):
    trainer = CascadeTrainer(create_network_hierarchy(2, 1, [8], num_levels=3, rngs=rngs()))
    for _ in range(level):
        trainer.advance_level()
    again = load_model(save_model(trainer.model, tmp_path))
    assert again.hidden_dims == trainer.model.hidden_dims == (2 * 2**level,)
    assert_same(again, trainer.model)


class Own(nnx.Module):
    """A module with every kind of variable."""

    def __init__(self, width=3, *, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(2, width, rngs=rngs)])
        self.constant = FrozenVariable(jnp.arange(3))

    def __call__(self, x):
        return self.layers[0](self.dropout(self.norm(x)))


@pytest.mark.parametrize("weights", ["orbax", "safetensors"])
def test_own_modules_come_back_with_build(tmp_path, weights):
    model = Own(rngs=rngs())
    model(jnp.ones((4, 2)) * jnp.arange(4)[:, None])  # statistics and counts of keys move on
    save_model(model, tmp_path, weights=weights)
    again = load_model(tmp_path, lambda: Own(rngs=rngs(1)))
    x = jnp.ones((4, 2)) * jnp.arange(4)[:, None]
    np.testing.assert_array_equal(again(x), model(x))
    with pytest.raises(
        ValueError, match=r"build must be given to load this Own, since Own is none"
    ):
        load_model(tmp_path)
    with pytest.raises(
        ValueError, match=r"its layers\.0\.bias has shape \(4,\).*saved were \(3,\)"
    ):
        load_model(tmp_path, lambda: Own(4, rngs=rngs()))
    with pytest.raises(ValueError, match="the model that was saved: it has"):
        load_model(tmp_path, perceptron)
    with pytest.raises(TypeError, match=r"build must return an nnx\.Module, got int"):
        load_model(tmp_path, lambda: 3)


def test_what_has_no_name_needs_build(tmp_path):
    model = perceptron(activation=lambda x: x**2)
    with pytest.warns(UserWarning, match="will need build, since activation must be a function"):
        save_model(model, tmp_path)
    with pytest.raises(
        ValueError, match=r"build must be given .* since activation must be a function"
    ):
        load_model(tmp_path)
    again = load_model(tmp_path, lambda: perceptron(activation=lambda x: x**2))
    np.testing.assert_array_equal(again(jnp.ones(2)), model(jnp.ones(2)))


def test_a_model_that_was_changed_by_hand_needs_build(tmp_path):
    model = perceptron()
    model.hidden[1].activation = nnx.relu
    with pytest.warns(UserWarning, match="which has been changed after it was made"):
        save_model(model, tmp_path)
    with pytest.raises(ValueError, match="a new MLP of the same settings differs from the model"):
        load_model(tmp_path)


def test_double_precision_asks_for_x64(tmp_path):
    with jax.enable_x64(True):
        model = perceptron(param_dtype=jnp.float64)
        save_model(model, tmp_path)
        assert_same(load_model(tmp_path), model)
    with pytest.raises(ValueError, match=r"is in double precision: call jax\.config\.update"):
        load_model(tmp_path)


def test_another_program_loads_the_model(tmp_path):
    save_model(perceptron(), tmp_path)
    program = (
        "import sys, jax.numpy as jnp; from opifex.storage import load_model\n"
        "print(load_model(sys.argv[1])(jnp.ones(2)).tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == perceptron()(jnp.ones(2)).tolist()


# -- files ---------------------------------------------------------------------------------------


def card(folder, **changes):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))
    return content


def test_no_file_is_left_beside_the_model(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for weights in ("orbax", "safetensors", "safetensors", "orbax"):
        model = shift(load_model(tmp_path)) if (tmp_path / "model.json").exists() else perceptron()
        save_model(model, tmp_path, weights=weights)
        names = {"notes.txt", "model.json", card(tmp_path)["weights"]}
        assert {path.name for path in tmp_path.iterdir()} == names
        assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("interrupted", ["write_weights", "_write_card"])
@pytest.mark.parametrize("weights", ["orbax", "safetensors"])
def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch, weights, interrupted):
    model = perceptron()
    save_model(model, tmp_path, weights=weights)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(saved_model, interrupted, fail)
        with pytest.raises(KeyboardInterrupt):
            save_model(shift(perceptron()), tmp_path, weights=weights)
    assert_same(load_model(tmp_path), model)


def test_an_interrupted_rename_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            save_model(perceptron(), tmp_path, weights="safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weights", ["orbax", "safetensors"])
def test_damaged_weights_are_noticed(tmp_path, weights):
    save_model(perceptron(), tmp_path, weights=weights)
    stored = tmp_path / card(tmp_path)["weights"]
    files = [path for path in stored.rglob("*") if path.is_file()] or [stored]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights weights-\w+.* are damaged"):
        load_model(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"weights weights-\w+.* are (missing|damaged)"):
        load_model(tmp_path)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder must hold a saved model, got .*none"):
        load_model(tmp_path / "none")
    save_model(perceptron(), tmp_path)
    card(tmp_path, format_version=2, versions={"opifex-multilevel": "9.0"})
    with pytest.raises(
        ValueError, match=r"format version 2, and this release reads up to 1.*'9\.0'"
    ):
        load_model(tmp_path)
    card(tmp_path, format="something else")
    for use in (load_model, partial(save_model, perceptron())):
        with pytest.raises(ValueError, match="is of another program"):
            use(tmp_path)
    (tmp_path / "model.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"model\.json of .* is damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "Transformer"}, r"model class must be one of .*'MLP'.*, got 'Transformer'"),
        ({"activation": "nowhere:tanh"}, "activation is nowhere:tanh: import nowhere before"),
        ({"activation": "jax.nn:gone"}, r"activation is jax\.nn:gone, but jax\.nn has no gone"),
        ({"depth": 3}, "settings of MLP do not fit its class here"),
    ],
)
def test_a_configuration_that_is_not_understood_says_what(tmp_path, change, message):
    save_model(perceptron(), tmp_path)
    configuration = card(tmp_path)["configuration"]
    card(tmp_path, configuration={**configuration, **change})
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)
    assert_same(load_model(tmp_path, perceptron), perceptron())


def test_weights_are_not_taken_from_outside_of_the_folder(tmp_path):
    save_model(perceptron(), tmp_path)
    card(tmp_path, weights="../weights")
    with pytest.raises(ValueError, match=r"is damaged: weights '\.\./weights'"):
        load_model(tmp_path)


def test_arguments_are_checked(tmp_path):
    with pytest.raises(TypeError, match=r"model must be an nnx\.Module, got int"):
        save_model(3, tmp_path)
    with pytest.raises(ValueError, match="weights must be one of"):
        save_model(perceptron(), tmp_path, weights="pickle")
    with pytest.raises(TypeError, match="build must be callable"):
        load_model(tmp_path, 3)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"safetensors: pip install 'opifex-multilevel\[data\]'"):
        save_model(perceptron(), tmp_path, weights="safetensors")
    assert list(tmp_path.iterdir()) == []
