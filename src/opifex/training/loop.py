"""The compiled inner loop: the only place with a device loop, shuffling and buffer donation.

One call of the compiled program takes as many steps as the host asks for, up to a fixed capacity,
and stops by itself at the first loss that is not finite. The number of steps is an argument of the
program, not a constant in it, so that one compilation serves every call and any stopping point can
be reached again exactly.

Programs are kept by what decides them (loss, graph definition, smoother, batch size, shapes), not
by who uses them: a second run of the same structure traces and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from opifex.core.checks import check_positive_int
from opifex.training.interrupt import waited
from opifex.training.objective import Objective, hashable, plain
from opifex.training.operations import count_operations
from opifex.training.placement import LevelPlacement, Put, moved, shape_on
from opifex.training.program_cache import compiled_program
from opifex.training.smoother import Smoother

__all__ = [
    "CAPACITY",
    "CompiledLoop",
    "LoopState",
    "as_arrays",
    "check_smoother",
    "owned",
    "rows_of_a_step",
    "steps_per_epoch",
]

CAPACITY = 8192
"""Most steps of one call: the losses of a call come back in a buffer of this size."""


class LoopState(NamedTuple):
    """Everything the steps on one level depend on, as one pytree.

    Attributes:
        params: trainable parameters.
        rest: all other variables of the model.
        smoother: state of the smoother.
        key: random key from which the keys of all later steps follow.
        step: steps taken in this visit of the level.
        order: the current epoch's order of the samples, of each part where they lie in parts; empty
            for full-batch training.
    """

    params: Any
    rest: Any
    smoother: Any
    key: PRNGKeyArray
    step: Int[Array, ""]
    order: Int[Array, "*parts samples"]

    @classmethod
    def start(
        cls,
        params: Any,
        rest: Any,
        smoother: Any,
        key: PRNGKeyArray,
        data: tuple[Any, ...] = (),
        batch_size: int | None = None,
        parts: int = 1,
    ) -> LoopState:
        """State before the first step.

        Args:
            params: trainable parameters.
            rest: all other variables of the model.
            smoother: state of the smoother.
            key: random key.
            data: arguments of the loss, whose first axis is shuffled if there is a ``batch_size``.
            batch_size: samples per step, or ``None`` for all data at every step.
            parts: parts of the data that are shuffled each by itself.
        """
        # Made by NumPy: outside of compiled code nothing is worth a program of its own.
        order = np.arange(0 if batch_size is None else _samples(data) // parts, dtype=np.int32)
        if batch_size is not None and parts > 1:
            order = np.tile(order, (parts, 1))
        return cls(params, rest, smoother, key, *map(jnp.asarray, (np.int32(0), order)))

    def placed(self, placement: LevelPlacement | None, put: Put = moved) -> LoopState:
        """The same state with its arrays where they belong.

        Args:
            placement: of the level, or ``None``.
            put: what to do with a leaf and its sharding, see `LevelPlacement`.
        """
        if placement is None:
            return self
        parameters = placement.parameters((self.params, self.smoother), put)
        rest, key, step = placement.whole((self.rest, self.key, self.step), put)
        order = (placement.rows if self.order.ndim > 1 else placement.whole)(self.order, put)
        return LoopState(parameters[0], rest, parameters[1], key, step, order)


class _Carry(NamedTuple):
    state: LoopState
    losses: Float[Array, " capacity"]
    taken: Int[Array, ""]
    finite: Array


def as_arrays(data: Any, convert: Callable[[Any], Any] = jnp.asarray) -> tuple[Any, ...]:
    """Training data as arrays.

    Args:
        data: tuple of arrays (or pytrees of arrays) handed to the loss after the model.
        convert: makes an array of each of them; by default one on the device.

    Raises:
        TypeError: if ``data`` is not a tuple or list, or holds something that is not numeric.
    """
    if not isinstance(data, tuple | list):
        raise TypeError(
            f"data must be a tuple of arrays, got {type(data).__name__}; write (x,) for one array"
        )
    try:
        return jax.tree.map(convert, tuple(data))
    except (TypeError, ValueError) as error:
        raise TypeError(f"data must hold arrays of numbers: {error}") from error


def _samples(data: tuple[Any, ...]) -> int:
    return jax.tree.leaves(data)[0].shape[0]


def steps_per_epoch(data: tuple[Any, ...], batch_size: int | None) -> int:
    """Steps of one pass over the data: one, or with mini-batches the number of whole batches.

    Args:
        data: arguments of the loss.
        batch_size: samples per step, or ``None`` for all data at every step.

    Raises:
        TypeError: if ``batch_size`` is not an integer.
        ValueError: if mini-batches are asked for and the arrays do not share their first axis, or
            hold fewer samples than one batch.
    """
    if batch_size is None:
        return 1
    check_positive_int("batch_size", batch_size)
    leaves = jax.tree.leaves(data)
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in leaves}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            "data must share its first axis (the samples) when batch_size is given, got first "
            f"axes {[leaf.shape[:1] for leaf in leaves]}"
        )
    if _samples(data) < batch_size:
        raise ValueError(
            f"batch_size must be at most the {_samples(data)} samples, got {batch_size}"
        )
    return _samples(data) // batch_size


def rows_of_a_step(leaf: Any, batch_size: int | None, window: int | None) -> int | None:
    """How many rows of an array a step sees, ``None`` for all of it.

    Args:
        leaf: the array.
        batch_size: samples per step, or ``None``.
        window: how many batches lie one after the other in the data, or ``None``.
    """
    return batch_size if window is None else leaf.shape[0] // window


def check_smoother(
    smoother: Smoother,
    objective: Objective,
    params: Any,
    rest: Any,
    batch_size: int | None,
    window: int | None = None,
) -> None:
    """Let a smoother raise if it cannot take a step; all may be arrays or shapes.

    Args:
        smoother: the smoother.
        objective: what is minimised, with all data.
        params: trainable parameters.
        rest: the other variables of the model.
        batch_size: samples per step, or ``None`` for all data at every step.
        window: how many batches lie one after the other in the data, or ``None``.
    """

    def of_a_step(leaf: Any) -> Any:
        rows = rows_of_a_step(leaf, batch_size, window)
        return leaf if rows is None else jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)

    data = jax.tree.map(of_a_step, objective.data)
    smoother.check(objective.at(data=data, rest=rest), params)


def owned(tree: Any) -> Any:
    """A copy whose buffers may be donated, made by the run time without compiling anything.

    Only programs copy what several processes share, and random keys on several devices, which the run
    time would hand back as they are.
    """

    def by_program(leaf: Any) -> bool:
        several = isinstance(leaf, jax.Array) and leaf.sharding.num_devices > 1
        return several and (not leaf.is_fully_addressable or not isinstance(leaf.dtype, np.dtype))

    leaves, structure = jax.tree.flatten(tree)
    if not any(map(by_program, leaves)):
        return jax.device_put(tree, may_alias=False)
    copies = [
        jnp.copy(leaf) if by_program(leaf) else jax.device_put(leaf, may_alias=False)
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, copies)


def _single_step(
    objective: Objective,
    smoother: Smoother,
    batch_size: int | None,
    window: int | None,
    state: LoopState,
) -> tuple[LoopState, Float[Array, ""]]:
    """One step: what the loop repeats."""
    key, order, batch = state.key, state.order, objective.data
    step_key, placement = None, objective.placement
    if window is not None:
        batch = _next_batch(objective, state, window)
    elif batch_size is not None:
        key, order, batch = _drawn_batch(objective, state, batch_size)
    if objective.takes_key:
        key, step_key = jax.random.split(key)
    now = objective.at(data=batch, rest=state.rest, key=step_key)
    params = state.params
    if placement is not None:  # pieces of parameters are put together once, not layer by layer
        params = placement.whole(params, jax.lax.with_sharding_constraint)
    params, smoother_state, value, rest = smoother.step(now, params, state.smoother)
    if objective.layout is not None:
        rest = state.rest  # those of the larger model are not this level's to change
    new = LoopState(params, rest, smoother_state, key, state.step + 1, order)
    return new.placed(placement, jax.lax.with_sharding_constraint), value


def _next_batch(objective: Objective, state: LoopState, window: int) -> tuple[Any, ...]:
    """The batch of a step, where some lie one after the other in the data.

    Where several devices share the data, each has its rows of all batches in one piece.
    """
    position, parts = state.step % window, objective.parts

    def rows(leaf: Array) -> Array:
        blocks = leaf.reshape(parts, window, -1, *leaf.shape[1:])
        found = jax.lax.dynamic_index_in_dim(blocks, position, axis=1, keepdims=False)
        return found.reshape(-1, *leaf.shape[1:])

    batch = jax.tree.map(rows, objective.data)
    place = objective.placement
    return batch if place is None else place.rows(batch, jax.lax.with_sharding_constraint)


def _drawn_batch(
    objective: Objective, state: LoopState, batch_size: int
) -> tuple[PRNGKeyArray, Array, tuple[Any, ...]]:
    """The key that is left, the order of the epoch, and the batch of a step.

    Where several devices share the data, each draws from its own part, so that no sample moves.
    """
    samples, placement, parts = _samples(objective.data), objective.placement, objective.parts
    own, drawn = samples // parts, batch_size // parts
    position = state.step % (samples // batch_size)

    def order_of(key: PRNGKeyArray) -> Array:
        return jax.random.permutation(key, own).astype(jnp.int32)

    def shuffle() -> tuple[PRNGKeyArray, Array]:
        new, now = jax.random.split(state.key)
        if parts == 1:
            return new, order_of(now)
        return new, jax.vmap(order_of)(jax.random.split(now, parts))

    key, order = jax.lax.cond(position == 0, shuffle, lambda: (state.key, state.order))
    chosen = jax.lax.dynamic_slice_in_dim(order, position * drawn, drawn, axis=-1)
    if placement is None or parts == 1:
        return key, order, jax.tree.map(lambda leaf: leaf[chosen], objective.data)

    def rows(leaf: Array) -> Array:
        blocks = leaf.reshape(parts, own, *leaf.shape[1:])
        found = jax.vmap(lambda block, numbers: block[numbers])(blocks, chosen)
        return found.reshape(batch_size, *leaf.shape[1:])

    batch = jax.tree.map(rows, objective.data)
    return key, order, placement.rows(batch, jax.lax.with_sharding_constraint)


@lru_cache(maxsize=64)
def _program(smoother: Smoother, batch_size: int | None, window: int | None, structure: Any) -> Any:
    """The jitted loop. ``structure`` bounds its life: what falls out of the cache is freed."""
    del structure
    smoother = plain(smoother)

    def smooth(
        state: LoopState, objective: Objective, steps: Int[Array, ""]
    ) -> tuple[LoopState, Float[Array, " capacity"], Int[Array, ""], Array]:
        def proceed(carry: _Carry) -> Array:
            return (carry.taken < steps) & carry.finite

        def body(carry: _Carry) -> _Carry:
            new, value = _single_step(objective, smoother, batch_size, window, carry.state)
            losses = carry.losses.at[carry.taken].set(value.astype(carry.losses.dtype))
            return _Carry(new, losses, carry.taken + 1, jnp.isfinite(value))

        start = _Carry(
            state,
            # In the default precision: asking the loss for its own would trace the step once more.
            jnp.full((CAPACITY,), jnp.nan),
            jnp.zeros((), jnp.int32),
            jnp.ones((), bool),
        )
        end = jax.lax.while_loop(proceed, body, start)
        healthy = jax.tree.reduce(
            lambda so_far, leaf: so_far & jnp.all(jnp.isfinite(leaf)), end.state.params, end.finite
        )
        return end.state, end.losses, end.taken, healthy

    # All arguments, used or not: a program that is kept must not depend on which were dropped.
    return jax.jit(smooth, donate_argnums=0, keep_unused=True)


class CompiledLoop:
    """The training program of one objective's structure.

    It is traced here and now, in the caller's thread, whose context (precision of products, default
    device, promotion of dtypes) it keeps; only the compilation may go to another thread.

    Mini-batches are drawn on the device: a fresh random order each epoch, cut into
    ``samples // batch_size`` batches; the remainder of an epoch is dropped, and is another one in
    the next epoch.

    Args:
        objective: what is minimised, with arrays or shapes as leaves; ``rest`` and ``key`` are
            ``None``, since they belong to the state.
        smoother: what minimises it.
        state: state before the first step, or its shapes.
        batch_size: samples per step, or ``None`` for all data at every step.
        window: how many batches lie one after the other in the data, and are taken as they lie;
            ``None`` where the data are no batches.
        keep_programs: whether the compiled program may be kept for other processes, or taken from one;
            see `opifex.training.program_cache`.

    Attributes:
        operations: floating-point operations of one step, ``None`` where they cannot be counted.

    Raises:
        ValueError: if the smoother cannot minimise such an objective.
        MemoryError: if a step of the smoother does not fit into the memory of the device.
    """

    def __init__(
        self,
        objective: Objective,
        smoother: Smoother,
        state: LoopState,
        *,
        batch_size: int | None = None,
        window: int | None = None,
        keep_programs: bool = True,
    ) -> None:
        check_smoother(smoother, objective, state.params, state.rest, batch_size, window)
        program = _program(hashable(smoother), batch_size, window, objective.structure)
        steps = jax.ShapeDtypeStruct((), jnp.int32)
        self._placement = objective.placement
        # Shapes alone would not say where a compiled program finds its arguments.
        state, objective = state.placed(self._placement, shape_on), objective.placed(shape_on)
        if self._placement is not None:
            steps = self._placement.whole(steps, shape_on)
        traced = program.trace(state, objective, steps)
        self.operations = count_operations(traced)
        bound = self._placement is not None or any(
            getattr(leaf, "committed", False) for leaf in jax.tree.leaves((state, objective))
        )
        self._compile = partial(
            compiled_program, traced.lower(), traced.jaxpr, keep=keep_programs and not bound
        )
        self._compiled: Future[Any] | None = None

    def compile(self, executor: Executor | None = None) -> None:
        """Compile, in a thread of ``executor`` if one is given."""
        if self._compiled is None and executor is not None:
            self._compiled = executor.submit(self._compile)
        elif self._compiled is None:
            # Kept only once it is there: after an error nobody may wait for a result.
            program = self._compile()
            self._compiled = Future()
            self._compiled.set_result(program)

    def wait(self, check: Callable[[], None]) -> None:
        """Wait until the program is compiled, calling ``check`` several times a second."""
        self.compile()
        assert self._compiled is not None
        waited(self._compiled, check)

    def run(
        self,
        state: LoopState,
        objective: Objective,
        steps: int,
    ) -> tuple[LoopState, np.ndarray, bool]:
        """Take up to ``steps`` steps. The buffers of ``state`` are consumed.

        Args:
            state: where to start.
            objective: what to minimise, of the structure that was compiled.
            steps: how many steps, at most `CAPACITY`.

        Returns:
            The new state, the losses before each step taken, and whether every loss and the new
            parameters are finite. If not, the loop stopped after the step whose loss is the last.

        Raises:
            ValueError: if ``steps`` is out of range, or the loss keeps an array from being traced.
        """
        if not 0 < steps <= CAPACITY:
            raise ValueError(f"steps must be in 1..{CAPACITY}, got {steps}")
        self.compile()
        assert self._compiled is not None
        program, count = self._compiled.result(), jnp.asarray(steps, jnp.int32)
        state, objective = state.placed(self._placement), objective.placed()
        if self._placement is not None:
            count = self._placement.whole(count)
        try:
            new, losses, taken, healthy = program(state, objective, count)
        except TypeError as error:
            # What a loss has kept from being traced became one more input of the program.
            if "compiled for" not in str(error):
                raise
            raise ValueError(
                "loss_fn keeps an array that it made while it was traced, in a cached_property for "
                "instance, and that does not exist any more: make it before fit is called, or within "
                "jax.ensure_compile_time_eval()"
            ) from error
        return new, np.asarray(losses)[: int(taken)].copy(), bool(healthy)
