"""Generated data kept on disk, in files named by everything that determines their content."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["cache_path", "cached_arrays", "default_cache_dir", "new_file"]

CACHE_VARIABLE = "OPIFEX_CACHE_DIR"


def default_cache_dir() -> Path:
    """The folder of generated data.

    ``$OPIFEX_CACHE_DIR`` if it is set, else ``$XDG_CACHE_HOME/opifex``, else ``~/.cache/opifex``.
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "opifex"


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written, which is there under its name as a whole or not at all.

    Args:
        path: the name; its folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            yield file
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _canonical(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


def cache_path(
    name: str, parameters: Mapping[str, Any], cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """The file that holds, or would hold, the data of these parameters.

    Args:
        name: what the data is, the beginning of the file's name.
        parameters: everything that determines the content, JSON values only.
        cache_dir: folder; `default_cache_dir` if not given.
    """
    digest = hashlib.sha256(_canonical(parameters).encode()).hexdigest()[:16]
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    return folder / f"{name}-{digest}.npz"


def cached_arrays(
    name: str,
    parameters: Mapping[str, Any],
    compute: Callable[[], Mapping[str, np.ndarray]],
    cache_dir: str | os.PathLike[str] | None = None,
) -> dict[str, np.ndarray]:
    """Arrays from the cache, or computed and stored there.

    The parameters are stored with the arrays and compared on reading; a file that is damaged, or
    whose parameters differ, is computed anew and replaced. Files appear whole or not at all, so
    that an interrupted or a concurrent run leaves nothing half-written behind.

    Args:
        name: what the data is.
        parameters: everything that determines the content, JSON values only.
        compute: makes the arrays.
        cache_dir: folder; `default_cache_dir` if not given. It is created when needed.

    Returns:
        What ``compute`` returned, now or at an earlier call: arrays by name.
    """
    path = cache_path(name, parameters, cache_dir)
    text = _canonical(parameters)
    try:
        # Opened here, since NumPy leaves a file open in which it finds no archive.
        with open(path, "rb") as kept, np.load(kept, allow_pickle=False) as stored:
            if str(stored["parameters"]) == text:
                return {key: stored[key] for key in stored.files if key != "parameters"}
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, EOFError):
        pass
    arrays = dict(compute())
    # An archive that cannot be completed writes its end when it is deleted: not to a closed file.
    archive = io.BytesIO()
    np.savez(archive, parameters=np.asarray(text), **arrays)  # type: ignore[arg-type]
    with new_file(path) as file:
        file.write(archive.getbuffer())
    return arrays
