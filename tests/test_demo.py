"""The example that ``make demo`` runs, with tiny networks."""

import importlib.util
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

EXAMPLE = Path(__file__).parent.parent / "examples" / "poisson_cascade.py"


def test_example_prints_a_table_and_draws_a_figure(tmp_path, capsys):
    specification = importlib.util.spec_from_file_location("poisson_cascade", EXAMPLE)
    example = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = example  # dataclasses look their module up
    specification.loader.exec_module(example)
    results = example.main(quick=True, folder=str(tmp_path))
    printed = capsys.readouterr().out
    assert (tmp_path / "poisson_cascade.png").stat().st_size > 10_000
    assert "Results" in printed
    assert "…" not in printed  # nothing is cut off at 80 columns
    for result in results:
        assert result.name.split()[0] in printed
        assert result.history.losses[-1] < result.history.losses[0]
        assert 0 < result.error < 10
    cascade, alone = results[:2]
    assert abs(cascade.history.work - alone.history.work) <= 1
