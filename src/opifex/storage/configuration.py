"""What a model is built from, as JSON, read off the model itself.

Nothing is recorded when a model is made: its attributes say which arguments build one like it. Whether
they do is checked, by building it and comparing, before anything is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.models import (
    FNO,
    MLP,
    CorrectedModel,
    MultiscaleMLP,
    NormalizedModel,
    RandomFeatures,
    SpaceTimeFeatures,
    SymmetricModel,
    TrialFunction,
)
from opifex.storage.names import OwnClassError, UnnamedError, name_of, named
from opifex.storage.variables import Entry, entries, freeze_as

__all__ = ["Configuration", "configure", "rebuild"]

Configuration = dict[str, Any]
"""A model in JSON: its class, and the arguments that build it."""


def configure(model: nnx.Module, problem: Any = None) -> Configuration:
    """The configuration from which `rebuild` makes a model like this one.

    Args:
        model: the model.
        problem: the problem whose trial function it is, if it is one.

    Raises:
        OwnClassError: if the model is, or contains, one of another class than those of `opifex.models`.
        UnnamedError: if it holds a function without a name, or was changed such that its class does not
            build it any more.
        ValueError: if ``model`` is not the trial function of ``problem``.
    """
    configuration = _described(model) if problem is None else _trial_function_of(problem, model)
    built = rebuild(configuration, entries(model))
    if entries(built) != entries(model) or (
        problem is None and nnx.graphdef(built) != nnx.graphdef(model)
    ):
        raise UnnamedError(
            f"a new {type(model).__name__} of the same settings differs from the model, which has "
            "been changed after it was made"
        )
    return configuration


def rebuild(configuration: Configuration, variables: dict[str, Entry]) -> nnx.Module:
    """A model of a configuration, with the initial values of its class.

    Args:
        configuration: as `configure` returned it.
        variables: those of the model it came from: what is frozen there gets frozen here.

    Raises:
        ValueError: if a class or a function is unknown here, or arguments are not allowed.
    """
    model = _built(configuration)
    freeze_as(model, variables)
    return model


def _described(model: nnx.Module) -> Configuration:
    described = _DESCRIPTIONS.get(type(model))
    if described is None:
        raise OwnClassError(
            f"{type(model).__name__} is none of the classes {[c.__name__ for c in _DESCRIPTIONS]}"
        )
    return {"class": type(model).__name__, **described(model)}


def _built(configuration: Configuration) -> nnx.Module:
    arguments = dict(configuration)
    name = arguments.pop("class", None)
    builder = _BUILDERS.get(name) if isinstance(name, str) else None
    if builder is None:
        raise ValueError(f"model class must be one of {sorted(_BUILDERS)}, got {name!r}")
    try:
        return builder(**arguments)
    except TypeError as error:
        raise ValueError(f"settings of {name} do not fit its class here: {error}") from error


# -- classes that have settings and parameters ----------------------------------------------------


def _perceptron(model: MLP) -> Configuration:
    first = model.hidden[0]
    return {
        "input_dim": model.input_dim,
        "output_dim": model.output_dim,
        "hidden_dims": list(model.hidden_dims),
        "activation": name_of("activation", first.activation),
        "depth_gates": any(layer.gate is not None for layer in model.hidden),
        "param_dtype": _dtype(model.output.kernel),
    }


def _neural_operator(model: FNO) -> Configuration:
    return {
        "modes": list(model.modes),
        "width": model.width,
        "input_dim": model.input_dim,
        "output_dim": model.output_dim,
        "num_layers": model.num_layers,
        "spatial_dims": model.spatial_dims,
        "activation": name_of("activation", model.activation),
        "projection_dim": model.projection_dim,
        "grid_kind": model.grid_kind,
        "append_coordinates": model.append_coordinates,
        "transform": model.transform,
        "param_dtype": _dtype(model.lifting.kernel),
    }


def _multiscale(model: MultiscaleMLP) -> Configuration:
    band = model.bands[0]
    waves = None if band.features is None else band.features.phases.shape[0]
    return {
        "input_dim": model.input_dim,
        "output_dim": model.output_dim,
        "hidden_dims": list(model.hidden_dims),
        "frequencies": list(model.frequencies),
        "activation": name_of("activation", band.hidden[0].activation),
        "fourier_features": waves,
        "param_dtype": _dtype(model.bias),
    }


def _random_features(model: RandomFeatures) -> Configuration:
    # Slopes are in the weights.
    return {
        "input_dim": model.input_dim,
        "output_dim": model.output_dim,
        "num_features": model.num_features,
        "domain": [list(interval) for interval in model.domain],
        "patches": list(model.patches),
        "activation": name_of("activation", model.activation),
        "param_dtype": _dtype(model.output.kernel),
    }


def _network(constructor: Callable[..., nnx.Module]) -> Callable[..., nnx.Module]:
    def build(*, activation: str, param_dtype: str, **arguments: Any) -> nnx.Module:
        return constructor(
            **arguments,
            activation=named("activation", activation),
            param_dtype=jnp.dtype(param_dtype),
            rngs=nnx.Rngs(0),
        )

    return build


def _dtype(variable: Any) -> str:
    return str(variable[...].dtype)


# -- classes around other models ------------------------------------------------------------------


def _arrays(model: nnx.Module, *names: str) -> Configuration:
    """Shapes and dtypes of variables, from which `_ones` makes others; values are in the weights."""
    arrays = {name: getattr(model, name)[...] for name in names}
    return {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}


def _ones(arrays: Configuration) -> dict[str, Any]:
    return {name: jnp.ones(shape, dtype) for name, (shape, dtype) in arrays.items()}


def _space_time(model: SpaceTimeFeatures) -> Configuration:
    arrays = _arrays(model, "times", "nodes", "coefficients")
    return {"features": _described(model.features), **arrays}


def _build_space_time(features: Configuration, **arrays: Any) -> nnx.Module:
    inner: Any = _built(features)
    return SpaceTimeFeatures(inner, **_ones(arrays))


def _normalized(model: NormalizedModel) -> Configuration:
    network: Any = model.network
    names = ("input_mean", "input_deviation", "output_mean", "output_deviation")
    return {"network": _described(network), **_arrays(model, *names)}


def _build_normalized(network: Configuration, **arrays: Any) -> nnx.Module:
    ones = _ones(arrays)
    sides = (
        SimpleNamespace(mean=ones[f"{side}_mean"], deviation=ones[f"{side}_deviation"])
        for side in ("input", "output")
    )
    return NormalizedModel(_built(network), *sides)


def _corrected(model: CorrectedModel) -> Configuration:
    correction: Any = model.correction
    return {"base": _described(model.base), "correction": _described(correction)}


def _build_corrected(base: Configuration, correction: Configuration) -> nnx.Module:
    return CorrectedModel(_built(base), _built(correction))


def _trial(model: TrialFunction) -> Configuration:
    network: Any = model.network
    functions = {"offset": model.offset, "factor": model.factor, "embed": model.embed}
    return {
        "network": _described(network),
        **{k: None if f is None else name_of(k, f) for k, f in functions.items()},
    }


def _trial_function_of(problem: Any, model: nnx.Module) -> Configuration:
    if not isinstance(model, TrialFunction):
        raise ValueError(
            f"problem belongs to a TrialFunction, got a model of type {type(model).__name__}"
        )
    network: Any = model.network
    configuration = {
        "class": "TrialFunction",
        "network": _described(network),
        "problem": _problem(problem),
    }
    points = problem.evaluation_points(3)
    again = problem.trial_function(network)
    if not np.allclose(model(points), again(points), rtol=1e-5, atol=1e-6):
        raise ValueError(
            f"model must be the trial function of problem, got that of another than {problem!r}"
        )
    return configuration


def _problem(problem: Any) -> Configuration:
    kind = type(problem)
    if not dataclasses.is_dataclass(problem):
        raise UnnamedError(f"problem must be a dataclass, got {kind.__name__}")
    settings = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem) if f.init}
    if not all(_is_plain(value) for value in settings.values()):
        raise UnnamedError(f"settings of problem must be numbers and texts, got {settings}")
    return {"class": name_of("problem", kind), "settings": settings}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _build_trial(
    network: Configuration, problem: Configuration | None = None, **functions: str | None
) -> nnx.Module:
    inner = _built(network)
    if problem is None:
        found: dict[str, Any] = {
            k: None if name is None else named(k, name) for k, name in functions.items()
        }
        return TrialFunction(inner, **found)
    settings = {
        k: tuple(v) if isinstance(v, list) else v for k, v in problem.get("settings", {}).items()
    }
    trial_function: nnx.Module = named("problem", problem["class"])(**settings).trial_function(
        inner
    )
    return trial_function


def _symmetric(model: SymmetricModel) -> Configuration:
    network: Any = model.network
    return {
        "network": _described(network),
        "reflection": name_of("reflection", model.reflection),
        "odd": model.odd,
    }


def _build_symmetric(network: Configuration, reflection: str, odd: bool) -> nnx.Module:
    return SymmetricModel(_built(network), named("reflection", reflection), odd=odd)


_DESCRIPTIONS: dict[type[nnx.Module], Callable[[Any], Configuration]] = {
    MLP: _perceptron,
    FNO: _neural_operator,
    MultiscaleMLP: _multiscale,
    RandomFeatures: _random_features,
    SpaceTimeFeatures: _space_time,
    CorrectedModel: _corrected,
    NormalizedModel: _normalized,
    TrialFunction: _trial,
    SymmetricModel: _symmetric,
}
_BUILDERS: dict[str, Callable[..., nnx.Module]] = {
    **{c.__name__: _network(c) for c in (MLP, FNO, MultiscaleMLP, RandomFeatures)},
    "SpaceTimeFeatures": _build_space_time,
    "CorrectedModel": _build_corrected,
    "NormalizedModel": _build_normalized,
    "TrialFunction": _build_trial,
    "SymmetricModel": _build_symmetric,
}
