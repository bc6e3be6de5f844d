"""Compiled programs that outlive the process: a folder of executables, without touching JAX's settings.

JAX's own persistent cache is a setting of the whole process, which a library must leave to its user.
Where the user has turned it on (``jax_compilation_cache_dir``), it does the work and nothing is kept
here. Otherwise an executable is kept under a digest of everything that decides it: the lowered program,
the types of its arguments and results, JAX's settings and versions, ``XLA_FLAGS``, and the processor
with its instruction sets.

An executable is code. It is loaded only from a folder that belongs to the user and that nobody else may
read or write, and is written with such permissions. Whoever can write into that folder can run code as
the user, as with ``.pyc`` files.

The environment variable ``OPIFEX_PROGRAM_CACHE`` names another folder, or is ``off``. Only programs for
a single CPU device, without callbacks to Python, are kept.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.extend.core import ClosedJaxpr

__all__ = ["MOST_BYTES", "compiled_program", "program_folder"]

MOST_BYTES = 2**29
"""What the folder may hold; the programs that were not used for longest make room."""

_VARIABLE = "OPIFEX_PROGRAM_CACHE"
_FORMAT = b"opifex program 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


def program_folder() -> Path | None:
    """Where programs are kept; ``None`` where they are not, or where JAX keeps them itself."""
    asked = os.environ.get(_VARIABLE, "")
    if asked.lower() in ("off", "0") or jax.config.values["jax_compilation_cache_dir"]:
        return None
    return Path(asked) if asked else _user_folder() / "opifex" / "programs"


def _user_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def compiled_program(
    lowered: jax.stages.Lowered, jaxpr: ClosedJaxpr, *, keep: bool = True
) -> jax.stages.Compiled:
    """Compile a lowered program, or load it if an earlier process has compiled the same.

    Whatever goes wrong with the folder, the program is compiled.

    Args:
        lowered: the program, of a function jitted with ``keep_unused=True``, since the lowered program
            does not say which arguments were dropped; called with arrays that are bound to no device.
        jaxpr: the traced program that was lowered, for the types of its arguments and results.
        keep: whether to look for the program in the folder, and to keep it there.

    Returns:
        The compiled program.
    """
    folder = program_folder() if keep else None
    if folder is None or not _single_cpu():
        return lowered.compile()
    text = lowered.as_text()
    if "callback" in text:  # an address in this process
        return lowered.compile()
    path = folder / f"{_digest(text, jaxpr)}.xla"
    try:
        _check_private(folder)
        found = _loaded(path, lowered)
    except Exception:  # absent, cut off, of a version that does not say so: a cache may always miss
        found = None
    if found is not None:
        return found
    with _taken_from_jax() as taken:
        program = lowered.compile()
    if not taken:
        with suppress(Exception):  # no room, no permission, or a program that cannot be kept
            _store(path, serialize_executable.serialize(program)[0])
    return program


@contextmanager
def _taken_from_jax() -> Iterator[list[str]]:
    """Whether JAX took a program from a cache of its own meanwhile, in whatever thread.

    Versions differ in when they forget a folder that was unset. What XLA has loaded for the CPU it
    cannot write again: the copy loads too, but lacks its functions, and fails when it is called.
    """
    taken: list[str] = []

    def listen(event: str, **details: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            taken.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield taken
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _single_cpu() -> bool:
    return (
        jax.default_backend() == "cpu"
        and jax.config.values["jax_default_device"] is None
        and jax.device_count() == 1
    )


def _digest(text: str, jaxpr: ClosedJaxpr) -> str:
    """A name for everything that decides an executable."""
    avals: list[Any] = [*jaxpr.in_avals, *jaxpr.out_avals]
    types = [(repr(aval), aval.weak_type) for aval in avals]
    parts = (text, types, _surroundings(), sorted(jax.config.values.items()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def _surroundings() -> tuple[Any, ...]:
    """Versions and the machine."""
    device = jax.devices()[0]
    return (
        (jax.__version__, jaxlib.__version__, device.client.platform_version, sys.version),
        (device.device_kind, platform.machine(), _instruction_sets()),
        os.environ.get("XLA_FLAGS", ""),
    )


def _instruction_sets() -> str:
    """What the processor can do, since code is made for it: home folders may be shared."""
    try:
        found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group() if found else platform.processor()


def _check_private(folder: Path) -> None:
    """Make the folder if it is not there; raise unless it is the user's alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform == "win32":
        return
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(f"{folder} is open to others")


def _loaded(path: Path, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    content = path.read_bytes()
    start = len(_FORMAT) + _DIGEST_BYTES
    packed = content[start:]
    if content[:start] != _FORMAT + hashlib.sha256(packed).digest():
        raise ValueError(f"{path} is damaged")
    program = serialize_executable.deserialize_and_load(
        zlib.decompress(packed),
        lowered.in_tree,
        lowered.out_tree,
        execution_devices=jax.devices(),
    )
    path.touch()
    return program


def _store(path: Path, payload: bytes) -> None:
    """Write a program at once and whole, since other processes may look for it meanwhile."""
    _check_private(path.parent)
    packed = zlib.compress(payload, 1)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(_FORMAT + hashlib.sha256(packed).digest() + packed)
    os.replace(file.name, path)
    _make_room(path.parent)


def _make_room(folder: Path) -> None:
    files = sorted(folder.glob("*.xla"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > MOST_BYTES:
            file.unlink(missing_ok=True)
