r"""Optimizer states that follow their parameters from level to level.

The state of an Optax transformation holds trees that mirror the parameters (moments, averages,
accumulated gradients, L-BFGS memory) among counters and hyperparameters. They are recognised by
structure: a leaf of the state mirrors a parameter if its key path *ends with the parameter's whole
key path*. This finds them inside chains, masks, partitions and injected hyperparameters alike.

A mirrored tree is moved by the same transfer as the parameters. Which of its entries are new is
found by transferring a tree of ones into a tree of zeros. New entries have no coarse counterpart;
they start as a fresh state would, with zero moments. Where one step count corrects the bias of all
moments, as in `optax.adam`, a second moment of zero beside a large count divides a gradient by far
less than its size. `scale_by_age_corrected_adam` therefore counts the steps of every entry; for all
other transformations `SecondMomentStart` is the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from opifex.training.multilevel.age_corrected_adam import (
    AgeCorrectedAdamState,
)
from opifex.training.multilevel.parameter_age import ParameterAgeState
from opifex.training.objective import split_model

SecondMomentStart = Literal["fresh", "mean", "max"]
"""What second moments of new entries start from: the transformation's own initial value, or the
mean or the largest of the carried entries of the same parameter."""

SECOND_MOMENT_NAMES = frozenset({"nu", "nu_max", "sum_of_squares", "e_g"})
"""Field names by which most of Optax's states call their averages of squared gradients."""

TreeKind = Literal["plain", "second moment", "age"]
"""How new entries of a mirrored tree start, and whether a transfer may scale its values."""

KINDS_BY_STATE: dict[type, dict[str, TreeKind]] = {
    optax.FactoredState: {"v": "second moment"},
    # Its second moments start from zero, whose bias its ages correct.
    AgeCorrectedAdamState: {"age": "age"},
    ParameterAgeState: {"age": "age"},
}
"""States whose fields the names above do not describe; fields that are not listed are plain."""

KeyPath = tuple[Any, ...]
Transition = Callable[[Any, Any], Any]

__all__ = [
    "SecondMomentStart",
    "Transition",
    "carried_fraction",
    "leaves_by_path",
    "transfer_optimizer_state",
]


def leaves_by_path(tree: Any) -> dict[KeyPath, Array]:
    """The leaves of a tree by their key paths."""
    return dict(jax.tree_util.tree_flatten_with_path(tree)[0])


def _params(model: nnx.Module) -> nnx.State:
    return nnx.state(model, nnx.Param)


def _with_params(model: nnx.Module, params: Any) -> nnx.Module:
    graph, _, rest = split_model(model)
    return nnx.merge(graph, params, rest, copy=True)


def _filled(leaf: Array | jax.ShapeDtypeStruct, value: float) -> Array:
    """An array like another with one value everywhere, made without compiling anything."""
    return jax.device_put(np.full(leaf.shape, value, leaf.dtype), leaf.sharding)


def _tree_like(
    params: nnx.State, values: dict[KeyPath, Array], dtype: jnp.dtype | None = None
) -> nnx.State:
    """A tree like ``params`` with the given leaves, and zeros (of ``dtype``) where none is given."""

    def choose(path: KeyPath, leaf: Array) -> Array:
        if path in values:
            return values[path]
        return _filled(
            leaf
            if dtype is None
            else jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
            0,
        )

    return jax.tree_util.tree_map_with_path(choose, params)


def carried_fraction(
    coarse_model: nnx.Module, fine_model: nnx.Module, transition_fn: Transition
) -> nnx.State:
    """The image of a coarse tree of ones in a fine tree of zeros.

    Zero marks the fine entries that have no coarse counterpart.

    Args:
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.
        transition_fn: the transfer, linear in the coarse values.

    Returns:
        A state shaped like the parameters of ``fine_model``.
    """
    ones = jax.tree.map(lambda leaf: _filled(leaf, 1), _params(coarse_model))
    zeros = jax.tree.map(lambda leaf: _filled(leaf, 0), _params(fine_model))
    return _params(transition_fn(_with_params(coarse_model, ones), _with_params(fine_model, zeros)))


def _group_mirrors(
    state: Any, param_paths: Sequence[KeyPath]
) -> dict[KeyPath, dict[KeyPath, Array]]:
    """Mirrored leaves of a state: prefix of the mirrored tree -> parameter path -> leaf."""
    lengths = sorted({len(path) for path in param_paths}, reverse=True)
    known = set(param_paths)
    groups: dict[KeyPath, dict[KeyPath, Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        for length in lengths:
            if length <= len(path) and path[len(path) - length :] in known:
                prefix, tail = path[: len(path) - length], path[len(path) - length :]
                groups.setdefault(prefix, {})[tail] = leaf
                break
    return groups


def _tree_kinds(state: Any, prefixes: Collection[KeyPath]) -> dict[KeyPath, TreeKind]:
    """What kind each of the mirrored trees is of."""
    described = tuple(KINDS_BY_STATE)
    nodes = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=lambda node: isinstance(node, described)
    )[0]
    owners = {path: type(node) for path, node in nodes if isinstance(node, described)}

    def kind(prefix: KeyPath) -> TreeKind:
        names = [getattr(key, "name", None) for key in prefix]
        for path, owner in owners.items():
            if prefix[: len(path)] == path:
                return KINDS_BY_STATE[owner].get(str(names[len(path)]), "plain")
        return "plain" if SECOND_MOMENT_NAMES.isdisjoint(names) else "second moment"

    return {prefix: kind(prefix) for prefix in prefixes}


class _StateMover:
    """Moves every mirrored tree of one optimizer state to the next level."""

    def __init__(
        self,
        coarse_model: nnx.Module,
        fine_model: nnx.Module,
        transition_fn: Transition,
        second_moment_start: SecondMomentStart,
    ) -> None:
        self.coarse_model, self.fine_model = coarse_model, fine_model
        self.coarse_params, self.fine_params = _params(coarse_model), _params(fine_model)
        self.coarse_shapes = {p: a.shape for p, a in leaves_by_path(self.coarse_params).items()}
        self.fine_shapes = {p: a.shape for p, a in leaves_by_path(self.fine_params).items()}
        self.transition_fn = transition_fn
        self.second_moment_start = second_moment_start
        self.carried = leaves_by_path(carried_fraction(coarse_model, fine_model, transition_fn))

    def _move_values(self, values: dict[KeyPath, Array]) -> dict[KeyPath, Array]:
        # In the precision of the state, which may be higher than that of the parameters.
        dtype = jnp.result_type(*values.values()) if values else None
        if dtype is not None and jnp.issubdtype(dtype, jnp.integer):
            # Ages: a transfer may take means, which integers would cut off.
            dtype = jnp.dtype(jnp.float32)
            values = {p: jax.device_put(np.asarray(a, dtype)) for p, a in values.items()}
        coarse = _with_params(self.coarse_model, _tree_like(self.coarse_params, values, dtype))
        zeros = _with_params(self.fine_model, _tree_like(self.fine_params, {}, dtype))
        return leaves_by_path(_params(self.transition_fn(coarse, zeros)))

    def _start(self, path: KeyPath, moved: Array, fresh: Array, kind: TreeKind) -> Array:
        # On the host, like the transfer itself: every shape occurs once.
        fraction, values = np.asarray(self.carried[path]), np.asarray(moved)
        old = fraction != 0
        start: Any = np.asarray(fresh)
        if kind == "second moment" and self.second_moment_start != "fresh" and np.any(old):
            start = np.mean(values[old]) if self.second_moment_start == "mean" else np.max(values)
        if kind == "age":
            # Halving a weight does not halve its age: the mean age of what an entry is made of.
            values = np.rint(values / np.where(old, fraction, 1))
        return jax.device_put(np.where(old, values, start).astype(fresh.dtype), fresh.sharding)

    def _move_plain(
        self, coarse: dict[KeyPath, Array], fresh: dict[KeyPath, Array], kind: TreeKind
    ) -> dict[KeyPath, Array]:
        moved = self._move_values(coarse)
        started = {path: self._start(path, moved[path], leaf, kind) for path, leaf in fresh.items()}
        if kind == "second moment" and self.second_moment_start != "fresh" and coarse:
            # A parameter that is new as a whole has no entry of its own to start from: take the
            # mean over all carried entries of the tree.
            total = sum(float(np.sum(np.asarray(leaf))) for leaf in coarse.values())
            mean = total / sum(leaf.size for leaf in coarse.values())
            for path, leaf in fresh.items():
                if path not in self.coarse_shapes:
                    started[path] = _filled(leaf, mean)
        return started

    def move(
        self, coarse: dict[KeyPath, Array], fresh: dict[KeyPath, Array], kind: TreeKind
    ) -> dict[KeyPath, Array]:
        """Leaves of one mirrored tree on the fine level."""
        plain = {
            p: a for p, a in coarse.items() if a.shape == self.coarse_shapes[p] and (p in fresh)
        }
        stacked = {
            p: a
            for p, a in coarse.items()
            if p not in plain and a.ndim and a.shape[1:] == self.coarse_shapes[p] and (p in fresh)
        }
        result = dict(fresh)
        fresh_plain = {
            p: a for p, a in fresh.items() if a.shape == self.fine_shapes[p] and p not in stacked
        }
        if plain:
            result |= self._move_plain(plain, fresh_plain, kind)
        if stacked:  # a memory of several trees, such as that of L-BFGS: one after the other
            depth = next(iter(stacked.values())).shape[0]
            slices = [
                self._move_values({p: jnp.asarray(np.asarray(a)[i]) for p, a in stacked.items()})
                for i in range(depth)
            ]
            result |= {
                p: jnp.asarray(np.stack([np.asarray(s[p]) for s in slices]), fresh[p].dtype)
                for p in stacked
            }
        for path, leaf in coarse.items():  # one number per parameter, whatever its size
            if path not in plain and path not in stacked and path in fresh and leaf.ndim == 0:
                result[path] = leaf
        return result


def transfer_optimizer_state(
    transformation: Any,
    state: optax.OptState,
    coarse_model: nnx.Module,
    fine_model: nnx.Module,
    transition_fn: Transition,
    *,
    second_moment_start: SecondMomentStart = "fresh",
    restart_schedules: bool = False,
) -> optax.OptState:
    """Move an optimizer state from the parameters of one level to those of the next.

    Args:
        transformation: the Optax transformation of the *fine* level, or anything else whose
            ``init(params)`` builds the state.
        state: its state on the coarse level.
        coarse_model: model that ``state`` belongs to.
        fine_model: model of the next level, already holding its starting values.
        transition_fn: the transfer of the parameters, linear in the coarse values.
        second_moment_start: see `SecondMomentStart`.
        restart_schedules: start schedules again at step zero, and take injected hyperparameters
            from the fine level's transformation. Counts that correct the bias of moments are always
            carried on.

    Returns:
        The state on the fine level. Trees that mirror the parameters are transferred; counts and
        hyperparameters are carried on; statistics that are not shaped like their parameter (the
        row and column averages of Adafactor) start afresh, since their entries mix old and new.

    Raises:
        ValueError: if the two states do not have the same kind of structure.
    """
    fresh = transformation.init(_params(fine_model))
    mover = _StateMover(coarse_model, fine_model, transition_fn, second_moment_start)
    coarse_groups = _group_mirrors(state, list(mover.coarse_shapes))
    fresh_groups = _group_mirrors(fresh, list(mover.fine_shapes))
    kinds = _tree_kinds(fresh, fresh_groups)
    moved: dict[KeyPath, Array] = {}
    for prefix, leaves in fresh_groups.items():
        values = mover.move(coarse_groups.get(prefix, {}), leaves, kinds[prefix])
        moved |= {prefix + path: value for path, value in values.items()}
    carried = leaves_by_path(state)
    restarted = _schedule_leaves(fresh) if restart_schedules else set()

    def choose(path: KeyPath, leaf: Array) -> Array:
        if path in moved:
            return moved[path]
        if path in restarted:
            return leaf
        if path not in carried:
            raise ValueError(
                f"the optimizer state has no {jax.tree_util.keystr(path)} on the coarse level; the "
                "transformations of neighbouring levels must have the same structure"
            )
        old = carried[path]
        return old if jnp.shape(old) == jnp.shape(leaf) else leaf

    return jax.tree_util.tree_map_with_path(choose, fresh)


def _schedule_leaves(state: optax.OptState) -> set[KeyPath]:
    """Key paths of hyperparameters and of the step counts that only drive a schedule."""

    def is_injected(node: Any) -> bool:
        return hasattr(node, "hyperparams") and hasattr(node, "inner_state")

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState) or is_injected(node)

    found: set[KeyPath] = set()
    for path, node in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_schedule)[0]:
        if not is_schedule(node):
            continue
        tails = {tail for tail, _ in jax.tree_util.tree_flatten_with_path(node)[0]}
        if is_injected(node):
            inner = jax.tree_util.GetAttrKey("inner_state")
            tails = {tail for tail in tails if tail[0] != inner}
            tails |= {(inner, *tail) for tail in _schedule_leaves(node.inner_state)}
        found |= {path + tail for tail in tails}
    return found
