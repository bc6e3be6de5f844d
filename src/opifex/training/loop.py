"""The compiled inner loop: the only place with a device loop, shuffling and buffer donation.

One call of the compiled program takes as many steps as the host asks for, up to a fixed capacity,
and stops by itself at the first loss that is not finite. The host looks in only between calls. The
number of steps is an argument of the program, not a constant in it, so that one compilation serves
every call and any stopping point can be reached again exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from opifex.core.checks import check_positive_int
from opifex.training.objective import Objective, split_model
from opifex.training.smoothers import Smoother

__all__ = ["CompiledLoop", "LoopState", "check_data", "enable_compilation_cache"]


class LoopState(NamedTuple):
    """Everything a run depends on, as one pytree.

    Attributes:
        params: trainable parameters.
        rest: all other variables of the model.
        smoother: state of the smoother.
        key: random key from which the keys of all later steps follow.
        step: steps taken on this level.
        order: the current epoch's order of the samples; empty for full-batch training.
    """

    params: Any
    rest: Any
    smoother: Any
    key: PRNGKeyArray
    step: Int[Array, ""]
    order: Int[Array, " samples"]


class _Carry(NamedTuple):
    state: LoopState
    losses: Float[Array, " capacity"]
    taken: Int[Array, ""]
    finite: Array


def check_data(data: Any, batch_size: int | None) -> tuple[tuple[Any, ...], int]:
    """Validate training data.

    Args:
        data: tuple of arrays (or pytrees of arrays) handed to the loss after the model.
        batch_size: samples per step, or ``None`` for full-batch training.

    Returns:
        The data with every leaf on the device, and the number of steps per epoch.

    Raises:
        TypeError: if ``data`` is not a tuple or list, or holds something that is not numeric.
        ValueError: if mini-batches are asked for and the arrays do not share their first axis, or
            hold fewer samples than one batch.
    """
    if not isinstance(data, tuple | list):
        raise TypeError(
            f"data must be a tuple of arrays, got {type(data).__name__}; write (x,) for one array"
        )
    try:
        arrays = jax.tree.map(jnp.asarray, tuple(data))
    except (TypeError, ValueError) as error:
        raise TypeError(f"data must hold arrays of numbers: {error}") from error
    if batch_size is None:
        return arrays, 1
    check_positive_int("batch_size", batch_size)
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(arrays)}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            "data must share its first axis (the samples) when batch_size is given, got first "
            f"axes {[leaf.shape[:1] for leaf in jax.tree.leaves(arrays)]}"
        )
    (samples,) = sizes
    if samples < batch_size:
        raise ValueError(f"batch_size must be at most the {samples} samples, got {batch_size}")
    return arrays, samples // batch_size


class CompiledLoop:
    """The training program of one level.

    Mini-batches are drawn on the device: a fresh random order each epoch, cut into
    ``samples // batch_size`` batches; the remainder of an epoch is dropped, and is another one in
    the next epoch.

    Args:
        objective: what is minimised.
        smoother: what minimises it.
        data: arrays handed to the loss, as `check_data` returns them.
        batch_size: samples per step, or ``None`` for all data at every step.
        capacity: largest number of steps of one call.
    """

    def __init__(
        self,
        objective: Objective,
        smoother: Smoother,
        data: tuple[Any, ...],
        *,
        batch_size: int | None = None,
        capacity: int,
    ) -> None:
        smoother.check(objective)
        self.objective = objective
        self.smoother = smoother
        self.data, self.steps_per_epoch = check_data(data, batch_size)
        self.batch_size = batch_size
        self.capacity = check_positive_int("capacity", capacity)
        self._samples = jax.tree.leaves(self.data)[0].shape[0] if batch_size is not None else 0
        self._jitted = jax.jit(self._run, donate_argnums=0)
        self._compiled: Future[Any] | None = None
        # Compilation may happen in another thread, which does not see the context of this one.
        self._double_precision = jnp.result_type(float) == jnp.float64

    def initial_state(self, model: nnx.Module, smoother_state: Any, key: PRNGKeyArray) -> LoopState:
        """State at step zero. Its buffers are copies: the model's own are never donated."""
        _, params, rest = split_model(model)
        return jax.tree.map(
            jnp.copy,
            LoopState(
                params,
                rest,
                smoother_state,
                key,
                jnp.zeros((), jnp.int32),
                jnp.arange(self._samples, dtype=jnp.int32),
            ),
        )

    def single_step(
        self, state: LoopState, data: tuple[Any, ...]
    ) -> tuple[LoopState, Float[Array, ""]]:
        """One step, not compiled: what the loop repeats."""
        key, order, batch = state.key, state.order, data
        step_key = None
        if self.batch_size is not None:
            position = state.step % self.steps_per_epoch

            def shuffle() -> tuple[PRNGKeyArray, Array]:
                new, now = jax.random.split(state.key)
                return new, jax.random.permutation(now, self._samples).astype(jnp.int32)

            key, order = jax.lax.cond(position == 0, shuffle, lambda: (key, state.order))
            chosen = jax.lax.dynamic_slice_in_dim(
                order, position * self.batch_size, self.batch_size
            )
            batch = jax.tree.map(lambda leaf: leaf[chosen], data)
        if self.objective.takes_key:
            key, step_key = jax.random.split(key)
        params, rest, smoother, value = self.smoother.step(
            self.objective, state.params, state.rest, state.smoother, batch, step_key
        )
        return LoopState(params, rest, smoother, key, state.step + 1, order), value

    def _run(
        self, state: LoopState, data: tuple[Any, ...], steps: Int[Array, ""]
    ) -> tuple[LoopState, Float[Array, " capacity"], Int[Array, ""], Array]:
        loss_type = jax.eval_shape(lambda s: self.single_step(s, data)[1], state).dtype

        def proceed(carry: _Carry) -> Array:
            return (carry.taken < steps) & carry.finite

        def body(carry: _Carry) -> _Carry:
            new, value = self.single_step(carry.state, data)
            return _Carry(
                new,
                carry.losses.at[carry.taken].set(value),
                carry.taken + 1,
                jnp.isfinite(value),
            )

        start = _Carry(
            state,
            jnp.full((self.capacity,), jnp.nan, loss_type),
            jnp.zeros((), jnp.int32),
            jnp.ones((), bool),
        )
        end = jax.lax.while_loop(proceed, body, start)
        healthy = jax.tree.reduce(
            lambda so_far, leaf: so_far & jnp.all(jnp.isfinite(leaf)), end.state.params, end.finite
        )
        return end.state, end.losses, end.taken, healthy

    def _compile(self, state: Any) -> Any:
        steps = jax.ShapeDtypeStruct((), jnp.int32)
        with jax.enable_x64(self._double_precision):
            return self._jitted.lower(state, self.data, steps).compile()

    def compile(self, state: Any, executor: ThreadPoolExecutor | None = None) -> None:
        """Compile for a state (its shapes are enough), in a thread of ``executor`` if given."""
        if self._compiled is not None:
            return
        shapes = jax.eval_shape(lambda: state)
        if executor is not None:
            self._compiled = executor.submit(self._compile, shapes)
        else:
            # Kept only once it is there: after an error nobody may wait for a result.
            program = self._compile(shapes)
            self._compiled = Future()
            self._compiled.set_result(program)

    def wait(self) -> None:
        """Wait until the program is compiled."""
        if self._compiled is not None:
            self._compiled.result()

    def run(self, state: LoopState, steps: int) -> tuple[LoopState, np.ndarray, bool]:
        """Take up to ``steps`` steps. The buffers of ``state`` are consumed.

        Args:
            state: where to start.
            steps: how many steps, at most ``capacity``.

        Returns:
            The new state, the losses before each step taken, and whether every loss and the new
            parameters are finite. If not, the loop stopped after the step whose loss is the last.
        """
        if not 0 < steps <= self.capacity:
            raise ValueError(f"steps must be in 1..{self.capacity}, got {steps}")
        self.compile(state)
        assert self._compiled is not None
        new, losses, taken, healthy = self._compiled.result()(
            state, self.data, jnp.asarray(steps, jnp.int32)
        )
        return new, np.asarray(losses)[: int(taken)], bool(healthy)

    def step_cost(self, state: Any) -> float | None:
        """Floating-point operations of one step by XLA's count, or ``None`` where it has none."""
        with jax.enable_x64(self._double_precision):
            lowered = jax.jit(self.single_step).lower(jax.eval_shape(lambda: state), self.data)
            analysis = lowered.cost_analysis()
        if isinstance(analysis, Sequence):
            analysis = analysis[0] if analysis else None
        flops = (analysis or {}).get("flops", 0.0)
        return float(flops) if flops > 0 else None


def enable_compilation_cache(folder: str) -> None:
    """Keep compiled programs in a folder, so that the next process does not compile them again."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
