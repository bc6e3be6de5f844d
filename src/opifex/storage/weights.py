"""Arrays by name in one file or folder, with a digest by which damage is found."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from opifex.core.optional import optional_module
from opifex.storage.variables import Entry

__all__ = ["KINDS", "digest_of", "read_weights", "write_weights"]

KINDS = ("orbax", "safetensors")
"""Formats of weights."""


def write_weights(arrays: Mapping[str, np.ndarray], folder: Path, kind: str) -> tuple[str, str]:
    """Write arrays under a new name into a folder; they are there as a whole or not at all.

    Args:
        arrays: values by name.
        folder: an existing folder.
        kind: one of `KINDS`.

    Returns:
        The name of the new file or folder, and its digest.

    Raises:
        ImportError: if the package of the format is not installed.
    """
    part = folder / f".weights-{uuid.uuid4().hex}.part"
    try:
        if kind == "orbax":
            _write_orbax(arrays, part)
        else:
            _write_safetensors(arrays, part)
        digest = digest_of(part)
        name = f"weights-{digest[:12]}{'' if kind == 'orbax' else '.safetensors'}"
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        os.replace(part, folder / name)
    finally:
        remove(part)
    return name, digest


def read_weights(path: Path, kind: str, variables: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """Read what `write_weights` wrote.

    Args:
        path: the file or folder.
        kind: one of `KINDS`.
        variables: what it holds, by name.

    Raises:
        ImportError: if the package of the format is not installed.
    """
    if kind == "orbax":
        return _read_orbax(path, variables)
    return _read_safetensors(path)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of all files of a folder."""
    total = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            total.update(f"{file.relative_to(path).as_posix()}\0".encode())
        with open(file, "rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_orbax(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    orbax: Any = importlib.import_module("orbax.checkpoint")
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), dict(arrays))


def _read_orbax(path: Path, variables: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    orbax: Any = importlib.import_module("orbax.checkpoint")
    like = {name: np.empty(e.shape, jnp.dtype(e.dtype)) for name, e in variables.items()}
    with orbax.StandardCheckpointer() as checkpointer:
        return dict(checkpointer.restore(path.absolute(), like))


def _write_safetensors(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    numpy_format = optional_module("safetensors.numpy", "data", "saving weights as safetensors")
    numpy_format.save_file(
        {name: np.require(a, requirements="C") for name, a in arrays.items()}, path
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = optional_module("safetensors", "data", "loading weights of safetensors")
    # Not by its NumPy front end, which does not know bfloat16.
    return {
        name: np.frombuffer(entry["data"], _SAFETENSORS_DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in safetensors.deserialize(path.read_bytes())
    }


_SAFETENSORS_DTYPES = {
    "BOOL": np.dtype(bool),
    "BF16": jnp.dtype(jnp.bfloat16),
    "F8_E4M3": jnp.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": jnp.dtype(jnp.float8_e5m2),
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    **{f"I{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    "C64": np.dtype("c8"),
}
