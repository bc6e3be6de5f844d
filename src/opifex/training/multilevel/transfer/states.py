r"""Optimizer states that follow their parameters from level to level.

The state of an Optax transformation holds trees that mirror the parameters (moments, averages,
accumulated gradients, L-BFGS memory) among counters and hyperparameters. They are recognised by
structure: a leaf of the state belongs to a parameter if its key path *contains the parameter's whole
key path*, and mirrors it if it also has its shape. This finds them inside chains, masks, partitions
and injected hyperparameters alike. What belongs to a parameter and has another shape grows along its
axes (`opifex.training.multilevel.transfer.structured_states`).

A mirrored tree $m$ is moved by the linear part $m \mapsto T(m, 0) - T(0, 0)$ of the transfer $T$ of
the parameters, so that noise which $T$ adds to break symmetries does not enter the moments. Which
entries are new is found by moving a tree of ones. New entries have no coarse counterpart; they start
as a fresh state would, with zero moments. Where one step count corrects the bias of all moments, as
in `optax.adam`, a second moment of zero beside a large count divides a gradient by far less than its
size. `scale_by_age_corrected_adam` therefore counts the steps of every entry; for all other
transformations `SecondMomentStart` is the choice.
"""

from __future__ import annotations

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
from opifex.training.multilevel.transfer.axis_maps import AxisMaps, axis_maps
from opifex.training.multilevel.transfer.layouts import Layout, is_mirrored
from opifex.training.multilevel.transfer.linear_part import (
    KeyPath,
    LinearPart,
    NotAffineError,
    filled,
    leaves_by_path,
    parameters_of,
)
from opifex.training.multilevel.transfer.parameters import Transfer
from opifex.training.multilevel.transfer.placements import placed_like
from opifex.training.multilevel.transfer.state_trees import (
    StateTrees,
    TreePath,
    name_of,
    sibling,
    trees_of,
)
from opifex.training.multilevel.transfer.structured_states import (
    grown,
    predecessors,
    restarted_counts,
)

SecondMomentStart = Literal["fresh", "mean", "max"]
"""What second moments of new entries start from: the transformation's own initial value, or the
mean or the largest of the carried entries of the same parameter."""

SECOND_MOMENT_NAMES = frozenset(
    {"nu", "nu_max", "sum_of_squares", "e_g", "e_x", "v_row", "v_col", "exp_avg_sq", "grad_sum_sq"}
)
"""Field names by which most of Optax's states call their averages of squares."""

SECOND_MOMENTS_BESIDE = {"v": "v_row", "n": "m"}
"""Field names that mean second moments in states that also have the other field: those of Adafactor
(its unfactored ones), and of Adan and the simplified AdEMAMix."""

TreeKind = Literal["plain", "second moment", "corrected second moment", "age"]
"""How new entries of a mirrored tree start, and which values it may have. A state with a field ``age``
counts the steps of each entry there, which correct the bias of its second moments."""

__all__ = [
    "NotAffineError",
    "SecondMomentStart",
    "carried_fraction",
    "leaves_by_path",
    "same_method",
    "transfer_optimizer_state",
]


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
    of_ones = LinearPart(coarse_model, fine_model, transition_fn).of_ones
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: placed_like(of_ones[path], leaf), parameters_of(fine_model)
    )


def _tree_kind(tree: TreePath, trees: StateTrees) -> TreeKind:
    """What kind of tree lies at a place of a state."""
    prefix, tail = tree
    names = {name_of(key) for key in prefix}
    own_name = name_of(prefix[-1]) if prefix else None

    if "age" in names:
        return "age"
    # SM3 has accumulators for each axis in its field mu, and the momentum in nu.
    if own_name in ("mu", "nu") and any(
        before == sibling(prefix, "mu") and behind for before, behind in trees.trees
    ):
        return "second moment" if tail else "plain"
    if names & SECOND_MOMENT_NAMES or any(
        name == own_name and trees.has(sibling(prefix, other))
        for name, other in SECOND_MOMENTS_BESIDE.items()
    ):
        return "corrected second moment" if trees.has(sibling(prefix, "age")) else "second moment"
    return "plain"


class _StateMover:
    """Moves every tree of one optimizer state to the next level."""

    def __init__(
        self,
        coarse_model: nnx.Module,
        fine_model: nnx.Module,
        transition_fn: Transfer,
        second_moment_start: SecondMomentStart,
    ) -> None:
        self.coarse_shapes, self.fine_shapes = (
            {path: leaf.shape for path, leaf in leaves_by_path(parameters_of(model)).items()}
            for model in (coarse_model, fine_model)
        )
        self.second_moment_start = second_moment_start
        self._transfer = coarse_model, fine_model, transition_fn

    @cached_property
    def linear_part(self) -> LinearPart:
        """Built where a state has trees that mirror the parameters."""
        return LinearPart(*self._transfer)

    @cached_property
    def axis_maps(self) -> dict[KeyPath, AxisMaps]:
        """Built where a state has statistics that are not shaped like their parameter."""
        return axis_maps(self.linear_part, self.coarse_shapes)

    def _start(
        self,
        path: KeyPath,
        coarse: Array | None,
        values: np.ndarray,
        fresh: Array,
        kind: TreeKind,
    ) -> Array:
        # On the host, like the transfer itself: every shape occurs once.
        fraction = self.linear_part.of_ones[path]
        old = fraction != 0
        start: Any = np.asarray(fresh)
        if kind.endswith("second moment"):
            # A weight of opposite sign has a gradient of opposite sign, and the same square. Estimates
            # of curvature, such as those of Sophia, may be negative.
            positive = coarse is None or not np.any(np.real(np.asarray(coarse)) < 0)
            values = np.abs(values) if positive else values * np.sign(np.real(fraction))
        if kind == "second moment" and self.second_moment_start != "fresh" and np.any(old):
            start = self._mean_or_max(values[old])
        if kind == "age":
            # Halving a weight does not halve its age: the mean age of what an entry is made of.
            values = np.rint(np.real(values / np.where(old, fraction, 1)))
        return placed_like(np.where(old, values, start).astype(fresh.dtype), fresh)

    def _mean_or_max(self, values: np.ndarray) -> Any:
        return np.mean(values) if self.second_moment_start == "mean" else np.max(values)

    def _move_plain(
        self, coarse: dict[KeyPath, Array], fresh: dict[KeyPath, Array], kind: TreeKind
    ) -> dict[KeyPath, Array]:
        moved = self.linear_part(coarse, fresh)
        started = {
            path: self._start(path, coarse.get(path), moved[path], leaf, kind)
            for path, leaf in fresh.items()
        }
        if kind == "second moment" and self.second_moment_start != "fresh" and coarse:
            # A parameter that is new as a whole has no entry of its own to start from: take the
            # mean over all carried entries of the tree.
            total = sum(float(np.sum(np.asarray(leaf))) for leaf in coarse.values())
            mean = total / sum(leaf.size for leaf in coarse.values())
            for path, leaf in fresh.items():
                if path not in self.coarse_shapes:
                    started[path] = filled(leaf, mean)
        return started

    def _move_stacked(
        self, coarse: dict[KeyPath, Array], fresh: dict[KeyPath, Array]
    ) -> dict[KeyPath, Array]:
        """A memory of several trees, such as that of L-BFGS: one after the other."""
        one = {path: fresh[path][0] for path in coarse}
        slices = [
            self.linear_part({path: np.asarray(a)[i] for path, a in coarse.items()}, one)
            for i in range(next(iter(coarse.values())).shape[0])
        ]
        stacks = {path: np.stack([of_slice[path] for of_slice in slices]) for path in coarse}
        return {p: placed_like(a.astype(fresh[p].dtype), fresh[p]) for p, a in stacks.items()}

    def _grow(
        self, path: KeyPath, old: Array, layouts: set[Layout], fresh: Array, kind: TreeKind
    ) -> Array:
        """A statistic that is not shaped like its parameter."""
        maps = self.axis_maps.get(path)
        if not layouts or maps is None:
            return fresh
        values = np.asarray(old)
        filled_in = kind == "second moment" and self.second_moment_start != "fresh" and values.size
        fill = self._mean_or_max(values) if filled_in else None
        new = grown(values, np.asarray(fresh), layouts, maps, fill)
        return placed_like(new.astype(fresh.dtype), fresh)

    def move(self, tree: TreePath, coarse: StateTrees, fine: StateTrees) -> dict[KeyPath, Array]:
        """Leaves of one tree on the fine level."""
        kind, fresh = _tree_kind(tree, fine), fine.trees[tree]
        result = dict(fresh)
        plain, stacked = {}, {}
        for path, (old, layouts) in predecessors(coarse, fine, tree).items():
            before, after = self.coarse_shapes[path], self.fine_shapes[path]
            memory = () if tree[1] else old.shape[:1]
            if old.shape == before and is_mirrored(layouts, len(before), behind=bool(tree[1])):
                plain[path] = old
            elif memory and old.shape == memory + before and fresh[path].shape == memory + after:
                stacked[path] = old
            elif layouts is not None:
                result[path] = self._grow(path, old, layouts, fresh[path], kind)
            elif old.shape == fresh[path].shape:  # as large whatever the size of its parameter
                result[path] = old
        if plain:
            as_parameters = {
                path: leaf
                for path, leaf in fresh.items()
                if leaf.shape == self.fine_shapes[path]
                and (path in plain or path not in self.coarse_shapes)
            }
            result |= self._move_plain(plain, as_parameters, kind)
        if stacked:
            result |= self._move_stacked(stacked, fresh)
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
        The state on the fine level.

        Trees that mirror the parameters are transferred; new entries start as ``init`` gives them, or
        second moments as ``second_moment_start`` says.

        What runs along axes of its parameter grows with them: squares along one axis (factors and
        eigenbases of Shampoo and SOAP), means over one axis (Adafactor), vectors along one axis (SM3),
        projections and what is projected (GaLore). Old entries stay with their rows and columns, new
        ones start likewise. A square with orthonormal columns gets the identity, so that it stays a
        basis. Adafactor's averages are taken from its unfactored ones where it begins to factor. Where
        it is not certain which rows continue which, such an array starts afresh: if sizes and places
        leave several axes that would move differently, or the transfer changes the values of the
        parameter, splits its slices or doubles them.

        Counts, hyperparameters and numbers per parameter are carried on, except the count by which
        GaLore knows when to compute a projection: it does so with the next gradient.

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
    fresh = _initial_state(transformation, parameters_of(fine_model))
    if not same_method(state, fresh):
        raise ValueError(
            "state must be of the same method as transformation, got "
            f"{' and '.join(_kinds(state, fresh))}"
        )
    mover = _StateMover(coarse_model, fine_model, transition_fn, second_moment_start)
    coarse, fine = trees_of(state, mover.coarse_shapes), trees_of(fresh, mover.fine_shapes)
    moved: dict[KeyPath, Array] = {}
    for prefix, tail in fine.trees:
        values = mover.move((prefix, tail), coarse, fine)
        moved |= {prefix + path + tail: value for path, value in values.items()}
    carried = leaves_by_path(state)
    restarted = restarted_counts(coarse, fine)
    if restart_schedules:
        restarted |= _schedule_leaves(fresh)

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
