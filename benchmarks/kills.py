"""Processes killed at random moments: what the runs that are taken up end with.

Of every strategy at least so many processes that train and save are killed (SIGKILL): some after a
random part of the time that a whole run takes, while they start or compile; most soon after a random
number of checkpoints, while they train, transfer or save. A run is started again until it comes to its
end, and compared with one that was left alone: parameters, optimizer state, losses, evaluations,
transitions, work, bit for bit. See `tests/reliability/killing.py`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import parser, write_results

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
STRATEGIES = importlib.import_module("reliability.strategies").STRATEGIES


def main() -> None:
    """All strategies."""
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=30, help="of each strategy, at least")
    given = options.parse_args()
    rows = []
    for name in STRATEGIES:
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
                "KILLED_PROGRAMS": str(Path(folder) / "programs"),
            }
            command = [sys.executable, "-W", "ignore", "-m", "reliability.killing"]
            done = subprocess.run(
                [*command, name, str(given.kills), str(given.seeds[0]), folder],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append({**found, "what differed": found["different"]})
        rows[-1]["different"] = len(found["different"])
        print(rows[-1], flush=True)
        write_results("kills", rows=rows)


if __name__ == "__main__":
    main()
