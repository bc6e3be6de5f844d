"""What importing the library costs beside importing JAX, Flax NNX and Optax, which it needs anyway.

Fresh interpreters take turns. Processor seconds are counted from the start of the interpreter to the end
of the import, so that other work on the machine counts little; files are in the system's cache, since
the first round is left out.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from rich.console import Console

from common import parser, write_results
from opifex.viz import comparison_table

NEEDED = "import jax, flax.nnx, optax"
IMPORTS = (
    NEEDED,
    "import opifex.training.multilevel",
    "import opifex.problems",
    "import opifex.data",
    "import opifex.storage",
    "import opifex.viz",
)
CLOCK = "import time; print(time.process_time(), flush=True); import os; os._exit(0)"
MOST = 1.3


def processor_seconds(statement: str) -> float:
    """Processor seconds of a fresh interpreter up to the end of an import."""
    program = f"{statement}\n{CLOCK}"
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return float(run.stdout)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=11)
    rounds = options.parse_args().rounds
    seconds: dict[str, list[float]] = {statement: [] for statement in IMPORTS}
    for i in range(rounds + 1):
        for statement in IMPORTS:
            spent = processor_seconds(statement)
            if i > 0:
                seconds[statement].append(spent)
    rows: list[dict[str, Any]] = []
    for statement in IMPORTS:
        # Quotients within a round: what slows the machine for a while slows both.
        quotients = [b / a for a, b in zip(seconds[NEEDED], seconds[statement], strict=True)]
        rows.append(
            {
                "import": f"`{statement}`",
                "processor seconds": statistics.median(seconds[statement]),
                "ratio": statistics.median(quotients),
                "highest ratio": max(quotients),
            }
        )
    Console().print(comparison_table(rows, title="importing"))
    write_results("import_time", rows=rows, rounds=rounds, goal=MOST)


if __name__ == "__main__":
    main()
