"""The command ``opifex-multilevel``: train, resume, compare, advise, plot, report, export.

`settings` says what a configuration may hold and `configuration` reads it; `task` builds models, data
and loss from it; `training` carries a run out in a `run_folder`; the other modules serve one command
each, and `app` names the commands. Typer, pydantic, PyYAML and PyArrow (the extra ``cli``) are imported
when the command is called, not with this room.

The room may import `opifex.core`, `opifex.models`, `opifex.problems`, `opifex.data`,
`opifex.optimization`, `opifex.training`, `opifex.storage`, `opifex.viz` and `opifex.loggers`; nothing
imports it.
"""

from __future__ import annotations

import sys

from opifex_multilevel import require_own_package

require_own_package()

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of the process, and exit with its code."""
    try:
        from opifex.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "opifex":
            raise
        sys.exit(
            f"opifex-multilevel needs the package {error.name!r}: pip install 'opifex-multilevel[cli]'"
        )
    app(prog_name="opifex-multilevel")
