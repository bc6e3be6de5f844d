"""Says whether the import name ``opifex`` leads to this library: ``python -m opifex_multilevel``.

Another distribution, ``opifex``, installs a package of the same name. Where both are in one environment
the one that was installed last has overwritten files of the other, and uninstalling either removes files
of both. This module has a name that the other does not have, so that it can tell.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_installation", "namesake_version", "require_own_package", "warn_of_namesake"]

WAY_OUT = (
    "both install a package opifex, and one has overwritten or removed files of the other. Use an "
    "environment for each; or keep this one: pip uninstall opifex opifex-multilevel, then pip install "
    "opifex-multilevel"
)


def namesake_version() -> str | None:
    """The version of the distribution ``opifex`` if it is installed here, else ``None``."""
    try:
        return version("opifex")
    except PackageNotFoundError:
        return None


def warn_of_namesake() -> None:
    """Warn if the distribution ``opifex`` is installed in the same environment."""
    other = namesake_version()
    if other is not None:
        warnings.warn(
            f"opifex {other} is installed beside opifex-multilevel: they {WAY_OUT}",
            RuntimeWarning,
            stacklevel=3,
        )


def require_own_package() -> None:
    """Stop with a clear message if the imported package ``opifex`` is not this library's.

    Raises:
        ImportError: if it is another one, or what uninstalling another one has left behind.
    """
    if not hasattr(sys.modules["opifex"], warn_of_namesake.__name__):
        raise ImportError(f"the distributions opifex and opifex-multilevel {WAY_OUT}")


def check_installation() -> Path:
    """The folder of the package ``opifex`` if it is this library's.

    Raises:
        ImportError: if ``import opifex`` leads to another package, or another is mixed with it.
    """
    other = namesake_version()
    found = find_spec("opifex")
    if found is None or not found.origin:
        raise ImportError("the package opifex is not there: pip install opifex-multilevel")
    folder = Path(found.origin).parent
    if other is not None:
        raise ImportError(
            f"opifex {other} is installed beside opifex-multilevel, in {folder}: they {WAY_OUT}"
        )
    # Ours imports this module.
    text = Path(found.origin).read_text(encoding="utf-8")
    if "opifex_multilevel" not in text:
        raise ImportError(f"the package opifex in {folder} is not that of opifex-multilevel")
    return folder


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            print(f"opifex is that of opifex-multilevel, in {check_installation()}")
        except ImportError as error:
            sys.exit(str(error))
