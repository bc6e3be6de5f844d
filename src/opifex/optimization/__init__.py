"""Optimizers beyond those of Optax."""
