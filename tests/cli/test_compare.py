"""Configurations and strategies side by side, with the ratio of their times to an equal error."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from opifex.cli.comparison import compare_histories
from opifex.cli.errors import CommandError
from opifex.cli.parts import load_history
from opifex.cli.run_folder import RunFolder
from opifex.loggers.table_files import read_rows
from opifex.training.multilevel import History

POISSON = """\
problem:
  name: poisson
  interior_points: 40
  boundary_points: 16
hierarchy:
  levels: 2
  hidden: [6]
optimizer: adam
epochs: [4, 6]
output: out
loggers: []
"""


def recorded(errors, seconds=1.0, name="error"):
    """A history of one step of work one and of given seconds between evaluations."""
    history = History()
    history.begin()
    history.set_unit(1.0)
    for i, error in enumerate(errors):
        history.record_steps(0, np.array([1.0]), seconds, 1.0)
        history.stopwatch.seconds = {"training": seconds * (i + 1), "compilation": 0.5}
        history.record_evaluation(0, i + 1, {name: error})
    return history


def test_ratio_of_times_to_the_worst_of_the_best_errors():
    runs = {
        "slow": {0: recorded([0.5, 0.2, 0.1], 2.0)},
        "fast": {0: recorded([0.3, 0.05, 0.04], 1.0)},
    }
    target, (slow, fast) = compare_histories(runs)
    assert target == 0.1
    assert slow["seconds to target"] == 6.5
    assert fast["seconds to target"] == 2.5
    assert (slow["ratio"], fast["ratio"]) == (1.0, 6.5 / 2.5)
    assert (fast["training seconds to target"], fast["work to target"]) == (2.0, 2.0)


def test_medians_over_seeds_count_those_that_did_not_arrive():
    runs = {
        "a": {0: recorded([0.1]), 1: recorded([0.3]), 2: recorded([0.3, 0.1])},
        "b": {0: recorded([0.3]), 1: recorded([0.3]), 2: recorded([0.1])},
    }
    _, (first, second) = compare_histories(runs, target=0.2)
    assert (first["reached by"], second["reached by"]) == (2, 1)
    assert first["seconds to target"] == 2.5
    assert np.isinf(second["seconds to target"])
    assert np.isnan(second["ratio"])


def test_without_errors_there_is_nothing_to_compare():
    with pytest.raises(CommandError, match="b has no error to compare"):
        compare_histories({"a": {0: recorded([0.1])}, "b": {0: recorded([0.1], name="other")}})


@pytest.mark.slow
def test_configurations_side_by_side(command, monkeypatch):
    forgotten = []
    monkeypatch.setattr(jax, "clear_caches", lambda: forgotten.append(1))
    command.write(POISSON, "base.yaml")
    command.write(
        POISSON.replace("output: out", "output: other").replace("adam", "sgd"), "descent.yaml"
    )
    output = command("compare", "base.yaml", "descent.yaml", "-o", "both")
    assert "time to error" in output
    assert len(forgotten) == 2  # neither finds programs that the other has compiled
    folder = command.folder / "both"
    lines = (folder / "comparison.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["configuration", "base", "descent"]
    assert (folder / "error-over-work.svg").exists()
    assert (folder / "error-over-elapsed-seconds.svg").exists()
    # What was run already is taken as it is.
    before = (command.folder / "out" / "status.json").read_text(encoding="utf-8")
    output = command("compare", "base.yaml", "descent.yaml", "--no-figures")
    assert "base: taken from out" in output
    assert (command.folder / "out" / "status.json").read_text(encoding="utf-8") == before
    command.write(POISSON.replace("[4, 6]", "[4, 7]"), "base.yaml")
    output = command("compare", "base.yaml", "descent.yaml", code=2)
    assert "out holds a finished run with another epochs" in output


@pytest.mark.slow  # the page of the command line runs it, too
def test_the_finest_level_alone_gets_as_much_work(command):
    command.write(POISSON)
    command(
        "compare", "config.yaml", "--strategies", "cascade,finest", "--no-figures", "-o", "both"
    )
    work = [
        load_history(RunFolder(command.folder / "both" / name)).work
        for name in ("cascade", "finest")
    ]
    assert work[1] == pytest.approx(work[0], abs=0.5)
    assert {
        row["level"] for row in read_rows(command.folder / "both" / "finest" / "metrics.csv")
    } == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config.yaml", "--strategies", "vcycle"], "did you mean v-cycle?"),
        (["config.yaml", "b.yaml", "--strategies", "finest"], "goes with one configuration"),
        (["config.yaml", "config.yaml"], "must have different names"),
        (["config.yaml", "b.yaml"], "must have different output folders"),
    ],
)
def test_what_cannot_be_compared_is_refused(command, arguments, message):
    command.write(POISSON)
    command.write(POISSON, "b.yaml")
    assert message in command("compare", *arguments, code=2)
