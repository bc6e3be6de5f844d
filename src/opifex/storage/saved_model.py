"""Models in folders: what rebuilds them as JSON, their weights beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from opifex.core.checks import check_callable, check_choice
from opifex.storage.configuration import Configuration, configure, rebuild
from opifex.storage.files import replace_file
from opifex.storage.names import OwnClassError, UnnamedError
from opifex.storage.variables import Entry, arrays_of, entries, freeze_as, with_arrays
from opifex.storage.weights import KINDS, digest_of, read_weights, remove, write_weights

__all__ = ["load_model", "save_model"]

CARD = "model.json"
FORMAT, FORMAT_VERSION = "opifex-multilevel model", 1


@dataclasses.dataclass(frozen=True)
class _Card:
    """The JSON file of a saved model."""

    model: str
    configuration: Configuration | None
    reason: str | None
    weights: str
    kind: str
    digest: str
    variables: dict[str, Entry]


def save_model(
    model: nnx.Module,
    folder: str | os.PathLike[str],
    *,
    weights: str = "orbax",
    problem: Any = None,
) -> Path:
    """Save a model: its weights, and beside them in ``model.json`` what builds a model like it.

    Every variable is kept (parameters, frozen values, batch statistics, random keys), in its own
    precision. For the classes of `opifex.models`, one inside the other too, and activations that have a
    name in a module, the settings are kept as well, and `load_model` needs nothing else. Any other
    module is saved without, and `load_model` is given a function that builds it; where a function
    without a name, such as a lambda, is the reason, a ``UserWarning`` says so. The model of a trainer is
    ``trainer.model``, at any level; `opifex.models.NormalizedModel` keeps its normalizers along.

    A folder may be saved to again: a program that is cut off while it writes leaves the old model or the
    new one, never a mixture. Other files in the folder are left alone.

    Args:
        model: any ``nnx.Module`` whose variables hold arrays.
        folder: where to; made if it is not there.
        weights: ``"orbax"``, or ``"safetensors"``, one file that many programs read.
        problem: where ``model`` is ``problem.trial_function(network)``: the problem, so that it can
            be rebuilt.

    Returns:
        The folder.

    Raises:
        TypeError: if ``model`` is no ``nnx.Module``, or a variable holds something else than an array.
        ValueError: if ``weights`` is unknown, ``model`` is not the trial function of ``problem``, or
            ``folder`` holds a ``model.json`` of another program.
        ImportError: if safetensors is not installed (``[data]``).

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.models import MLP
        >>> from opifex.storage import load_model, save_model
        >>> model = MLP(2, 1, [16, 16], activation=nnx.gelu, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     where = save_model(model, folder)
        ...     again = load_model(folder)
        >>> bool(jnp.all(again(jnp.ones(2)) == model(jnp.ones(2))))
        True
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be an nnx.Module, got {type(model).__name__}")
    check_choice("weights", weights, KINDS)
    target = Path(folder)
    old = _read_card(target) if (target / CARD).exists() else None
    variables = entries(model)
    configuration, reason = None, None
    try:
        configuration = configure(model, problem)
    except OwnClassError as error:  # whoever wrote the class knows that
        reason = str(error)
    except UnnamedError as error:
        reason = str(error)
        warnings.warn(f"load_model will need build, since {reason}", UserWarning, stacklevel=2)
    target.mkdir(parents=True, exist_ok=True)
    name, digest = write_weights(arrays_of(model), target, weights)
    card = _Card(
        f"{type(model).__module__}:{type(model).__qualname__}",
        configuration,
        reason,
        name,
        weights,
        digest,
        variables,
    )
    _write_card(card, target)  # from here on the new model is the one that is there
    if old is not None and old.weights != name:
        remove(target / old.weights)
    return target


def load_model(
    folder: str | os.PathLike[str], build: Callable[[], nnx.Module] | None = None
) -> nnx.Module:
    """Load a model that `save_model` saved.

    Args:
        folder: where it is.
        build: returns a model of the same structure, whose values are then replaced; needed for
            classes of your own and for functions without a name, such as a lambda.

    Returns:
        The model, with every variable as it was saved.

    Raises:
        FileNotFoundError: if ``folder`` holds no saved model.
        ValueError: if the files are damaged, of another program or of a newer release; the model
            cannot be rebuilt without ``build`` (the message says why); what ``build`` returned has other
            variables (the message names one); or the model is in double precision, which is not
            enabled.
        TypeError: if ``build`` is not callable or does not return an ``nnx.Module``.
        ImportError: if the package that reads the weights is not installed.
    """
    where = Path(folder)
    if build is not None:
        check_callable("build", build)
    if not (where / CARD).is_file():
        raise FileNotFoundError(
            f"folder must hold a saved model, got {str(folder)!r} without {CARD}"
        )
    card = _read_card(where)
    wide = [name for name, e in card.variables.items() if e.dtype in ("float64", "complex128")]
    if wide and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            f"{wide[0]} is in double precision: call jax.config.update('jax_enable_x64', True) before"
        )
    stored = where / card.weights
    if not stored.exists() or digest_of(stored) != card.digest:
        state = "damaged" if stored.exists() else "missing"
        raise ValueError(f"weights {card.weights} of {str(folder)!r} are {state}")
    model = _skeleton(card, build)
    _check_same(card.variables, entries(model))
    with_arrays(model, read_weights(stored, card.kind, card.variables))
    return model


def _skeleton(card: _Card, build: Callable[[], nnx.Module] | None) -> nnx.Module:
    if build is not None:
        model = build()
        if not isinstance(model, nnx.Module):
            raise TypeError(f"build must return an nnx.Module, got {type(model).__name__}")
        freeze_as(model, card.variables)
        return model
    if card.configuration is None:
        raise ValueError(
            f"build must be given to load this {card.model.partition(':')[2]}, since {card.reason}"
        )
    return rebuild(card.configuration, card.variables)


def _check_same(saved: Mapping[str, Entry], built: Mapping[str, Entry]) -> None:
    """Raise unless a model has the variables that were saved."""
    for name in sorted(saved.keys() | built.keys()):
        here, there = built.get(name), saved.get(name)
        if here is None or there is None:
            which = "has no" if here is None else "has a"
            raise ValueError(
                f"build must return the model that was saved: it {which} variable {name}"
            )
        if (here.shape, here.dtype, here.key) != (there.shape, there.dtype, there.key):
            raise ValueError(
                f"build must return the model that was saved: its {name} has shape {here.shape} and "
                f"dtype {here.dtype}, saved were {there.shape} and {there.dtype}"
            )


def _write_card(card: _Card, folder: Path) -> None:
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": {package: version(package) for package in ("opifex-multilevel", "jax", "flax")},
        **dataclasses.asdict(card),
    }
    replace_file(folder / CARD, json.dumps(content, indent=1).encode())


def _read_card(folder: Path) -> _Card:
    where = f"{CARD} of {str(folder)!r}"
    try:
        content = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{where} is of another program: its format is not {FORMAT!r}")
    written = content.get("format_version")
    if not isinstance(written, int) or written > FORMAT_VERSION:
        raise ValueError(
            f"{where} has format version {written}, and this release reads up to {FORMAT_VERSION}: it "
            f"was written by {content.get('versions', {})}"
        )
    try:
        variables = {
            name: Entry(**{**entry, "shape": tuple(entry["shape"])})
            for name, entry in content["variables"].items()
        }
        fields = {f.name: content[f.name] for f in dataclasses.fields(_Card)}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is damaged: {error!r}") from error
    card = _Card(**{**fields, "variables": variables})
    if card.kind not in KINDS or Path(card.weights).name != card.weights:
        raise ValueError(f"{where} is damaged: weights {card.weights!r} of kind {card.kind!r}")
    return card
