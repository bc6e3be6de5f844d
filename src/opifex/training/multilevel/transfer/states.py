r"""Optimizer states that follow their parameters from level to level.

The state of an Optax transformation holds trees that mirror the parameters (moments, averages,
accumulated gradients, L-BFGS memory) among counters and hyperparameters. They are recognised by
structure: a leaf of the state mirrors a parameter if its key path *ends with the parameter's whole
key path*. This finds them inside chains, masks, partitions and injected hyperparameters alike.

A mirrored tree $m$ is moved by the linear part $m \mapsto T(m, 0) - T(0, 0)$ of the transfer $T$ of
the parameters, so that noise which $T$ adds to break symmetries does not enter the moments. Which
entries are new is found by moving a tree of ones. New entries have no coarse counterpart; they start
as a fresh state would, with zero moments. Where one step count corrects the bias of all moments, as
in `optax.adam`, a second moment of zero beside a large count divides a gradient by far less than its
size. `scale_by_age_corrected_adam` therefore counts the steps of every entry; for all other
transformations `SecondMomentStart` is the choice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.extend.core import Literal as Constant
from jaxtyping import Array

from opifex.core.checks import check_bool, check_callable, check_choice, check_module
from opifex.training.multilevel.transfer.parameters import Transfer
from opifex.training.multilevel.transfer.placements import placed_like

SecondMomentStart = Literal["fresh", "mean", "max"]
"""What second moments of new entries start from: the transformation's own initial value, or the
mean or the largest of the carried entries of the same parameter."""

SECOND_MOMENT_NAMES = frozenset({"nu", "nu_max", "sum_of_squares", "e_g", "e_x"})
"""Field names by which most of Optax's states call their averages of squares."""

SECOND_MOMENTS_BESIDE = {"v": "v_row", "n": "g"}
"""Field names that mean second moments in states that also have the other field: those of Adafactor
(its unfactored ones) and of Adan."""

TreeKind = Literal["plain", "second moment", "corrected second moment", "age"]
"""How new entries of a mirrored tree start, and which values it may have. A state with a field ``age``
counts the steps of each entry there, which correct the bias of its second moments."""

KeyPath = tuple[Any, ...]

__all__ = [
    "NotAffineError",
    "SecondMomentStart",
    "carried_fraction",
    "leaves_by_path",
    "same_method",
    "transfer_optimizer_state",
]


class NotAffineError(ValueError):
    """A transfer has no linear part by which an optimizer state could follow the parameters."""


def leaves_by_path(tree: Any) -> dict[KeyPath, Array]:
    """The leaves of a tree by their key paths."""
    return dict(jax.tree_util.tree_flatten_with_path(tree)[0])


def _params(model: nnx.Module) -> nnx.State:
    return nnx.state(model, nnx.Param)


def _filled(leaf: Array, value: float, dtype: Any = None) -> Array:
    """An array like another with one value everywhere, made without compiling anything."""
    return placed_like(np.full(leaf.shape, value, dtype or leaf.dtype), leaf)


class _LinearPart:
    r"""The linear part $m \mapsto T(m, 0) - T(0, 0)$ of a transfer $T$.

    Attributes:
        of_ones: its value for a coarse tree of ones.

    Raises:
        NotAffineError: if $T$ is not affine: its values for zeros, ones and twos are not on one line.
    """

    def __init__(
        self, coarse_model: nnx.Module, fine_model: nnx.Module, transition_fn: Transfer
    ) -> None:
        self.coarse = nnx.split(coarse_model, nnx.Param, ...)
        self.fine = nnx.split(fine_model, nnx.Param, ...)
        self.transition_fn = transition_fn
        zero, one, two = (self._image({}, {}, fill) for fill in (0, 1, 2))
        self.of_ones = {path: one[path] - zero[path] for path in zero}
        self.has_offset = any(np.any(leaf) for leaf in zero.values())
        for path, linear in self.of_ones.items():
            size = np.abs(two[path]) + 2 * np.abs(one[path]) + 3 * np.abs(zero[path])
            bound = 8 * float(jnp.finfo(linear.dtype).eps) * size
            if not np.all(np.abs(two[path] - zero[path] - 2 * linear) <= bound):
                raise NotAffineError(
                    "transition_fn must be affine in the values of the coarse model, so that an "
                    "optimizer state can follow; its values for zeros, ones and twos are not on one "
                    f"line at {jax.tree_util.keystr(path)}"
                )

    def _image(
        self, values: dict[KeyPath, np.ndarray], dtypes: dict[KeyPath, Any], fill: float = 0
    ) -> dict[KeyPath, np.ndarray]:
        """The transfer of some coarse values, ``fill`` where none is given, into zeros."""

        def merged(split: tuple[Any, ...], given: dict[KeyPath, np.ndarray], fill: float) -> Any:
            def leaf(path: KeyPath, like: Array) -> Array:
                dtype = dtypes.get(path, like.dtype)
                if path in given:
                    return placed_like(given[path].astype(dtype), like)
                return _filled(like, fill, dtype)

            graph, params, rest = split
            params = jax.tree_util.tree_map_with_path(leaf, params)
            return nnx.merge(graph, params, rest, copy=True)

        moved = self.transition_fn(merged(self.coarse, values, fill), merged(self.fine, {}, 0))
        check_module("what transition_fn returns", moved)
        return {path: np.asarray(leaf) for path, leaf in leaves_by_path(_params(moved)).items()}

    def __call__(
        self, values: dict[KeyPath, Array], fresh: dict[KeyPath, Array]
    ) -> dict[KeyPath, np.ndarray]:
        """A fine tree for some coarse values, in the dtypes of a fresh state's tree."""
        # The state may be more precise than the parameters; and a transfer may take means of ages,
        # which integers would cut off.
        dtypes = {
            path: leaf.dtype if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.dtype("float32")
            for path, leaf in fresh.items()
        }
        arrays = {path: np.asarray(leaf) for path, leaf in values.items()}
        if not self.has_offset:
            return self._image(arrays, dtypes)
        # Moments may be far smaller than the offset, which must not round them away: scaled, by a
        # power of two, to about the root of the largest number.
        limit = min((float(jnp.finfo(dtype).max) for dtype in dtypes.values()), default=1.0)
        largest = max((float(np.max(np.abs(a), initial=0)) for a in arrays.values()), default=0.0)
        exponent = np.floor(np.log2(np.sqrt(limit) / largest)) if 0 < largest < np.inf else 0.0
        wide = {path: a.astype(np.result_type(a, np.float64)) for path, a in arrays.items()}
        scaled = self._image({path: a * 2.0**exponent for path, a in wide.items()}, dtypes)
        return {
            path: (scaled[path] - offset.astype(np.result_type(offset, np.float64)))
            * 2.0**-exponent
            for path, offset in self._image({}, dtypes).items()
        }


def carried_fraction(
    coarse_model: nnx.Module, fine_model: nnx.Module, transition_fn: Transfer
) -> nnx.State:
    """The image of a coarse tree of ones under the linear part of a transfer.

    Zero marks the fine entries that have no coarse counterpart.

    Args:
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.
        transition_fn: the transfer, affine in the coarse values.

    Returns:
        A state shaped like the parameters of ``fine_model``.

    Raises:
        NotAffineError: if the transfer is not affine.
    """
    of_ones = _LinearPart(coarse_model, fine_model, transition_fn).of_ones
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: placed_like(of_ones[path], leaf), _params(fine_model)
    )


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


def _tree_kind(prefix: KeyPath, prefixes: Collection[KeyPath]) -> TreeKind:
    """What kind of tree is mirrored at a key path of a state, given the paths of all of them."""
    names = {getattr(key, "name", None) for key in prefix}
    own_name = getattr(prefix[-1], "name", None) if prefix else None

    def has_sibling(name: str) -> bool:
        return (*prefix[:-1], jax.tree_util.GetAttrKey(name)) in prefixes

    if "age" in names:
        return "age"
    if names & SECOND_MOMENT_NAMES or any(
        name == own_name and has_sibling(other) for name, other in SECOND_MOMENTS_BESIDE.items()
    ):
        return "corrected second moment" if has_sibling("age") else "second moment"
    return "plain"


class _StateMover:
    """Moves every mirrored tree of one optimizer state to the next level."""

    def __init__(
        self,
        coarse_model: nnx.Module,
        fine_model: nnx.Module,
        transition_fn: Transfer,
        second_moment_start: SecondMomentStart,
    ) -> None:
        self.coarse_shapes = {p: a.shape for p, a in leaves_by_path(_params(coarse_model)).items()}
        self.fine_shapes = {p: a.shape for p, a in leaves_by_path(_params(fine_model)).items()}
        self.second_moment_start = second_moment_start
        self._transfer = coarse_model, fine_model, transition_fn

    @cached_property
    def linear_part(self) -> _LinearPart:
        """Built where a state has trees that mirror the parameters."""
        return _LinearPart(*self._transfer)

    def _start(self, path: KeyPath, values: np.ndarray, fresh: Array, kind: TreeKind) -> Array:
        # On the host, like the transfer itself: every shape occurs once.
        fraction = self.linear_part.of_ones[path]
        old = fraction != 0
        start: Any = np.asarray(fresh)
        if kind.endswith("second moment"):
            # A weight of opposite sign has a gradient of opposite sign, and the same square.
            values = np.abs(values)
        if kind == "second moment" and self.second_moment_start != "fresh" and np.any(old):
            start = np.mean(values[old]) if self.second_moment_start == "mean" else np.max(values)
        if kind == "age":
            # Halving a weight does not halve its age: the mean age of what an entry is made of.
            values = np.rint(np.real(values / np.where(old, fraction, 1)))
        return placed_like(np.where(old, values, start).astype(fresh.dtype), fresh)

    def _move_plain(
        self, coarse: dict[KeyPath, Array], fresh: dict[KeyPath, Array], kind: TreeKind
    ) -> dict[KeyPath, Array]:
        moved = self.linear_part(coarse, fresh)
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
            one = {p: fresh[p][0] for p in stacked}
            slices = [
                self.linear_part({p: np.asarray(a)[i] for p, a in stacked.items()}, one)
                for i in range(next(iter(stacked.values())).shape[0])
            ]
            result |= {
                p: placed_like(np.stack([s[p] for s in slices]).astype(fresh[p].dtype), fresh[p])
                for p in stacked
            }
        for path, leaf in coarse.items():  # one number per parameter, whatever its size
            if path not in plain and path not in stacked and path in fresh and leaf.ndim == 0:
                result[path] = leaf
        return result


def _structure(state: Any) -> Any:
    # Levels may differ in what mirrors the parameters, added layers for instance, and only there.
    return jax.tree.structure(state, is_leaf=lambda node: isinstance(node, nnx.State))


def same_method(coarse_state: Any, fine_state: Any) -> bool:
    """Whether two optimizer states have the same structure around what mirrors the parameters.

    Args:
        coarse_state: state of the coarser level.
        fine_state: state of the finer level, or its shapes.
    """
    return bool(_structure(coarse_state) == _structure(fine_state))


def _kinds(*states: Any) -> list[str]:
    """What states consist of: names, and the whole structure where these are the same."""
    nodes = [jax.tree.leaves(state, is_leaf=lambda n: hasattr(n, "_fields")) for state in states]
    names = [f"({', '.join(type(node).__name__ for node in of_state)})" for of_state in nodes]
    return names if len(set(names)) > 1 else [str(_structure(state)) for state in states]


def _initial_state(transformation: Any, params: nnx.State) -> optax.OptState:
    """What ``init`` returns, without compiling anything where that consists of constants.

    Nearly all states start as arrays of one number, and a program for each shape would take far longer
    than filling them.
    """
    leaves = jax.tree.leaves(params)
    if any(leaf.committed for leaf in leaves):
        return transformation.init(params)  # it knows where its arrays belong
    jaxpr, shapes = jax.make_jaxpr(transformation.init, return_shape=True)(params)
    equations: dict[Any, Any] = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns}
    arrays = []
    for output in jaxpr.jaxpr.outvars:
        aval: Any = output.aval
        constant: Any = output
        if not isinstance(output, Constant) and output in equations:
            made_by = equations[output]
            if made_by.primitive is jax.lax.broadcast_in_dim_p:
                constant = made_by.invars[0]
        if not isinstance(constant, Constant) or np.ndim(constant.val) or aval.weak_type:
            return transformation.init(params)
        arrays.append(np.full(aval.shape, constant.val, aval.dtype))
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.device_put(arrays))


def transfer_optimizer_state(
    transformation: Any,
    state: optax.OptState,
    coarse_model: nnx.Module,
    fine_model: nnx.Module,
    transition_fn: Transfer,
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
        transition_fn: the transfer of the parameters, affine in the coarse values.
        second_moment_start: see `SecondMomentStart`.
        restart_schedules: start schedules again at step zero, and take injected hyperparameters
            from the fine level's transformation. Counts that correct the bias of moments are always
            carried on.

    Returns:
        The state on the fine level. Trees that mirror the parameters are transferred; counts and
        hyperparameters are carried on; statistics that are not shaped like their parameter (the
        row and column averages of Adafactor) start afresh, since their entries mix old and new.

    Raises:
        TypeError: if an argument has the wrong type, or ``transition_fn`` returns no model.
        ValueError: if the two states are of different methods, or ``second_moment_start`` is unknown.
        NotAffineError: if there is something to transfer and the transfer is not affine; a
            ``ValueError``.
    """
    check_module("coarse_model", coarse_model)
    check_module("fine_model", fine_model)
    check_callable("transition_fn", transition_fn)
    check_choice("second_moment_start", second_moment_start, get_args(SecondMomentStart))
    check_bool("restart_schedules", restart_schedules)
    if not hasattr(transformation, "init"):
        raise TypeError(f"transformation must have init and update, got {transformation!r}")
    fresh = _initial_state(transformation, _params(fine_model))
    if not same_method(state, fresh):
        raise ValueError(
            "state must be of the same method as transformation, got "
            f"{' and '.join(_kinds(state, fresh))}"
        )
    mover = _StateMover(coarse_model, fine_model, transition_fn, second_moment_start)
    coarse_groups = _group_mirrors(state, list(mover.coarse_shapes))
    fresh_groups = _group_mirrors(fresh, list(mover.fine_shapes))
    moved: dict[KeyPath, Array] = {}
    for prefix, leaves in fresh_groups.items():
        values = mover.move(coarse_groups.get(prefix, {}), leaves, _tree_kind(prefix, fresh_groups))
        moved |= {prefix + path: value for path, value in values.items()}
    carried = leaves_by_path(state)
    restarted = _schedule_leaves(fresh) if restart_schedules else set()

    def choose(path: KeyPath, leaf: Array) -> Array:
        if path in moved:
            return moved[path]
        old = leaf if path in restarted else carried.get(path, leaf)
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
