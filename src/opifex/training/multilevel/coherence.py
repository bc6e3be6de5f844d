r"""First-order coherence and the coarse correction: the two transfers of MG/OPT.

Between neighbouring levels, $P$ pads a coarse parameter tree with zeros and $R$ truncates a fine one.
Both are linear, $R = P^T$ and $R P = I$. At a fine point $x_h$ with gradient $g_h$ of the present
fine objective, the coarse level minimises (Nash 2000; Lewis and Nash 2005, section 2)

$$F_H(x_H) - \langle v, x_H \rangle, \qquad v = \nabla F_H(R x_h) - c\, P^T g_h,$$

whose gradient at $R x_h$ is $c\, P^T g_h$: the coarse level sees the fine descent directions to first
order. This is the full approximation scheme written for optimisation. Its result comes back as
$x_h + \alpha P (x_H - R x_h)$ with a step length that never increases the fine objective.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.training.multilevel.transfer import plan_transfer
from opifex.training.objective import split_model

__all__ = ["pad_with_zeros", "tilt_for_coherence", "truncate_tree"]


def _entries(tree: Any) -> dict[tuple[Any, ...], Any]:
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(tree)}


def _replaced(tree: Any, values: dict[tuple[Any, ...], Any]) -> Any:
    flat = [(path, leaf.replace(values[path])) for path, leaf in nnx.to_flat_state(tree)]
    return nnx.from_flat_state(flat)


def pad_with_zeros(coarse_tree: Any, coarse_model: nnx.Module, fine_model: nnx.Module) -> nnx.State:
    """$P$: a fine tree that holds a coarse one, zero elsewhere.

    Args:
        coarse_tree: a tree like the parameters of ``coarse_model``.
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.
    """
    plan = plan_transfer(coarse_model, fine_model)
    coarse = _entries(coarse_tree)
    fine_params = split_model(fine_model)[1]
    padded = {}
    for path, leaf in _entries(fine_params).items():
        zeros = np.zeros(leaf.shape, leaf.dtype)
        if path in coarse:
            zeros[plan[path].block] = np.asarray(coarse[path])
        padded[path] = jnp.asarray(zeros)
    return _replaced(fine_params, padded)


def truncate_tree(fine_tree: Any, coarse_model: nnx.Module, fine_model: nnx.Module) -> nnx.State:
    """$P^T$: the entries of a fine tree that have a coarse counterpart.

    Args:
        fine_tree: a tree like the parameters of ``fine_model``.
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.
    """
    plan = plan_transfer(coarse_model, fine_model)
    fine = _entries(fine_tree)
    coarse_params = split_model(coarse_model)[1]
    values = {
        path: plan[path].truncate(fine[path], leaf.dtype)
        for path, leaf in _entries(coarse_params).items()
    }
    return _replaced(coarse_params, values)


def tilt_for_coherence(coarse_gradient: Any, restricted_gradient: Any) -> Any:
    """$v$: the gradient of the coarse loss at the restricted point, minus the wanted one."""
    return jax.tree.map(jnp.subtract, coarse_gradient, restricted_gradient)
