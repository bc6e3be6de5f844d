r"""Mends the samples of a cheap solver with a correction that is learned from few pairs.

On the inputs that both levels solved, a network learns the difference of the outputs as a function of
the input *and of the cheap output*; all other cheap samples are then corrected by it. The sum telescopes
over the levels as in multilevel Monte Carlo,

$$u_L(a) \approx u_0(a) + \sum_{l=1}^{L} D_l\bigl(a,\, \tilde u_{l-1}(a)\bigr), \qquad
  \tilde u_l = \tilde u_{l-1} + D_l(a, \tilde u_{l-1})$$

Multi-fidelity networks that take the cheap output as an input are those of Meng and Karniadakis
(arXiv:1903.00104, section 2); learning the differences level by level is Lye, Mishra and Molinaro
(arXiv:1909.09448), as functions of the input alone. What a cheap solver does to a front or an interface
is a matter of its neighbourhood, and the cheap output shows where these are: that is why few pairs do.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from opifex.core.batches import in_batches
from opifex.core.checks import (
    check_callable,
    check_nonnegative_int,
    check_positive,
    check_positive_int,
)
from opifex.data import FieldNormalizer, OperatorData
from opifex.models import NormalizedModel
from opifex.training.multilevel import CascadeTrainer, MultilevelConfig, MultilevelOptimizer
from opifex.training.sample_levels.allocation import SampleAllocation
from opifex.training.sample_levels.measurement import SampleSolver, check_same_inputs, solved

__all__ = ["CorrectedSamples", "Correction", "correct_samples"]

HELD_OUT = 8
"""One pair in this many is kept to measure the correction."""

EVALUATED_AT_ONCE = 256
"""Samples that are corrected together."""


@dataclass(frozen=True)
class Correction:
    """A learned difference of two levels.

    Attributes:
        model: takes inputs and outputs of the lower level, concatenated along the channels, and gives
            the difference, all in the units of the data.
        level: the higher of the two levels.
        difference: of the two levels, root mean square over the held-out pairs divided by the
            deviation of the outputs: what stays without the correction.
        error: of the corrected outputs, measured in the same way on the same pairs.
        pairs: on which it was trained.
        seconds: processor seconds of its training with compilation, and of correcting the samples:
            what `allocate_samples` takes as ``correction_seconds``.
    """

    model: NormalizedModel
    level: int
    difference: float
    error: float
    pairs: int
    seconds: float


@dataclass(frozen=True)
class CorrectedSamples:
    """What `correct_samples` made.

    Attributes:
        data: all samples, with outputs as the highest level would give them.
        corrections: one for each pair of neighbouring levels.
    """

    data: OperatorData
    corrections: tuple[Correction, ...]


def _loss(model: Any, fields: Any, differences: Any) -> jax.Array:
    # Not relative: the difference of a sample may vanish.
    return jnp.mean(jnp.square(model(fields) - differences))


def _learn(
    network: nnx.Module,
    fields: np.ndarray,
    differences: np.ndarray,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> NormalizedModel:
    """A network for given differences, in the units of the data."""
    inputs, outputs = FieldNormalizer.fit(fields), FieldNormalizer.fit(differences)
    # A difference of zero stays zero: scaled, but not shifted.
    outputs = FieldNormalizer(0 * outputs.mean, outputs.deviation)
    # Batches of equal size, so that none of the few pairs is left out of an epoch.
    batch = len(fields) // -(-len(fields) // batch_size)
    per_epoch = len(fields) // batch
    epochs = max(1, steps // per_epoch)
    schedule = optax.cosine_decay_schedule(learning_rate, epochs * per_epoch)
    config = MultilevelConfig(num_levels=1, level_epochs=[epochs], compile_ahead=False)
    trainer = CascadeTrainer([network], MultilevelOptimizer(optax.adam(schedule)), config=config)
    # Solvers work in double precision, networks in that of JAX.
    data = (jnp.asarray(inputs.normalize(fields)), jnp.asarray(outputs.normalize(differences)))
    trainer.fit(_loss, data, batch_size=batch, key=jax.random.key(seed))
    return NormalizedModel(trainer.model, inputs, outputs)


@nnx.jit
def _compiled(model: Any, fields: Any) -> jax.Array:
    return model(fields)


def _evaluated(model: NormalizedModel, fields: np.ndarray) -> np.ndarray:
    return np.asarray(_compiled(model, fields))


def correct_samples(
    solve: SampleSolver,
    allocation: SampleAllocation,
    build: Callable[[nnx.Rngs], nnx.Module],
    *,
    steps: int = 1000,
    learning_rate: float = 3e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> CorrectedSamples:
    """Solve samples on several levels, and mend those of the cheap ones.

    Args:
        solve: the solver, see `SampleSolver`.
        allocation: how many samples on which level, from `allocate_samples` or by hand.
        build: ``build(rngs)`` makes the network of a correction, an operator on the grid of the data
            with ``channels of inputs + channels of outputs`` channels in and ``channels of outputs``
            out. It is called once for each pair of levels.
        steps: training steps of each correction, of Adam with a cosine decay.
        learning_rate: at the start.
        batch_size: pairs in a step, at most; fewer where that divides them better.
        seed: of the samples, the networks and the batches.

    Returns:
        As many samples as the lowest level has. Outputs that the highest level solved are its own.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is out of range, the samples are not finite or not the same ones on all
            levels, or there are not two pairs for a correction.

    Warns:
        UserWarning: if a correction does not halve the difference on the pairs that were held out.

    Example:
        >>> import numpy as np
        >>> from opifex.models import FNO
        >>> from opifex.training.sample_levels import SampleAllocation, correct_samples
        >>> def solve(level, num_samples, seed):
        ...     phase = np.random.default_rng(seed).uniform(size=(num_samples, 1, 1))
        ...     wave = np.sin(2 * np.pi * (np.linspace(0, 1, 16, False)[:, None] + phase))
        ...     return wave, wave * (1.0 if level else 0.8)
        >>> def build(rngs):
        ...     return FNO(3, 8, input_dim=2, num_layers=1, grid_kind="periodic", rngs=rngs)
        >>> made = correct_samples(solve, SampleAllocation((0, 1), (40, 16)), build, steps=100)
        >>> made.corrections[0].error < 0.5 * made.corrections[0].difference
        True
    """
    check_callable("solve", solve)
    check_callable("build", build)
    if not isinstance(allocation, SampleAllocation):
        raise TypeError(f"allocation must be a SampleAllocation, got {type(allocation).__name__}")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        check_positive_int(name, value)
    check_positive("learning_rate", learning_rate)
    check_nonnegative_int("seed", seed)
    if len(allocation.levels) > 1 and allocation.counts[-1] < 2:
        raise ValueError(
            f"allocation must have at least 2 samples on its highest level, to learn from one and "
            f"measure on the other, got {allocation.counts}"
        )
    inputs, outputs = solved(solve, allocation.levels[0], allocation.counts[0], seed)
    corrections = []
    for level, count in itertools.islice(
        zip(allocation.levels, allocation.counts, strict=True), 1, None
    ):
        finer = solved(solve, level, count, seed)
        check_same_inputs(inputs[:count], finer.inputs, level)
        fields = np.concatenate([inputs, outputs], axis=-1)
        differences = finer.outputs - outputs[:count]
        held = np.arange(count) >= count - max(1, count // HELD_OUT)
        start = time.process_time()
        network = build(nnx.Rngs(seed + level))
        model = _learn(
            network,
            fields[:count][~held],
            differences[~held],
            steps,
            learning_rate,
            batch_size,
            seed,
        )
        found = np.concatenate(in_batches(partial(_evaluated, model), fields, EVALUATED_AT_ONCE))
        seconds = time.process_time() - start
        scale = np.asarray(FieldNormalizer.fit(finer.outputs).deviation)

        def size(errors: np.ndarray, scale: np.ndarray = scale) -> float:
            return float(np.sqrt(np.mean((errors / scale) ** 2)))

        before = size(differences[held])
        after = size(differences[held] - found[:count][held])
        if after > 0.5 * before:
            warnings.warn(
                f"the correction from {count - held.sum()} pairs does not halve the difference to level "
                f"{level} on the {held.sum()} pairs that were held out ({before:.3g} to {after:.3g}): "
                "more samples of that level, another network or more steps may",
                stacklevel=2,
            )
        corrections.append(
            Correction(model, level, before, after, int(count - held.sum()), seconds)
        )
        outputs = outputs + found
        outputs[:count] = finer.outputs
    return CorrectedSamples(OperatorData(inputs, outputs), tuple(corrections))
