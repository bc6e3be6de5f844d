"""Settings of all tests: compiled programs are kept, since many tests compile the same ones."""

from __future__ import annotations

import os

import jax
import pytest

from shapes import leave_functions_without_arrays


def pytest_configure(config: pytest.Config) -> None:
    """Share programs between tests, workers and runs; traces, which tests count, are not kept."""
    leave_functions_without_arrays()
    folder = config.rootpath / ".pytest_cache" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Processes that tests start leave nothing in the user's folder.
    os.environ["OPIFEX_PROGRAM_CACHE"] = "off"
