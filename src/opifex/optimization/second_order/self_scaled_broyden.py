r"""Dense quasi-Newton updates of the self-scaled Broyden family, as an Optax transformation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from opifex.core.checks import check_positive_int

__all__ = ["SelfScaledBroydenState", "scale_by_self_scaled_broyden", "self_scaled_broyden"]


class SelfScaledBroydenState(NamedTuple):
    """What is carried from step to step.

    Attributes:
        inverse: $H$, the approximate inverse of the Hessian, shape (n, n).
        params: parameters of the step before, flat.
        gradient: gradient there.
        direction: the step of length one from there.
        step: how many there were.
    """

    inverse: Float[Array, "n n"]
    params: Float[Array, " n"]
    gradient: Float[Array, " n"]
    direction: Float[Array, " n"]
    step: Int[Array, ""]


class _Step(NamedTuple):
    """A step that was taken, seen through the present approximation.

    Attributes:
        s: the step.
        y: the change of the gradient.
        along: $H y$.
        length: of the step, relative to the direction $-H g$.
        slope: $s^T g$, negative.
    """

    s: Float[Array, " n"]
    y: Float[Array, " n"]
    along: Float[Array, " n"]
    length: Float[Array, ""]
    slope: Float[Array, ""]


class _Update(NamedTuple):
    r"""$H \leftarrow (H - p p^T + \phi q q^T) / \tau + r r^T$."""

    p: Float[Array, " n"]
    q: Float[Array, " n"]
    r: Float[Array, " n"]
    phi: Float[Array, ""]
    tau: Float[Array, ""]

    def matrix(self, inverse: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """The new approximation, in one pass over the old one."""
        changed = inverse - jnp.outer(self.p, self.p) + jnp.outer(self.phi * self.q, self.q)
        return changed / self.tau + jnp.outer(self.r, self.r)

    def product(self, image: Float[Array, " n"], x: Float[Array, " n"]) -> Float[Array, " n"]:
        """The new approximation times a vector, from the old one times it."""
        changed = image - self.p * (self.p @ x) + self.phi * self.q * (self.q @ x)
        return changed / self.tau + self.r * (self.r @ x)


def _update(step: _Step) -> _Update:
    """The member of the family for a step of positive curvature."""
    tiny = jnp.finfo(step.s.dtype).eps
    curvature, along_y = step.y @ step.s, step.along @ step.y
    h, b = along_y / curvature, -step.length * step.slope / curvature
    a = jnp.maximum(h * b - 1.0, 0.0)  # nonnegative by Cauchy and Schwarz
    low = jnp.minimum(1.0, h * (1.0 - jnp.sqrt(a / (1.0 + a))))
    least, most = (low - 1.0) / jnp.maximum(a, tiny), 1.0 / jnp.maximum(low, tiny)
    theta = jnp.maximum(least, jnp.minimum(most, (1.0 - b) / jnp.maximum(b, tiny)))
    sigma = jnp.maximum(1.0 + theta * a, tiny)
    root = sigma ** (-1.0 / max(step.s.size - 1, 1))
    scale = jnp.minimum(1.0, 1.0 / jnp.maximum(b, tiny))
    tau = jnp.where(
        theta > 0,
        scale * jnp.minimum(root, 1.0 / jnp.maximum(theta, tiny)),
        jnp.minimum(scale * root, sigma),
    )
    phi = (1.0 - theta) / sigma
    v = jnp.sqrt(along_y) * (step.s / curvature - step.along / along_y)
    return _Update(
        step.along / jnp.sqrt(along_y),
        v,
        step.s / jnp.sqrt(curvature),
        phi,
        tau,
    )


def scale_by_self_scaled_broyden() -> optax.GradientTransformationExtraArgs:
    r"""Turns a gradient into the direction $-H g$ with a self-scaled Broyden update of $H$.

    $H$ approximates the inverse of the Hessian. After a step $s$ that changed the gradient by $y$ it
    becomes
    $\frac{1}{\tau}\left(H - \frac{H y y^T H}{y^T H y} + \phi\, v v^T\right) + \frac{s s^T}{y^T s}$
    with $v = \sqrt{y^T H y}\,(s / y^T s - H y / y^T H y)$; $\phi = 1$ and $\tau = 1$ would be BFGS. The
    numbers $\tau$ and $\phi$ of Al-Baali (as collected for PINNs by Urbán, Stefanou and Pons,
    J. Comput. Phys. 523, 2025, section 3) keep the eigenvalues of $H$ from spreading, which matters
    where the Hessian is as ill conditioned as that of a PINN. The matrix is kept: memory and work of a
    step grow with the square of the number of parameters.

    It must be followed by a line search, see `self_scaled_broyden`.
    """

    def init(params: Any) -> SelfScaledBroydenState:
        flat, _ = ravel_pytree(params)
        return SelfScaledBroydenState(
            inverse=jnp.eye(flat.size, dtype=flat.dtype),
            # Separate buffers, since each is donated to the next step.
            params=jnp.zeros_like(flat),
            gradient=jnp.zeros_like(flat),
            direction=jnp.zeros_like(flat),
            step=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Any, state: SelfScaledBroydenState, params: Any = None, **extra: Any
    ) -> tuple[Any, SelfScaledBroydenState]:
        del extra  # what line searches are given
        if params is None:
            raise ValueError(
                "params must be given to update: the method compares parameters of two steps"
            )
        gradient, unravel = ravel_pytree(updates)
        flat, _ = ravel_pytree(params)
        s, y = flat - state.params, gradient - state.gradient
        image = state.inverse @ gradient
        squared = state.direction @ state.direction
        length = (s @ state.direction) / jnp.where(squared > 0, squared, 1.0)
        # The direction was -H g with the same H, so that one product gives both.
        taken = _Step(s, y, image + state.direction, length, s @ state.gradient)
        curvature = y @ s
        tiny = jnp.finfo(flat.dtype).eps

        def start() -> tuple[Array, Array]:
            # A step of length one has at most length one, not the size of the gradient.
            size = 1.0 / jnp.maximum(jnp.linalg.norm(gradient), 1.0)
            return size * jnp.eye(flat.size, dtype=flat.dtype), -size * gradient

        def proceed() -> tuple[Array, Array]:
            change = _update(taken)
            return change.matrix(state.inverse), -change.product(image, gradient)

        def rescale() -> tuple[Array, Array]:
            # Before the first update H takes the scale of the function, as for BFGS (Nocedal and
            # Wright, Numerical Optimization, 2006, equation 6.20); the step was longer then.
            size = curvature / (y @ y) / state.inverse[0, 0]
            change = _update(taken._replace(along=size * taken.along, length=length / size))
            return (
                change.matrix(size * state.inverse),
                -change.product(size * image, gradient),
            )

        def keep() -> tuple[Array, Array]:
            return state.inverse, -image

        usable = curvature > tiny * jnp.linalg.norm(y) * jnp.linalg.norm(s)
        usable &= taken.along @ y > 0
        case = jnp.where((state.step > 0) & ~usable, 3, jnp.minimum(state.step, 2))
        inverse, direction = jax.lax.switch(case, (start, rescale, proceed, keep))
        # Rounding may cost H its definiteness: then begin again from the gradient.
        lost = ~(direction @ gradient < 0)
        inverse, direction = jax.lax.cond(lost, start, lambda: (inverse, direction))
        step = jnp.where(lost, 0, state.step) + 1
        return unravel(direction), SelfScaledBroydenState(inverse, flat, gradient, direction, step)

    return optax.GradientTransformationExtraArgs(init, update)


def self_scaled_broyden(
    max_backtracking_steps: int = 20,
) -> optax.GradientTransformationExtraArgs:
    """Self-scaled Broyden steps with a backtracking line search that tries the full step first.

    An Optax transformation: give it to a trainer as any optimizer, or call ``update`` with ``value``,
    ``grad`` and ``value_fn`` as Optax's line searches want. Full batches only: it compares gradients.

    Args:
        max_backtracking_steps: halvings at most, at least one.

    Raises:
        ValueError: if the number is not positive.
        TypeError: if it is not an integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from opifex.optimization.second_order import self_scaled_broyden
        >>> loss = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> x, method = jnp.zeros(2), self_scaled_broyden()
        >>> state = method.init(x)
        >>> @jax.jit
        ... def step(x, state):
        ...     value, grad = jax.value_and_grad(loss)(x)
        ...     updates, state = method.update(
        ...         grad, state, x, value=value, grad=grad, value_fn=loss
        ...     )
        ...     return optax.apply_updates(x, updates), state
        >>> for _ in range(60):
        ...     x, state = step(x, state)
        >>> bool(loss(x) < 1e-6)
        True
    """
    check_positive_int("max_backtracking_steps", max_backtracking_steps)
    return optax.chain(
        scale_by_self_scaled_broyden(),
        optax.scale_by_backtracking_linesearch(
            max_backtracking_steps=max_backtracking_steps, decrease_factor=0.5, store_grad=False
        ),
    )
