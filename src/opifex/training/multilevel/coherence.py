r"""First-order coherence: what makes a coarse objective agree with a fine one (MG/OPT).

Between neighbouring levels, $P$ pads a coarse parameter tree with zeros (`prolongate_correction`) and
$R$ truncates a fine one (`restrict` for parameters, `restrict_gradient` for gradients). Both are
linear, $R = P^T$ and $R P = I$. At a fine point $x_h$ with gradient $g_h$ of the present
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

__all__ = ["tilt_for_coherence"]


def tilt_for_coherence(coarse_gradient: Any, restricted_gradient: Any) -> Any:
    r"""$v$: the gradient of the coarse loss at the restricted point, minus the wanted one.

    Args:
        coarse_gradient: $\nabla F_H(R x_h)$.
        restricted_gradient: $c\, P^T g_h$, a tree of the same structure.
    """
    return jax.tree.map(jnp.subtract, coarse_gradient, restricted_gradient)
