"""Functions compiled for a machine on which this library is not installed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
from jaxtyping import Array

from opifex.core.checks import check_callable, check_choice, check_nonnegative_int
from opifex.core.optional import optional_module
from opifex.storage.files import replace_file

__all__ = ["export_function", "load_function"]

# Behind the program, where JAX does not look: what shows that the file is whole.
_MARK = b"opifex-multilevel sha256:"
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_function(
    model: Callable[[Array], Array],
    example: Any,
    path: str | os.PathLike[str],
    *,
    platforms: Sequence[str] = ("cpu", "cuda"),
    derivatives: int = 0,
) -> Path:
    """Write a model as a program that needs JAX alone, with ``jax.export``.

    The weights are in it. The length of the first axis of the input stays open; all others are those
    of ``example``. Where this library is not installed, this reads it::

        from pathlib import Path
        import jax.export
        model = jax.export.deserialize(bytearray(Path(path).read_bytes())).call

    JAX keeps such programs readable for at least six months of its releases: for longer times keep
    the model itself (`opifex.storage.save_model`). What belongs around the network goes into it: the
    normalising of fields as `opifex.models.NormalizedModel`, anything else in a function.

    Args:
        model: the model, or any function of one array that JAX can compile.
        example: an input with an axis of samples or points in front; only its shape and dtype count.
        path: the file.
        platforms: where it is to run, of ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"tpu"``.
        derivatives: how often what is read can be differentiated.

    Returns:
        The path.

    Raises:
        TypeError: if ``model`` is not callable or ``platforms`` is a single string.
        ValueError: if ``example`` has no axis besides samples, a platform is unknown, or the shape of
            the result does not follow that of the input for every number of samples.
        ImportError: if flatbuffers, which JAX writes with, is not installed (``[data]``).

    Example:
        >>> import os, tempfile
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.models import FNO
        >>> from opifex.storage import export_function, load_function
        >>> model = FNO(modes=4, width=8, num_layers=1, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_function(model, jnp.zeros((1, 32, 1)), os.path.join(folder, "operator"))
        ...     serve = load_function(path)
        >>> serve(jnp.ones((7, 32, 1))).shape
        (7, 32, 1)
    """
    check_callable("model", model)
    if isinstance(platforms, str):
        raise TypeError(f"platforms must be a sequence of names, got {platforms!r}")
    for platform in platforms:
        check_choice("platforms", platform, _PLATFORMS)
    check_nonnegative_int("derivatives", derivatives)
    _check_flatbuffers("writing")
    like = jax.ShapeDtypeStruct(jax.numpy.shape(example), jax.numpy.result_type(example))
    if len(like.shape) < 2:
        raise ValueError(f"example must have an axis of samples and others, got shape {like.shape}")
    shape = jax.export.symbolic_shape("samples, ...", like=like.shape)
    program = jax.export.export(jax.jit(lambda x: model(x)), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct(shape, like.dtype)
    )
    result = jax.tree.leaves(program.out_avals)
    if any(not aval.shape or aval.shape[0] != shape[0] for aval in result):
        raise ValueError(
            "model must return one result per sample, got results of shape "
            f"{[aval.shape for aval in result]} for an input of shape {shape}"
        )
    content = bytes(program.serialize(vjp_order=derivatives))
    content += _MARK + hashlib.sha256(content).hexdigest().encode()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, content)
    return target


def load_function(path: str | os.PathLike[str]) -> Callable[[Array], Array]:
    """Read what `export_function` wrote.

    Args:
        path: the file.

    Returns:
        The compiled function; it can be called inside ``jax.jit`` too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or was not written by `export_function`.
        ImportError: if flatbuffers is not installed.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"path must be an existing file, got {str(path)!r}")
    _check_flatbuffers("reading")
    program, mark, digest = source.read_bytes().rpartition(_MARK)
    if not mark or hashlib.sha256(program).hexdigest().encode() != digest:
        raise ValueError(f"path must be a whole file of export_function, got {str(path)!r}")
    call: Callable[[Array], Array] = jax.export.deserialize(bytearray(program)).call
    return call


def _check_flatbuffers(doing: str) -> None:
    optional_module("flatbuffers", "data", f"{doing} an exported function")
