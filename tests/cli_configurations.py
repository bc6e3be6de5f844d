"""Configurations that several tests of the command line use."""

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
