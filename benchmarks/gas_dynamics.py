"""Waves of a gas that steepen into shocks: data whose solver costs more than the training.

The Euler equations in one periodic space dimension, a gas of ratio of specific heats 1.4 that starts
with density and pressure one and a random velocity of four sine and four cosine waves. Finite volumes
of second order: primitive variables reconstructed with the minmod limiter, the flux of Harten, Lax and
van Leer, two Runge-Kutta stages that preserve strong stability (Toro, Riemann Solvers, 3rd ed. 2009,
sections 10.3 and 14). At shocks the scheme is of first order; the cost grows with the square of the
cells.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opifex.data.cache import cached_arrays

RATIO_OF_SPECIFIC_HEATS = 1.4
WAVES = 4
AMPLITUDE = 0.4
FINAL_TIME = 0.5
COURANT = 0.45
POINTS = 128
"""Cells of the grid on which networks work: averages of the solver's cells."""
REFERENCE_CELLS = 2048
"""Of the finest solver; the averages of the initial velocity are taken of as many values."""
CELLS_PER_BATCH = 8192
"""So many fit the cache of a processor core; larger batches took up to twice as long per sample."""
BLOCK = 1024
"""Samples in a file of the cache, at most."""


def _flux(conserved: jax.Array) -> jax.Array:
    density, momentum, energy = conserved
    velocity = momentum / density
    pressure = (RATIO_OF_SPECIFIC_HEATS - 1) * (energy - 0.5 * momentum * velocity)
    return jnp.stack([momentum, momentum * velocity + pressure, (energy + pressure) * velocity])


def _primitive(conserved: jax.Array) -> jax.Array:
    density, momentum, energy = conserved
    velocity = momentum / density
    pressure = (RATIO_OF_SPECIFIC_HEATS - 1) * (energy - 0.5 * momentum * velocity)
    return jnp.stack([density, velocity, pressure])


def _conserved(primitive: jax.Array) -> jax.Array:
    density, velocity, pressure = primitive
    energy = pressure / (RATIO_OF_SPECIFIC_HEATS - 1) + 0.5 * density * velocity**2
    return jnp.stack([density, density * velocity, energy])


def _sound(primitive: jax.Array) -> jax.Array:
    density, _, pressure = primitive
    return jnp.sqrt(RATIO_OF_SPECIFIC_HEATS * pressure / density)


def _change(conserved: jax.Array, width: float) -> jax.Array:
    """Time derivative of the cell averages, shape (3, samples, cells)."""
    primitive = _primitive(conserved)
    forward = jnp.roll(primitive, -1, -1) - primitive
    backward = jnp.roll(forward, 1, -1)
    smaller = jnp.where(jnp.abs(forward) < jnp.abs(backward), forward, backward)
    slope = jnp.where(forward * backward > 0, smaller, 0.0)
    left = primitive + 0.5 * slope
    right = jnp.roll(primitive - 0.5 * slope, -1, -1)
    slowest = jnp.minimum(jnp.minimum(left[1] - _sound(left), right[1] - _sound(right)), 0.0)
    fastest = jnp.maximum(jnp.maximum(left[1] + _sound(left), right[1] + _sound(right)), 0.0)
    below, above = _conserved(left), _conserved(right)
    flux = (
        fastest * _flux(below) - slowest * _flux(above) + slowest * fastest * (above - below)
    ) / (fastest - slowest)
    return -(flux - jnp.roll(flux, 1, -1)) / width


@jax.jit
def _evolve(conserved: jax.Array, final_time: Any) -> jax.Array:
    width = 1.0 / conserved.shape[-1]

    def unfinished(carry: Any) -> Any:
        return jnp.any(carry[1] < final_time)

    def step(carry: Any) -> Any:
        state, now = carry
        primitive = _primitive(state)
        # Steps of every sample's own, so that a sample does not depend on its batch.
        speed = jnp.max(jnp.abs(primitive[1]) + _sound(primitive), axis=-1, keepdims=True)
        length = jnp.minimum(COURANT * width / speed, final_time - now)
        first = state + length * _change(state, width)
        second = 0.5 * (state + first + length * _change(first, width))
        return second, now + length

    return jax.lax.while_loop(unfinished, step, (conserved, jnp.zeros_like(conserved[0, :, :1])))[0]


def _velocities(num_samples: int, cells: int, seed: int) -> np.ndarray:
    """Initial velocities at the centres of the cells; one seed gives the same waves on every grid."""
    coefficients = np.random.default_rng(seed).standard_normal((num_samples, 2, WAVES))
    wave = np.arange(1, WAVES + 1)
    phase = 2 * np.pi * wave[:, None] * (np.arange(cells) + 0.5) / cells
    decay = AMPLITUDE * wave[:, None] ** -1.5
    return coefficients[:, 0] @ (np.cos(phase) * decay) + coefficients[:, 1] @ (
        np.sin(phase) * decay
    )


def _averages(fields: np.ndarray, cells: int) -> np.ndarray:
    return fields.reshape(*fields.shape[:-1], cells, -1).mean(axis=-1)


@dataclass(frozen=True)
class GasData:
    """Solved samples on the grid of the networks.

    Attributes:
        inputs: initial velocity, shape (samples, 128, 1), float32.
        outputs: density, momentum and energy at the final time, shape (samples, 128, 3).
        seconds: processor seconds of one sample, without compilation.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    seconds: float


def batch_of(cells: int) -> int:
    """Samples that are solved at a time, whatever the number asked for: one program for each solver."""
    return max(4, CELLS_PER_BATCH // cells)


def compilation_seconds(cells: int) -> float:
    """Processor seconds to compile the solver."""
    with jax.enable_x64(True):
        start = time.process_time()
        shape = (3, batch_of(cells), cells)
        _evolve.lower(jax.ShapeDtypeStruct(shape, jnp.float64), FINAL_TIME).compile()
        return time.process_time() - start


def computed(num_samples: int, cells: int, seed: int, first: int = 0) -> GasData:
    """Solve random samples in float64 on a number of cells.

    The first samples of a longer set are those of a shorter one with the same seed; ``first`` of them
    are left out.
    """
    velocity = _velocities(first + num_samples, cells, seed)[first:]
    still = np.ones_like(velocity)
    batch = batch_of(cells)
    with jax.enable_x64(True):
        initial = np.asarray(_conserved(jnp.asarray(np.stack([still, velocity, still]))))
        # The last batch is filled up with samples that are thrown away.
        batches = [
            initial[:, np.arange(start, start + batch) % num_samples]
            for start in range(0, num_samples, batch)
        ]
        jax.block_until_ready(_evolve(jnp.asarray(batches[0]), 0.0))
        begun = time.process_time()
        parts = [
            _averages(np.asarray(_evolve(jnp.asarray(x), FINAL_TIME)), POINTS) for x in batches
        ]
        seconds = (time.process_time() - begun) / (len(batches) * batch)
    inputs = _averages(_velocities(first + num_samples, REFERENCE_CELLS, seed)[first:], POINTS)
    outputs = np.concatenate(parts, axis=1)[:, :num_samples]
    return GasData(
        inputs[..., None].astype(np.float32),
        np.moveaxis(outputs, 0, -1).astype(np.float32),
        seconds,
    )


def _block(num_samples: int, cells: int, seed: int, first: int) -> GasData:
    """Samples kept in the cache with their cost."""

    def compute() -> dict[str, np.ndarray]:
        found = computed(num_samples, cells, seed, first)
        return {
            "inputs": found.inputs,
            "outputs": found.outputs,
            "seconds": np.asarray(found.seconds),
        }

    parameters = {
        "version": 2,
        "first": first,
        "num_samples": num_samples,
        "cells": cells,
        "seed": seed,
    }
    found = cached_arrays("gas", parameters, compute)
    return GasData(found["inputs"], found["outputs"], float(found["seconds"]))


def solve(num_samples: int, cells: int, seed: int) -> GasData:
    """The same as `computed`, kept in the cache in blocks, so that a set can be made longer."""
    counts = [min(BLOCK, num_samples - first) for first in range(0, num_samples, BLOCK)]
    blocks = [_block(count, cells, seed, BLOCK * i) for i, count in enumerate(counts)]
    return GasData(
        np.concatenate([block.inputs for block in blocks]),
        np.concatenate([block.outputs for block in blocks]),
        float(np.average([block.seconds for block in blocks], weights=counts)),
    )
