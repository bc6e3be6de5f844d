"""Waves of a gas that steepen into shocks: data whose solver costs more than the training.

The Euler equations in one or two periodic space dimensions, a gas of ratio of specific heats 1.4 that
starts with density and pressure one and the gradient of a random potential as velocity. Finite volumes
of second order: primitive variables reconstructed with the minmod limiter along each axis, the flux of
Harten, Lax and van Leer, two Runge-Kutta stages that preserve strong stability (Toro, Riemann Solvers,
3rd ed. 2009, sections 10.3, 14 and 16.3). At shocks the scheme is of first order; the cost grows with
the cells per side to the power of dimensions plus one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opifex.data.cache import cached_arrays

RATIO_OF_SPECIFIC_HEATS = 1.4
AMPLITUDE = 0.4
FINAL_TIME = 0.5
CELLS_PER_BATCH = 8192
"""So many fit the cache of a processor core; larger batches took up to twice as long per sample."""
BLOCK = 256
"""Samples in a file of the cache, at most."""


@dataclass(frozen=True)
class Gas:
    """A set of random initial states and how they are solved.

    Attributes:
        waves: integer wave vectors of the initial potential.
        courant: length of a step times the sum over the axes of the fastest waves, in cells.
        points: cells per side of the grid on which networks work: averages of the solver's cells.
        reference_cells: per side, of the solver whose solutions networks are judged on.
        precision: of the solver.
        smallest_batch: samples that are solved at a time, at least.
    """

    waves: tuple[tuple[int, ...], ...]
    courant: float
    points: int
    reference_cells: int
    precision: str
    smallest_batch: int

    @property
    def dimensions(self) -> int:
        """Of space."""
        return len(self.waves[0])

    def batch(self, cells: int) -> int:
        """Samples that are solved at a time, however many are wanted: one program for each solver."""
        return max(self.smallest_batch, CELLS_PER_BATCH // cells**self.dimensions)


LINE = Gas(tuple((k,) for k in (1, 2, 3, 4)), 0.45, 128, 2048, "float64", 4)
"""One dimension."""
SQUARE = Gas(((1, 0), (0, 1), (1, 1), (1, -1)), 0.8, 32, 256, "float32", 1)
"""Two dimensions."""


def flux(primitive: jax.Array, axis: int) -> jax.Array:
    """Of mass, momentum and energy along an axis."""
    density, velocity, pressure = primitive[0], primitive[1:-1], primitive[-1]
    energy = pressure / (RATIO_OF_SPECIFIC_HEATS - 1) + 0.5 * density * jnp.sum(velocity**2, axis=0)
    across = velocity[axis]
    momentum = (density * across * velocity).at[axis].add(pressure)
    return jnp.concatenate(
        [(density * across)[None], momentum, ((energy + pressure) * across)[None]]
    )


def primitive_of(conserved: jax.Array) -> jax.Array:
    """Density, velocity and pressure, shape (fields, samples, cells...), of what is conserved."""
    density, momentum, energy = conserved[:1], conserved[1:-1], conserved[-1:]
    velocity = momentum / density
    kinetic = 0.5 * jnp.sum(momentum * velocity, axis=0, keepdims=True)
    return jnp.concatenate([density, velocity, (RATIO_OF_SPECIFIC_HEATS - 1) * (energy - kinetic)])


def conserved_of(primitive: jax.Array) -> jax.Array:
    """Density, momentum and energy of density, velocity and pressure."""
    density, velocity, pressure = primitive[:1], primitive[1:-1], primitive[-1:]
    kinetic = 0.5 * density * jnp.sum(velocity**2, axis=0, keepdims=True)
    energy = pressure / (RATIO_OF_SPECIFIC_HEATS - 1) + kinetic
    return jnp.concatenate([density, density * velocity, energy])


def sound(primitive: jax.Array) -> jax.Array:
    """Its speed."""
    return jnp.sqrt(RATIO_OF_SPECIFIC_HEATS * primitive[-1] / primitive[0])


def _change(conserved: jax.Array, width: float) -> jax.Array:
    """Time derivative of the cell averages, shape (fields, samples, cells...)."""
    primitive = primitive_of(conserved)
    total = jnp.zeros_like(conserved)
    for direction in range(conserved.ndim - 2):
        axis = 2 + direction
        forward = jnp.roll(primitive, -1, axis) - primitive
        backward = jnp.roll(forward, 1, axis)
        smaller = jnp.where(jnp.abs(forward) < jnp.abs(backward), forward, backward)
        slope = jnp.where(forward * backward > 0, smaller, 0.0)
        left = primitive + 0.5 * slope
        right = jnp.roll(primitive - 0.5 * slope, -1, axis)
        slow = [state[1 + direction] - sound(state) for state in (left, right)]
        fast = [state[1 + direction] + sound(state) for state in (left, right)]
        slowest = jnp.minimum(jnp.minimum(*slow), 0.0)
        fastest = jnp.maximum(jnp.maximum(*fast), 0.0)
        between = (
            fastest * flux(left, direction)
            - slowest * flux(right, direction)
            + slowest * fastest * (conserved_of(right) - conserved_of(left))
        ) / (fastest - slowest)
        total -= (between - jnp.roll(between, 1, axis)) / width
    return total


@jax.jit
def evolve(conserved: jax.Array, final_time: Any, courant: Any) -> jax.Array:
    """Cell averages at the final time, shape (fields, samples, cells...), of those at the start."""
    width = 1.0 / conserved.shape[-1]
    space = tuple(range(1, conserved.ndim - 1))

    def unfinished(carry: Any) -> Any:
        return jnp.any(carry[1] < final_time)

    def step(carry: Any) -> Any:
        state, now = carry
        primitive = primitive_of(state)
        # Steps of every sample's own, so that a sample does not depend on its batch.
        speeds = jnp.sum(jnp.abs(primitive[1:-1]) + sound(primitive), axis=0)
        speed = jnp.max(speeds, axis=space, keepdims=True)
        length = jnp.minimum(courant * width / speed, final_time - now)
        first = state + length * _change(state, width)
        second = 0.5 * (state + first + length * _change(first, width))
        return second, now + length

    begun = jnp.zeros_like(conserved[0], shape=(conserved.shape[1],) + (1,) * len(space))
    return jax.lax.while_loop(unfinished, step, (conserved, begun))[0]


def velocities(gas: Gas, num_samples: int, cells: int, seed: int, averaged: bool) -> np.ndarray:
    """Initial velocities, shape (samples, dimensions, cells...): at the centres of the cells, or means.

    One seed gives the same waves on every grid, and the first samples of a longer set are those of a
    shorter one.
    """
    coefficients = np.random.default_rng(seed).standard_normal((num_samples, 2, len(gas.waves)))
    centres = np.meshgrid(*[(np.arange(cells) + 0.5) / cells] * gas.dimensions, indexing="ij")
    found = np.zeros((num_samples, gas.dimensions, *centres[0].shape))
    for (cosine, sine), wave in zip(coefficients.transpose(2, 1, 0), gas.waves, strict=True):
        length = np.linalg.norm(wave)
        phase = 2 * np.pi * np.tensordot(wave, np.stack(centres), 1)
        size = AMPLITUDE * length**-1.5
        if averaged:
            size *= np.prod(np.sinc(np.asarray(wave) / cells))
        shape = np.multiply.outer(cosine, np.cos(phase)) + np.multiply.outer(sine, np.sin(phase))
        for axis, component in enumerate(wave):
            found[:, axis] += size * component / length * shape
    return found


def _averages(fields: np.ndarray, gas: Gas) -> np.ndarray:
    """Means on the grid of the networks, shape (fields, samples, points...)."""
    for axis in range(-gas.dimensions, 0):
        parts = np.split(fields, gas.points, axis=axis)
        fields = np.concatenate([part.mean(axis=axis, keepdims=True) for part in parts], axis=axis)
    return fields


@dataclass(frozen=True)
class GasData:
    """Solved samples on the grid of the networks.

    Attributes:
        inputs: initial velocity, shape (samples, points..., dimensions), float32.
        outputs: density, momentum and energy at the final time, shape (samples, points..., fields).
        seconds: processor seconds of one sample, without compilation.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    seconds: float


def compilation_seconds(gas: Gas, cells: int) -> float:
    """Processor seconds to compile the solver."""
    with jax.enable_x64(gas.precision == "float64"):
        start = time.process_time()
        shape = (gas.dimensions + 2, gas.batch(cells), *[cells] * gas.dimensions)
        state = jax.ShapeDtypeStruct(shape, gas.precision)
        evolve.lower(state, FINAL_TIME, gas.courant).compile()
        return time.process_time() - start


def computed(gas: Gas, num_samples: int, cells: int, seed: int, first: int = 0) -> GasData:
    """Solve random samples on a number of cells per side.

    The first samples of a longer set are those of a shorter one with the same seed; ``first`` of them
    are left out.
    """
    velocity = velocities(gas, first + num_samples, cells, seed, averaged=False)[first:]
    velocity = np.moveaxis(velocity, 1, 0).astype(gas.precision)
    still = np.ones_like(velocity[:1])
    batch = gas.batch(cells)
    with jax.enable_x64(gas.precision == "float64"):
        initial = np.asarray(conserved_of(jnp.asarray(np.concatenate([still, velocity, still]))))
        # The last batch is filled up with samples that are thrown away.
        batches = [
            initial[:, np.arange(start, start + batch) % num_samples]
            for start in range(0, num_samples, batch)
        ]
        solve_batch = partial(evolve, courant=gas.courant)
        jax.block_until_ready(solve_batch(jnp.asarray(batches[0]), 0.0))
        begun = time.process_time()
        parts = [
            _averages(np.asarray(solve_batch(jnp.asarray(x), FINAL_TIME)), gas) for x in batches
        ]
        seconds = (time.process_time() - begun) / (len(batches) * batch)
    inputs = velocities(gas, first + num_samples, gas.points, seed, averaged=True)[first:]
    outputs = np.concatenate(parts, axis=1)[:, :num_samples]
    return GasData(
        np.moveaxis(inputs, 1, -1).astype(np.float32),
        np.moveaxis(outputs, 0, -1).astype(np.float32),
        seconds,
    )


def _block(gas: Gas, num_samples: int, cells: int, seed: int, first: int) -> GasData:
    """Samples kept in the cache with their cost."""

    def compute() -> dict[str, np.ndarray]:
        found = computed(gas, num_samples, cells, seed, first)
        return {
            "inputs": found.inputs,
            "outputs": found.outputs,
            "seconds": np.asarray(found.seconds),
        }

    parameters = {
        "version": 3,
        "gas": repr(gas),
        "first": first,
        "num_samples": num_samples,
        "cells": cells,
        "seed": seed,
    }
    found = cached_arrays("gas", parameters, compute)
    return GasData(found["inputs"], found["outputs"], float(found["seconds"]))


def solve(gas: Gas, num_samples: int, cells: int, seed: int) -> GasData:
    """The same as `computed`, kept in the cache in blocks, so that a set can be made longer."""
    counts = [min(BLOCK, num_samples - first) for first in range(0, num_samples, BLOCK)]
    blocks = [_block(gas, count, cells, seed, BLOCK * i) for i, count in enumerate(counts)]
    return GasData(
        np.concatenate([block.inputs for block in blocks]),
        np.concatenate([block.outputs for block in blocks]),
        float(np.average([block.seconds for block in blocks], weights=counts)),
    )
