"""Configurations and commands that several tests of the command line use."""

import re
import shlex

POISSON = """\
problem:
  name: poisson
  interior_points: 40
  boundary_points: 16
hierarchy:
  levels: 2
  hidden: [6]
optimizer:
  name: adam
  learning_rate: 1e-2
epochs: [4, 6]
evaluation_interval: 2
output: out
loggers: []
"""


def shorten(path):
    """The same configuration with less of everything that costs time."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"levels: \d+", "levels: 2", text)
    text = re.sub(r"epochs: \[[\d, ]+\]", "epochs: [2, 2]", text)
    text = re.sub(r"width: \d+", "width: 3", text)
    text = re.sub(r"layers: \d+", "layers: 1", text)
    text = re.sub(r"hidden: \[\d+, \d+\]", "hidden: [8]", text)
    text = re.sub(r"_points: \d+", "_points: 32", text)
    path.write_text(text, encoding="utf-8")


def commands_of(page):
    """The arguments of all commands on a page of the documentation."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ opifex-multilevel ") for line in lines)
    return [shlex.split(line)[2:] for line in lines]
